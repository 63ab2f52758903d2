"""How tests compile a program, and how they look into one without running it."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax
import numpy as np

from bltjax.blocked import Blocked


@contextmanager
def compilations() -> Iterator[list[str]]:
    """The programs that are compiled, or fetched from the cache of compiled ones, meanwhile."""
    seen: list[str] = []

    def listen(event: str, duration: float, **_: object) -> None:
        if "backend_compile" in event:
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


# The compiler's effort turned down: tiny programs take longer to compile than to run.
LITTLE_EFFORT = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def quick_jit(function, **options):
    """jax.jit with little effort."""
    return jax.jit(function, compiler_options=LITTLE_EFFORT, **options)


def _inner(value):
    if isinstance(value, list | tuple):
        for item in value:
            yield from _inner(item)
    elif hasattr(value, "eqns"):
        yield value
    elif hasattr(value, "jaxpr"):
        yield value.jaxpr


def _shapes(jaxpr):
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            yield getattr(variable.aval, "shape", ()), equation.primitive.name
        for value in equation.params.values():
            for inner in _inner(value):
                yield from _shapes(inner)


def largest_array(function, *arguments):
    """(elements, shape, primitive) of the largest array that a program makes, loops and branches included.

    Only shapes are traced: the arguments may be jax.ShapeDtypeStruct of any size.
    """
    made = _shapes(jax.make_jaxpr(function)(*arguments).jaxpr)
    return max((int(np.prod(shape)), shape, primitive) for shape, primitive in made)


def primitives(function, *arguments):
    """Name of the primitive of every array that a program makes, loops and branches included."""
    return [primitive for _, primitive in _shapes(jax.make_jaxpr(function)(*arguments).jaxpr)]


def kernels_in_blocks(params):
    """The leaves of a tree of params that are `Blocked`."""
    leaves = jax.tree.leaves(params, is_leaf=lambda leaf: isinstance(leaf, Blocked))
    return [leaf for leaf in leaves if isinstance(leaf, Blocked)]
