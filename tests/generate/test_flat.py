import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bltjax.config import LanguageModelConfig, TransformerConfig
from bltjax.families import abstract_params
from bltjax.generate import flat
from bltjax.transformer import LanguageModel
from tests import dense
from tests.generate.models import EOS, FLAT, random_rows
from tests.programs import quick_jit

BATCH, LENGTH, PART = 4, 30, 8
PROMPTS = np.int32([1, PART, 17, LENGTH])


def incremental(config):
    def run(params, ids):
        prepared = flat.prepare(params)
        out = jnp.zeros((BATCH, LENGTH, config.vocabulary_size))
        rows, padded = jnp.arange(BATCH)[:, None], jnp.pad(ids, ((0, 0), (0, PART)))

        def advance(carry, width, count):
            state, read, out = carry
            places = read[:, None] + jnp.arange(width)
            new = jnp.take_along_axis(padded, places, axis=1)
            x, state = flat.read(config, prepared, state, new, read, count)
            places = jnp.where(jnp.arange(width) < count[:, None], places, LENGTH)
            out = out.at[rows, places].set(flat.logits(config, prepared, x), mode="drop")
            return state, read + count, out

        def part(carry, _):
            return advance(carry, PART, jnp.clip(PROMPTS - carry[1], 0, PART)), None

        def step(carry, _):
            return advance(carry, 1, jnp.int32(carry[1] < LENGTH)), None

        carry = flat.empty(config, BATCH, LENGTH), jnp.zeros(BATCH, jnp.int32), out
        carry, _ = jax.lax.scan(part, carry, length=-(-LENGTH // PART))
        return jax.lax.scan(step, carry, length=LENGTH)[0][2]

    return quick_jit(run)


@pytest.mark.parametrize(
    "config",
    [FLAT, LanguageModelConfig(TransformerConfig(16, 1, 2, hidden=24), vocabulary_size=300, document_mask=False)],
    ids=["window and documents", "neither"],
)
def test_logits_are_those_of_the_parallel_pass(config):
    ids = random_rows(0, BATCH, LENGTH)
    assert (ids == EOS).any()
    params = dense.random_params(
        jax.eval_shape(LanguageModel(config).init, jax.random.key(0), jnp.asarray(ids))["params"], seed=1
    )
    want = quick_jit(LanguageModel(config).apply)({"params": params}, ids)
    np.testing.assert_allclose(incremental(config)(params, ids), want, atol=1e-5 * np.abs(want).max())


def test_what_a_window_needs_is_all_that_is_kept():
    sizes = [
        sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(lambda n=n: flat.empty(FLAT, 1, n))))
        for n in (100, 10_000)
    ]  # fmt: skip
    assert sizes[0] == sizes[1]
    assert abstract_params(FLAT)["layers"]  # the tower is not an empty one
