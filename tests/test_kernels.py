"""The kernels beside the reference: splash in TPU interpret mode, cuDNN's masks and blocks through XLA's attention."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from bltjax import kernels
from bltjax.attention import attention, backend_of, prove
from bltjax.config import MeshConfig
from bltjax.sharding import make_mesh

# (positions, window, heads, key heads)
CASES = [
    (1, None, 1, 1),
    (130, None, 2, 1),
    (130, 1, 1, 1),
    (131, None, 2, 1),
    (300, 129, 2, 1),
    (640, 200, 1, 1),
    pytest.param(640, None, 1, 1, marks=pytest.mark.slow),  # five blocks of 128
    pytest.param(1024, 512, 1, 1, marks=pytest.mark.slow),  # blocks of 512
]
SPLIT = [(256, None), (256, 40), (264, 40), (264, None), (1024, 300)]


@pytest.fixture(params=["splash", "cudnn"])
def backend(request, monkeypatch):
    if request.param == "cudnn":
        monkeypatch.setattr(kernels, "fused", functools.partial(kernels.fused, implementation="xla"))
    else:
        monkeypatch.setattr(kernels, "splash", functools.partial(kernels.splash, interpret=True))
    return request.param


def inputs(length, heads, key_heads, batch=2):
    draw = np.random.default_rng(length)
    q, slope = 1.5 * draw.standard_normal((2, batch, length, heads, 64))
    k, v = 1.5 * draw.standard_normal((2, batch, length, key_heads, 64))
    documents = np.cumsum(draw.random((batch, length)) < 0.02, axis=1)
    return *(jnp.asarray(x, jnp.float32) for x in (q, k, v)), jnp.asarray(documents, jnp.int32), jnp.float32(slope)


def results(backend, window, q, k, v, documents, slope):
    out, pull = jax.vjp(lambda q, k, v: attention(q, k, v, documents, window, backend), q, k, v)
    return out, *pull(slope)


def compare(found, wanted):
    scale = max(float(jnp.max(jnp.abs(other))) for other in wanted)  # where one key is seen, dq and dk are nothing
    for name, one, other in zip(("out", "dq", "dk", "dv"), found, wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3 * scale, rtol=0, err_msg=name)


@pytest.mark.parametrize(("length", "window", "heads", "key_heads"), CASES)
def test_a_kernel_gives_what_the_reference_gives(backend, length, window, heads, key_heads):
    given = inputs(length, heads, key_heads)
    wanted = jax.jit(functools.partial(results, "reference", window))(*given)
    compare(jax.jit(functools.partial(results, backend, window))(*given), wanted)


@pytest.mark.parametrize(("length", "window"), [(256, None), pytest.param(300, 129, marks=pytest.mark.slow)])
def test_splash_gives_it_in_the_steps_of_a_tpu(length, window):
    given = inputs(length, 2, 1, batch=1)
    wanted = jax.jit(functools.partial(results, "reference", window))(*given)
    with pltpu.force_tpu_interpret_mode():
        compare(jax.jit(functools.partial(results, "splash", window))(*given), wanted)


@pytest.mark.slow
@pytest.mark.parametrize(("length", "window"), SPLIT)
@pytest.mark.parametrize(
    "axes",
    [
        {"data": 2, "sequence": 2, "model": 2},
        *(pytest.param(axes, marks=pytest.mark.thorough) for axes in ({"sequence": 2}, {"sequence": 4})),
    ],
)
def test_on_a_mesh_too(backend, length, window, axes):
    given = inputs(length, 4, 2)
    wanted = jax.jit(functools.partial(results, "reference", window))(*given)
    devices = jax.devices()[: int(np.prod(list(axes.values())))]
    with jax.set_mesh(make_mesh(MeshConfig(**axes), devices)):
        compare(jax.jit(functools.partial(results, backend, window))(*given), wanted)


@pytest.mark.parametrize(("length", "window"), [(131, None), (131, 7), (7, 7), (1, None), (130, 131)])
def test_cudnn_is_given_even_numbers_of_queries_and_keys(length, window, monkeypatch):
    asked = []
    monkeypatch.setattr(kernels, "fused", functools.partial(kernels.fused, implementation="xla"))
    attend = jax.nn.dot_product_attention
    monkeypatch.setattr(
        jax.nn, "dot_product_attention", lambda q, k, v, **more: asked.append((q, k)) or attend(q, k, v, **more)
    )
    q, k, v, documents, _ = inputs(length, 2, 1)
    attention(q, k, v, documents, window, "cudnn")
    assert [(q.shape[1] % 2, k.shape[1] % 2) for q, k in asked] == [(0, 0)]


@pytest.mark.cuda
@pytest.mark.parametrize(
    ("length", "window", "heads", "key_heads"), [*CASES[:-2], (640, None, 4, 4), (1024, 512, 4, 2)]
)
def test_cudnn_on_a_gpu_gives_what_the_reference_gives_in_float32(length, window, heads, key_heads):
    given = inputs(length, heads, key_heads)
    with jax.default_matmul_precision("highest"):
        wanted = jax.jit(functools.partial(results, "reference", window))(*given)
    rounded = [x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x for x in given]
    found = jax.jit(functools.partial(results, "cudnn", window))(*rounded)
    scale = max(float(jnp.max(jnp.abs(other))) for other in wanted)
    for name, one, other in zip(("out", "dq", "dk", "dv"), found, wanted, strict=True):
        np.testing.assert_allclose(np.asarray(one, np.float32), other, atol=0.02 * scale, rtol=0, err_msg=name)


@pytest.mark.parametrize(("dtype", "width"), [("float32", 64), ("bfloat16", 4), ("bfloat16", 136)])
def test_cudnn_takes_no_other_heads_than_it_has_kernels_for(dtype, width):
    q = jnp.zeros((1, 8, 1, width), dtype)
    with pytest.raises(ValueError, match=rf"compute\.attention='cudnn': .* not {dtype} of {width}"):
        attention(q, q, q, backend="cudnn")


def test_a_kernel_that_differs_on_a_device_is_refused(backend, monkeypatch):
    sound = getattr(kernels, "fused" if backend == "cudnn" else "splash")
    prove.cache_clear()
    prove(backend, jax.devices()[0])

    def unsound(q, k, v, documents, window, parts):
        return sound(q, k, v, documents, None if window is None else window + 1, parts)

    monkeypatch.setattr(kernels, "fused" if backend == "cudnn" else "splash", unsound)
    prove.cache_clear()
    with pytest.raises(RuntimeError, match=r"with window=100 differs .* set compute.attention='reference'"):
        prove(backend, jax.devices()[0])
    prove.cache_clear()


def test_a_platform_takes_its_kernel_where_that_is_offered():
    assert {backend_of(platform, "bfloat16", 64) for platform in ("gpu", "cuda")} == {"cudnn"}
    assert {backend_of("gpu", *heads) for heads in (("float32", 64), ("bfloat16", 4), ("bfloat16", 136))} == {
        "reference"
    }
    assert [backend_of(platform, "bfloat16", 64) for platform in ("cpu", "tpu")] == ["reference", "splash"]


@pytest.mark.parametrize(
    ("length", "window", "reach"), [(1024, None, 0), (1024, 300, 0), (512, 300, 384), (256, None, 768)]
)
def test_what_splash_computes_are_the_blocks_in_which_something_is_visible(length, window, reach):
    span = length + reach
    distance = reach + np.arange(length)[:, None] - np.arange(span)
    visible = (distance >= 0) & (distance < (window or span))
    queries, keys = 128, 256 if span % 256 == 0 else 128
    blocks = visible.reshape(length // queries, queries, span // keys, keys).any(axis=(1, 3))
    computed = kernels._computed(length, span, queries, keys, window, reach)
    assert computed == blocks.sum() * queries * keys
    assert computed >= visible.sum()
