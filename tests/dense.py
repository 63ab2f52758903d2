"""The models once more, as the paper's equations read: float64 NumPy, dense masks, loops over patches and layers.

What the package computes in blocks, segments and scans is compared with this. Nothing here is fast, and nothing is
shared with the package but the configurations and the primes of the hashes.
"""

import jax
import numpy as np

from bltjax.config import BLTConfig, HashConfig, LanguageModelConfig, TransformerConfig
from bltjax.hashing import MULTIPLIERS

EOS = 2


def random_params(shapes, seed, std=0.5):
    """Params of the given shapes: normal, and for norms 1 plus half as much."""
    draw = np.random.default_rng(seed)

    def fill(path, leaf):
        noise = draw.standard_normal(leaf.shape)
        return np.float32(1 + 0.5 * std * noise if path[-1].key == "scale" else std * noise)

    return jax.tree_util.tree_map_with_path(fill, shapes)


def layer_of(params, index):
    return jax.tree.map(lambda leaf: leaf[index], params)


def documents_of(is_eos):
    """Number of the document of each place: how many ended before it."""
    return np.cumsum(is_eos, axis=1) - is_eos


def attend(q, k, v, visible):
    """softmax(q k / sqrt(head width)) v over what is visible [batch, queries, keys]; 0 where nothing is."""
    groups = q.shape[2] // k.shape[2]
    k, v = np.repeat(k, groups, axis=2), np.repeat(v, groups, axis=2)
    scores = np.einsum("bqhd,bmhd->bhqm", q, k) / np.sqrt(q.shape[-1])
    scores = np.where(visible[:, None], scores, -np.inf)
    weights = np.exp(scores - np.max(scores, axis=-1, keepdims=True, initial=-1e300))
    total = weights.sum(axis=-1, keepdims=True)
    return np.einsum("bhqm,bmhd->bqhd", weights / np.where(total == 0, 1, total), v)


def causal_mask(documents, window=None):
    place = np.arange(documents.shape[1])
    distance = place[:, None] - place
    near = (distance >= 0) & (distance < (window or place.size))
    return near & (documents[:, :, None] == documents[:, None, :])


def rms_norm(x, scale, epsilon=1e-5):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + epsilon) * scale


def rotate(x, theta):
    """Pairs (2 i, 2 i + 1) of [batch, positions, heads, head width] as complex numbers, turned by position."""
    half = x.shape[-1] // 2
    angles = np.arange(x.shape[1])[:, None] * theta ** (-np.arange(half) / half)
    turned = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * angles)[:, None]
    return np.stack((turned.real, turned.imag), axis=-1).reshape(x.shape)


def heads_of(x, kernel):
    return np.einsum("blw,whd->blhd", x, kernel)


def layer(p, config: TransformerConfig, x, documents, visible=None):
    """With what is visible [batch, queries, keys] where that is not what the documents and the window make so."""
    normed = rms_norm(x, p["attention_norm"]["scale"], config.norm_epsilon)
    q, k, v = (heads_of(normed, p["attention"][name]["kernel"]) for name in ("query", "key", "value"))
    q, k = rotate(q, config.rope_theta), rotate(k, config.rope_theta)
    mixed = attend(q, k, v, causal_mask(documents, config.window) if visible is None else visible)
    x = x + np.einsum("blhd,hdw->blw", mixed, p["attention"]["out"]["kernel"])
    normed = rms_norm(x, p["feed_forward_norm"]["scale"], config.norm_epsilon)
    gate, up = normed @ p["feed_forward"]["gate"]["kernel"], normed @ p["feed_forward"]["up"]["kernel"]
    return x + (gate / (1 + np.exp(-gate)) * up) @ p["feed_forward"]["down"]["kernel"]


def language_model(params, config: LanguageModelConfig, ids):
    """Logits of a flat model."""
    p = jax.tree.map(np.float64, params)
    documents = documents_of(ids == EOS) * config.document_mask
    x = p["embedding"]["table"][ids]
    for index in range(config.tower.layers):
        x = layer(layer_of(p["layers"], index), config.tower, x, documents)
    return rms_norm(x, p["norm"]["scale"], config.tower.norm_epsilon) @ p["output"]["kernel"]


def cross_attention(p, residual, epsilon, x, memory, visible):
    """Of rows x [batch, queries, width] to rows memory [batch, keys, width]."""
    normed = rms_norm(memory, p["memory_norm"]["scale"], epsilon)
    q = heads_of(rms_norm(x, p["query_norm"]["scale"], epsilon), p["query"]["kernel"])
    mixed = attend(q, heads_of(normed, p["key"]["kernel"]), heads_of(normed, p["value"]["kernel"]), visible)
    return (2 if residual == "double" else 1) * x + np.einsum("blhd,hdw->blw", mixed, p["out"]["kernel"])


def pool(h, ids, patches, how):
    out = np.zeros((h.shape[0], patches, h.shape[2]))
    for row in range(h.shape[0]):
        for patch in set(ids[row].tolist()):
            out[row, patch] = getattr(np, how)(h[row, ids[row] == patch], axis=0)
    return out


