"""The compiled loop, below text: how much is read, what a row that has ended does, and that memory is bounded."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bltjax.config import PatcherConfig
from bltjax.families import abstract_params
from bltjax.generate import Source, decode, flat, state
from bltjax.generate.decode import BY_BYTES, BY_EOS, RUNNING, Limits, Program
from bltjax.generate.kinds import prepared
from bltjax.generate.sampling import Sampling, drawing
from bltjax.generate.speculation import draw_ahead
from bltjax.generate.state import Latent
from bltjax.presets import preset
from tests import dense
from tests.generate.models import CASES, FLAT, random_rows, random_weights

PROGRAM = Program(FLAT, 24, 5)
ANY = np.arange(260) >= 4


@functools.cache
def params():
    return flat.prepare(jax.tree.map(jnp.asarray, dense.random_params(abstract_params(FLAT), 1)))


def limits(steps, size=100):
    number = functools.partial(jnp.int32)
    id_bytes = jnp.asarray(np.arange(260) >= 4, jnp.int32)
    return Limits(steps=number(steps), bytes=number(size), patches=number(100), id_bytes=id_bytes)


def start(*prompts):
    session = decode.begin(PROGRAM, [np.asarray(prompt, np.int32) for prompt in prompts])
    return decode.read_prompts(PROGRAM, params(), session, jnp.float32(0))


def go_on(session, steps, size=100):
    return decode.draw_ids(
        PROGRAM, params(), session, jnp.float32(0), drawing(Sampling(), len(session.ended), ANY), limits(steps, size)
    )


def test_drawing_in_several_calls_is_drawing_in_one():
    prompts = ([1, 40, 41, 42, 43, 44, 45], [1, 50])
    once = go_on(start(*prompts), 9)
    session = start(*prompts)
    for steps in (1, 3, 0, 5):
        session = go_on(session, steps)
    np.testing.assert_array_equal(session.ids, once.ids)
    np.testing.assert_allclose(session.nats, once.nats, atol=1e-5)
    assert once.known.tolist() == once.read.tolist() == [16, 11]
    assert (np.asarray(once.ids)[1, 11:] == 0).all()


def test_a_row_that_has_ended_stays_as_it_is():
    session = start([1, 60], [1, 61])
    session = dataclasses.replace(session, ended=jnp.array([BY_EOS, RUNNING]))
    cache = np.asarray(session.state.cache.layers[0].pieces[0][0][0])
    after = go_on(session, 6, size=4)
    assert after.known.tolist() == [2, 6] and after.ended.tolist() == [BY_EOS, BY_BYTES]
    np.testing.assert_array_equal(after.state.cache.layers[0].pieces[0][0][0], cache)
    assert after.nats[0].tolist() == [0] * 24


def compiled_loop(family, ahead, positions=4096, batch=2):
    """The loop that draws, for rows with room for so many bytes, and what its session holds."""
    case = CASES["released, global"]
    config = case.config if family == "blt" else dataclasses.replace(preset("megabyte-tiny"), context_bytes=positions)

    def zeros(config):
        return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract_params(config))

    given = (PatcherConfig(threshold=1.0), case.entropy, zeros(case.entropy)) if family == "blt" else ()
    model, params = prepared(Source(config, zeros(config), *given), positions, positions, ahead)
    program = Program(model, positions, 8)
    session = jax.eval_shape(
        lambda: decode.begin_rows(program, jnp.zeros((batch, positions), int), jnp.ones(batch, int))
    )
    drawn = jax.eval_shape(lambda: drawing(Sampling(), batch, ANY))
    threshold = jax.ShapeDtypeStruct((), jnp.float32)
    loop = draw_ahead if ahead else decode.draw_ids
    lowered = loop.lower(program, params, session, threshold, drawn, jax.eval_shape(lambda: limits(1)))
    return lowered.compile({"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}), session


@pytest.mark.parametrize(
    ("family", "ahead", "batch"),
    [
        ("blt", 0, 1),  # with one row XLA stores and reads by other operations than with several
        *(
            pytest.param(*each, marks=pytest.mark.thorough)
            for each in (("blt", 0, 2), ("blt", 3, 2), ("megabyte", 0, 2))
        ),
    ],
)
def test_a_step_copies_no_cache_and_makes_nothing_as_large(family, ahead, batch):
    """XLA copies what it can't overwrite in place; one such copy a byte costs more than all of the arithmetic."""
    compiled, session = compiled_loop(family, ahead, batch=batch)
    kept = [getattr(session.state, name, ()) for name in ("encoder", "open_kept", "latents", "decoder")]
    caches = jax.tree.leaves(kept)
    pieces = {"f32[" + ",".join(map(str, leaf.shape)) + "]" for leaf in caches}
    copied = re.findall(r"= (\w+\[[\d,]*\])\S* copy\(", compiled.as_text())
    assert copied and not pieces & set(copied)
    assert compiled.memory_analysis().temp_size_in_bytes < max(leaf.size * leaf.dtype.itemsize for leaf in caches)


@pytest.mark.parametrize("together", [decode.TOGETHER, pytest.param(0.0, marks=pytest.mark.thorough)])
def test_rows_that_wait_for_each_other_draw_what_they_draw_alone(together):
    case = CASES["released, global"]
    weights = random_weights(case, 3, random_rows(3, 8, 44))
    patcher = dataclasses.replace(weights.patcher, threshold=0.0)
    model = Latent(case.config, patcher, case.entropy, 44, 44)
    params = jax.tree.map(jnp.asarray, state.prepare(weights.params, weights.entropy_params))
    prompts = [np.int32([1]), np.int32([1, 40, 41, 42, 43, 44, 45]), np.int32([1, 50, 36])]
    found = []
    threshold, drawn = jnp.float32(weights.patcher.threshold), drawing(Sampling(), 3, ANY)
    for program in (Program(model, 44, 8, together), Program(model, 44, 8, 1.0)):
        session = decode.read_prompts(program, params, decode.begin(program, prompts), threshold)
        for steps in (5, 12):
            session = decode.draw_ids(program, params, session, threshold, drawn, limits(steps))
            assert session.known.tolist() == session.read.tolist()
        found.append(session)
    np.testing.assert_array_equal(found[0].ids, found[1].ids)
    np.testing.assert_array_equal(found[0].starts, found[1].starts)
    np.testing.assert_allclose(found[0].nats, found[1].nats, atol=1e-4)
    patches = np.asarray(found[0].drawn_patches)
    assert len(set(patches.tolist())) > 1  # rows that end patches alike would never wait


def test_a_prompt_must_fit():
    with pytest.raises(ValueError, match=r"prompts\[1\] has 25 ids: from 1 to 24 fit"):
        decode.begin(PROGRAM, [np.ones(3, np.int32), np.ones(25, np.int32)])
    with pytest.raises(ValueError, match=r"prompts\[0\] has 0 ids"):
        decode.begin(PROGRAM, [np.ones(0, np.int32)])
