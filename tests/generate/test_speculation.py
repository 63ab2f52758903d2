"""What is guessed ahead changes how fast ids come, and nothing else."""

import functools

import numpy as np
import pytest

from bltjax.config import PatcherConfig
from bltjax.families import abstract_params
from bltjax.generate import Generator, Sampling, Source, Stop, cache
from bltjax.generate.sampling import GREEDY
from tests import dense
from tests.generate.models import CASES, FLAT, random_rows, random_weights

NAME = "released, global"
PROMPTS = (b"", b"the quick brown fox, ", "größer\n".encode() + b"\xff\x00")
CAPACITY, NEW = 64, 30
ANY = Stop(eos=False)


@pytest.fixture(scope="module", autouse=True)
def small_pieces():
    with pytest.MonkeyPatch.context() as patch:  # so that guesses that do not hold have begun another piece
        patch.setattr(cache, "BLOCK", 8)
        patch.setattr(cache, "LONGEST", 16)
        yield


@functools.cache
def generator(name, ahead, seed=3, patcher=None):
    case = CASES[name]
    weights = random_weights(case, seed, random_rows(seed, 8, 44))
    entropy = (case.entropy, weights.entropy_params) if patcher is None else (None, None)
    source = Source(case.config, weights.params, patcher or weights.patcher, *entropy)
    return Generator(source, capacity=CAPACITY, ahead=ahead)


def compare(name, ahead, seed, sampling=GREEDY, stop=ANY):
    """Checks that texts are alike, and returns how far guesses held."""
    plain, found = (generator(name, each, seed)(PROMPTS, NEW, sampling, stop) for each in (0, ahead))
    for one, other in zip(found, plain, strict=True):
        assert (one.text, one.ended_by, one.ids.tolist()) == (other.text, other.ended_by, other.ids.tolist())
        np.testing.assert_array_equal(one.starts, other.starts)
        np.testing.assert_allclose(one.nats, other.nats, atol=1e-3)
        if other.entropies is not None:
            np.testing.assert_allclose(one.entropies, other.entropies, atol=1e-4)
        assert other.guesses is None
        guesses, begun = one.guesses, int(one.starts[len(one.prompt_ids) + 1 :].sum())
        assert guesses.ids == len(one.ids) and begun <= guesses.patches <= begun + 1
        assert 1 <= guesses.accepted <= ahead + 1
        assert guesses.latent_rounds <= guesses.rounds
    return [one.guesses for one in found]


@pytest.mark.parametrize(
    ("sampling", "stop"),
    [
        (GREEDY, ANY),
        (GREEDY, Stop(patches=4)),
        (Sampling(temperature=1.0, seed=5), Stop(strings=[b"q"])),
    ],
    ids=["greedy", "so many patches", "at random, up to a string"],
)
def test_what_is_drawn_is_the_same(sampling, stop):
    compare(NAME, 3, 3, sampling, stop)


def test_some_guesses_hold_and_spare_the_global_model_steps():
    guesses = compare(NAME, 3, 3)
    ids, rounds = sum(each.ids for each in guesses), sum(each.rounds for each in guesses)
    assert 1 < ids / rounds < 4  # some hold and some do not
    assert any(each.latent_rounds < each.patches for each in guesses)


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "ahead"), list(zip(CASES, (1, 6, 2, 4, 6, 3, 5, 1), strict=True)))
def test_what_is_drawn_is_the_same_with_every_model_and_rule(name, ahead):
    for seed in (4, 5):
        compare(name, ahead, seed)
    compare(name, ahead, 4, Sampling(temperature=0.7, top_p=0.9, seed=2), Stop())


@pytest.mark.thorough
def test_every_guess_within_a_patch_holds():
    whole = generator(NAME, 3, patcher=PatcherConfig(rule="strided", size=1000))
    for each in whole(PROMPTS[1:], 16, stop=Stop(eos=False)):
        assert each.guesses.rounds == 4 and each.guesses.accepted == 4.0
        assert each.guesses.patches == each.guesses.latent_rounds == 0


@pytest.mark.thorough
def test_a_row_may_be_filled_to_its_last_place():
    prompt = b"x" * (CAPACITY - 11)
    found = [generator(NAME, ahead)([prompt], 10, stop=Stop(eos=False))[0] for ahead in (0, 3)]
    assert found[0].text == found[1].text and len(found[0].text) == 10
    pieces = generator(NAME, 3).stream(prompt, 10, stop=Stop(eos=False), raw=True, every=4)
    assert b"".join(pieces) == found[0].text


def test_what_cannot_guess_is_refused():
    flat = Source(FLAT, dense.random_params(abstract_params(FLAT), 5))
    with pytest.raises(ValueError, match="ahead=2: a flat model has no local models"):
        Generator(flat, ahead=2)
    with pytest.raises(ValueError, match="ahead=-1: must be at least 0"):
        Generator(flat, ahead=-1)
