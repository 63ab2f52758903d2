"""The same numbers as `BltForCausalLM` in Hugging Face transformers, computed live on random weights.

Weights have a std of 0.5, so that attention is far from uniform and every part matters. The cache of transformers is
off: with it on, hashes and patches are made of the newest byte alone. Runs with the newest transformers and with 4.57.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax.traverse_util import flatten_dict
from safetensors.torch import save_file
from transformers import BltConfig, BltForCausalLM
from transformers.models.blt.modeling_blt import process_patch_lengths

from bltjax import BLT, EntropyModel, Patches
from bltjax.batch import Batch
from bltjax.config import ComputeConfig, MeshConfig, OptimConfig
from bltjax.interop.huggingface import Pretrained, load_pretrained, save_pretrained
from bltjax.loss import cross_entropy
from bltjax.optim import adamw
from bltjax.patching import entropy_starts, limit_patch_length, next_byte_entropy
from bltjax.sharding import make_mesh
from bltjax.step import TrainState, compile_step

BYTES = 150  # more than one block of either kind of attention
LOGITS, ENTROPY, GRADIENT, LOSS = 2e-4, 1e-4, 1e-3, 1e-3  # largest allowed differences
RATE = 1e-3  # of learning

# transformers 4.57 has no windows: every attention is fully causal whatever its config says.
HAS_WINDOWS = hasattr(BltConfig(), "local_attention_window_len")

torch.set_num_threads(2)
transformers.utils.logging.disable_progress_bar()

LOCAL = {"hidden_size": 32, "hidden_size_global": 48, "num_attention_heads": 4, "intermediate_size": 56}
BASE = {
    "cross_attn_k": 2,
    "local_attention_window_len": 512,
    "encoder_hash_byte_group_size": [3, 4, 6],
    "encoder_hash_byte_group_vocab": 1009,
    "encoder_config": LOCAL | {"num_hidden_layers": 1},
    "decoder_config": LOCAL | {"num_hidden_layers": 2},
    "global_config": {
        "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 72,
    },
}  # fmt: skip
PATCHER = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 40, "sliding_window": 20,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "k * h_E != h_G": {},
    "k * h_E == h_G, three encoder layers, cross-attention on the last": {
        "global_config": {"hidden_size": 64},
        "encoder_config": {"hidden_size_global": 64, "num_hidden_layers": 3},
        "decoder_config": {"hidden_size_global": 64},
    },
    "k = 4, patches of at most 3, two hash functions, six sizes": {
        "cross_attn_k": 4,
        "encoder_config": {"cross_attn_k": 4},
        "decoder_config": {"cross_attn_k": 4},
        "max_patch_length": 3,
        "encoder_hash_byte_group_size": [3, 4, 5, 6, 7, 8],
        "encoder_hash_byte_group_nb_functions": 2,
    },
    "grouped queries": {
        "encoder_config": {"num_key_value_heads": 2},
        "decoder_config": {"num_key_value_heads": 2},
        "global_config": {"num_key_value_heads": 1},
    },
    "window smaller than the row": {"local_attention_window_len": 37, "encoder_config": {"num_hidden_layers": 2}},
    "three encoder layers, cross-attention on all": {
        "encoder_config": {"num_hidden_layers": 3, "cross_attn_all_layers": True}
    },
    "cross-attention on the first of three decoder layers": {
        "decoder_config": {"num_hidden_layers": 3, "cross_attn_all_layers": False}
    },
    "an epsilon and a rotary base for each tower": {
        "encoder_config": {"rms_norm_eps": 1e-3},
        "decoder_config": {"rms_norm_eps": 3e-2},
        "global_config": {"rms_norm_eps": 1e-1},
    },
}
THETAS = {"encoder_config": 300.0, "decoder_config": 2000.0, "global_config": 1e4, "patcher_config": 700.0}


def rotary_base(theta: float) -> dict[str, Any]:
    # 4.57 reads rope_theta; newer releases read rope_parameters, and take the other for its old spelling.
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta}} if HAS_WINDOWS else {"rope_theta": theta}


def random_model(name: str, patcher: bool = False) -> BltForCausalLM:
    """Their model of a case, with random weights."""
    values = BASE | {"patch_in_forward": patcher, "patcher_config": PATCHER}
    for key, value in CASES[name].items():
        values[key] = BASE[key] | value if isinstance(value, dict) else value
    if "rotary base" in name:
        for key, theta in THETAS.items():
            values[key] = values[key] | rotary_base(theta)
    config = BltConfig(**values)
    config.use_cache = False
    torch.manual_seed(sum(map(ord, name)))
    model = BltForCausalLM(config).eval()
    with torch.no_grad():
        for key, weight in model.named_parameters():
            weight.normal_(1.0, 0.2) if "norm" in key else weight.normal_(0.0, 0.5)
    return model


def random_rows(seed: int, limit: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Two rows of BYTES + 1 ids, the last only a target, and patch lengths: the second row has fewer patches, and the
    last patch of the first holds nothing but the unseen byte."""
    draw = np.random.default_rng(seed)
    ids = draw.integers(4, 260, (2, BYTES + 1))
    ids[0, 0] = 1
    rows = []
    for last, longest in ((1, 8), (5, 12)):
        row = [1]
        while sum(row) < BYTES + 1 - last:
            row.append(min(int(draw.integers(1, longest + 1)), BYTES + 1 - last - sum(row)))
        rows.append([*row, last])
    lengths = np.zeros((2, max(map(len, rows))), np.int64)
    for row, found in zip(lengths, rows, strict=True):
        row[: len(found)] = found
    return ids, process_patch_lengths(torch.tensor(lengths), limit).numpy()


