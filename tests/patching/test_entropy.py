import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bltjax.patching import entropy_starts, limit_patch_length, next_byte_entropy

EXAMPLE = np.array([[0.2, 2, 0.1, 1.5, 1.6, 0.3, 0.2, 2.5, 2.6, 0.1]], np.float32)


def lengths(starts, with_next):
    marks = np.asarray(starts)[0]
    if not with_next:
        marks = marks[:-1]
    return np.diff(np.append(np.flatnonzero(marks), len(marks))).tolist()


@pytest.mark.parametrize("where", [np.asarray, jnp.asarray])
def test_worked_examples(where):
    entropies = where(EXAMPLE)
    starts = entropy_starts(entropies, 1.4)
    assert lengths(starts, False) == [1, 1, 2, 1, 3, 1, 1]
    assert lengths(starts, True) == [1, 1, 2, 1, 3, 1, 2]
    starts = entropy_starts(entropies, 0.5, "monotonic")
    assert lengths(starts, False) == [1, 1, 2, 4, 2]
    assert lengths(starts, True) == [1, 1, 2, 4, 3]
    starts = limit_patch_length(entropy_starts(entropies, 2.4), 3)
    assert lengths(starts, False) == [1, 3, 3, 1, 1, 1]
    assert lengths(starts, True) == [1, 3, 3, 1, 1, 2]


def expected(entropies, threshold, rule, threshold_add):
    """The table of the released code's rules, one position at a time."""
    starts = []
    for s in range(len(entropies) + 1):
        if s < 2:
            starts.append(True)
        elif rule == "global":
            starts.append(entropies[s - 1] > threshold)
        elif s == 2:
            starts.append(True)  # the first of the differences is forced
        elif rule == "monotonic":
            starts.append(entropies[s - 1] - entropies[s - 2] > threshold)
        else:  # the mask before: true at 2 alone
            rises = entropies[s - 1] - entropies[s - 2] > threshold_add
            starts.append(rises and entropies[s - 1] > threshold and s != 3)
    return starts


@pytest.mark.parametrize(("rule", "threshold_add"), [("global", None), ("monotonic", None), ("add", 0.1)])
def test_rules_on_random_entropies(rule, threshold_add):
    entropies = np.random.default_rng(0).uniform(0, 4, (20, 30)).astype(np.float32)
    for threshold in (-10.0, 0.3, 1.5, 10.0):
        want = [expected(row, np.float32(threshold), rule, threshold_add) for row in entropies]
        host = entropy_starts(entropies, threshold, rule, threshold_add)
        assert isinstance(host, np.ndarray)
        np.testing.assert_array_equal(host, want)
        compiled = jax.jit(entropy_starts, static_argnums=(1, 2, 3))(
            jnp.asarray(entropies), threshold, rule, threshold_add
        )
        np.testing.assert_array_equal(compiled, want)


def test_position_two_is_forced_where_differences_decide():
    calm = np.zeros((1, 6), np.float32)
    assert not entropy_starts(calm, 1.0)[0, 2]
    assert entropy_starts(calm, 1.0, "monotonic")[0].tolist() == [True, True, True, False, False, False, False]
    assert entropy_starts(calm, 1.0, "add", 0.0)[0].tolist() == [True, True, True, False, False, False, False]


def test_add_suppresses_position_three_and_no_other():
    rising = np.arange(8, dtype=np.float32)[None]
    starts = entropy_starts(rising, 0.5, "add", 0.5)[0]
    assert starts.tolist() == [True, True, True, False, True, True, True, True, True]


def test_the_first_entropy_is_ignored():
    for rule, add in (("global", None), ("monotonic", None), ("add", 0.1)):
        low, high = EXAMPLE.copy(), EXAMPLE.copy()
        low[0, 0], high[0, 0] = 0, 5
        np.testing.assert_array_equal(entropy_starts(low, 1.0, rule, add), entropy_starts(high, 1.0, rule, add))


def test_the_comparison_is_strict():
    entropies = np.array([[0, 1.5, 1.5, 0]], np.float32)
    assert entropy_starts(entropies, 1.5)[0].tolist() == [True, True, False, False, False]


def test_stored_float16_meets_the_threshold_itself_not_its_float16_rounding():
    entropies = np.array([[0, 1.3349609375, 1.3359375]], np.float16)
    threshold = 1.335442066192627  # between two neighbours of float16
    assert entropy_starts(entropies, threshold)[0].tolist() == [True, True, False, True]


def test_each_document_is_patched_alone():
    rng = np.random.default_rng(1)
    parts = [rng.uniform(0, 3, (1, n)).astype(np.float32) for n in (1, 2, 3, 4, 9)]
    documents = np.zeros((1, 20), bool)
    documents[0, np.cumsum([0, 1, 2, 3, 4, 9])] = True
    for rule, add in (("global", None), ("monotonic", None), ("add", 0.2)):
        together = entropy_starts(np.concatenate(parts, 1), 1.0, rule, add, documents)
        alone = [entropy_starts(part, 1.0, rule, add)[0, :-1] for part in parts]
        np.testing.assert_array_equal(together[0, :-1], np.concatenate(alone))


def test_a_row_of_one_byte():
    assert entropy_starts(np.zeros((1, 1), np.float32), 0.5, "add", 0.1)[0].tolist() == [True, True]


def test_rules_that_make_no_sense_are_refused(unchecked):
    with pytest.raises(ValueError, match="rule='median'"):
        entropy_starts(EXAMPLE, 1.0, "median")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="threshold_add=None"):
        entropy_starts(EXAMPLE, 1.0, "add")
    with pytest.raises(ValueError, match=r"threshold_add=0\.1"):
        entropy_starts(EXAMPLE, 1.0, "global", 0.1)


def test_entropy_of_known_distributions():
    uniform = jnp.zeros((1, 2, 260))
    np.testing.assert_allclose(next_byte_entropy(uniform), np.log(260), rtol=1e-6)
    sure = uniform.at[:, :, 7].set(1000.0)
    np.testing.assert_array_equal(next_byte_entropy(sure), 0)
    halves = jnp.full((1, 2, 260), -jnp.inf).at[:, :, :2].set(50.0)
    np.testing.assert_allclose(next_byte_entropy(halves), np.log(2), rtol=1e-6)


def test_entropy_is_accurate_at_both_ends():
    rng = np.random.default_rng(2)
    for scale in (0.01, 1.0, 10.0, 300.0):
        logits = rng.normal(0, scale, (2, 50, 260))
        shifted = logits - logits.max(-1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
        want = -(np.exp(log_p) * log_p).sum(-1)
        got = next_byte_entropy(jnp.asarray(logits, jnp.float32))
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


def test_entropy_of_bfloat16_logits_is_computed_in_float32():
    logits = jnp.asarray(np.random.default_rng(3).normal(0, 2, (1, 20, 260)), jnp.bfloat16)
    got = next_byte_entropy(logits)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, next_byte_entropy(logits.astype(jnp.float32)), rtol=1e-6)
