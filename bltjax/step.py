"""The two compiled programs: one training step, and the sums of a scored batch; one code for every family."""

import dataclasses
import functools
import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Bool, Float, Int

from bltjax import families
from bltjax.attention import backend_of, prove
from bltjax.batch import Batch
from bltjax.config import ModelConfig, OptimConfig, TransformerConfig
from bltjax.loss import Sums, loss_sums, real_bytes, row_sums
from bltjax.optim import adamw, judge, no_recent
from bltjax.parallel import summed_over_replicas
from bltjax.patching.patches import Patches
from bltjax.sharding import (
    batch_sharding,
    batch_ways,
    divisible,
    parameter_shardings,
    partition_spec,
    put_batch,
    replicated,
)
from bltjax.transfer import scaled, transfer_factors


@chex.dataclass
class TrainState:
    """All that a step changes; arrays, or what stands for them: their shapes or shardings."""

    params: Any
    opt_state: Any
    step: Any  # int32, steps taken, those whose update was skipped included
    recent: Any = None  # optim.Recent, where spikes are looked for


@chex.dataclass
class StepMetrics:
    """What one step reports; scalars."""

    sums: Sums
    gradient_norm: Float[Array, ""]  # before clipping
    positions: Int[Array, ""]  # scored targets
    patches: Int[Array, ""]  # patches among the inputs; 0 for flat families
    skipped: Bool[Array, ""]  # whether loss or gradient were not finite, or a spike: then nothing was changed
    wish: Int[Array, ""]  # the greatest that any process gave


def batch_logits(model: ModelConfig, slots: int | None, params: Any, batch: Batch) -> Any:
    patches = None
    if model.reads_patches:
        if batch.starts is None or slots is None:
            raise ValueError(
                f"slots={slots}: a model that reads patches needs batches with starts, and the patch slots of a row."
            )
        patches = Patches.from_starts(batch.starts, slots)
    return families.build(model).apply({"params": params}, batch.ids, patches)


def _gradients(model: ModelConfig, slots: int | None, params: Any, batch: Batch, count: Array) -> tuple[Any, Sums]:
    def loss(params: Any) -> tuple[Array, Sums]:
        sums = loss_sums(batch_logits(model, slots, params, batch), batch.targets, batch.target_bytes)
        return (sums.byte_nats + sums.special_nats) / count, sums

    gradients, sums = jax.grad(loss, has_aux=True)(params)
    return gradients, sums


