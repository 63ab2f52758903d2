import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bltjax.baselines.megabyte import Megabyte
from bltjax.config import MegabyteConfig, TransformerConfig
from bltjax.families import abstract_params
from bltjax.patching import Patches
from tests import dense
from tests.programs import quick_jit

BYTES = 22  # no whole number of patches
LATENT = TransformerConfig(24, 2, 2, kv_heads=1, hidden=32)
LOCAL = TransformerConfig(16, 2, 4, kv_heads=2, hidden=24)
BASIC = MegabyteConfig(LATENT, LOCAL, patch_bytes=4, context_bytes=40)
EXTENDED = dataclasses.replace(BASIC, patch_encoder="convolution", cross_patch_bytes=3)
VARIANTS = {
    "basic": BASIC,
    "as in the paper, without a mask": dataclasses.replace(BASIC, document_mask=False),
    "convolution": dataclasses.replace(BASIC, patch_encoder="convolution"),
    "cross-patch attention": dataclasses.replace(BASIC, cross_patch_bytes=2),
    "both extensions": EXTENDED,
    "patches of one byte": dataclasses.replace(BASIC, patch_bytes=1, cross_patch_bytes=1),
    "one patch": dataclasses.replace(BASIC, patch_bytes=24),
}
QUICK = "both extensions"
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS if name != QUICK]


@functools.cache
def forward(config):
    return quick_jit(lambda params, ids: Megabyte(config).apply({"params": params}, ids))


@functools.cache
def params_of(config):
    return dense.random_params(abstract_params(config), seed=0)


def rows():
    """Documents end in the middle of a patch, at its last byte and just after it."""
    ids = np.random.default_rng(1).integers(4, 260, (4, BYTES), dtype=np.int32)
    ids[0, 0], ids[1, 9], ids[2, 12], ids[3, [7, 13, 14]] = 1, dense.EOS, dense.EOS, dense.EOS
    return ids


def convolved(p, x, documents):
    for length in (3, 5, 7):
        kernel, out = p[f"convolution_{length}"]["kernel"], np.zeros_like(x)
        for t in range(len(x)):
            for tap in range(length):
                seen = t - length + 1 + tap
                if seen >= 0 and documents[seen] == documents[t]:
                    out[t] += x[seen] @ kernel[tap]
        x = x + out / (1 + np.exp(-out))
    return x


