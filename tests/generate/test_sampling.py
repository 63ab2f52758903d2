import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bltjax.generate.sampling import Sampling, draw, drawing, filtered

VOCABULARY = 7
ALL = np.ones(VOCABULARY, bool)
PROBABILITIES = np.array([0.3, 0.02, 0.25, 0.1, 0.25, 0.05, 0.03])
LOGITS = jnp.log(jnp.asarray(PROBABILITIES, jnp.float32))[None]


def left(allowed=ALL, **settings):
    kept = filtered(LOGITS, drawing(Sampling(temperature=1.0, **settings), 1, allowed))
    return np.flatnonzero(np.isfinite(np.asarray(kept)[0])).tolist()


@pytest.mark.parametrize(
    ("settings", "ids"),
    [
        ({}, [0, 1, 2, 3, 4, 5, 6]),
        ({"top_k": 1}, [0]),
        ({"top_k": 2}, [0, 2]),  # of two equals the lower id
        ({"top_k": 100}, [0, 1, 2, 3, 4, 5, 6]),
        ({"top_p": 0.31}, [0, 2]),
        ({"top_p": 0.7}, [0, 2, 4]),
        ({"top_p": 1e-6}, [0]),  # the likeliest stays
        ({"top_p": 1.0}, [0, 1, 2, 3, 4, 5, 6]),
        ({"min_p": 0.32}, [0, 2, 3, 4]),
        ({"min_p": 1.0}, [0]),
        ({"top_k": 3, "top_p": 0.6}, [0, 2]),  # of the three left, two have 0.55 / 0.8
        ({"top_k": 4, "min_p": 0.5}, [0, 2, 4]),
    ],
)
def test_what_filters_leave(settings, ids):
    assert left(**settings) == ids


def sample(count, **settings):
    """The ids that so many rows with the same logits draw."""
    logits = jnp.tile(LOGITS, (count, 1))
    return np.asarray(jax.jit(draw)(logits, jnp.zeros(count, jnp.int32), drawing(Sampling(**settings), count, ALL)))


def test_ids_are_drawn_as_often_as_they_are_likely():
    count = 20_000
    for temperature in (1.0, 0.5):
        want = PROBABILITIES ** (1 / temperature)
        found = np.bincount(sample(count, temperature=temperature), minlength=VOCABULARY) / count
        np.testing.assert_allclose(found, want / want.sum(), atol=5 * 0.5 / np.sqrt(count))
    assert set(sample(500, temperature=1.0, top_k=3)) == {0, 2, 4}


def test_temperature_0_is_the_likeliest():
    assert set(sample(50)) == {0}
    assert set(sample(50, temperature=1e-6)) == {0}


def test_what_is_not_allowed_is_never_drawn():
    allowed = ALL.copy()
    allowed[[0, 2]] = False
    logits = jnp.tile(LOGITS, (500, 1))
    for temperature in (0.0, 2.0):
        settings = drawing(Sampling(temperature=temperature), 500, allowed)
        found = set(np.asarray(draw(logits, jnp.zeros(500, jnp.int32), settings)).tolist())
        assert not found & {0, 2} and 4 in found


def test_a_row_draws_by_its_own_seed_and_place():
    place = jnp.zeros(64, jnp.int32)
    logits = jnp.tile(LOGITS, (64, 1))
    together = draw(logits, place, drawing(Sampling(temperature=1.0, seed=5), 64, ALL))
    for row in (0, 9, 63):
        alone = draw(logits[:1], place[:1], drawing(Sampling(temperature=1.0, seed=5 + row), 1, ALL))
        assert alone[0] == together[row]
    later = draw(logits, place + 1, drawing(Sampling(temperature=1.0, seed=5), 64, ALL))
    assert (later != together).any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.5}, r"sampling\.temperature=-0\.5: must be finite and at least 0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"temperature": float("inf")}, "temperature=inf"),
        ({"temperature": 1.0, "top_k": 0}, "top_k=0: must be at least 1"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p=0.0: must lie in"),
        ({"temperature": 1.0, "min_p": 1.5}, "min_p=1.5: must lie in"),
        ({"temperature": 1.0, "seed": -1}, "seed=-1: must lie in"),
        ({"top_k": 5}, "top_k=5: has no effect at temperature 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**settings)
