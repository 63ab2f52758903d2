import dataclasses

import numpy as np
import pytest

from bltjax.flops import flops_per_byte, non_embedding_parameters
from bltjax.presets import preset
from bltjax.scaling.fit.cost import Cost, of_points, transformer
from tests.scaling.fit.truths import byte_level_cost, design


def test_6nd_is_6nd():
    cost = transformer()
    np.testing.assert_allclose(cost.per_byte(np.array([3.0, 1e4, 7e11])), [18, 6e4, 4.2e12], rtol=1e-12)
    assert cost.bytes_within(6e18, np.array([1e8]))[0] == pytest.approx(1e10)


def test_a_family_pays_what_its_presets_cost_and_not_6nd():
    models = [preset(f"byte-cpu-{index}") for index in range(5)]
    sizes = np.array([float(non_embedding_parameters(model)) for model in models])
    costs = np.array([flops_per_byte(model, 1, 256).training for model in models])
    cost = Cost("flops", "FLOPs (paper-v1)", sizes, None, costs[None])
    np.testing.assert_allclose(cost.per_byte(sizes), costs, rtol=1e-12)
    between = cost.per_byte(np.sqrt(sizes[1:] * sizes[:-1]))
    assert ((between > costs[:-1]) & (between < costs[1:])).all()
    assert (costs / (6 * sizes)).max() > 1.2  # 6 N D would be off by so much


def test_beyond_the_sizes_it_goes_on_straight():
    cost = byte_level_cost()
    sizes = np.array([1e12, 1e13, 1e14])
    slopes = np.diff(np.log(cost.per_byte(sizes))) / np.diff(np.log(sizes))
    assert slopes[0] == pytest.approx(slopes[1], rel=1e-6)
    assert slopes[0] == pytest.approx(1, abs=0.02)


def test_between_two_patch_sizes_the_global_models_share_is_exact():
    sizes, patch_sizes = np.array([1e6, 1e8]), np.array([3.0, 6.0, 12.0])
    values = 1e6 + 6 * sizes / patch_sizes[:, None]
    cost = Cost("flops", "FLOPs", sizes, patch_sizes, values)
    for wanted in (3.0, 4.5, 8.0, 12.0):
        np.testing.assert_allclose(cost.per_byte(sizes, wanted), 1e6 + 6 * sizes / wanted, rtol=1e-12)
    with pytest.raises(ValueError, match="measured from 3 to 12"):
        cost.per_byte(sizes, 16.0)
    with pytest.raises(ValueError, match="this cost depends on it"):
        cost.per_byte(sizes)


def test_mistake_10_the_cost_is_what_runs_paid_by_their_measured_patches():
    points = design().draw(0)
    paid = dataclasses.replace(points, flops=points.flops * 1.3)  # patches came out smaller than was asked for
    nominal, measured = of_points(points), of_points(paid)
    np.testing.assert_allclose(measured.values, nominal.values * 1.3, rtol=1e-12)


def test_mistake_11_the_cost_of_a_size_is_a_ratio_of_sums():
    points = design(sizes=3, seeds=2, drift=0.5).draw(0)
    same = np.ones(len(points))
    grid = dataclasses.replace(points, size=np.tile([1e8, 2e8, 4e8], len(points) // 3))
    uneven = np.where(np.arange(len(points)) % 2 == 0, 1.0, 1.015)  # padding of some runs
    data = np.linspace(1e9, 9e9, len(points))
    paid = dataclasses.replace(grid, bytes=data, flops=6 * grid.size * data * uneven * same)
    cost = of_points(paid)
    for index, size in enumerate(cost.sizes):
        own = paid.size == size
        assert cost.values[0, index] == pytest.approx(paid.flops[own].sum() / paid.bytes[own].sum(), rel=1e-12)


def test_a_size_that_costs_two_prices_is_refused():
    points = design(seeds=2).draw(0)
    mixed = dataclasses.replace(points, flops=np.where(np.arange(len(points)) < 35, 1.0, 1.4) * points.flops)
    with pytest.raises(ValueError, match="N does not say what was trained"):
        of_points(mixed)


def test_what_runs_share_is_paid_once_and_not_for_each_byte():
    points = design().draw(0)
    shared = np.full(len(points), 1e16)
    cost = of_points(dataclasses.replace(points, flops=points.flops + shared, shared_flops=shared))
    np.testing.assert_allclose(cost.values, of_points(points).values, rtol=1e-9)
    assert cost.shared == pytest.approx(1e16)
    assert cost.bytes_within(2e16, cost.sizes)[0] == pytest.approx(1e16 / cost.values[0, 0])
    with pytest.raises(ValueError, match="use it up"):
        cost.bytes_within(1e16, cost.sizes)


def test_patch_sizes_need_the_full_grid():
    points = design(sizes=3, seeds=2).draw(0)
    patch_size = np.where(np.arange(len(points)) < len(points) // 2, 4.0, 8.0)
    of_points(dataclasses.replace(points, patch_size=patch_size))
    half = dataclasses.replace(points, patch_size=patch_size).where(np.arange(len(points)) > 0)
    with pytest.raises(ValueError, match="not trained with every patch size"):
        of_points(half)


def test_seconds_are_asked_of_points_that_have_them():
    points = design().draw(0)
    with pytest.raises(ValueError, match="no device seconds"):
        of_points(points, "seconds")
    timed = dataclasses.replace(points, seconds=points.bytes * 1e-6)
    np.testing.assert_allclose(of_points(timed, "seconds").values, 1e-6, rtol=1e-9)


def test_shares_that_differ_as_planned_bytes_do_from_those_seen_are_one_share():
    points = design().draw(0)
    shared = 1e16 * np.linspace(0.98, 1.02, len(points))
    cost = of_points(dataclasses.replace(points, flops=points.flops + shared, shared_flops=shared))
    np.testing.assert_allclose(cost.values, of_points(points).values, rtol=1e-9)
    assert cost.shared == pytest.approx(1e16)
    uneven = shared * np.linspace(0.5, 1.5, len(points))
    with pytest.raises(ValueError, match="shared_flops: differ"):
        of_points(dataclasses.replace(points, flops=points.flops + uneven, shared_flops=uneven))
