"""A model as an NNX module, for projects built on Flax NNX: the parameters become `nnx.Param`, the mathematics stays.

model = to_nnx(pretrained.config, pretrained.params)
logits = model(ids, patches)
loss, gradients = nnx.value_and_grad(loss_of)(model)
params = from_nnx(model)      # the plain nested dict again, for `apply`, `save_pretrained`, checkpoints
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bltjax import families
from bltjax.config import ModelConfig


def to_nnx(config: ModelConfig, params: Any) -> nnx.bridge.ToNNX:
    """An NNX module that computes what the Linen module of the configuration does.

    Args:
      params: of the model, e.g. from `families.initialize` or a checkpoint; NumPy arrays become JAX arrays.

    Raises:
      ValueError: for params that are not those of the configuration.
    """
    expected, found = families.abstract_params(config), jax.tree.map(jnp.asarray, params)
    if jax.tree.map(jnp.shape, expected) != jax.tree.map(jnp.shape, found):
        raise ValueError(f"params are not those of this {type(config).__name__}: their names or shapes differ.")
    model = nnx.bridge.ToNNX(families.build(config))
    for name, leaves in found.items():
        # What ToNNX.lazy_init does, without computing and throwing away fresh parameters first.
        setattr(model, name, nnx.data(jax.tree.map(nnx.Param, leaves)))
    return model


def from_nnx(model: nnx.Module) -> dict[str, Any]:
    """The params of a module made by `to_nnx`, as they are now: a plain nested dict of JAX arrays."""
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))
