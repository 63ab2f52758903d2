import numpy as np
import pytest

from bltjax.scaling.fit.law import Frame, Law, PatchTerm, at_edge, box
from bltjax.scaling.fit.simulation import surface
from tests.scaling.fit.truths import CHINCHILLA, design

PATCHED = Frame(size=1e8, bytes=1e10, patch_size=4.5)
THETA = np.array([-0.5, -1.6, 0.34, -1.4, 0.28, 0.02, 0.05, -0.01])


def test_a_law_and_its_row_of_numbers_are_the_same_law():
    points = design().draw(0)
    frame = Frame.of(points)
    theta = frame.theta(CHINCHILLA)
    back = frame.law(theta)
    for name in ("E", "A", "alpha", "B", "beta"):
        assert getattr(back, name) == pytest.approx(getattr(CHINCHILLA, name), rel=1e-12)
    by_law = [CHINCHILLA.loss(n, d) for n, d in zip(points.size, points.bytes, strict=True)]
    np.testing.assert_allclose(frame.coordinates(points).predict(theta), by_law, rtol=1e-12)


def test_the_jacobian_is_the_derivative_of_the_prediction():
    # Also of the patch size's terms, and for several rows of numbers at once.
    size, data, patch_size = np.array([2e7, 1e8, 9e8]), np.array([3e9, 8e9, 1e11]), np.array([3.0, 4.5, 8.0])
    coordinates = PATCHED.place(size, data, patch_size)
    rows = np.stack([THETA, THETA * 0.9])
    loss, jacobian = coordinates.jacobian(rows)
    np.testing.assert_allclose(loss, coordinates.predict(rows), rtol=1e-13)
    for index in range(len(THETA)):
        step = np.zeros(len(THETA))
        step[index] = 1e-6
        numeric = (coordinates.predict(rows + step) - coordinates.predict(rows - step)) / 2e-6
        np.testing.assert_allclose(jacobian[..., index], numeric, rtol=1e-6, atol=1e-10)


def test_the_patch_term_is_the_one_that_was_fitted():
    law = PATCHED.law(THETA)
    expected = PATCHED.place(np.array([3e8]), np.array([2e10]), np.array([7.0])).predict(THETA)[0]
    assert law.loss(3e8, 2e10, 7.0) == pytest.approx(expected, rel=1e-12)
    # At the reference patch size it adds nothing, whatever the model's size.
    assert law.patch == PatchTerm(0.02, 0.05, -0.01, patch_size=4.5, size=1e8)
    plain = Law(law.E, law.A, law.alpha, law.B, law.beta)
    assert law.loss(3e8, 2e10, 4.5) == pytest.approx(plain.loss(3e8, 2e10), rel=1e-12)


def test_a_patch_size_is_neither_assumed_nor_ignored():
    with pytest.raises(ValueError, match="this law depends on it"):
        PATCHED.law(THETA).loss(1e8, 1e10)
    with pytest.raises(ValueError, match="does not depend on it"):
        CHINCHILLA.loss(1e8, 1e10, 4.5)
    with pytest.raises(ValueError, match="does not depend on it"):
        Frame(1e8, 1e10, None).place(np.ones(1), np.ones(1), np.ones(1))


@pytest.mark.parametrize("law", [surface(0.34, 0.28), surface(0.6, 0.2), surface(0.2, 0.5)])
def test_the_closed_form_is_the_minimum_along_6nd(law):
    size, data = law.closed_form(1e19)
    assert 6 * size * data == pytest.approx(1e19)
    for factor in (0.99, 1.01):
        assert law.loss(size * factor, data / factor) > law.loss(size, data)


def test_a_search_that_ended_at_its_end_is_said():
    assert at_edge(surface(0.34, 0.28)) == ()
    assert at_edge(surface(2.0, 0.28)) == ("alpha",)
    assert at_edge(surface(0.34, 0.02)) == ("beta",)
    low, high = box(PATCHED.place(np.ones(1), np.ones(1), np.ones(1)))
    assert ((low < THETA) & (high > THETA)).all()
