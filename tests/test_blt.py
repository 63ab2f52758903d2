import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bltjax.blt import BLT
from bltjax.config import BLTConfig, ComputeConfig, CrossAttentionConfig, HashConfig, TransformerConfig
from bltjax.families import abstract_params
from bltjax.patching import Patches
from tests import dense
from tests.programs import largest_array, quick_jit

BATCH, BYTES, PATCHES = 8, 30, 24
BOS, EOS = 1, 2

LOCAL = TransformerConfig(width=16, layers=1, heads=2, hidden=24, window=5)
LATENT = TransformerConfig(width=32, layers=2, heads=4, hidden=40)
RELEASED = BLTConfig(  # as the released code does it: one encoder layer, no input projection
    encoder=LOCAL,
    global_model=LATENT,
    decoder=dataclasses.replace(LOCAL, layers=2),
    cross_attention=CrossAttentionConfig(k=2),
    hash=HashConfig(sizes=(3, 4), buckets=61),
)
PAPER = BLTConfig(  # every switch the other way
    encoder=dataclasses.replace(LOCAL, layers=2, kv_heads=1),
    global_model=dataclasses.replace(LATENT, width=24, kv_heads=2, window=9),
    decoder=dataclasses.replace(LOCAL, layers=2, kv_heads=1, window=None),
    cross_attention=CrossAttentionConfig(3, 4, 2, "all_repool", "first", "single", "mean"),
    hash=HashConfig((2, 5), 61, 2, normalize=True, power_order="paper", short_ngrams="omit"),
    document_mask=False,
)
CARRIED = BLTConfig(  # patch rows carried through all encoder layers; k = 1; no hashes
    encoder=dataclasses.replace(LOCAL, layers=2),
    global_model=dataclasses.replace(LATENT, width=24),
    decoder=LOCAL,
    cross_attention=CrossAttentionConfig(k=1, encoder="all"),
    hash=HashConfig(sizes=()),
)
CONFIGS = {"released": RELEASED, "paper": PAPER, "carried": CARRIED}


@functools.cache
def params(name):
    return dense.random_params(abstract_params(CONFIGS[name]), seed=4)


def forward(config, params, ids, starts):
    # Patches are made inside the program, where a row with too many of them cannot raise.
    return BLT(config).apply({"params": params}, ids, Patches.from_starts(starts, PATCHES))


@functools.cache
def compiled(config):
    return quick_jit(functools.partial(forward, config))


def run(name, ids, starts):
    return np.asarray(compiled(CONFIGS[name])(params(name), np.int32(ids), starts))


def starts_of(ids):
    """A rule that decides about a start from the byte before it: after a special id, and after some others."""
    starts = np.ones((len(ids), ids.shape[1] + 1), bool)
    starts[:, 2:] = (ids[:, 1:] < 4) | (ids[:, 1:] % 3 == 0)
    return starts


def rows(seed=0):
    ids = np.random.default_rng(seed).integers(4, 260, (BATCH, BYTES))
    ids[:, 0] = BOS
    return ids


def apart(a, b):
    """Largest difference of the logits at every byte, in units of their deviation."""
    return np.abs(a - b).max(axis=-1) / np.std(b)


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_dense_masks_in_float64(name):
    ids = rows()
    ids[0, 9:11] = ids[1, 20:22] = EOS, BOS
    starts = starts_of(ids)
    starts[2, 2:] = False  # one patch for nearly the whole row
    starts[3, 2:16] = True  # and patches of one byte
    logits = run(name, ids, starts)
    want = dense.blt(params(name), CONFIGS[name], ids, starts, PATCHES)
    np.testing.assert_allclose(logits, want, atol=2e-5 * np.abs(want).max())


