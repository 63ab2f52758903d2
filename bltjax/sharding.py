"""The mesh, the one table of rules, the activation helpers: the only file that knows the names of mesh axes.

A dimension of a parameter or of an activation has a *logical* name ("batch", "heads", ...). `LOGICAL_AXES` says
which mesh axes split it, `PARAMETER_RULES` names the dimensions of every parameter by its path. So a change of
layout is a change of one line here, and the modules never see a mesh axis.

Modules lay activations out with `constrain`; what it can't say is in `parallel`.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bltjax.config import MeshConfig

MESH_AXES = ("replica", "data", "model", "sequence")

LOGICAL_AXES: Mapping[str, str | tuple[str, ...] | None] = {
    # activations
    "batch": ("replica", "data"),
    "replicas": "replica",  # of all parameters
    "bytes": "sequence",
    "patches": "sequence",
    "positions": "sequence",  # bytes or patches
    "width": None,
    # activations and parameters
    "heads": "model",
    "hidden": "model",
    "vocabulary": None,
    "head_width": None,
    # parameters
    "layers": None,
    "shard": "data",  # the dimension that fully sharded data parallelism splits
    "rows": None,  # of a table of positions or pads
    "taps": None,  # bytes that a filter sees
    "buckets": None,  # 6 x 500,002 rows split by no power of two above 4, so the hash tables are split by width
}

_STACK = r"(?:(?:encoder|global_model|local_model|decoder)/)?layers"
_CROSS = r"(?:encoder|decoder)/cross_attention"

PARAMETER_RULES: Sequence[tuple[str, tuple[str, ...]]] = (
    (r"(?:(?:byte|global|local)_)?embedding/table", ("vocabulary", "shard")),
    (r"(?:position_embedding|global_pad|local_pad|encoder/first_query)/table", ("rows", "shard")),
    (r"hash_embedding/table", ("buckets", "shard")),
    (rf"(?:{_STACK}/attention|{_CROSS})/(?:query|key|value)/kernel", ("layers", "shard", "heads", "head_width")),
    (rf"(?:{_STACK}/attention|{_CROSS})/out/kernel", ("layers", "heads", "head_width", "shard")),
    (rf"{_STACK}/feed_forward/(?:gate|up)/kernel", ("layers", "shard", "hidden")),
    (rf"{_STACK}/feed_forward/down/kernel", ("layers", "hidden", "shard")),
    # Scales are a few kilobytes: gathering them would cost more than holding them everywhere.
    (rf"{_STACK}/(?:attention|feed_forward)_norm/scale", ("layers", "width")),
    (rf"{_CROSS}/(?:query|memory)_norm/scale", ("layers", "width")),
    (r"(?:(?:global_model|local_model|decoder)/)?norm/scale", ("width",)),
    (r"(?:encoder|decoder)/patch_projection/kernel", ("shard", "width")),
    (r"global_model/input_projection/kernel", ("shard", "width")),
    (r"global_projection/kernel", ("shard", "width")),
    (r"patch_encoder/convolution_\d/kernel", ("taps", "shard", "width")),
    (r"(?:decoder/)?output/kernel", ("shard", "vocabulary")),
)


def make_mesh(
    config: MeshConfig = MeshConfig(),
    devices: Sequence[Any] | None = None,
    axis_type: AxisType = AxisType.Auto,
) -> Mesh:
    """The device mesh of a run; axes of size 1 stay in it, so one code path serves a laptop and a pod.

    Args:
      config: sizes of the axes; one of them may be -1.
      devices: the devices to use, all of them; None: all that JAX sees.
      axis_type: Auto, or Explicit for sharding in types.

    Devices that lie in several slices (or pods) are laid out so that only `replica` crosses the network between them.

    Raises:
      ValueError: when the sizes do not multiply to the number of devices, or replica is no multiple of the slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [getattr(config, name) for name in MESH_AXES]
    fixed = math.prod(s for s in sizes if s != -1)
    if -1 in sizes and len(devices) % fixed == 0:
        sizes[sizes.index(-1)] = len(devices) // fixed
    if math.prod(sizes) != len(devices):
        wanted = ", ".join(f"{name}={getattr(config, name)}" for name in MESH_AXES)
        raise ValueError(
            f"mesh({wanted}) does not fit {len(devices)} devices: the sizes must multiply to that number; "
            "set one axis to -1 to let it fill."
        )
    types = (axis_type,) * len(MESH_AXES)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return jax.make_mesh(tuple(sizes), MESH_AXES, axis_types=types, devices=list(devices))
    replicas, *inner = sizes
    if replicas % slices:
        raise ValueError(
            f"mesh(replica={replicas}) over {slices} slices: must be a multiple of them, since only replicas may talk "
            "over the slow network between slices."
        )
    between = (slices, *[1] * len(inner))
    return Mesh(
        mesh_utils.create_hybrid_device_mesh((replicas // slices, *inner), between, list(devices)),
        MESH_AXES,
        axis_types=types,
    )


def _entry(name: str | None, allowed: frozenset[str]) -> str | tuple[str, ...] | None:
    if name is not None and name not in LOGICAL_AXES:
        raise ValueError(f"logical axis {name!r} is not known: choose from {', '.join(LOGICAL_AXES)}.")
    axes = None if name is None else LOGICAL_AXES[name]
    kept = tuple(a for a in ((axes,) if isinstance(axes, str) else axes or ()) if a in allowed)
    return kept if len(kept) > 1 else kept[0] if kept else None


def partition_spec(logical_axes: Sequence[str | None], mesh_axes: Sequence[str] = MESH_AXES) -> PartitionSpec:
    """The PartitionSpec of a tensor whose dimensions have these logical names (None: never split).

    Raises:
      ValueError: for an unknown name, or when one mesh axis would split two dimensions.
    """
    entries = [_entry(name, frozenset(mesh_axes)) for name in logical_axes]
    used = [axis for e in entries for axis in ((e,) if isinstance(e, str) else e or ())]
    if len(set(used)) != len(used):
        raise ValueError(f"logical axes {tuple(logical_axes)} use one mesh axis twice: {used}.")
    return PartitionSpec(*entries)


def free_axes() -> tuple[dict[str, AxisType], Mapping[str, int]]:
    """The axes of the current mesh that are ours and still free, with their types, and the sizes of all."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return {}, {}
    types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    return {name: types[name] for name in MESH_AXES if types.get(name, AxisType.Manual) != AxisType.Manual}, mesh.shape


def check_axes(x: jax.Array | np.ndarray, logical_axes: Sequence[str | None]) -> None:
    if len(logical_axes) != x.ndim:
        raise ValueError(f"logical_axes={tuple(logical_axes)}: one for each of the {x.ndim} dimensions of {x.shape}.")
    partition_spec(logical_axes)  # a misspelt name fails on a laptop too


def constrain(x: jax.Array | np.ndarray, logical_axes: Sequence[str | None]) -> jax.Array:
    """An activation laid out as its logical axes say, on whatever mesh is current.

    With no mesh (or a mesh that has none of `MESH_AXES`) it is the identity, so a module works in any project; under
    Auto axes it is a sharding constraint, under Explicit axes a reshard; axes that a shard_map has taken are left out.

    Args:
      x: any array.
      logical_axes: one name of `LOGICAL_AXES`, or None, for each dimension.

    Raises:
      ValueError: when there are not as many names as dimensions, or for an unknown name.
    """
    check_axes(x, logical_axes)
    out: Any = x
    free, sizes = free_axes()
    explicit = [name for name, kind in free.items() if kind == AxisType.Explicit]
    automatic = [name for name, kind in free.items() if kind == AxisType.Auto]
    if explicit:
        out = jax.reshard(out, partition_spec(logical_axes, explicit))
    if automatic and math.prod(sizes.values()) > 1:
        out = jax.lax.with_sharding_constraint(out, partition_spec(logical_axes, automatic))
    return out


def is_spread() -> bool:
    """Whether arrays may lie on several devices of the current mesh."""
    free, sizes = free_axes()
    return math.prod(sizes[name] for name in free) > 1


def gathered(logical_axes: Sequence[str | None]) -> tuple[str | None, ...]:
    """The axes of a parameter as it is used: whole where fully sharded data parallelism stores parts."""
    return tuple(None if name == "shard" else name for name in logical_axes)


def split_axis(name: str) -> str | None:
    """The mesh axis that splits a logical axis now, for the collectives of `parallel`; None where none does."""
    free, sizes = free_axes()
    axis = LOGICAL_AXES[name]
    return axis if isinstance(axis, str) and axis in free and sizes[axis] > 1 else None


def summing_axis(name: str) -> str | None:
    """The mesh axis that a sum along a logical axis runs over; inside `per_device`, so None where there is no mesh.

    Axes of size 1 are among them: JAX keeps account of what may differ along an axis, whatever its size.
    """
    axis = LOGICAL_AXES[name]
    return axis if isinstance(axis, str) and axis in free_axes()[0] and is_spread() else None


def parameter_paths(params: Any) -> list[tuple[str, Any]]:
    """Every leaf of a parameter tree with its path, as "encoder/layers/attention/query/kernel"."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]


def parameter_axes(path: str) -> tuple[str, ...]:
    """The logical axes of the parameter at `path`.

    Raises:
      ValueError: unless exactly one rule of `PARAMETER_RULES` matches.
    """
    found = [(pattern, axes) for pattern, axes in PARAMETER_RULES if re.fullmatch(pattern, path)]
    if len(found) != 1:
        which = "no rule" if not found else "more than one rule: " + " and ".join(p for p, _ in found)
        raise ValueError(f"parameter {path!r} matches {which} of bltjax.sharding.PARAMETER_RULES; it must match one.")
    return found[0][1]


def parameter_shardings(params: Any, mesh: Mesh) -> Any:
    """The NamedSharding of every parameter.

    Args:
      params: the parameter tree; leaves need a shape only (jax.ShapeDtypeStruct will do).
      mesh: a mesh with the axes of `MESH_AXES`.

    Raises:
      ValueError: naming the parameter, where a mesh axis does not divide the dimension that it splits.
    """

    def one(path: str, leaf: Any) -> NamedSharding:
        axes = parameter_axes(path)
        if len(axes) != len(leaf.shape):
            raise ValueError(f"parameter {path!r} has shape {leaf.shape}, but its rule names the axes {axes}.")
        spec = partition_spec(axes)
        for size, name, entry in zip(leaf.shape, axes, spec, strict=True):
            parts = math.prod(mesh.shape[a] for a in ((entry,) if isinstance(entry, str) else entry or ()))
            if size % parts:
                raise ValueError(
                    f"parameter {path!r} of shape {leaf.shape}: the mesh splits its {name!r} axis of {size} over "
                    f"{entry}={parts}, which does not divide it. Choose a smaller {entry} axis; replica can take "
                    "the devices that are left."
                )
        return NamedSharding(mesh, spec)

    treedef = jax.tree_util.tree_structure(params)
    return jax.tree_util.tree_unflatten(treedef, [one(path, leaf) for path, leaf in parameter_paths(params)])


def shard_params(params: Any, mesh: Mesh) -> Any:
    """The parameters on the devices of the mesh, each split as its rule says."""
    return jax.device_put(params, parameter_shardings(params, mesh))


def mesh_of(params: Any) -> Mesh | None:
    """The mesh that parameters are laid out over; None for arrays that are on no mesh."""
    for leaf in jax.tree.leaves(params):
        if isinstance(leaf, jax.Array) and isinstance(leaf.sharding, NamedSharding):
            return leaf.sharding.mesh  # pyright: ignore[reportReturnType]
    return None


def is_whole_on_each(mesh: Mesh | None) -> bool:
    """Whether a mesh splits rows over replicas at most, so that each device holds all params and runs all layers."""
    return mesh is None or {name for name, size in mesh.shape.items() if size > 1} <= {LOGICAL_AXES["replicas"]}


def in_one_copy(params: Any) -> Any:
    """Parameters that the devices of a CPU hold whole, in memory that all of these share instead of a copy for each.

    Only arrays that are never donated may lie so. What one device has read is then in the processor's cache for others.
    """

    def one(leaf: jax.Array) -> jax.Array:
        if len(leaf.sharding.device_set) == 1:
            return leaf
        memory = np.asarray(leaf.addressable_data(0))  # on a CPU a view of it
        parts = [jax.device_put(memory, device, may_alias=True) for device in leaf.sharding.addressable_devices]
        return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, parts)

    return jax.tree.map(one, params)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of anything with a leading batch axis: rows split over replica and data."""
    return NamedSharding(mesh, partition_spec(("batch",)))


def batch_ways(mesh: Mesh) -> int:
    """Into how many parts the mesh splits the rows of a batch."""
    return mesh.shape["replica"] * mesh.shape["data"]


def divisible(slots: int, mesh: Mesh) -> int:
    """The patch slots that a row gets so that the mesh divides them: those given, and up to a few empty ones."""
    parts = mesh.shape["sequence"]
    return -(-slots // parts) * parts


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """This process's rows of a global batch (numpy) as global arrays on the mesh; None leaves stay None.

    Raises:
      ValueError: when the rows do not divide over the devices that share them.
    """
    sharding = batch_sharding(mesh)
    ways = batch_ways(mesh)

    def put(x: Any) -> jax.Array:
        rows = np.shape(x)[0] * jax.process_count()
        if rows % ways:
            raise ValueError(f"a batch of {rows} rows does not divide over replica x data = {ways} devices.")
        return jax.make_array_from_process_local_data(sharding, np.asarray(x))

    return jax.tree.map(put, batch)
