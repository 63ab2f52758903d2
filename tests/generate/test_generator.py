"""Text in, text out: what is drawn is what the parallel pass says, whatever else is in the batch, and compiled once."""

import functools
import re

import jax
import numpy as np
import pytest

from bltjax import generate as package
from bltjax.blocked import MANY, in_blocks
from bltjax.config import MeshConfig, TokenTransformerConfig
from bltjax.families import abstract_params, build
from bltjax.generate import Generator, Sampling, Source, Stop, decode
from bltjax.generate import generator as generator_room
from bltjax.interop.huggingface_config import Pretrained
from bltjax.sharding import make_mesh
from tests import dense
from tests.generate.models import CASES, FLAT, Reversed, parallel, random_rows, random_weights
from tests.programs import compilations, kernels_in_blocks, quick_jit

CASE = CASES["released, global"]
CAPACITY = 64
PROMPTS = (b"", b"the quick brown fox, ", "größer\n".encode() + b"\xff\x00")


@functools.cache
def weights():
    return random_weights(CASE, 3, random_rows(3, 8, 44))


@functools.cache
def generator():
    w = weights()
    source = Source(CASE.config, w.params, w.patcher, CASE.entropy, w.entropy_params)
    return Generator(source, capacity=CAPACITY)


@functools.cache
def greedy():
    return generator()(PROMPTS, 20, stop=Stop(eos=False))


def whole_row(continuation):
    return np.concatenate([continuation.prompt_ids, continuation.ids])


def test_every_byte_is_the_likeliest_of_the_parallel_pass():
    for prompt, found in zip(PROMPTS, greedy(), strict=True):
        assert len(found.text) == 20 and found.ended_by == "bytes"
        ids = np.full((8, 44), 4, np.int32)  # the shape that is compiled for other tests
        row = whole_row(found)[:44]
        ids[0, : len(row)] = row
        starts, logits = parallel(CASE, weights(), ids)
        np.testing.assert_array_equal(found.starts[:44], starts[0, : len(row)])
        for t in range(len(found.prompt_ids), len(row)):
            before = logits[0, t - 1]
            assert before[4:].max() - before[row[t]] < 1e-4 * np.abs(before).max()
            nats = float(jax.nn.logsumexp(before) - before[row[t]])
            assert found.nats[t - len(found.prompt_ids)] == pytest.approx(nats, rel=1e-3, abs=1e-3)
        assert prompt == b"" or found.starts[2:].any()


def test_a_row_does_not_depend_on_its_neighbours_or_its_place():
    others = (b"another text of its own, and longer", PROMPTS[2], b"x")
    found = generator()(others, 20, stop=Stop(eos=False))
    assert found[1].text == greedy()[2].text
    np.testing.assert_allclose(found[1].nats, greedy()[2].nats, atol=1e-4)
    drawn = generator()(PROMPTS, 20, Sampling(temperature=1.0, seed=7), Stop(eos=False))
    # Row 1 of a batch draws with the seed + 1, so it is row 0 of a batch with that seed.
    moved = generator()((PROMPTS[1], *PROMPTS[:2]), 20, Sampling(temperature=1.0, seed=8), Stop(eos=False))
    assert moved[0].text == drawn[1].text != greedy()[1].text


def test_nothing_within_the_room_is_compiled_twice():
    greedy()
    other = random_weights(CASE, 4, random_rows(3, 8, 44))
    source = Source(CASE.config, other.params, other.patcher, CASE.entropy, other.entropy_params)
    assert other.patcher.threshold != weights().patcher.threshold
    generator()((b"a", b"b", b"c"), 3, Sampling(temperature=0.5, top_k=3), Stop(strings=["q"]))
    with compilations() as seen:
        generator()((b"longer than any before: " * 2, b"", b"b"), 10, Sampling(temperature=2.0, top_p=0.5, seed=1))
        generator()(PROMPTS, CAPACITY - 31, stop=Stop(patches=2, strings=[b"another", b"stop"]))
        Generator(source, capacity=CAPACITY)(PROMPTS, 5)
    assert not seen


def generator_on(mesh, ahead=0):
    return Generator(generator().source.on(mesh), capacity=CAPACITY, ahead=ahead)


@pytest.mark.slow
@pytest.mark.parametrize("ahead", [0, pytest.param(2, marks=pytest.mark.thorough)])
def test_weights_on_a_mesh_of_eight_devices_write_the_same_text(ahead):
    spread = generator_on(make_mesh(MeshConfig(replica=2, data=2, model=2)), ahead)
    found = spread(PROMPTS, 20, stop=Stop(eos=False))  # three rows, for four devices that share them
    for one, other in zip(found, greedy(), strict=True):
        assert one.text == other.text
        np.testing.assert_array_equal(one.starts, other.starts)
        np.testing.assert_allclose(one.nats, other.nats, atol=1e-3)
    how = (PROMPTS, 20, Sampling(temperature=1.0, seed=7), Stop(eos=False, strings=[b"q"]))
    assert [each.text for each in spread(*how)] == [each.text for each in generator()(*how)]


