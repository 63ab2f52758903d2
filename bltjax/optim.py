"""AdamW as torch.optim.AdamW does it, and the learning rate of each step.

The rate is an argument of the update, not part of the transformation: one compiled step serves runs of every length
and every schedule.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from bltjax.config import OptimConfig
from bltjax.transfer import Factors


def learning_rate(config: OptimConfig, step: int, total_steps: int) -> float:
    """The rate of one step, on the host.

    Warm-up is linear and reaches the peak at step `warmup_steps`. From there the rate is

    - "cosine": half a cosine from the peak to final_fraction of it;
    - "wsd": the peak, then over the last decay_fraction of all steps a cool-down to final_fraction of it, as 1 - sqrt;
    - "constant": the peak.

    The final fraction is that of `step == total_steps`, when the run is over: no step is spent at a rate of zero.

    Args:
      step: steps taken before this one.
      total_steps: of the whole run.

    Raises:
      ValueError: for a step outside the run.
    """
    if not 0 <= step <= total_steps:
        raise ValueError(f"step={step}: must lie in 0 .. {total_steps}, the steps of this run.")
    if step < config.warmup_steps:
        return config.peak_rate * (step + 1) / (config.warmup_steps + 1)
    if config.schedule == "cosine":
        progress = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
        fallen = 0.5 * (1 - math.cos(math.pi * progress))
    elif config.schedule == "wsd":
        stable = stable_steps(config, total_steps)
        fallen = math.sqrt(max(0, step - stable) / (total_steps - stable))
    else:
        fallen = 0.0
    return config.peak_rate * (1 - (1 - config.final_fraction) * fallen)


def stable_steps(config: OptimConfig, total_steps: int) -> int:
    """Steps before the cool-down of "wsd": up to there the rates are those of "constant", however long the run is."""
    return total_steps - max(1, round(config.decay_fraction * total_steps))


class AdamWState(NamedTuple):
    """Moments of the gradient, each laid out like the parameters, and the number of updates made."""

    count: Int[Array, ""]
    mean: Any
    square: Any


def adamw(config: OptimConfig, factors: Any = None) -> optax.GradientTransformationExtraArgs:
    """AdamW as an optax transformation whose update takes the rate: `update(grads, state, params, rate=rate)`.

    Before anything else the gradients are scaled so that their global norm is at most config.clip_norm. Weight decay
    is decoupled and applies to every parameter, embeddings, hash tables and norm scales included, as in the released
    run. Each parameter's update is one expression, which XLA compiles into one pass over its arrays; the same update
    as a chain of optax's own parts takes twice as long on a CPU and two more copies of the parameters.

    Args:
      config: betas, epsilon, decay, clip norm and the type of the first moment are read; rate and schedule are the
        caller's.
      factors: a `transfer.Factors` for every parameter, in a tree like theirs; None: all are 1.
    """
    beta1, beta2 = config.beta1, config.beta2
    kept = jnp.dtype(config.first_moment)

    def init(params: Any) -> AdamWState:
        mean = jax.tree.map(lambda p: jnp.zeros_like(p, dtype=kept), params)
        return AdamWState(jnp.zeros((), jnp.int32), mean, jax.tree.map(jnp.zeros_like, params))

    def update(
        updates: Any, state: AdamWState, params: Any = None, *, rate: Float[Array, ""] | float, **_: Any
    ) -> tuple[Any, AdamWState]:
        if params is None:
            raise ValueError("params=None: weight decay needs the parameters; pass them to update.")
        count = state.count + 1
        scale = jnp.minimum(1.0, config.clip_norm / (optax.tree.norm(updates) + 1e-6))
        unbias1 = 1 - beta1 ** count.astype(jnp.float32)
        unbias2 = 1 - beta2 ** count.astype(jnp.float32)

        def one(p: Array, g: Array, mean: Array, square: Array, by: Factors) -> tuple[Array, Array, Array]:
            own, epsilon, decay = rate, config.epsilon * by.epsilon, config.weight_decay * by.decay
            if by.rate != 1:  # or the program would have a product more without a transfer
                own = own * by.rate
            g = g * scale
            mean = beta1 * mean.astype(g.dtype) + (1 - beta1) * g
            square = beta2 * square + (1 - beta2) * (g * g)
            direction = mean / unbias1 / (jnp.sqrt(square / unbias2) + epsilon) + decay * p
            return -own * direction, mean.astype(kept), square  # this update takes the mean before it is rounded

        every = jax.tree.map(lambda _: Factors(), params) if factors is None else factors
        done = jax.tree.map(one, params, updates, state.mean, state.square, every)
        step, mean, square = (jax.tree.map(lambda _, d, i=i: d[i], params, done) for i in range(3))
        return step, AdamWState(count, mean, square)

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


class Recent(NamedTuple):
    """The losses and gradient norms of the last steps that trained, in a ring."""

    count: Int[Array, ""]  # of steps ever put in
    values: Float[Array, "2 steps"]  # nats per byte; norms


def no_recent(config: OptimConfig) -> Recent | None:
    """Nothing yet; None where spikes are not looked for."""
    if config.spike_deviations is None:
        return None
    return Recent(jnp.zeros((), jnp.int32), jnp.zeros((2, config.spike_steps), jnp.float32))


def judge(
    config: OptimConfig, recent: Recent | None, loss: Float[Array, ""], norm: Float[Array, ""]
) -> tuple[Bool[Array, ""], Recent | None]:
    """Whether a step is sound, so that its update may be made; and what is known of the last steps thereafter.

    A step is sound if loss and gradient norm are finite and, where `config.spike_deviations` is set and as many steps
    as `config.spike_steps` have trained, neither is so many standard deviations above its mean over the last of them.

    Args:
      loss: nats per byte.
      norm: of the gradient, before clipping.
    """
    sound = jnp.isfinite(loss) & jnp.isfinite(norm)
    if recent is None or config.spike_deviations is None:
        return sound, recent
    new = jnp.stack([loss, norm])
    limit = jnp.mean(recent.values, axis=1) + config.spike_deviations * jnp.std(recent.values, axis=1)
    sound &= jnp.all(new <= limit) | (recent.count < config.spike_steps)
    put = recent.values.at[:, recent.count % config.spike_steps].set(new)
    return sound, Recent(recent.count + sound, jnp.where(sound, put, recent.values))
