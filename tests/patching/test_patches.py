import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bltjax import vocabulary
from bltjax.patching import Patches, byte_documents, patch_documents

LENGTHS = [[1, 1, 3, 2, 2, 1, 2, 2, 1]]


def random_starts(seed, batch, length):
    starts = np.random.default_rng(seed).random((batch, length + 1)) < 0.3
    starts[:, :2] = True
    return starts


def test_the_worked_example():
    patches = Patches.from_lengths(np.array(LENGTHS), 14)
    assert patches.encoder_ids[0].tolist() == [0, 1, 2, 2, 2, 3, 3, 4, 4, 5, 6, 6, 7, 7]
    assert patches.decoder_ids[0].tolist() == [0, 1, 1, 1, 2, 2, 3, 3, 4, 5, 5, 6, 6, 7]
    assert patches.valid[0].tolist() == [True] * 8 + [False]  # the last patch holds the unseen byte alone


def test_starts_and_lengths_say_the_same():
    starts = random_starts(0, 5, 40)
    counts = starts.sum(axis=1)
    lengths = np.full((5, counts.max() + 2), -1)
    for row, marks in enumerate(starts):
        lengths[row, : counts[row]] = np.diff(np.append(np.flatnonzero(marks), 41))
    lengths[0][lengths[0] == -1] = 0  # both kinds of padding
    from_lengths = Patches.from_lengths(lengths, 40)
    from_starts = Patches.from_starts(starts, lengths.shape[1])
    jax.tree.map(np.testing.assert_array_equal, from_lengths, from_starts)


def test_a_byte_reads_the_newest_patch_complete_before_the_byte_it_predicts():
    starts = random_starts(1, 4, 50)
    patches = Patches.from_starts(starts, 50)
    for row in range(4):
        for t in range(50):
            patch = patches.decoder_ids[row, t]
            in_patch = np.flatnonzero(patches.encoder_ids[row] == patch)
            assert in_patch.size and in_patch.max() <= t
            if starts[row, t + 1]:
                assert patch == patches.encoder_ids[row, t]


def test_valid_marks_the_patches_that_hold_bytes():
    patches = Patches.from_starts(random_starts(2, 6, 30), 25)
    for row in range(6):
        held = set(patches.encoder_ids[row].tolist())
        assert held == set(np.flatnonzero(patches.valid[row]).tolist())
        assert patches.decoder_ids[row].max() <= max(held)


def test_tracing_changes_nothing():
    starts = random_starts(3, 3, 20)
    eager = Patches.from_starts(starts, 21)
    traced = jax.jit(Patches.from_starts, static_argnums=1)(starts, 21)
    jax.tree.map(np.testing.assert_array_equal, eager, traced)
    lengths = jnp.array(LENGTHS)
    traced = jax.jit(Patches.from_lengths, static_argnums=1)(lengths, 14)
    jax.tree.map(np.testing.assert_array_equal, Patches.from_lengths(lengths, 14), traced)
    assert traced.encoder_ids.dtype == traced.decoder_ids.dtype == jnp.int32


def test_overflow_under_a_trace_leaves_ids_beyond_the_slots():
    starts = np.ones((1, 11), bool)
    patches = jax.jit(Patches.from_starts, static_argnums=1)(starts, 6)
    assert patches.encoder_ids[0].tolist() == list(range(10))
    assert patches.valid.all()
    ids = np.full((1, 10), vocabulary.EOS)
    assert patch_documents(ids, patches)[0].tolist() == list(range(6))


def test_as_many_patches_as_slots_is_no_overflow():
    Patches.from_starts(np.ones((1, 11), bool), 10)  # the eleventh start is the unseen byte's


@pytest.mark.parametrize("position", [0, 1])
def test_the_first_two_starts_are_required(position):
    starts = np.ones((3, 6), bool)
    starts[1, position] = False
    with pytest.raises(ValueError, match=rf"starts\[1, {position}\]"):
        Patches.from_starts(starts, 5)


def test_too_many_patches_are_refused():
    with pytest.raises(ValueError, match="row 0 has 5 patches, num_patches=4"):
        Patches.from_starts(np.ones((1, 6), bool), 4)


@pytest.mark.parametrize(
    ("lengths", "named"),
    [
        ([[2, 3]], r"lengths\[0, 0\]=2"),
        ([[1, 2]], "sums to 3.*sum to 5"),
        ([[1, 5]], "sums to 6.*sum to 5"),
        ([[1, 0, 4]], "after padding"),
    ],
)
def test_lengths_that_do_not_fit_are_refused(lengths, named):
    with pytest.raises(ValueError, match=named):
        Patches.from_lengths(np.array(lengths), 4)


def test_shapes_without_bytes_or_patches_are_refused():
    with pytest.raises(ValueError, match="at least 1 byte"):
        Patches.from_starts(np.ones((1, 1), bool), 4)
    with pytest.raises(ValueError, match="num_patches=0"):
        Patches.from_starts(np.ones((1, 5), bool), 0)
    with pytest.raises(ValueError, match="num_bytes=0"):
        Patches.from_lengths(np.array([[1]]), 0)
    with pytest.raises(ValueError, match="at least 1 patch"):
        Patches.from_lengths(np.zeros((1, 0), int), 3)


def test_an_end_belongs_to_the_document_that_it_ends():
    ids = np.array([[1, 70, 2, 1, 71, 72, 2, 1]])
    assert byte_documents(ids)[0].tolist() == [0, 0, 0, 1, 1, 1, 1, 2]


def test_patch_documents_count_patches_that_hold_an_end():
    rng = np.random.default_rng(5)
    starts = random_starts(5, 4, 40)
    ids = np.where(rng.random((4, 40)) < 0.2, vocabulary.EOS, 70)
    patches = Patches.from_starts(starts, 40)
    found = np.asarray(patch_documents(ids, patches))
    for row in range(4):
        ends = [bool((ids[row][np.asarray(patches.encoder_ids[row]) == p] == vocabulary.EOS).any()) for p in range(40)]
        assert found[row].tolist() == [sum(ends[:p]) for p in range(40)]