@pytest.mark.parametrize(("part", "ahead"), [(CAPACITY, 0), (8, 0), pytest.param(8, 3, marks=pytest.mark.slow)])
def test_kernels_in_blocks_write_the_same_text(part, ahead, monkeypatch):
    assert not kernels_in_blocks(generator()._params), "kernels as small as these are left alone"
    monkeypatch.setattr(generator_room, "in_blocks", functools.partial(in_blocks, columns=8, smallest=1))
    assert 3 * 8 < MANY < 3 * CAPACITY, "a prompt is read with kernels of either form"
    made = Generator(generator().source, capacity=CAPACITY, part=part, ahead=ahead)
    assert len(kernels_in_blocks(made._params)) == 7 * (2 + 1 + 2 + 2) + 4 * (1 + 2), (
        "seven a layer, four a cross-attention"
    )
    for one, other in zip(made(PROMPTS, 20, stop=Stop(eos=False)), greedy(), strict=True):
        assert one.text == other.text
        np.testing.assert_allclose(one.nats, other.nats, atol=1e-3)
        np.testing.assert_allclose(one.entropies, other.entropies, atol=1e-3)


def test_kernels_that_devices_share_out_do_not_lie_in_blocks(monkeypatch):
    monkeypatch.setattr(generator_room, "in_blocks", functools.partial(in_blocks, columns=8, smallest=1))
    assert kernels_in_blocks(generator_on(make_mesh(MeshConfig(replica=2), jax.devices()[:2]))._params)
    assert not kernels_in_blocks(generator_on(make_mesh(MeshConfig(model=2), jax.devices()[:2]))._params)


@pytest.mark.parametrize("columns", [8, 1 << 20])
def test_replicas_on_a_cpu_read_one_copy_of_the_weights(columns, monkeypatch):
    monkeypatch.setattr(generator_room, "in_blocks", functools.partial(in_blocks, columns=columns, smallest=1))
    devices = jax.devices()[:2]
    spread = generator_on(make_mesh(MeshConfig(replica=2), devices))
    assert bool(kernels_in_blocks(spread._params)) is (columns == 8)
    alone = Generator(generator().source, capacity=CAPACITY)
    for leaf, other in zip(jax.tree.leaves(spread._params), jax.tree.leaves(alone._params), strict=True):
        parts = leaf.addressable_shards
        assert {part.device for part in parts} == set(devices)
        assert len({part.data.unsafe_buffer_pointer() for part in parts}) == 1
        for part in parts:
            np.testing.assert_array_equal(part.data, other)


@pytest.mark.slow
def test_replicas_write_their_rows_without_a_word_between_them(monkeypatch):
    monkeypatch.setattr(generator_room, "in_blocks", functools.partial(in_blocks, columns=8, smallest=1))
    mesh = make_mesh(MeshConfig(replica=2), jax.devices()[:2])
    spread = generator_on(mesh)
    assert kernels_in_blocks(spread._params)
    found = spread(PROMPTS, 20, stop=Stop(eos=False))  # two rows and one, with one made up
    guessed = generator_on(mesh, ahead=2)(PROMPTS, 20, stop=Stop(eos=False))
    assert [each.text for each in guessed] == [each.text for each in found]
    for one, other in zip(found, greedy(), strict=True):
        assert one.text == other.text
        np.testing.assert_allclose(one.nats, other.nats, atol=1e-3)
    called = {}
    with pytest.MonkeyPatch.context() as patch:
        for name in ("read_prompts", "draw_ids"):
            program = getattr(decode, name)
            patch.setattr(decode, name, lambda *given, name=name: called.setdefault(name, given)[2])
            called[name, "program"] = program
        session = spread._begin(PROMPTS, 20)[1]
        spread._draw(session, 20, 20, Sampling(temperature=1.0), Stop())
    with spread._on_mesh():
        for name in ("read_prompts", "draw_ids"):
            text = called[name, "program"].lower(*called[name]).compile().as_text()
            assert not re.findall(r"all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter", text)


@pytest.mark.slow
def test_a_batch_of_one_and_a_stream_are_the_same_text():
    found = greedy()[1]
    stream = generator().stream(PROMPTS[1], 20, stop=Stop(eos=False), raw=True, every=3)
    pieces, result = [], None
    while result is None:
        try:
            pieces.append(next(stream))
        except StopIteration as end:
            result = end.value
    assert b"".join(pieces) == result.text == found.text
    assert 1 < len(pieces) <= 7
    characters = list(generator().stream(PROMPTS[1], 20, stop=Stop(eos=False), every=1))
    assert b"".join(characters).decode() == found.text.decode(errors="replace")
    assert all(piece.decode() for piece in characters)


