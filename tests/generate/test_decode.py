"""The compiled loop, below text: how much is read, what a row that has ended does, and that memory is bounded."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bltjax.families import abstract_params
from bltjax.generate import decode, flat
from bltjax.generate.decode import BY_BYTES, BY_EOS, RUNNING, Limits, Program
from bltjax.generate.sampling import Sampling, drawing
from tests import dense
from tests.generate.models import FLAT

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
    cache = np.asarray(session.state.cache.keys[0][0])
    after = go_on(session, 6, size=4)
    assert after.known.tolist() == [2, 6] and after.ended.tolist() == [BY_EOS, BY_BYTES]
    np.testing.assert_array_equal(after.state.cache.keys[0][0], cache)
    assert after.nats[0].tolist() == [0] * 24


def test_a_prompt_must_fit():
    with pytest.raises(ValueError, match=r"prompts\[1\] has 25 ids: from 1 to 24 fit"):
        decode.begin(PROGRAM, [np.ones(3, np.int32), np.ones(25, np.int32)])
    with pytest.raises(ValueError, match=r"prompts\[0\] has 0 ids"):
        decode.begin(PROGRAM, [np.ones(0, np.int32)])