def megabyte(params, config, ids):
    """Logits from equations 1 to 6 of the paper, one row, patch and byte after the other.

    The patches are those of the row's bytes 1, 2, .., whose predictions stand at 0, 1, ..; byte 0 lies in the pad.
    """
    p, size = jax.tree.map(np.float64, params), config.patch_bytes
    patches = -(-ids.shape[1] // size)
    out = []
    for row in np.pad(ids, ((0, 0), (0, patches * size - ids.shape[1]))):
        documents = dense.documents_of(row[None] == dense.EOS)[0] * config.document_mask
        # Equation 1: embeddings and positions.
        x = p["global_embedding"]["table"][row]
        x[1:] += p["position_embedding"]["table"][: len(row) - 1]
        if config.patch_encoder == "convolution":
            x = convolved(p["patch_encoder"], x, documents)
        # Equation 2: patches of concatenated bytes, moved on by one; a pad before the first.
        pad, inputs = p["global_pad"]["table"], []
        for k in range(patches):
            slots = []
            for place in range(size):
                t = (k - 1) * size + 1 + place
                own = t >= 0 and documents[t] == documents[k * size]
                slots.append((x[t] if own else 0) + (0 if own and t > 0 else pad[place]))
            inputs.append(np.concatenate(slots))
        # Equation 3.
        h, of_patches = np.stack(inputs)[None], documents[None, ::size]
        for index in range(config.global_model.layers):
            h = dense.layer(dense.layer_of(p["global_model"]["layers"], index), config.global_model, h, of_patches)
        h = dense.rms_norm(h, p["global_model"]["norm"]["scale"])[0].reshape(patches, size, -1)
        # Equation 4: each byte of a patch reads its own part of the patch, and the byte before it.
        table, w = p["local_embedding"]["table"], p["global_projection"]["kernel"]
        x = np.stack(
            [
                (h[t // size, t % size] @ w if documents[t] == documents[t - t % size] else 0)
                + (p["local_pad"]["table"][0] if t % size == 0 else table[row[t]])
                for t in range(len(row))
            ]
        )[None]
        # Equation 5.
        t = np.arange(len(row))
        behind = t[:, None] // size - t // size
        near = (behind == 0) | ((behind == 1) & (t % size >= size - config.cross_patch_bytes))
        visible = near & (t[:, None] >= t) & (documents[:, None] == documents)
        for index in range(config.local_model.layers):
            of_layer = dense.layer_of(p["local_model"]["layers"], index)
            x = dense.layer(of_layer, config.local_model, x, documents[None], visible[None])
        # Equation 6: the output is the embedding.
        out.append(dense.rms_norm(x, p["local_model"]["norm"]["scale"])[0] @ table.T)
    return np.stack(out)[:, : ids.shape[1]]


@pytest.mark.parametrize("variant", [QUICK, *SLOW])
def test_logits_are_those_of_the_papers_equations(variant):
    config = VARIANTS[variant]
    want = megabyte(params_of(config), config, rows())
    np.testing.assert_allclose(forward(config)(params_of(config), rows()), want, atol=2e-5 * np.abs(want).max())


@pytest.mark.slow
def test_gradients_are_those_of_the_papers_equations_and_reach_every_parameter():
    params, ids = params_of(EXTENDED), rows()[2:]
    weights = np.random.default_rng(2).normal(size=(*ids.shape, 260))
    gradients = quick_jit(
        jax.grad(lambda params: jnp.sum(Megabyte(EXTENDED).apply({"params": params}, ids) * weights))
    )(params)  # fmt: skip
    assert {"global_pad", "local_pad", "position_embedding", "patch_encoder"} < set(gradients)
    dense.check_gradients(lambda params: np.sum(megabyte(params, EXTENDED, ids) * weights), params, gradients)


def support(config, params, length=BYTES):
    """Whether the logits at t move with byte j: [j, t]."""
    ids = np.random.default_rng(3).integers(4, 260, (1, length), dtype=np.int32)
    changed = np.repeat(ids, length, axis=0)
    np.fill_diagonal(changed, (changed.diagonal() - 4 + 99) % 256 + 4)
    logits = np.asarray(forward(config)(params, np.concatenate([ids, changed])))
    moved = np.abs(logits[1:] - logits[0]).max(axis=-1)
    assert not ((moved > 1e-6) & (moved < 1e-5)).any(), "neither moved nor still"
    return moved > 1e-5


def places(size):
    """Byte j, position t, and the row's position before which patch t // size begins; as [j, t]."""
    j, t = np.arange(BYTES)[:, None], np.arange(BYTES)
    return j, t, t - t % size


@pytest.mark.parametrize("size", [4, *(pytest.param(size, marks=pytest.mark.slow) for size in (1, 2, 24))])
def test_each_byte_sees_whole_patches_before_its_own_and_the_bytes_before_it(size):
    config = dataclasses.replace(BASIC, patch_bytes=size)
    j, t, begin = places(size)
    np.testing.assert_array_equal(support(config, params_of(config)), j <= t)
    # Through the global model alone, which a local model without layers leaves, but for the byte before: patches < k.
    alone = dataclasses.replace(config, local_model=dataclasses.replace(LOCAL, layers=0))
    np.testing.assert_array_equal(support(alone, params_of(alone)), (j <= begin) | ((j == t) & (t > begin)))
    # Through the local model alone: the bytes of its own patch before it. The first sees nothing.
    deaf = {**params_of(config), "global_projection": {"kernel": np.zeros((24 // size, 16), np.float32)}}
    np.testing.assert_array_equal(support(config, deaf), (j > begin) & (j <= t))


@pytest.mark.slow
@pytest.mark.parametrize("cross", [1, 4])
def test_cross_patch_attention_reaches_so_many_bytes_into_the_patch_before(cross):
    config = dataclasses.replace(
        BASIC, cross_patch_bytes=cross, local_model=dataclasses.replace(LOCAL, layers=1)
    )  # one layer: several reach further, through the bytes that they read
    j, t, begin = places(4)
    deaf = {**params_of(config), "global_projection": {"kernel": np.zeros((6, 16), np.float32)}}
    # At a patch's first position stands the pad, which tells nothing of any byte.
    before = (j >= begin - cross) & (j < begin) & (j % 4 > 0)
    np.testing.assert_array_equal(support(config, deaf), before | ((j > begin) & (j <= t)))
    np.testing.assert_array_equal(support(config, params_of(config)), j <= t)


def test_what_an_eos_ended_is_not_read():
    params, t = params_of(EXTENDED), np.arange(BYTES)
    ids, end = rows(), np.array([[0], [9], [12], [14]])
    changed = np.where((t < end) & (ids != dense.EOS), (ids + 55) % 256 + 4, ids)
    before, after = (np.asarray(forward(EXTENDED)(params, each)) for each in (ids, changed))
    moved = np.abs(after - before).max(axis=-1)
    assert (moved[t > end] < 1e-5).all() and (moved[:3][(t < end)[:3]] > 1e-3).all()


@pytest.mark.slow
def test_without_a_mask_everything_is_read():
    config, t = VARIANTS["as in the paper, without a mask"], np.arange(BYTES)
    ids = rows()
    changed = np.where(t < 5, (ids + 55) % 256 + 4, ids)
    before, after = (np.asarray(forward(config)(params_of(config), each)) for each in (ids, changed))
    assert (np.abs(after - before).max(axis=-1)[:, 5:] > 1e-3).all()


@pytest.mark.parametrize("length", [5, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 3, 4, 8))])
def test_the_beginning_of_a_row_is_a_row(length):
    params = params_of(EXTENDED)
    whole, part = (np.asarray(forward(EXTENDED)(params, ids)) for ids in (rows(), rows()[:, :length]))
    np.testing.assert_allclose(part, whole[:, :length], atol=1e-5 * np.abs(whole).max())


@pytest.mark.parametrize("variant", [QUICK, pytest.param("as in the paper, without a mask", marks=pytest.mark.slow)])
def test_strided_inference_takes_the_first_half_of_each_patch_of_two_passes(variant):
    config, params = VARIANTS[variant], params_of(VARIANTS[variant])
    # Half a patch of what is not read is what the second pass begins with: here, ends of documents.
    masked = dataclasses.replace(config, document_mask=True)
    ids = rows() if config.document_mask else np.where(rows() == dense.EOS, 77, rows())
    later = forward(masked)(params, np.pad(ids, ((0, 0), (2, 0)), constant_values=dense.EOS))[:, 2:]
    early = (np.arange(BYTES) % 4 < 2)[:, None]
    want = np.where(early, forward(masked)(params, ids), later)
    got = forward(dataclasses.replace(config, inference="strided"))(params, ids)
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


@pytest.mark.slow
def test_strided_inference_sees_all_bytes_so_far_and_every_context_that_the_model_has():
    config = dataclasses.replace(BASIC, inference="strided", context_bytes=BYTES)
    j, t, _ = places(4)
    np.testing.assert_array_equal(support(config, params_of(config)), j <= t)


def test_a_row_longer_than_the_table_of_positions_is_refused():
    short = dataclasses.replace(BASIC, context_bytes=16)
    with pytest.raises(ValueError, match="context_bytes=16: too few positions for rows of 22 bytes"):
        jax.eval_shape(lambda: Megabyte(short).apply({"params": abstract_params(short)}, rows()))


def test_patches_are_its_own(unchecked):
    patches = Patches.from_starts(np.ones((4, BYTES + 1), bool), BYTES)
    with pytest.raises(ValueError, match="patches: MEGABYTE cuts its own"):
        jax.eval_shape(lambda: Megabyte(BASIC).apply({"params": abstract_params(BASIC)}, rows(), patches))