def hash_embedding(table, config: HashConfig, ids):
    """Sum of the embeddings of the n-grams that end at each byte, in Python's integers of any length."""
    out = np.zeros((*ids.shape, table.shape[1]))
    for place in range(config.tables):
        function, size = place // len(config.sizes), config.sizes[place % len(config.sizes)]
        for row, t in np.ndindex(ids.shape):
            if config.short_ngrams == "omit" and t < size - 1:
                continue
            window = [int(ids[row, j]) if j >= 0 else 0 for j in range(t - size + 1, t + 1)]
            if config.power_order == "paper":
                window.reverse()
            total = sum(value * MULTIPLIERS[function] ** power for power, value in enumerate(window))
            signed = (total + 2**63) % 2**64 - 2**63
            out[row, t] += table[place * config.buckets + signed % config.buckets]
    return out


def lies_in(starts):
    """Patch of each byte; starts [batch, bytes + 1]."""
    return np.cumsum(starts, axis=1)[:, :-1] - 1


def may_read(starts):
    """The newest patch that is complete before the byte after each byte."""
    return np.cumsum(starts, axis=1)[:, 1:] - 2


def local_encoder(p, config: BLTConfig, x, ids, patches, documents):
    """Bytes after the last layer, and patches; ids are those of the patches that bytes lie in."""
    cross, batch = config.cross_attention, len(x)
    visible = np.repeat(np.arange(patches)[None, :, None] == ids[:, None, :], cross.k, axis=1)
    h, rows, used = x, None, 0
    for index in range(config.encoder.layers):
        h = layer(layer_of(p["layers"], index), config.encoder, h, documents)
        if cross.encoder in ("last", "none") and index < config.encoder.layers - 1:
            continue
        if cross.pooling == "none" and rows is None:
            rows = np.tile(p["first_query"]["table"], (batch, patches, 1))
        elif rows is None or cross.encoder == "all_repool":
            rows = pool(h, ids, patches, cross.pooling) @ p["patch_projection"]["kernel"]
            rows = rows.reshape(batch, patches * cross.k, -1)
        if cross.encoder == "none":
            break
        block = layer_of(p["cross_attention"], used)
        rows = cross_attention(block, cross.residual, config.encoder.norm_epsilon, rows, h, visible)
        used += 1
    return h, rows.reshape(batch, patches, -1)


def global_model(p, config: BLTConfig, rows, documents):
    if config.has_input_projection:
        rows = rows @ p["input_projection"]["kernel"]
    for index in range(config.global_model.layers):
        rows = layer(layer_of(p["layers"], index), config.global_model, rows, documents)
    return rows


def local_decoder(p, config: BLTConfig, h, latents, ids, documents):
    """Logits; ids are those of the patches that bytes may read."""
    cross, epsilon, (batch, patches, _) = config.cross_attention, config.decoder.norm_epsilon, latents.shape
    rows = latents @ p["patch_projection"]["kernel"]
    if cross.decoder == "none":
        h = h + np.stack([rows[row][ids[row]] for row in range(batch)])
    rows = rows.reshape(batch, -1, h.shape[2])
    visible = np.repeat(ids[:, :, None] == np.arange(patches), cross.k, axis=2)
    for index in range(config.decoder.layers):
        if cross.decoder == "all" or (cross.decoder == "first" and index == 0):
            block = layer_of(p["cross_attention"], index)
            h = cross_attention(block, cross.residual, epsilon, h, rows, visible)
        h = layer(layer_of(p["layers"], index), config.decoder, h, documents)
    return rms_norm(h, p["norm"]["scale"], epsilon) @ p["output"]["kernel"]


def blt(params, config: BLTConfig, ids, starts, patches):
    """Logits of a Byte Latent Transformer; starts [batch, bytes + 1]."""
    p, own = jax.tree.map(np.float64, params), lies_in(starts)
    is_eos = ids == EOS
    patch_is_eos = np.stack([(is_eos & (own == patch)).any(axis=1) for patch in range(patches)], axis=1)
    of_bytes = documents_of(is_eos) * config.document_mask
    of_patches = documents_of(patch_is_eos) * config.document_mask
    x = p["byte_embedding"]["table"][ids]
    if config.hash.sizes:
        x = x + hash_embedding(p["hash_embedding"]["table"], config.hash, ids)
        x = x / (len(config.hash.sizes) + 1 if config.hash.normalize else 1)
    h, rows = local_encoder(p["encoder"], config, x, own, patches, of_bytes)
    latents = global_model(p["global_model"], config, rows, of_patches)
    return local_decoder(p["decoder"], config, h, latents, may_read(starts), of_bytes)


def check_gradients(value, params, gradients, tolerance=2e-3):
    """Compares, for every array of the params, its gradient with central differences of `value` along a direction."""
    params = jax.tree.map(np.float64, params)
    leaves, structure = jax.tree.flatten(params)
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    draw = np.random.default_rng(0)
    for index, gradient in enumerate(jax.tree.leaves(gradients)):
        # Along its sign and some noise: the slope is then large, and every entry counts.
        direction = np.sign(gradient) + 0.5 * draw.standard_normal(gradient.shape)
        step = 1e-6 * direction
        up, down = (
            value(jax.tree.unflatten(structure, [*leaves[:index], leaves[index] + side * step, *leaves[index + 1 :]]))
            for side in (1, -1)
        )
        slope, want = np.sum(gradient * direction), (up - down) / 2e-6
        assert want != 0 and abs(slope - want) < tolerance * abs(want), (
            jax.tree_util.keystr(paths[index]),
            slope,
            want,
        )
