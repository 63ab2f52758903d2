import jax
import numpy as np

from bltjax.batch import Batch


def _batch(starts: bool) -> Batch:
    ids = np.arange(12, dtype=np.int16).reshape(2, 6)
    return Batch(
        ids=ids,
        targets=ids + np.int16(1),
        target_bytes=np.ones((2, 6), np.uint16),
        starts=np.ones((2, 7), bool) if starts else None,
    )


def test_a_batch_without_starts_has_no_leaf_for_them():
    assert len(jax.tree.leaves(_batch(starts=False))) == 3
    assert len(jax.tree.leaves(_batch(starts=True))) == 4


def test_a_batch_goes_through_jit_and_keeps_its_narrow_types():
    out = jax.jit(lambda batch: batch)(_batch(starts=True))
    assert isinstance(out, Batch)
    assert (out.ids.dtype, out.target_bytes.dtype, out.starts.dtype) == (np.int16, np.uint16, np.bool_)
    np.testing.assert_array_equal(out.targets, _batch(starts=True).targets)


def test_micro_batches_are_a_tree_map_away():
    halves = jax.tree.map(lambda leaf: leaf.reshape(2, 1, *leaf.shape[1:]), _batch(starts=True))
    assert halves.ids.shape == (2, 1, 6)
    assert halves.starts.shape == (2, 1, 7)
