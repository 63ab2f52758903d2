"""AdamW against its definition and optax; schedules at their ends."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bltjax.config import OptimConfig
from bltjax.optim import adamw, judge, learning_rate, no_recent, stable_steps


def random_tree(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    shapes = {"table": (13, 5), "layers": {"kernel": (2, 5, 7), "scale": (2, 5)}}
    return jax.tree.map(
        lambda shape: (scale * rng.normal(size=shape)).astype(np.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def run(transformation, params, gradients, rates, **fixed):
    @jax.jit
    def step(params, state, gradient, rate):
        extra = {"rate": rate} if not fixed.get("plain") else {}
        updates, state = transformation.update(gradient, state, params, **extra)
        return optax.apply_updates(params, updates), state

    state = transformation.init(params)
    for gradient, rate in zip(gradients, rates, strict=True):
        params, state = step(params, state, gradient, rate)
    return params, state


def float64_adamw(params, gradients, rates, config):
    """torch.optim.AdamW after torch.nn.utils.clip_grad_norm_, by the book."""
    p = jax.tree.map(lambda x: x.astype(np.float64), params)
    m = v = jax.tree.map(np.zeros_like, p)
    for t, (g, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        g = jax.tree.map(lambda x: x.astype(np.float64), g)
        norm = np.sqrt(sum((x**2).sum() for x in jax.tree.leaves(g)))
        scale = min(1, config.clip_norm / (norm + 1e-6))
        g = jax.tree.map(lambda x, s=scale: x * s, g)
        p = jax.tree.map(lambda x, r=rate: x * (1 - r * config.weight_decay), p)
        m = jax.tree.map(lambda a, b: config.beta1 * a + (1 - config.beta1) * b, m, g)
        v = jax.tree.map(lambda a, b: config.beta2 * a + (1 - config.beta2) * b**2, v, g)
        one, two = 1 - config.beta1**t, 1 - config.beta2**t
        p = jax.tree.map(
            lambda x, a, b, r=rate, one=one, two=two: x - r * (a / one) / (np.sqrt(b) / np.sqrt(two) + config.epsilon),
            p, m, v,
        )  # fmt: skip
    return p


@pytest.mark.parametrize("scale", [1e-3, 1.0])  # below the clip norm, and far above it
def test_twenty_updates_are_those_of_torch(scale):
    config = OptimConfig(weight_decay=0.3)
    params = random_tree(0)
    gradients = [random_tree(1 + i, scale) for i in range(20)]
    rates = [0.01 * (1 + i % 3) for i in range(20)]
    found, state = run(adamw(config), params, gradients, rates)
    assert int(state.count) == 20
    expected = float64_adamw(params, gradients, rates, config)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), found, expected)


def test_updates_are_those_of_a_chain_of_optax():
    config = OptimConfig()
    params, gradients = random_tree(0), [random_tree(1 + i) for i in range(5)]
    chain = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(0.01, config.beta1, config.beta2, config.epsilon, weight_decay=config.weight_decay),
    )
    found, _ = run(adamw(config), params, gradients, [0.01] * 5)
    expected, _ = run(chain, params, gradients, [0.01] * 5, plain=True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)


def test_every_parameter_decays():
    """Norm scales and embeddings too, as in the released run: with no gradient all shrink by rate x decay."""
    config = OptimConfig(weight_decay=0.5)
    params = random_tree(0)
    found, _ = run(adamw(config), params, [jax.tree.map(np.zeros_like, params)], [0.1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, 0.95 * b, rtol=1e-6), found, params)


def test_the_update_is_one_pass_that_needs_no_scratch():
    """A chain of optax's parts needs one more copy of all parameters here, and twice the time."""
    config = OptimConfig()
    optimizer = adamw(config)
    params = {f"kernel{i}": jax.ShapeDtypeStruct((256, 256), jnp.float32) for i in range(4)}
    state = jax.eval_shape(optimizer.init, params)

    def step(params, state, gradients, rate):
        updates, state = optimizer.update(gradients, state, params, rate=rate)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params, jnp.float32(0.1)).compile()
    memory = compiled.memory_analysis()
    assert memory.temp_size_in_bytes < 256 * 256 * 4
    assert memory.alias_size_in_bytes >= 3 * 4 * 256 * 256 * 4


def test_a_first_moment_of_half_the_size_moves_parameters_nearly_alike():
    params, gradients = random_tree(0), [random_tree(1 + i) for i in range(20)]
    moved = {}
    for kept in ("float32", "bfloat16"):
        found, state = run(adamw(OptimConfig(first_moment=kept)), params, gradients, [0.01] * 20)
        difference = jax.tree.map(lambda a, b: np.asarray(a - b).ravel(), found, params)
        moved[kept] = np.concatenate(jax.tree.leaves(difference))
        assert {leaf.dtype.name for leaf in jax.tree.leaves(state.mean)} == {kept}
        assert {leaf.dtype.name for leaf in jax.tree.leaves(state.square)} == {"float32"}
    error = np.linalg.norm(moved["bfloat16"] - moved["float32"]) / np.linalg.norm(moved["float32"])
    assert 1e-5 < error < 4e-3  # a bfloat16 has 8 bits; roundings of the steps before add up to about that


