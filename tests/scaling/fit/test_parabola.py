import numpy as np
import pytest

from bltjax.scaling.fit.parabola import isoflop

SIZES = [1e5, 2e5, 4e5, 8e5]


def bowl(size, centre=3e5):
    return 2.0 + 0.05 * np.log(size / centre) ** 2


def test_the_vertex_of_a_parabola_is_found_exactly():
    fit = isoflop(SIZES, [bowl(size) for size in SIZES])
    assert fit.optimum == pytest.approx(3e5)
    assert fit.loss == pytest.approx(2.0)
    assert fit(5e5) == pytest.approx(bowl(5e5))
    assert fit.bound is None


def test_the_order_of_the_points_does_not_matter():
    order = [2, 0, 3, 1]
    shuffled = isoflop([SIZES[i] for i in order], [bowl(SIZES[i]) for i in order])
    assert shuffled == isoflop(SIZES, [bowl(size) for size in SIZES])


@pytest.mark.parametrize(("centre", "bound", "size"), [(3e4, "at or below", 1e5), (3e6, "at or above", 8e5)])
def test_a_minimum_at_the_edge_is_a_bound_and_no_optimum(centre, bound, size):
    fit = isoflop(SIZES, [bowl(size, centre) for size in SIZES])
    assert (fit.optimum, fit.loss) == (None, None)
    assert fit.bound == bound
    assert fit.bound_size == pytest.approx(size)


def test_a_hill_has_no_optimum():
    # The smallest loss is inside, but the points do not form a bowl.
    fit = isoflop([1, 2, 4, 8, 16], [2.0, 2.2, 1.99, 2.3, 2.0])
    assert fit.optimum is None


def test_several_seeds_of_one_size_count_as_one_size():
    with pytest.raises(ValueError, match="three different sizes"):
        isoflop([1e5, 1e5, 2e5], [2.0, 2.1, 2.0])
    fit = isoflop(SIZES * 2, [bowl(size) + s for s in (-0.01, 0.01) for size in SIZES])
    assert fit.optimum == pytest.approx(3e5)


def test_a_loss_that_is_not_a_number_is_refused():
    with pytest.raises(ValueError, match="finite"):
        isoflop(SIZES, [2.0, float("nan"), 2.0, 2.0])


def test_noise_may_put_the_smallest_loss_beside_the_bowls_bottom():
    # A fine grid: neighbours differ by less than the noise of a run.
    sizes = [1e5 * 1.2**step for step in range(12)]
    losses = [bowl(size) + 0.004 * (-1) ** step for step, size in enumerate(sizes)]
    losses[3] -= 0.02
    fit = isoflop(sizes, losses)
    assert fit.optimum == pytest.approx(3e5, rel=0.2)


def test_a_bowl_whose_bottom_lies_outside_has_no_optimum():
    # The smallest loss is inside, yet the parabola falls until beyond the largest size.
    fit = isoflop([1, 2, 4, 8], [2.0, 1.8, 1.4, 1.41])
    assert fit.curvature > 0
    assert (fit.optimum, fit.bound) == (None, None)
