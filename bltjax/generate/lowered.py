"""The programs of generation compiled for devices that need not be there: do they fit, and how much do they take.

In goes a mesh and a model, of which only shapes are needed; out comes the memory that each device needs to read a
prompt and to draw. The programs are those that `Generator` runs. scripts/compile_generate.py calls this.
"""

import dataclasses
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bltjax.config import BLTConfig, EntropyModelConfig, PatcherConfig
from bltjax.families import abstract_params
from bltjax.generate import decode, state
from bltjax.generate.decode import Limits, Program
from bltjax.generate.sampling import GREEDY, drawing
from bltjax.generate.speculation import draw_ahead
from bltjax.generate.state import Latent
from bltjax.sharding import batch_ways, parameter_shardings, replicated


@dataclasses.dataclass(frozen=True)
class Needs:
    """What one compiled program needs; sizes are bytes of one device.

    Attributes:
      params: the weights, of the model that patches too.
      session: caches and all else that is known of the rows; what comes out takes its place.
      scratch: what the program makes on the way, and its code.
      seconds: that it took to compile.
    """

    params: float
    session: float
    scratch: float
    seconds: float

    @property
    def memory(self) -> float:
        return self.params + self.session + self.scratch


def compile_for(
    mesh: Mesh, model: BLTConfig, entropy: EntropyModelConfig, *, rows: int, capacity: int, patch_capacity: int,
    part: int = 128, ahead: int = 0, dtype: str = "bfloat16",
) -> dict[str, Needs]:  # fmt: skip
    """Compiles what a `Generator` with these arguments runs: "read" for prompts, and "draw".

    Args:
      rows: prompts of a batch; the mesh divides them.
      dtype: of the weights.

    Raises:
      ValueError: for rows or weights that the mesh does not divide.
      RuntimeError: from the compiler, as where a device has too little memory.
    """
    if rows % batch_ways(mesh):
        raise ValueError(f"rows={rows}: do not divide over replica x data = {batch_ways(mesh)} devices.")
    latent = Latent(model, PatcherConfig(threshold=0.0), entropy, capacity, patch_capacity, ahead)
    program = Program(latent, capacity, min(part, capacity))

    def on_mesh(config: Any) -> Any:
        shapes = abstract_params(config)
        return jax.tree.map(
            lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype), sharding=where),
            shapes, parameter_shardings(shapes, mesh),
        )  # fmt: skip

    def everywhere(make: Any) -> Any:
        """Shapes of what `make` makes, on all devices."""
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated(mesh)), jax.eval_shape(make)
        )

    # Nothing is computed on devices that may not be there: shapes come first.
    vocabulary_size = program.vocabulary_size
    weights, entropy_weights = on_mesh(model), on_mesh(entropy)
    ids, known, threshold = everywhere(
        lambda: (jnp.zeros((rows, capacity), jnp.int32), jnp.zeros(rows, jnp.int32), jnp.zeros(()))
    )
    drawn = everywhere(lambda: drawing(GREEDY, rows, np.ones(vocabulary_size, bool)))
    limits = everywhere(
        lambda: Limits(
            steps=jnp.zeros((), jnp.int32),
            bytes=jnp.zeros((), jnp.int32),
            patches=jnp.zeros((), jnp.int32),
            id_bytes=jnp.zeros(vocabulary_size, jnp.int32),
        )
    )
    draw = draw_ahead if ahead else decode.draw_ids
    with jax.set_mesh(mesh):
        params = _made(jax.jit(state.prepare), weights, entropy_weights)
        session = _made(decode.begin_rows, program, ids, known)
        lowered = {
            "read": (decode.read_prompts, (program, params, session, threshold)),
            "draw": (draw, (program, params, session, threshold, drawn, limits)),
        }
        return {name: _needs(call, given, params, session) for name, (call, given) in lowered.items()}


def _made(call: Any, *given: Any) -> Any:
    """Shapes of what a program returns, and how the compiler lays it out."""
    lowered = call.lower(*given)
    shapes, layout = lowered.out_info, lowered.compile().output_shardings
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), shapes, layout
    )


def _needs(call: Any, given: Any, params: Any, session: Any) -> Needs:
    begin = time.perf_counter()
    compiled = call.lower(*given).compile()
    seconds = time.perf_counter() - begin
    memory: Any = compiled.memory_analysis()
    scratch = memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    # What is returned and not written over what was given.
    scratch += memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Needs(_on_one_device(params), _on_one_device(session), scratch, seconds)


def _on_one_device(tree: Any) -> float:
    return math.fsum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
    )