def load(model: BltForCausalLM, folder: Path, **options: Any) -> Pretrained:
    model.save_pretrained(folder, **options)
    return load_pretrained(folder, windows=HAS_WINDOWS)


def their_logits(model: BltForCausalLM, ids: np.ndarray, lengths: np.ndarray | None) -> torch.Tensor:
    lengths = lengths if lengths is None else torch.tensor(lengths)
    return model(input_ids=torch.tensor(ids), patch_lengths=lengths, use_cache=False).logits


def their_loss(model: BltForCausalLM, ids: np.ndarray, lengths: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    logits = their_logits(model, ids[:, :-1], lengths)
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(ids[:, 1:]).flatten()), logits


@dataclasses.dataclass(frozen=True)
class Compared:
    model: BltForCausalLM
    pretrained: Pretrained
    ids: np.ndarray
    lengths: np.ndarray
    logits: tuple[np.ndarray, np.ndarray]  # theirs, ours
    gradients: tuple[dict[Any, np.ndarray], dict[Any, np.ndarray]]  # theirs, ours: by leaf of the params


@pytest.fixture(scope="module", params=CASES)
def compared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Compared:
    folder = tmp_path_factory.mktemp("checkpoint")
    model = random_model(request.param)
    pretrained = load(model, folder)
    # Half of the cases have their layers written out, the others scan over them.
    compute = ComputeConfig(unroll="three" in request.param or "window" in request.param)
    pretrained = dataclasses.replace(pretrained, config=dataclasses.replace(pretrained.config, compute=compute))
    ids, lengths = random_rows(7, model.config.max_patch_length)
    loss, theirs = their_loss(model, ids, lengths)
    loss.backward()
    # Their gradients take the way of the weights into our layout.
    # With cross-attention on all encoder layers only the last one's result is read: the others have no gradient.
    gradients = {k: torch.zeros_like(w) if w.grad is None else w.grad for k, w in model.named_parameters()}
    save_file(gradients, folder / "model.safetensors")
    their_gradients = load_pretrained(folder).params

    @jax.jit
    def our_gradients(params: Any) -> Any:
        def loss(params: Any) -> Any:
            patches = Patches.from_lengths(lengths, BYTES)
            logits = BLT(pretrained.config).apply({"params": params}, jnp.asarray(ids[:, :-1]), patches)
            return jnp.mean(cross_entropy(logits, jnp.asarray(ids[:, 1:]))), logits

        return jax.grad(loss, has_aux=True)(params)

    ours_by_leaf, ours = jax.tree.map(np.asarray, our_gradients(pretrained.params))
    return Compared(
        model, pretrained, ids, lengths, (theirs.detach().numpy(), ours),
        (flatten_dict(their_gradients), flatten_dict(ours_by_leaf)),
    )  # fmt: skip


def relative(theirs: np.ndarray, ours: np.ndarray) -> float:
    return float(np.abs(theirs - ours).max() / max(np.abs(theirs).max(), 1e-30))


def test_logits(compared: Compared):
    theirs, ours = compared.logits
    assert theirs.std() > 1  # or the comparison would say little
    assert relative(theirs, ours) < LOGITS


def test_gradient_of_every_parameter(compared: Compared):
    theirs, ours = compared.gradients
    assert theirs.keys() == ours.keys()
    for path, gradient in theirs.items():
        stacked = {"layers", "cross_attention"} & set(path)
        for layer in range(gradient.shape[0]) if stacked else [slice(None)]:
            assert relative(gradient[layer], ours[path][layer]) < GRADIENT, (path, layer)
    assert all(np.abs(gradient).max() > 1e-6 for gradient in theirs.values())


def test_saved_and_loaded_again_by_transformers(compared: Compared, tmp_path: Path):
    save_pretrained(tmp_path / "ours", compared.pretrained, max_shard_bytes=100_000)
    model, report = BltForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values())
    assert model.config.use_cache is False
    weights = compared.model.state_dict()
    assert model.state_dict().keys() == weights.keys()
    assert all(torch.equal(weight, weights[key]) for key, weight in model.state_dict().items())
    with torch.no_grad():
        again = their_logits(model, compared.ids[:, :-1], compared.lengths).numpy()
    np.testing.assert_allclose(again, compared.logits[0], rtol=0, atol=1e-6 * np.abs(again).max())


