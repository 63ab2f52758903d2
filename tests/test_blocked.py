import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bltjax.blocked import COLUMNS, SMALLEST, Blocked, in_blocks, in_one_piece
from bltjax.config import ComputeConfig, TransformerConfig
from bltjax.families import abstract_params
from bltjax.generate import state
from bltjax.layers import rotation
from bltjax.presets import PRESETS
from bltjax.sharding import parameter_paths
from bltjax.transformer import TransformerLayer
from tests import dense
from tests.programs import kernels_in_blocks


def blocked_of(kernel, inputs, columns):
    matrix = kernel.reshape(int(np.prod(kernel.shape[:inputs])), -1, columns)
    return Blocked(jnp.asarray(matrix.swapaxes(0, 1)), kernel.shape[:inputs], kernel.shape[inputs:])


@pytest.mark.parametrize("leading", [(1, 1), (3, 1), (2, 5), (2, 2, 3)])
@pytest.mark.parametrize(("shape", "inputs", "columns"), [((12, 24), 1, 8), ((12, 3, 8), 1, 4), ((3, 4, 10), 2, 5)])
def test_a_product_in_blocks_is_that_of_the_whole_kernel(shape, inputs, columns, leading):
    draw = np.random.default_rng(0)
    kernel, x = draw.standard_normal(shape), draw.standard_normal((*leading, *shape[:inputs]))
    kernel, x = np.float32(kernel), np.float32(x)
    found = blocked_of(kernel, inputs, columns).times(jnp.asarray(x))
    want = np.tensordot(np.float64(x), np.float64(kernel), inputs)
    assert found.shape == want.shape
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)


def test_sums_of_low_precision_come_out_in_the_dtype_that_is_asked_for():
    kernel, x = jnp.ones((300, 8)) / 3, jnp.ones((1, 1, 300), jnp.bfloat16)
    kept = blocked_of(kernel, 1, 4)
    assert kept.times(x).dtype == jnp.bfloat16
    exact = kept.times(x, "float32")
    assert exact.dtype == jnp.float32
    np.testing.assert_allclose(exact, 300 * float(jnp.bfloat16(1 / 3)), rtol=1e-6)


def test_layers_of_blocks_compute_what_layers_do():
    config = TransformerConfig(width=16, layers=1, heads=2, kv_heads=1, hidden=24)
    layer = TransformerLayer(config, ComputeConfig())
    x = jax.random.normal(jax.random.key(0), (2, 5, 16))
    given = x, rotation(5, config.head_width, config.rope_theta), None
    shapes = jax.eval_shape(layer.init, jax.random.key(0), *given)["params"]
    params = jax.tree.map(jnp.asarray, dense.random_params(shapes, 1))
    laid_out = in_blocks({"layers": params}, columns=8, smallest=1)["layers"]
    assert len(kernels_in_blocks(laid_out)) == 7, "every kernel of a layer"
    want, found = (layer.apply({"params": each}, *given) for each in (params, laid_out))
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, in_one_piece(laid_out), params)


def test_large_kernels_of_layers_lie_in_blocks_and_nothing_else_does():
    shapes = (abstract_params(PRESETS[name]) for name in ("blt-bench", "entropy-cpu"))
    params = jax.eval_shape(state.prepare, *shapes)
    laid_out = jax.eval_shape(in_blocks, params)
    whole, kept = ({path: leaf.size for path, leaf in parameter_paths(each)} for each in (params, laid_out))
    taken = set(whole) - set(kept)
    assert len(taken) == 7 * (1 + 12 + 6) + 4 * (1 + 6), "seven a layer, four a cross-attention"
    assert all(path.endswith("kernel") and whole[path] >= SMALLEST for path in taken)
    assert all(whole[path] < SMALLEST for path in kept if "layers/" in path and path.endswith("kernel"))
    again = jax.eval_shape(in_one_piece, laid_out)
    assert all(jax.tree.leaves(jax.tree.map(lambda one, other: one.shape == other.shape, again, params)))


def test_a_step_lays_no_kernel_out_anew():
    kernel = blocked_of(jnp.ones((512, 1024)), 1, COLUMNS)

    def largest_made(program, *given):
        """Numbers of the largest array that a compiled program makes."""
        text = jax.jit(program).lower(*given).compile().as_text()
        made = re.findall(r"= f32\[([\d,]+)\]\S* (?!parameter|bitcast)", text)
        return max(np.prod([int(size) for size in shape.split(",")]) for shape in made)

    for rows in (1, 8):
        assert largest_made(lambda kernel, x: kernel.times(x), kernel, jnp.ones((rows, 1, 512))) < 512 * 1024
    assert largest_made(in_one_piece, kernel) == 512 * 1024
