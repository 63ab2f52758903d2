"""The parts in which our MEGABYTE and PyPI's MEGABYTE-pytorch are the same, computed live on random weights.

As a whole they are two models. The peer's is not the paper's: it shifts features from byte to byte as RWKV does, has a
start token and embeddings of its own at each stage, and predicts the first byte of a patch at the last place of the one
before. Its feed-forward is a GELU with biases, ours a SwiGLU. What is compared is the norm, the rotary causal attention
of both stages, in patches and over them, the residual stream through several layers, and gradients: our towers with a
feed-forward of zero, against the peer's attention without its shift.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from MEGABYTE_pytorch.megabyte import Attention, RMSNorm, RotaryEmbedding, Transformer, token_shift

from bltjax.baselines.megabyte import GlobalModel, LocalModel
from bltjax.config import MegabyteConfig, TransformerConfig
from tests.dense import random_params

HEADS, HEAD_WIDTH, LAYERS = 4, 8, 3
PATCH, PATCHES, BATCH = 6, 5, 2
WIDTH = HEADS * HEAD_WIDTH
TOLERANCE = 2e-5  # of float32 sums in another order, relative to the largest value

torch.set_num_threads(2)


def configuration(width: int) -> MegabyteConfig:
    def tower(width: int) -> TransformerConfig:
        heads = width // HEAD_WIDTH
        return TransformerConfig(width, LAYERS, heads, hidden=8, rope_theta=10_000.0, norm_epsilon=1e-16)

    return MegabyteConfig(tower(PATCH * 8), tower(width), patch_bytes=PATCH, context_bytes=PATCH * PATCHES)


def ours(module, x, seed):
    """A tower's random params, whose feed-forward adds nothing."""
    documents = jnp.zeros(x.shape[:2], jnp.int32)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x, documents))["params"]
    params = random_params(shapes, seed)
    params["layers"]["feed_forward"]["down"]["kernel"][:] = 0

    def apply(x):
        return module.apply({"params": params}, x, documents)

    return params, apply


def theirs(params, width):
    """The same attention and norms by the peer, in 64 bits: what differs is our rounding alone."""
    heads = width // HEAD_WIDTH
    halves = [*range(0, HEAD_WIDTH, 2), *range(1, HEAD_WIDTH, 2)]
    tensor = lambda x: torch.nn.Parameter(torch.from_numpy(np.ascontiguousarray(x, np.float64)))  # noqa: E731
    layers = []
    for index in range(LAYERS):
        own = jax.tree.map(lambda leaf, index=index: leaf[index], params["layers"])
        attention, kernels = Attention(dim=width, dim_head=HEAD_WIDTH, heads=heads), own["attention"]
        # The peer rotates features i and i + half of a head together, ours 2 i and 2 i + 1.
        query, key = (kernels[name]["kernel"][..., halves].reshape(width, width).T for name in ("query", "key"))
        value = kernels["value"]["kernel"].reshape(width, width).T
        attention.to_q.weight, attention.to_kv.weight = tensor(query), tensor(np.concatenate([key, value]))
        attention.to_out.weight = tensor(kernels["out"]["kernel"].reshape(width, width).T)
        attention.norm.g = tensor(own["attention_norm"]["scale"])
        layers.append(attention)
    norm = RMSNorm(width)
    norm.g = tensor(params["norm"]["scale"])

    def apply(x):
        angles = RotaryEmbedding(HEAD_WIDTH).double()(x.shape[1])
        for attention in layers:
            x = x + attention(x, angles)
        return norm(x)

    return apply


@pytest.mark.parametrize("stage", ["local", "global"])
def test_attention_norms_and_rotation_of_both_stages_and_their_gradients(stage):
    local = stage == "local"
    config = configuration(WIDTH)
    width = WIDTH if local else config.global_model.width
    length = PATCH * PATCHES if local else PATCHES
    generator = np.random.default_rng(3)
    x, weights = (generator.standard_normal((BATCH, length, width)).astype(np.float32) for _ in range(2))
    params, apply = ours(LocalModel(config) if local else GlobalModel(config), jnp.asarray(x), seed=1)
    value, back = jax.vjp(apply, jnp.asarray(x))
    (gradient,) = back(jnp.asarray(weights))

    # The peer's local stage has each patch as a row of its own.
    tensor = torch.from_numpy(x.reshape(-1, PATCH, width) if local else x).double().requires_grad_()
    expected = theirs(params, width)(tensor)
    (expected * torch.from_numpy(weights).reshape(expected.shape)).sum().backward()
    assert tensor.grad is not None
    for found, wanted in ((value, expected.detach()), (gradient, tensor.grad)):
        wanted = wanted.numpy().reshape(found.shape)
        assert np.abs(wanted).max() > 0.5
        np.testing.assert_allclose(found, wanted, atol=TOLERANCE * np.abs(wanted).max(), rtol=0)


def test_what_differs_is_what_this_file_says():
    """The peer's own tower is the attention above plus a shift, which makes it another function."""
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((1, PATCH, WIDTH)).astype(np.float32))
    torch.manual_seed(0)
    tower = Transformer(dim=WIDTH, layers=1, dim_head=HEAD_WIDTH, heads=HEADS)
    (attention, feed_forward), angles = tower.layers[0], tower.rotary_emb(PATCH)
    torch.nn.init.zeros_(feed_forward[-1].weight)
    torch.nn.init.zeros_(feed_forward[-1].bias)
    torch.testing.assert_close(tower(x), tower.norm(x + attention(token_shift(x), angles)))
    assert (tower(x) - tower.norm(x + attention(x, angles))).abs().max() > 0.01