class TrainStep:
    """The compiled training step of one model on one mesh; make it with `compile_step`.

    The loss is the sum of nats over all scored targets of the global batch, divided by the raw bytes that they stand
    for: over micro-batches and devices alike, so neither changes a gradient. Gradients are clipped after that sum.
    Where `optim.judge` finds a step unsound, parameters and moments stay as they are.
    """

    def __init__(
        self, model: ModelConfig, optim: OptimConfig, mesh: Mesh, accumulation: int, slots: int | None
    ) -> None:
        self.mesh = mesh
        self._ways = accumulation * batch_ways(mesh)
        self._accumulation = accumulation
        self._slots = slots = None if slots is None else divisible(slots, mesh)
        self._wishes: dict[int, jax.Array] = {}
        factors = None if optim.transfer is None else transfer_factors(optim.transfer, model)
        optimizer = adamw(optim, factors)

        def initialize(key: Array) -> TrainState:
            params = families.initialize(model, key)
            params = params if factors is None else scaled(params, factors)
            zero = jnp.zeros((), jnp.int32)
            return TrainState(params=params, opt_state=optimizer.init(params), step=zero, recent=no_recent(optim))

        def accumulated(params: Any, batch: Batch, count: Array) -> tuple[Any, Sums]:
            if accumulation == 1:
                return _gradients(model, slots, params, batch, count)

            def add(total: Any, micro: Batch) -> tuple[Any, None]:
                return jax.tree.map(jnp.add, total, _gradients(model, slots, params, micro, count)), None

            micro = jax.tree.map(self._micro_batches, batch)
            one = jax.tree.map(lambda x: x[0], micro)
            zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(lambda: _gradients(model, slots, params, one, count)))
            return jax.lax.scan(add, zeros, micro)[0]

        def step(state: TrainState, batch: Batch, rate: Array, wish: Array) -> tuple[TrainState, StepMetrics]:
            count = jnp.maximum(real_bytes(batch.targets, batch.target_bytes), 1).astype(jnp.float32)
            gradients, sums = summed_over_replicas(functools.partial(accumulated, count=count))(state.params, batch)
            gradients = jax.lax.with_sharding_constraint(gradients, self.shardings.params)
            updates, opt_state = optimizer.update(gradients, state.opt_state, state.params, rate=rate)
            norm = optax.tree.norm(gradients)
            sound, recent = judge(optim, state.recent, (sums.byte_nats + sums.special_nats) / count, norm)
            metrics = StepMetrics(
                sums=sums,
                gradient_norm=norm,
                positions=jnp.sum(batch.targets >= 0, dtype=jnp.int32),
                patches=jnp.sum(0 if batch.starts is None else batch.starts[:, :-1], dtype=jnp.int32),
                skipped=~sound,
                wish=jnp.max(wish),
            )
            # Outermost, so that XLA takes the choice into the pass over each array, and no sum is rounded otherwise.
            params, opt_state = jax.tree.map(
                lambda new, old: jnp.where(sound, new, old),
                (optax.apply_updates(state.params, updates), opt_state),
                (state.params, state.opt_state),
            )
            return TrainState(params=params, opt_state=opt_state, step=state.step + 1, recent=recent), metrics

        abstract = jax.eval_shape(initialize, jax.random.key(0))
        whole = replicated(mesh)
        split = parameter_shardings(abstract.params, mesh)
        opt_state = abstract.opt_state._replace(mean=split, square=split, count=whole)
        recent = jax.tree.map(lambda _: whole, abstract.recent)
        self.shardings = TrainState(params=split, opt_state=opt_state, step=whole, recent=recent)
        self._abstract = abstract
        # The random numbers of each parameter are a program of their own. On a CPU, optimising those takes longer than
        # the faster drawing of less than some ten million numbers, once, wins back.
        level = 0 if sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract.params)) < 10**7 else 1
        on_cpu = mesh.devices.flat[0].platform == "cpu"
        self._initialize = jax.jit(
            initialize,
            out_shardings=self.shardings,
            compiler_options={"xla_backend_optimization_level": level} if on_cpu else None,
        )
        # Fixed shardings of what comes out: the next call sees the same ones go in, and never compiles again.
        self._step = jax.jit(step, donate_argnums=0, out_shardings=(self.shardings, whole))

    def _micro_batches(self, x: Array) -> Array:
        # Every n-th row, so that the rows of a micro-batch lie on all devices already.
        return jnp.swapaxes(x.reshape(-1, self._accumulation, *x.shape[1:]), 0, 1)

    def check_rows(self, rows: int) -> None:
        """Refuses a global batch whose rows do not divide over micro-batches and devices (ValueError)."""
        if rows % self._ways:
            raise ValueError(
                f"rows.batch={rows}: must be a multiple of accumulation x replica x data = {self._ways}, so that each "
                "device has the same number of rows in each micro-batch."
            )

    def initial_state(self, seed: int) -> TrainState:
        """Fresh parameters and moments, laid out over the mesh."""
        return self._initialize(jax.random.key(seed))  # outside the mesh: the one row it traces divides over no devices

    @property
    def abstract_state(self) -> TrainState:
        """Shapes, types and shardings of the state."""
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            self._abstract,
            self.shardings,
        )

    def __call__(self, state: TrainState, batch: Batch, rate: float, wish: int = 0) -> tuple[TrainState, StepMetrics]:
        """One step; the state given is used up.

        Args:
          batch: this process's rows of the global batch, on the host.
          rate: the learning rate.
          wish: what this process would like all to do after this step; the metrics have the greatest of all wishes.

        Raises:
          ValueError: when the rows do not divide over micro-batches and devices.
        """
        self.check_rows(batch.ids.shape[0] * jax.process_count())
        with jax.set_mesh(self.mesh):
            return self._step(state, put_batch(batch, self.mesh), np.float32(rate), self._on_each_device(wish))

    def lower(self, rows: int, positions: int) -> jax.stages.Lowered:
        """The step for global batches of a shape, for a compiler: nothing is computed, and no device is needed.

        Args:
          rows: of the global batch.
          positions: inputs of a row.

        Raises:
          ValueError: when the rows do not divide over micro-batches and devices.
        """
        self.check_rows(rows)
        where = batch_sharding(self.mesh)

        def nothing(columns: int, dtype: type[np.generic]) -> np.ndarray:
            return np.broadcast_to(dtype(0), (rows, columns))  # of any size without memory

        fields: dict[str, Any] = {
            "ids": nothing(positions, np.int16),
            "targets": nothing(positions, np.int16),
            "target_bytes": nothing(positions, np.uint16),
            "starts": None if self._slots is None else nothing(positions + 1, np.bool_),
        }
        batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), Batch(**fields))
        wishes, layout = self._wish_layout()
        with jax.set_mesh(self.mesh):
            wish = jax.ShapeDtypeStruct(wishes, np.int32, sharding=layout)
            return self._step.lower(self.abstract_state, batch, np.float32(0), wish)

    def _wish_layout(self) -> tuple[tuple[int, ...], NamedSharding]:
        shape = (batch_ways(self.mesh), self.mesh.shape["model"], self.mesh.shape["sequence"])
        return shape, NamedSharding(self.mesh, partition_spec(("batch", "heads", "bytes")))

    def _on_each_device(self, value: int) -> jax.Array:
        # Each process can give its own: so it is no scalar, of which all must give the same.
        if value not in self._wishes:
            shape, sharding = self._wish_layout()
            one = np.full((1, 1, 1), value, np.int32)
            self._wishes[value] = jax.make_array_from_callback(shape, sharding, lambda index: one)
        return self._wishes[value]


