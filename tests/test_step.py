"""One training step: the same gradients however the batch is divided, and one compilation."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bltjax import families
from bltjax.batch import Batch
from bltjax.config import (
    BLTConfig,
    ByteTransformerConfig,
    HashConfig,
    MeshConfig,
    OptimConfig,
    TransferConfig,
    TransformerConfig,
)
from bltjax.patching.patches import Patches
from bltjax.sharding import make_mesh
from bltjax.step import TrainState, compile_score, compile_step
from tests.programs import compilations

TOWER = TransformerConfig(width=16, layers=1, heads=2, hidden=24)
FLAT = ByteTransformerConfig(TOWER)
BLT = BLTConfig(TOWER, TOWER, TOWER, hash=HashConfig(sizes=(3,), buckets=11))
ROWS, LENGTH, SLOTS = 8, 24, 13
OPTIM = OptimConfig(clip_norm=1e6)  # so that moments show gradients as they are


def ragged_batch(seed: int = 0, starts: bool = False) -> Batch:
    """Rows of very different lengths, with BOS and EOS in them; one is padding only."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(4, 260, (ROWS, LENGTH + 1)).astype(np.int16)
    ids[rng.random(ids.shape) < 0.05] = 2
    targets, lengths = ids[:, 1:].copy(), np.array([24, 3, 24, 0, 11, 1, 7, 19])
    padded = np.arange(LENGTH) >= lengths[:, None]
    targets[padded] = -1
    inputs = np.where(padded, 0, ids[:, :-1]).astype(np.int16)
    begin = None
    if starts:
        begin = np.zeros((ROWS, LENGTH + 1), bool)
        begin[:, :2] = True
        for row, length in enumerate(lengths):
            begin[row, 2:length][:: 2 + row % 3] = True
    return Batch(ids=inputs, targets=targets, target_bytes=(targets >= 4).astype(np.uint16), starts=begin)


def mesh_of_size(devices: int, **axes: int):
    return make_mesh(MeshConfig(**axes), jax.devices()[:devices])


def start(step, seed: int = 0) -> TrainState:
    """A state whose weights, of std 0.5, are large enough for every part to matter."""
    state = step.initial_state(seed)
    params = jax.tree.map(lambda p: p * jnp.float32(2), state.params)
    return TrainState(params=params, opt_state=state.opt_state, step=state.step)


def after_one_step(model, step, batch):
    state, metrics = step(start(step), batch, 1e-3)
    gradient = jax.tree.map(lambda m: np.asarray(m) / (1 - OPTIM.beta1), state.opt_state.mean)
    return gradient, jax.device_get(metrics)


def difference(found, expected) -> float:
    """Between two gradients, relative to the norm of the second."""
    a, b = (np.concatenate([g.ravel() for g in jax.tree.leaves(tree)]) for tree in (found, expected))
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@functools.cache
def plain_gradient(model):
    """The gradient by the book, on one device: mean over all scored targets of the batch, per byte."""
    batch = ragged_batch(starts=isinstance(model, BLTConfig))
    step = compile_step(model, OPTIM, mesh_of_size(1), slots=SLOTS)
    params = jax.device_get(start(step).params)
    patches = None if batch.starts is None else Patches.from_starts(jnp.asarray(batch.starts), SLOTS)

    def loss(params):
        logits = families.build(model).apply({"params": params}, jnp.asarray(batch.ids), patches)
        logs = jax.nn.log_softmax(logits)
        nats = -jnp.take_along_axis(logs, jnp.maximum(batch.targets, 0)[..., None].astype(jnp.int32), -1)[..., 0]
        return jnp.sum(nats, where=batch.targets >= 0) / batch.target_bytes.sum()

    return jax.device_get(jax.jit(jax.grad(loss))(params))


DIVISIONS = {
    "one device": (1, {}, 1),
    "four micro-batches": (1, {}, 4),
    "eight devices": (8, {"data": 8}, 1),
    "replicas, parts of heads, two micro-batches": (8, {"replica": 2, "data": 2, "model": 2}, 2),
}