def test_shards_written_by_transformers(tmp_path: Path):
    model = random_model("grouped queries", patcher=True)
    whole = load(model, tmp_path / "whole")
    sharded = load(model, tmp_path / "sharded", max_shard_size="100KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    assert dataclasses.replace(sharded, params={}, entropy_params={}) == dataclasses.replace(
        whole, params={}, entropy_params={}
    )
    jax.tree.map(np.testing.assert_array_equal, sharded.params, whole.params)
    jax.tree.map(np.testing.assert_array_equal, sharded.entropy_params, whole.entropy_params)


def test_entropies_patches_and_logits_without_given_patches(tmp_path: Path):
    model = random_model("an epsilon and a rotary base for each tower", patcher=True)
    ids = random_rows(11)[0][:, :-1]
    with torch.no_grad():
        theirs = model.model.patcher(torch.tensor(ids))[0]
    # In the middle of the widest gap between entropies, so that rounding cannot move a patch.
    middle = np.sort(theirs.numpy(), axis=None)[BYTES // 2 : 3 * BYTES // 2]
    gap = np.diff(middle).argmax()
    assert middle[gap + 1] - middle[gap] > 2e-3
    model.config.patching_threshold = float(middle[gap : gap + 2].mean())
    model.config.max_patch_length = 4
    pretrained = load(model, tmp_path)
    assert pretrained.entropy_config is not None
    assert pretrained.threshold is not None
    assert pretrained.max_patch_length == 4
    assert pretrained.entropy_config.tower.window == (20 if HAS_WINDOWS else None)

    entropy_model, blt = EntropyModel(pretrained.entropy_config), BLT(pretrained.config)
    logits = jax.jit(entropy_model.apply)({"params": pretrained.entropy_params}, jnp.asarray(ids))
    entropies = next_byte_entropy(logits)
    assert np.ptp(entropies) > 0.5
    assert np.abs(np.asarray(entropies) - theirs.numpy()).max() < ENTROPY

    starts = limit_patch_length(entropy_starts(entropies, pretrained.threshold), pretrained.max_patch_length)
    with torch.no_grad():
        lengths = model.model.patcher(
            torch.tensor(ids), patch_size=4, threshold=model.config.patching_threshold, max_patch_length=4
        )[1].numpy()
    for row in range(2):
        found = np.cumsum(lengths[row]) - lengths[row]
        found = found[(found < BYTES) & (lengths[row] > 0)]
        np.testing.assert_array_equal(np.flatnonzero(starts[row, :BYTES]), found)
        assert {1, 4} <= set(np.diff(found))  # short patches, and some that were cut

    # Its patches end with the row, so that its last byte never ends a patch before an unseen one.
    first = np.array(starts)[:1]
    first[:, BYTES] = False
    patches = Patches.from_starts(first, int(first.sum()))
    with torch.no_grad():
        theirs = their_logits(model, ids[:1], None).numpy()
    ours = jax.jit(blt.apply)({"params": pretrained.params}, jnp.asarray(ids[:1]), patches)
    assert relative(theirs, np.asarray(ours)) < LOGITS


def test_twenty_steps_of_adamw(tmp_path: Path):
    model = random_model("k * h_E != h_G")
    pretrained = load(model, tmp_path)
    rows = [random_rows(100 + step) for step in range(20)]
    slots = max(lengths.shape[1] for _, lengths in rows)

    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    theirs, norms = [], []
    for ids, lengths in rows:
        optimizer.zero_grad()
        loss, _ = their_loss(model, ids, lengths)
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item())
        optimizer.step()
        theirs.append(loss.item())

    optim = OptimConfig(beta1=0.9, beta2=0.95, epsilon=1e-8, weight_decay=0.1, clip_norm=1.0)
    step = compile_step(pretrained.config, optim, make_mesh(MeshConfig(), jax.devices()[:1]), slots=slots)
    params = jax.tree.map(jnp.asarray, pretrained.params)
    state = TrainState(params=params, opt_state=adamw(optim).init(params), step=jnp.zeros((), jnp.int32))
    ours = []
    for ids, lengths in rows:
        starts = np.zeros((2, BYTES + 1), bool)
        for row in range(2):
            starts[row, (np.cumsum(lengths[row]) - lengths[row])[lengths[row] > 0]] = True
        targets = ids[:, 1:].astype(np.int16)
        batch = Batch(
            ids=ids[:, :-1].astype(np.int16), targets=targets, target_bytes=np.ones_like(targets, np.uint16),
            starts=starts,
        )  # fmt: skip
        state, metrics = step(state, batch, RATE)
        ours.append(float(metrics.sums.byte_nats + metrics.sums.special_nats) / targets.size)
    assert max(norms) > 1  # so that clipping took part
    assert np.ptp(theirs) > 0.5  # and training had an effect
    np.testing.assert_allclose(ours, theirs, rtol=LOSS)