def test_a_row_ends_before_a_stop_string_and_with_a_patch():
    found = greedy()[1]
    needle = found.text[7:9]
    place = found.text.find(needle)
    stopped = generator()(PROMPTS, 20, stop=Stop(eos=False, strings=[needle, b"never comes up"]))[1]
    assert (stopped.text, stopped.ended_by) == (found.text[:place], "string")
    assert len(stopped.ids) == place == len(stopped.nats)
    shown = b"".join(generator().stream(PROMPTS[1], 20, stop=Stop(eos=False, strings=[needle]), raw=True, every=1))
    assert shown == found.text[:place]

    by_patch = generator()(PROMPTS, 20, stop=Stop(eos=False, patches=2))[1]
    begins = np.flatnonzero(found.starts[len(found.prompt_ids) + 1 :])  # after the first, second, ... drawn byte
    assert by_patch.ended_by == "patches" and len(by_patch.text) == begins[1] + 1


def test_an_eos_ends_a_row_and_is_paid_for():
    w = weights()
    params = dict(w.params)
    kernel = np.array(params["decoder"]["output"]["kernel"])
    kernel[:, 2] = 0
    params["decoder"] = {**params["decoder"], "output": {"kernel": kernel * 1e-3}}  # all ids nearly as likely
    source = Source(CASE.config, params, w.patcher, CASE.entropy, w.entropy_params)
    found = Generator(source, capacity=CAPACITY)(PROMPTS, 31, Sampling(temperature=1.0, seed=2))
    assert {each.ended_by for each in found} <= {"eos", "bytes"}
    for each in found:
        assert (each.ids[:-1] >= 4).all() and (each.ids[-1] == 2) == (each.ended_by == "eos")
        assert len(each.nats) == len(each.ids) == len(each.text) + (each.ended_by == "eos")
        np.testing.assert_allclose(each.nats, np.log(260), atol=0.1)


def test_zero_bytes_are_no_bytes_but_patches_of_the_prompt():
    found = generator()(PROMPTS, 0)
    assert [each.text for each in found] == [b""] * 3
    assert found[1].starts.tolist() == greedy()[1].starts[: len(PROMPTS[1]) + 1].tolist()
    assert list(generator().stream(PROMPTS[1], 0)) == []


def test_the_package_function_is_one_call():
    w = weights()
    pretrained = Pretrained(CASE.config, w.params, CASE.entropy, w.entropy_params, w.patcher.threshold)
    found = package.generate(pretrained, [PROMPTS[1]], 20, stop=Stop(eos=False), capacity=CAPACITY)
    assert found == [greedy()[1].text]
    assert package.generate(pretrained, [], 20) == []


@pytest.mark.parametrize("family", ["bytes", "tokens"])
def test_flat_families_have_the_same_interface(family):
    config, tokenizer = FLAT, None
    if family == "tokens":
        config, tokenizer = TokenTransformerConfig(FLAT.tower, vocabulary_size=260), Reversed()
    params = dense.random_params(abstract_params(config), 5)
    source = Source(config, params, tokenizer=tokenizer)
    found = Generator(source, capacity=CAPACITY)([b"abc", b""], 12, stop=Stop(eos=False))
    assert [len(each.text) for each in found] == [12, 12]
    assert found[0].starts is None and found[0].entropies is None
    ids = whole_row(found[0])
    assert source.text_of(ids) == b"abc" + found[0].text
    logits = np.asarray(quick_jit(build(config).apply)({"params": params}, ids[None]))[0]
    for t in range(4, len(ids)):
        assert logits[t - 1, 4:].max() - logits[t - 1, ids[t]] < 1e-4 * np.abs(logits).max()


@pytest.mark.parametrize(
    ("prompts", "new", "message"),
    [
        ([b"x" * 60], 10, r"prompts\[0\] has 61 ids, which with max_new_bytes=10 more do not fit in capacity=64"),
        ([b"x"], -1, "max_new_bytes=-1: must be at least 0"),
        ([], 5, r"prompts=\[\]: pass at least one"),
        (["\ud800"], 5, "no UTF-8 form"),
        ([np.array([300])], 5, r"ids 300 \.\. 300: they lie in 0 \.\. 259"),
    ],
)
def test_what_does_not_fit_is_refused(prompts, new, message):
    with pytest.raises(ValueError, match=message):
        generator()(prompts, new)


def test_one_string_is_no_list_of_prompts():
    with pytest.raises(ValueError, match="pass a list of prompts"):
        generator()("text", 5)


def test_more_patches_than_there_is_room_for_are_an_error():
    few = Generator(generator().source, capacity=CAPACITY)
    few.patch_capacity = 3  # so that no other program is compiled
    with pytest.raises(ValueError, match=r"patch_capacity=3: a row has \d+ patches"):
        few(PROMPTS, 5)
