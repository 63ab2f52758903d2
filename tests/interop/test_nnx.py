"""The NNX face of a model: the same numbers, the same gradients, and it can be trained and handed back."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bltjax import families
from bltjax.interop.nnx import from_nnx, to_nnx
from bltjax.patching import Patches
from bltjax.presets import preset

IDS = jnp.asarray(np.random.default_rng(0).integers(4, 260, (2, 12)))
STARTS = jnp.asarray(np.arange(13) % 3 < 2)[None].repeat(2, axis=0)


def random_params(config):
    draw = np.random.default_rng(1)
    return jax.tree.map(
        lambda s: (0.5 * draw.normal(size=s.shape)).astype(np.float32), families.abstract_params(config)
    )


def test_same_logits():
    config = preset("blt-tiny")
    patches = Patches.from_starts(STARTS, 9)
    params = random_params(config)
    model = to_nnx(config, params)
    expected = jax.jit(families.build(config).apply)({"params": params}, IDS, patches)
    np.testing.assert_allclose(nnx.jit(lambda model: model(IDS, patches))(model), expected, rtol=1e-5, atol=1e-5)


def test_same_gradients():
    config = preset("entropy-tiny")
    params = random_params(config)
    model, module = to_nnx(config, params), families.build(config)
    gradients = jax.jit(jax.grad(lambda params: jnp.mean(module.apply({"params": params}, IDS)[..., 7] ** 2)))(params)
    found = nnx.to_pure_dict(nnx.jit(nnx.grad(lambda model: jnp.mean(model(IDS)[..., 7] ** 2)))(model))
    assert jax.tree.structure(found) == jax.tree.structure(gradients)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, gradients)


def test_trained_by_nnx_and_handed_back():
    config = preset("entropy-tiny")
    params = random_params(config)
    model = to_nnx(config, params)
    optimizer = nnx.Optimizer(model, optax.sgd(0.5), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        loss, gradients = nnx.value_and_grad(lambda model: -jnp.mean(jax.nn.log_softmax(model(IDS))[..., 7]))(model)
        optimizer.update(model, gradients)
        return loss

    losses = [float(step(model, optimizer)) for _ in range(5)]
    assert losses[-1] < losses[0] - 0.1
    trained = from_nnx(model)
    assert jax.tree.structure(trained) == jax.tree.structure(params)
    logits = families.build(config).apply({"params": trained}, IDS, None)
    np.testing.assert_allclose(model(IDS), logits, rtol=1e-6)


def test_params_of_another_model_are_refused():
    params = random_params(preset("entropy-tiny"))
    with pytest.raises(ValueError, match="EntropyModelConfig"):
        to_nnx(preset("entropy-tiny"), {**params, "bias": jnp.zeros(3)})
    with pytest.raises(ValueError, match="BLTConfig"):
        to_nnx(preset("blt-tiny"), params)
