import dataclasses

import numpy as np
import pytest

from bltjax.config import PatcherConfig
from bltjax.patching import rules, stream_starts
from bltjax.patching.calibrate import (
    PatchStatistics,
    calibrate,
    check_starts,
    document_patch_counts,
    patch_statistics,
)

VARIANTS = {
    "global": PatcherConfig(),
    "monotonic": PatcherConfig(variant="monotonic"),
    "add": PatcherConfig(variant="add", threshold_add=0.1),
}
every_variant = pytest.mark.parametrize("variant", VARIANTS)


def corpus(seed, lengths):
    """Entropies as a trained model's: many near 0, a long tail, stored as float16."""
    rng = np.random.default_rng(seed)
    boundaries = np.concatenate([[0], np.cumsum(np.array(lengths) + 2)])
    return boundaries, rng.gamma(0.6, 1.5, boundaries[-1]).astype(np.float16)


def measured(config, boundaries, entropies):
    return patch_statistics(stream_starts(config, boundaries, entropies=entropies), boundaries)


@every_variant
@pytest.mark.parametrize("limit", [None, 9])
@pytest.mark.parametrize("wanted", [2.5, 3.3, 4.5, 6.0])
def test_the_wanted_mean_is_reached(variant, limit, wanted, monkeypatch):
    monkeypatch.setattr(rules, "_CHUNK", 10_007)
    boundaries, entropies = corpus(0, [1, 20_000, 1, 2, 3, 15_000, 700])
    config = dataclasses.replace(VARIANTS[variant], mean_patch_bytes=wanted, max_patch_length=limit)
    found = calibrate(config, boundaries, entropies)
    statistics = measured(found.config, boundaries, entropies)
    assert statistics.patches == found.patches
    assert statistics.mean_patch_bytes == pytest.approx(found.mean_patch_bytes)
    assert statistics.mean_patch_bytes == pytest.approx(wanted, rel=0.005)
    assert dataclasses.replace(found.config, threshold=None) == config


@every_variant
def test_no_other_threshold_comes_nearer(variant):
    boundaries, entropies = corpus(1, [150, 30, 80])
    config = dataclasses.replace(VARIANTS[variant], mean_patch_bytes=3.0)
    found = calibrate(config, boundaries, entropies)
    stored = entropies.astype(np.float32)
    tried = np.unique(np.concatenate([stored, np.diff(stored)]))
    for threshold in (tried[1:] + tried[:-1]) / 2:
        other = measured(dataclasses.replace(config, threshold=float(threshold)), boundaries, entropies)
        assert abs(other.mean_patch_bytes - 3.0) >= abs(found.mean_patch_bytes - 3.0) - 1e-9


def test_entropies_computed_anew_fall_on_the_same_side_as_those_stored():
    boundaries, _ = corpus(2, [40_000])
    exact = np.random.default_rng(2).gamma(0.6, 1.5, boundaries[-1]).astype(np.float32)
    found = calibrate(PatcherConfig(), boundaries, exact.astype(np.float16))
    stored = stream_starts(found.config, boundaries, entropies=exact.astype(np.float16))
    np.testing.assert_array_equal(stored, stream_starts(found.config, boundaries, entropies=exact))


def test_equal_entropies_are_reported_or_refused():
    boundaries = np.array([0, 1002])
    entropies = np.where(np.arange(1002) % 4 == 0, 2.0, 0.5).astype(np.float16)  # a patch every 4 bytes, or every byte
    found = calibrate(PatcherConfig(mean_patch_bytes=3.9), boundaries, entropies)
    assert found.wanted == 3.9
    assert found.mean_patch_bytes == pytest.approx(4.0, rel=0.01)
    assert 0.5 < found.threshold < 2.0
    with pytest.raises(ValueError, match=r"mean_patch_bytes=2\.5.*nearest sizes.*equal"):
        calibrate(PatcherConfig(mean_patch_bytes=2.5), boundaries, entropies)