@pytest.mark.parametrize("patching", ["patched anew", "same patches"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_byte_changes_its_own_logits_and_later_ones_alone(name, patching):
    ids = np.tile(rows()[:1], (BATCH, 1))
    places = [0, 1, 2, 7, 13, 20, BYTES - 1]  # row 0 stays as it is
    for row, t in enumerate(places, start=1):
        ids[row, t] = 5 if ids[row, t] % 3 else 6  # whether a patch starts next changes as well
    starts = starts_of(ids)
    if patching == "same patches":
        starts[:] = starts[0]
    logits = run(name, ids, starts)
    for row, t in enumerate(places, start=1):
        moved = apart(logits[row], logits[0])
        assert (moved[:t] < 1e-4).all(), f"byte {t} is seen before it is read"
        assert moved[t] > 1e-2 and (moved[t : t + 3] > 1e-3).all()
    if name == "released":  # its windows are short: only patches carry a byte this far
        assert (apart(logits[2], logits[0])[1:] > 1e-3).all()


def test_the_logits_of_a_prefix_are_the_first_logits_of_the_row():
    ids = rows(1)
    whole = run("released", ids, starts_of(ids))
    prefix = run("released", ids[:, :17], starts_of(ids[:, :17]))
    np.testing.assert_allclose(prefix, whole[:, :17], atol=1e-5 * np.abs(whole).max())


def test_a_row_does_not_depend_on_the_others():
    ids = rows(2)
    alone = run("released", ids, starts_of(ids))
    others = rows(3)
    others[5] = ids[5]
    others[6, 4] = EOS
    together = run("released", others, starts_of(others))
    np.testing.assert_allclose(together[5], alone[5], atol=1e-5 * np.abs(alone).max())
    order = np.roll(np.arange(BATCH), 3)
    np.testing.assert_allclose(run("released", ids[order], starts_of(ids)[order]), alone[order], atol=1e-4)


def two_documents(seed, first=16):
    ids = rows(seed)
    ids[:, first - 1], ids[:, first] = EOS, BOS
    return ids


def test_the_mask_hides_earlier_documents_but_not_from_hashes():
    """The windows of n-grams cross documents, as in the released code; here the longest is of 4 bytes."""
    ids = two_documents(4)
    changed = ids.copy()
    changed[:, 1:13] = rows(5)[:, 1:13]  # at other patches too: only distances count within the second document
    logits, other = run("released", ids, starts_of(ids)), run("released", changed, starts_of(changed))
    assert (apart(other, logits)[:, 16:] < 1e-3).all()
    assert (apart(other, logits)[:, 1:15].max(axis=1) > 0.1).all()
    changed = ids.copy()
    changed[:, 14] = (ids[:, 14] - 3) % 256 + 4
    other = run("released", changed, starts_of(ids))
    assert (apart(other, logits)[:, 16] > 1e-2).all()


def test_without_hashes_a_document_is_alone():
    ids = two_documents(6)
    changed = ids.copy()
    changed[:, 1:15] = rows(7)[:, 1:15]
    moved = apart(run("carried", changed, starts_of(changed)), run("carried", ids, starts_of(ids)))
    assert (moved[:, 16:] < 1e-3).all()


def test_without_the_mask_documents_see_those_before_them():
    ids = two_documents(8)
    changed = ids.copy()
    changed[:, 10] = (ids[:, 10] - 3) % 256 + 4  # no n-gram of 5 bytes reaches over
    moved = apart(run("paper", changed, starts_of(ids)), run("paper", ids, starts_of(ids)))
    assert (moved[:, 16:].max(axis=1) > 1e-2).all()


def test_padding_changes_nothing_before_it():
    end = 21
    ids = rows(9)
    ids[:, end:] = 0
    starts = starts_of(ids)
    starts[:, end + 1 :] = False  # padding is one patch
    other, other_starts = ids.copy(), starts.copy()
    other[:, end:] = rows(10)[:, end:]
    other_starts[:, end + 1 :] = starts_of(other)[:, end + 1 :]
    logits = run("released", ids, starts)
    assert np.isfinite(logits).all()
    assert (apart(run("released", other, other_starts), logits)[:, :end] < 1e-4).all()


def test_a_row_that_cannot_be_right_is_nan_and_no_other():
    ids = rows(11)
    starts = starts_of(ids)
    logits = run("released", ids, starts)
    broken = starts.copy()
    broken[1, : PATCHES + 2] = True  # one patch too many
    broken[4, 1] = False  # the first patch is longer than its byte
    got = run("released", ids, broken)
    fine = [0, 2, 3, 5, 6, 7]
    assert np.isnan(got[[1, 4]]).all()
    np.testing.assert_array_equal(got[fine], logits[fine])


def test_as_many_patches_as_slots_are_not_too_many():
    ids = rows(12)
    starts = np.zeros((BATCH, BYTES + 1), bool)
    starts[:, :PATCHES] = True
    starts[:, -1] = True  # that of the unseen byte needs no slot
    logits = run("released", ids, starts)
    want = dense.blt(params("released"), RELEASED, ids, starts, PATCHES)
    np.testing.assert_allclose(logits, want, atol=2e-5 * np.abs(want).max())


COMPUTES = {
    "scanned": ComputeConfig(),
    "unrolled, dots kept": ComputeConfig(unroll=True, remat="dots"),
    "recomputed": ComputeConfig(remat="full"),
}
FEW = 2  # rows, for gradients
COTANGENT = np.float32(np.random.default_rng(13).standard_normal((FEW, BYTES, 260)))
# Two layers everywhere, so that a stack is more than a layer.
DEEP = dataclasses.replace(
    PAPER, cross_attention=dataclasses.replace(PAPER.cross_attention, encoder="all", decoder="all", pooling="max")
)


def deep_rows():
    ids = two_documents(14)[:FEW]
    return np.int32(ids), starts_of(ids)


@functools.cache
def logits_and_gradients(name):
    config = dataclasses.replace(DEEP, compute=COMPUTES[name])
    ids, starts = deep_rows()

    def weighed(params):
        logits = forward(config, params, jnp.asarray(ids), starts)
        return jnp.sum(logits * COTANGENT), logits

    deep_params = dense.random_params(abstract_params(DEEP), seed=15, std=0.3)
    (_, logits), gradients = quick_jit(jax.value_and_grad(weighed, has_aux=True))(deep_params)
    return deep_params, np.asarray(logits), gradients


@pytest.mark.slow
def test_every_gradient_is_that_of_finite_differences():
    deep_params, _, gradients = logits_and_gradients("scanned")
    ids, starts = deep_rows()

    def value(changed):
        return np.sum(dense.blt(changed, DEEP, ids, starts, PATCHES) * np.float64(COTANGENT))

    dense.check_gradients(value, deep_params, gradients)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unrolled, dots kept", "recomputed"])
def test_how_layers_are_run_changes_nothing(name):
    _, want, want_gradients = logits_and_gradients("scanned")
    _, logits, gradients = logits_and_gradients(name)
    np.testing.assert_allclose(logits, want, atol=1e-5 * np.abs(want).max())
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, atol=2e-5 * np.abs(other).max()),
        gradients,
        want_gradients,
    )