@pytest.mark.parametrize(
    "division", ["one device", *(pytest.param(each, marks=pytest.mark.slow) for each in [*DIVISIONS][1:])]
)
def test_gradients_do_not_depend_on_how_a_ragged_batch_is_divided(division):
    devices, axes, accumulation = DIVISIONS[division]
    step = compile_step(FLAT, OPTIM, mesh_of_size(devices, **axes), accumulation)
    batch = ragged_batch()
    gradient, metrics = after_one_step(FLAT, step, batch)
    assert difference(gradient, plain_gradient(FLAT)) < 1e-5
    assert metrics.sums.bytes == batch.target_bytes.sum()
    assert metrics.sums.specials == (batch.targets == 2).sum() > 0
    assert metrics.positions == (batch.targets >= 0).sum()
    norm = np.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in jax.tree.leaves(gradient)))
    assert metrics.gradient_norm == pytest.approx(norm, rel=1e-5)


@pytest.mark.thorough
def test_gradients_of_a_blt_do_not_depend_on_devices():
    step = compile_step(BLT, OPTIM, mesh_of_size(8, data=4, model=2), accumulation=2, slots=SLOTS)
    batch = ragged_batch(starts=True)
    gradient, metrics = after_one_step(BLT, step, batch)
    # Weights of std 0.5 make it steep: changing the last bit of each parameter moves this gradient by up to 6e-5.
    assert difference(gradient, plain_gradient(BLT)) < 1e-4
    assert metrics.patches == batch.starts[:, :-1].sum()


@pytest.mark.slow
def test_losses_of_a_few_steps_agree_on_one_to_eight_devices():
    losses = {}
    for devices in (1, 2, 4, 8):
        step = compile_step(FLAT, OptimConfig(), mesh_of_size(devices, data=devices))
        state = step.initial_state(0)
        losses[devices] = []
        for i in range(4):
            state, metrics = step(state, ragged_batch(i), 1e-3)
            losses[devices].append(float(metrics.sums.byte_nats))
        assert int(state.step) == 4
    for devices in (2, 4, 8):
        np.testing.assert_allclose(losses[devices], losses[1], rtol=1e-5)
    assert losses[1][0] != losses[1][1]


def test_a_second_step_and_another_run_never_compile_again():
    mesh = mesh_of_size(2, data=2)
    step = compile_step(FLAT, OptimConfig(weight_decay=0.2), mesh)
    with compilations() as seen:
        state = step.initial_state(0)
        state, _ = step(state, ragged_batch(0), 1e-3)
    assert seen
    another = OptimConfig(weight_decay=0.2, peak_rate=0.5, schedule="wsd", warmup_steps=3, decay_fraction=0.5)
    assert compile_step(FLAT, another, mesh_of_size(2, data=2)) is step
    assert compile_step(FLAT, OptimConfig(), mesh) is not step
    with compilations() as seen:
        state, _ = step(state, ragged_batch(1), 2e-3)
        other = step.initial_state(1)
        step(other, ragged_batch(2), 0.5)
    assert not seen


@pytest.mark.parametrize("spoil", ["a parameter", "a gradient"])
@pytest.mark.parametrize("devices", [1, 4])
def test_a_step_whose_loss_or_gradient_is_not_finite_changes_nothing(spoil, devices):
    step = compile_step(FLAT, OPTIM, mesh_of_size(devices, data=devices))
    state, metrics = step(start(step), ragged_batch(0), 1e-3)
    assert not metrics.skipped
    if spoil == "a parameter":
        kernel = state.params["output"]["kernel"].at[0, 0].set(np.nan)
        state.params["output"]["kernel"] = jax.device_put(kernel, step.shardings.params["output"]["kernel"])
    else:  # finite losses, whose gradients are too large for float32
        state = state.replace(params=jax.tree.map(lambda p: p * jnp.float32(1e19), state.params))
    before = jax.device_get(state)
    state, metrics = step(state, ragged_batch(1), 1e-3)
    assert metrics.skipped
    assert not np.isfinite(metrics.gradient_norm)
    after = jax.device_get(state)
    jax.tree.map(np.testing.assert_array_equal, after.params, before.params)
    jax.tree.map(np.testing.assert_array_equal, after.opt_state, before.opt_state)
    assert after.step == before.step + 1 == 2, "the next batch is another"