def test_a_size_beyond_the_ends_is_refused():
    boundaries, entropies = corpus(3, [200, 300])
    for config, ends in (
        (PatcherConfig(mean_patch_bytes=400.0), r"0\.992 .* 125\.000"),  # of 500 bytes: 504 patches, or 4
        (PatcherConfig(mean_patch_bytes=8.0, max_patch_length=4), r"0\.992 .* 3\.876"),
        (PatcherConfig(mean_patch_bytes=1.2, variant="add", threshold_add=0.1), r"2\.\d+ .* 83\.333"),
    ):
        with pytest.raises(ValueError, match=f"mean_patch_bytes={config.mean_patch_bytes}.* {ends}"):
            calibrate(config, boundaries, entropies)


def test_a_model_that_knows_nothing_cannot_be_calibrated():
    with pytest.raises(ValueError, match=r"mean_patch_bytes=4\.5.*equal"):
        calibrate(PatcherConfig(), np.array([0, 500]), np.full(500, 5.5, np.float16))


def test_corpora_with_nothing_to_calibrate_on_are_refused():
    with pytest.raises(ValueError, match="no bytes"):
        calibrate(PatcherConfig(), np.array([0]), np.zeros(0, np.float16))
    with pytest.raises(ValueError, match="too short"):
        calibrate(PatcherConfig(variant="monotonic"), np.array([0, 3, 6]), np.zeros(6, np.float16))
    with pytest.raises(ValueError, match="only the entropy rule"):
        calibrate(PatcherConfig(rule="space"), np.array([0, 5]), np.zeros(5, np.float16))
    with pytest.raises(ValueError, match="4 values given"):
        calibrate(PatcherConfig(), np.array([0, 5]), np.zeros(4, np.float16))


def test_statistics_of_a_known_stream():
    #  BOS a b c d EOS | BOS a EOS
    starts = np.array([1, 1, 0, 1, 0, 0, 1, 1, 0], bool)
    statistics = patch_statistics(starts, np.array([0, 6, 9]))
    assert (statistics.documents, statistics.bytes, statistics.positions, statistics.patches) == (2, 5, 9, 5)
    assert statistics.length_counts == {1: 2, 2: 2, 3: 1}
    assert statistics.mean_patch_bytes == 1.0
    assert statistics.mean_patch_length == 9 / 5
    assert statistics.document_quantiles[0] == 0.5
    assert statistics.document_quantiles[-1] == pytest.approx(4 / 3)
    assert document_patch_counts(starts, np.array([0, 6, 9])).tolist() == [3, 2]


def test_statistics_lose_no_position():
    boundaries, entropies = corpus(4, [0, 30, 400, 1])
    statistics = measured(PatcherConfig(threshold=1.0), boundaries, entropies)
    assert sum(length * count for length, count in statistics.length_counts.items()) == boundaries[-1]
    assert sum(statistics.length_counts.values()) == statistics.patches


def test_statistics_of_nothing():
    statistics = patch_statistics(np.zeros(0, bool), np.array([0]))
    assert statistics.patches == 0
    assert np.isnan(statistics.mean_patch_bytes)
    assert statistics.document_quantiles == ()


def test_statistics_survive_json():
    boundaries, entropies = corpus(5, [30, 400])
    statistics = measured(PatcherConfig(threshold=1.0), boundaries, entropies)
    assert PatchStatistics.from_json(statistics.to_json()) == statistics


@every_variant
@pytest.mark.parametrize("limit", [None, 6])
def test_thresholds_that_make_no_patches_are_refused(variant, limit):
    boundaries, entropies = corpus(6, [1, 2, 500, 90])
    config = dataclasses.replace(VARIANTS[variant], max_patch_length=limit)

    def check(threshold, **how):
        at = dataclasses.replace(config, threshold=threshold)
        check_starts(at, stream_starts(at, boundaries, entropies=entropies), boundaries, **how)

    check(0.2, row_bytes=64)
    if variant != "add":  # the rise that "add" asks for keeps it from starting everywhere
        with pytest.raises(ValueError, match=r"threshold=-20\.0.*one patch per byte; raise it"):
            check(-20.0)
    with pytest.raises(ValueError, match=r"threshold=50\.0.*one patch per document \(0 positions.*lower it"):
        check(50.0)
    with pytest.raises(ValueError, match="one patch per row of 2 bytes"):
        check(1.5, row_bytes=2)


def test_other_rules_have_no_threshold_to_refuse():
    check_starts(PatcherConfig(rule="byte"), np.ones(5, bool), np.array([0, 5]))