def compile_step(
    model: ModelConfig, optim: OptimConfig, mesh: Mesh, accumulation: int = 1, slots: int | None = None
) -> TrainStep:
    """The training step of these settings; the same one, compiled once, for every run that has them.

    Args:
      optim: its rate and schedule make no difference: they come in with each call.
      slots: patches of a row, for BLT.
    """
    read = (
        "beta1", "beta2", "epsilon", "weight_decay", "clip_norm", "first_moment", "spike_deviations", "spike_steps",
        "transfer",
    )  # fmt: skip
    optim = OptimConfig(**{name: getattr(optim, name) for name in read})
    slots = slots if model.reads_patches else None
    return _compile_step(on_devices(model, mesh), optim, mesh, accumulation, slots)


def on_devices(model: ModelConfig, mesh: Mesh) -> ModelConfig:
    """The model with the back end of attention that is best on the mesh's devices, if that is left open."""
    device = mesh.devices.flat[0]
    backend = model.compute.attention
    if backend == "auto":
        towers = [tower for tower in vars(model).values() if isinstance(tower, TransformerConfig)]
        best = {backend_of(device.platform, model.compute.dtype, tower.head_width) for tower in towers}
        backend = best.pop() if len(best) == 1 else "reference"  # one for the whole model
    if backend != "reference" and jax.local_devices()[0].client is device.client:
        prove(backend, jax.local_devices()[0])
    return dataclasses.replace(model, compute=dataclasses.replace(model.compute, attention=backend))


_compile_step = functools.lru_cache(maxsize=16)(TrainStep)


class ScoreStep:
    """The compiled sums of a batch under one model on one mesh; make it with `compile_score`."""

    def __init__(self, model: ModelConfig, mesh: Mesh, slots: int | None) -> None:
        self.mesh = mesh
        slots = None if slots is None else divisible(slots, mesh)

        def score(params: Any, batch: Batch) -> Sums:
            return row_sums(batch_logits(model, slots, params, batch), batch.targets, batch.target_bytes)

        self._score = jax.jit(score, out_shardings=replicated(mesh))

    def __call__(self, params: Any, batch: Batch) -> Sums:
        """Sums over each row of the global batch.

        Args:
          batch: this process's rows, on the host.
        """
        with jax.set_mesh(self.mesh):
            return self._score(params, put_batch(batch, self.mesh))


def compile_score(model: ModelConfig, mesh: Mesh, slots: int | None = None) -> ScoreStep:
    """The scoring program of these settings, compiled once for each shape of batch.

    Args:
      slots: patches of a row, for BLT.
    """
    return _compile_score(on_devices(model, mesh), mesh, slots)


_compile_score = functools.lru_cache(maxsize=16)(ScoreStep)