@pytest.mark.slow
def test_a_transfer_changes_what_parameters_begin_with_and_how_far_a_step_moves_them():
    base = ByteTransformerConfig(TransformerConfig(width=8, layers=1, heads=1, hidden=24))
    optim = OptimConfig(transfer=TransferConfig("width", base), weight_decay=0.0)
    states = {}
    for name, settings in (("own", dataclasses.replace(optim, transfer=None)), ("transferred", optim)):
        step = compile_step(FLAT, settings, mesh_of_size(2, data=2))
        before = step.initial_state(0)
        begun = jax.device_get(before.params)
        after, _ = step(before, ragged_batch(), 1e-3)
        states[name] = begun, jax.tree.map(lambda a, b: np.abs(a - b).max(), jax.device_get(after.params), begun)
    (own, _), (params, moved) = states["own"], states["transferred"]
    np.testing.assert_allclose(params["output"]["kernel"], own["output"]["kernel"] * 2**-0.5, rtol=1e-6)
    np.testing.assert_allclose(params["embedding"]["table"], own["embedding"]["table"] * 2**0.5, rtol=1e-6)
    # Adam's first step is the rate times the sign of the gradient; the base is half as wide.
    assert moved["embedding"]["table"] == pytest.approx(1e-3, rel=1e-2)
    assert moved["output"]["kernel"] == pytest.approx(5e-4, rel=1e-2)
    assert moved["layers"]["attention"]["key"]["kernel"] == pytest.approx(5e-4, rel=1e-2)


def test_skipping_needs_no_copy_of_the_state():
    wide = ByteTransformerConfig(TransformerConfig(width=256, layers=1, heads=2, hidden=512))
    step = compile_step(wide, OPTIM, mesh_of_size(1))
    batch = jax.tree.map(lambda x: x[:1, :4], ragged_batch())
    memory = step._step.lower(step.abstract_state, batch, jnp.float32(0.1), np.zeros((1, 1, 1), np.int32)).compile()
    memory = memory.memory_analysis()
    size = 4 * sum(leaf.size for leaf in jax.tree.leaves(step.abstract_state.params))
    assert memory.alias_size_in_bytes >= 3 * size, "parameters and moments are updated in place"
    assert memory.temp_size_in_bytes < 2 * size, "the gradients, and no other copy"


def test_a_spike_is_skipped_only_where_it_is_asked_for():
    for deviations in (None, 0.0001):
        optim = OptimConfig(spike_deviations=deviations, spike_steps=2)
        step = compile_step(FLAT, optim, mesh_of_size(2, data=2))
        state = step.initial_state(0)
        skipped = []
        for i in range(12):
            state, metrics = step(state, ragged_batch(i % 4), 1e-5)
            skipped.append(bool(metrics.skipped))
        assert any(skipped) == (deviations is not None)
        assert not any(skipped[:2])
        assert int(state.opt_state.count) == 12 - sum(skipped)


def test_the_greatest_wish_of_all_comes_with_the_metrics():
    step = compile_step(FLAT, OPTIM, mesh_of_size(8, replica=2, data=2, model=2))
    state = step.initial_state(0)
    for wish in (0, 2, 1, 0):
        state, metrics = step(state, ragged_batch(), 1e-3, wish)
        assert int(metrics.wish) == wish


def test_the_state_that_went_in_is_used_up():
    step = compile_step(FLAT, OPTIM, mesh_of_size(1))
    state = step.initial_state(0)
    step(state, ragged_batch(), 1e-3)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_initial_parameters_depend_on_the_seed_and_not_on_the_devices():
    a, b = (compile_step(FLAT, OPTIM, mesh_of_size(n, data=n)).initial_state(3).params for n in (1, 8))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))
    other = compile_step(FLAT, OPTIM, mesh_of_size(1)).initial_state(4).params
    assert np.any(np.asarray(other["output"]["kernel"]) != np.asarray(a["output"]["kernel"]))


def test_rows_that_do_not_divide_are_refused():
    step = compile_step(FLAT, OPTIM, mesh_of_size(8, data=8), accumulation=2)
    with pytest.raises(ValueError, match=r"rows.batch=8: must be a multiple of accumulation x replica x data = 16"):
        step(step.initial_state(0), ragged_batch(), 1e-3)


def test_a_blt_needs_starts_and_slots():
    for slots, starts in ((None, True), (SLOTS, False)):
        score = compile_score(BLT, mesh_of_size(1), slots)
        with pytest.raises(ValueError, match="a model that reads patches needs batches with starts"):
            score(families.abstract_params(BLT), ragged_batch(starts=starts))


@pytest.mark.slow
def test_a_row_with_more_patches_than_slots_is_not_scored_in_silence():
    step = compile_step(BLT, OPTIM, mesh_of_size(8, data=4, model=2), accumulation=2, slots=SLOTS)
    batch = ragged_batch(starts=True)
    full = batch.replace(starts=np.ones_like(batch.starts))
    _, metrics = step(step.initial_state(0), full, 1e-3)
    assert np.isnan(metrics.sums.byte_nats)