def test_bfloat16_is_close_and_logits_are_float32():
    ids, small = rows(16), jax.tree.map(lambda leaf: leaf if np.mean(leaf) > 0.5 else leaf / 2, params("released"))
    starts, config = starts_of(ids), dataclasses.replace(RELEASED, compute=ComputeConfig("bfloat16"))
    exact = compiled(RELEASED)(small, np.int32(ids), starts)
    rounded = compiled(config)(small, np.int32(ids), starts)
    assert exact.dtype == rounded.dtype == jnp.float32
    assert 1e-4 < np.linalg.norm(exact - rounded) / np.linalg.norm(exact) < 0.05


def test_bytes_and_patches_of_different_rows_are_refused():
    ids = rows(17)
    patches = Patches.from_starts(starts_of(ids)[:, :-1], PATCHES)
    with pytest.raises(ValueError, match=r"patches are of rows \(8, 29\), ids are \(8, 30\)"):
        BLT(RELEASED).apply({"params": params("released")}, jnp.asarray(ids), patches)


@pytest.mark.parametrize(
    "cross",
    [CrossAttentionConfig(k=2), CrossAttentionConfig(k=2, encoder="all_repool", decoder="first")],
    ids=["released", "paper"],
)
def test_time_is_linear_in_bytes(cross):
    """The largest array of the forward and the backward pass stays below bytes x patches."""
    num_bytes, num_patches = 8192, 2048
    local = TransformerConfig(width=16, layers=2, heads=1, hidden=16, window=512)
    config = BLTConfig(
        encoder=local,
        global_model=TransformerConfig(width=16, layers=1, heads=1, hidden=16),
        decoder=local,
        cross_attention=cross,
        hash=HashConfig(sizes=(3, 4), buckets=64),
    )

    def loss(params, ids, starts):
        patches = Patches.from_starts(starts, num_patches)
        return jnp.sum(BLT(config).apply({"params": params}, ids, patches) ** 2)

    ids = jax.ShapeDtypeStruct((1, num_bytes), jnp.int32)
    starts = jax.ShapeDtypeStruct((1, num_bytes + 1), jnp.bool)
    elements, shape, primitive = largest_array(jax.value_and_grad(loss), abstract_params(config), ids, starts)
    assert elements < num_bytes * num_patches / 2, (shape, primitive)