def judged(config, losses, norms=None):
    recent, out = no_recent(config), []
    one = jax.jit(lambda recent, loss, norm: judge(config, recent, loss, norm))
    for loss, norm in zip(losses, norms or [1.0] * len(losses), strict=True):
        sound, recent = one(recent, jnp.float32(loss), jnp.float32(norm))
        out.append(bool(sound))
    return out


@pytest.mark.parametrize("config", [OptimConfig(), OptimConfig(spike_deviations=3.0, spike_steps=2)])
def test_what_is_not_finite_is_never_sound(config):
    nan, inf = float("nan"), float("inf")
    assert judged(config, [1.0, nan, 1.0, inf, 1.0], [1.0, 1.0, nan, 1.0, inf]) == [True, False, False, False, False]


def test_spikes_are_looked_for_only_when_asked_and_when_enough_steps_are_known():
    losses = [5.0, 4.0, 5.0, 4.0, 100.0, 4.5, 4.0]
    assert judged(OptimConfig(), losses) == [True] * 7
    assert judged(OptimConfig(spike_deviations=3.0, spike_steps=4), losses) == [True] * 4 + [False, True, True]
    assert judged(OptimConfig(spike_deviations=3.0, spike_steps=5), losses) == [True] * 7
    assert judged(OptimConfig(spike_deviations=3.0, spike_steps=4), [1.0] * 7, losses)[4] is False, "a norm too"


def test_a_spike_is_measured_against_the_last_steps_that_trained():
    """Against mean and deviation in float64 of a window that skipped steps do not enter."""
    config = OptimConfig(spike_deviations=1.5, spike_steps=8)
    losses = [float(x) for x in np.random.default_rng(0).normal(3, 1, 200).astype(np.float32)]
    window, expected = [], []
    for loss in losses:
        sound = len(window) < 8 or loss <= np.mean(window[-8:]) + 1.5 * np.std(window[-8:])
        expected.append(sound)
        window += [loss] if sound else []
    assert judged(config, losses) == expected
    assert 5 < expected.count(False) < 195


def test_parameters_are_needed():
    optimizer = adamw(OptimConfig())
    params = random_tree(0)
    with pytest.raises(ValueError, match="weight decay needs the parameters"):
        optimizer.update(params, optimizer.init(params), rate=0.1)


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant"])
def test_warm_up_rises_in_equal_steps_to_the_peak(schedule):
    config = OptimConfig(peak_rate=1.0, schedule=schedule, warmup_steps=4)
    assert [learning_rate(config, step, 100) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_without_warm_up_the_first_step_has_the_peak():
    assert learning_rate(OptimConfig(peak_rate=3e-4), 0, 10) == 3e-4


def test_cosine():
    config = OptimConfig(peak_rate=2.0, warmup_steps=10, final_fraction=0.1)
    assert learning_rate(config, 10, 110) == 2.0
    assert learning_rate(config, 60, 110) == pytest.approx(2.0 * 0.55)
    assert learning_rate(config, 110, 110) == pytest.approx(0.2)
    assert 0.2 < learning_rate(config, 109, 110) < 0.201


def test_warmup_stable_decay():
    config = OptimConfig(peak_rate=1.0, schedule="wsd", final_fraction=0.0, decay_fraction=0.2)
    rates = [learning_rate(config, step, 100) for step in range(101)]
    assert rates[:81] == [1.0] * 81
    assert rates[85] == pytest.approx(1 - np.sqrt(5 / 20))
    assert rates[100] == 0.0
    assert min(rates[:100]) > 0, "no step is spent at a rate of zero"
    assert sorted(rates, reverse=True) == rates
    half = OptimConfig(peak_rate=1.0, schedule="wsd", final_fraction=0.5, decay_fraction=0.2)
    assert learning_rate(half, 85, 100) == pytest.approx(1 - 0.5 * np.sqrt(5 / 20))


@pytest.mark.parametrize(("fraction", "steps"), [(0.2, 100), (0.2, 7), (0.5, 9), (0.01, 30), (1.0, 4), (0.2, 1)])
def test_the_cool_down_begins_where_the_rate_was_last_that_of_a_constant_one(fraction, steps):
    config = OptimConfig(peak_rate=1.0, schedule="wsd", decay_fraction=fraction)
    stable = stable_steps(config, steps)
    rates = [learning_rate(config, step, steps) for step in range(steps)]
    assert all(rate == 1.0 for rate in rates[: stable + 1])
    assert all(rate < 1.0 for rate in rates[stable + 1 :])
    assert steps - stable == max(1, round(fraction * steps))


def test_constant():
    config = OptimConfig(peak_rate=0.7, schedule="constant")
    assert {learning_rate(config, step, 9) for step in range(10)} == {0.7}


@pytest.mark.parametrize("step", [-1, 11])
def test_a_step_outside_the_run_is_refused(step):
    with pytest.raises(ValueError, match=f"step={step}: must lie in 0 .. 10"):
        learning_rate(OptimConfig(), step, 10)


def test_a_run_shorter_than_its_parts_has_rates():
    """One step, all warm-up, or a cool-down of less than one step: still rates between 0 and the peak."""
    for config in (OptimConfig(), OptimConfig(warmup_steps=1), OptimConfig(schedule="wsd", decay_fraction=0.01)):
        assert 0 < learning_rate(config, 0, 1) <= config.peak_rate
