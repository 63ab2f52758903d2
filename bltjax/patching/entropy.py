"""Patches that start where the next byte is hard to predict (BLT paper section 2.3)."""

from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32

from bltjax.patching.patches import delayed

EntropyRule = Literal["global", "monotonic", "add"]


def next_byte_entropy(logits: Float[Array, "batch bytes vocabulary"]) -> Float32[Array, "batch bytes"]:
    """Entropy in nats of the distribution that the logits at each byte give to the byte after it (eq. 1).

    A logit of minus infinity has probability 0 and adds nothing.
    """
    logits = jnp.asarray(logits, jnp.float32)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    weights = jnp.exp(shifted)
    total = weights.sum(axis=-1)
    # Both terms are non-negative, so nothing cancels where the model is nearly certain.
    return jnp.log(total) - jnp.where(weights > 0, weights * shifted, 0).sum(axis=-1) / total


def entropy_scores(
    entropies: Float[Array | np.ndarray, "batch bytes"],
    rule: EntropyRule = "global",
    threshold_add: float | None = None,
    documents: Bool[Array | np.ndarray, "batch bytes+1"] | None = None,
) -> tuple[Any, Any]:
    """What the threshold is compared with at each position, and the starts that hold whatever the threshold.

    Position s is a start if it is forced or its score exceeds the threshold. Arguments as for `entropy_starts`;
    numpy arrays give numpy arrays.

    Returns:
      float32 scores [batch, N + 1], minus infinity where no threshold makes a start; forced bool [batch, N + 1].
    """
    if rule not in ("global", "monotonic", "add"):
        raise ValueError(f"rule={rule!r}: choose 'global', 'monotonic' or 'add'.")
    if (rule == "add") != (threshold_add is not None):
        raise ValueError(f"threshold_add={threshold_add!r}: the rule 'add' needs it, in nats, and no other takes it.")
    xp = entropies.__array_namespace__()
    batch, length = entropies.shape
    if documents is None:
        documents = xp.broadcast_to(xp.arange(length + 1) == 0, (batch, length + 1))
    second = delayed(documents, 1, False)
    # Float16 is widened first: numpy would otherwise round the threshold to float16 as well.
    newest = xp.concatenate([xp.zeros((batch, 1), dtype=xp.float32), entropies.astype(xp.float32)], axis=1)
    if rule == "global":
        return newest, documents | second
    rise = newest - delayed(newest, 1, 0)
    third = delayed(documents, 2, False)
    forced = documents | second | third
    if rule == "monotonic":
        return rise, forced
    allowed = (rise > threshold_add) & ~delayed(third, 1, False)
    return xp.where(allowed, newest, xp.float32(-np.inf)), forced


def entropy_starts(
    entropies: Float[Array | np.ndarray, "batch bytes"],
    threshold: float | Float[Array, ""],
    rule: EntropyRule = "global",
    threshold_add: float | None = None,
    documents: Bool[Array | np.ndarray, "batch bytes+1"] | None = None,
) -> Bool[Array | np.ndarray, "batch bytes+1"]:
    """Patch starts by entropy; position N, the last, is the unseen byte after the row.

    A document's positions 0 and 1 always start a patch. With H the entropies, a later position s starts one iff

    - "global": H[s-1] > threshold;
    - "monotonic": H[s-1] - H[s-2] > threshold;
    - "add": H[s-1] > threshold and H[s-1] - H[s-2] > threshold_add.

    As in the released code and unlike the paper, "monotonic" and "add" always start a patch at position 2, and
    "add" never at position 3.

    Args:
      entropies: nats; entry t is the uncertainty about byte t + 1. Numpy arrays give a numpy array.
      threshold: nats.
      rule: see above; the paper's global threshold is "global", its approximate monotonic constraint "monotonic".
      threshold_add: nats, for "add".
      documents: where a document begins; each is patched alone. None: the row is one document.

    Raises:
      ValueError: for an unknown rule, or a `threshold_add` missing or superfluous.
    """
    scores, forced = entropy_scores(entropies, rule, threshold_add, documents)
    return forced | (scores > threshold)
