"""Minimal filters against the definition of filtering, and the published matrices."""

from fractions import Fraction

import numpy as np
import pytest

from fljax.models.filtering import MOST_PRODUCTS, minimal_filter

SIZES = [(m, r) for m in range(1, 7) for r in range(1, 7) if m + r - 1 <= MOST_PRODUCTS]


@pytest.mark.parametrize(("outputs", "taps"), SIZES)
def test_it_filters_with_as_many_products_as_there_are_inputs(outputs, taps):
    algorithm = minimal_filter(outputs, taps)
    a, g, b = (np.array(m) for m in algorithm)
    n = outputs + taps - 1
    assert a.shape == (outputs, n) and g.shape == (n, taps) and b.shape == (n, n)
    assert (b == np.round(b)).all()
    rng = np.random.default_rng(outputs)
    inputs, taps_ = rng.normal(size=n), rng.normal(size=taps)
    by_definition = [inputs[i : i + taps] @ taps_ for i in range(outputs)]
    np.testing.assert_allclose(a @ ((g @ taps_) * (b @ inputs)), by_definition, atol=1e-13)


def test_two_outputs_of_three_taps_are_winograds():
    algorithm = minimal_filter(2, 3)
    np.testing.assert_array_equal(algorithm.g, [[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
    np.testing.assert_array_equal(algorithm.b, [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, -1, 0, 1]])
    np.testing.assert_array_equal(algorithm.a, [[1, 1, 1, 0], [0, 1, -1, 1]])


def test_four_outputs_of_three_taps_have_the_published_filter_transform():
    """Lavin and Gray's G for F(4, 3), up to the signs of rows, which the other matrices undo."""
    published = [
        [Fraction(1, 4), 0, 0],
        [-Fraction(1, 6)] * 3,
        [-Fraction(1, 6), Fraction(1, 6), -Fraction(1, 6)],
        [Fraction(1, 24), Fraction(1, 12), Fraction(1, 6)],
        [Fraction(1, 24), -Fraction(1, 12), Fraction(1, 6)],
        [0, 0, 1],
    ]
    np.testing.assert_allclose(np.abs(minimal_filter(4, 3).g), np.abs(np.array(published, float)), rtol=1e-15)


def test_more_products_than_points_are_refused():
    with pytest.raises(ValueError, match=r"Expected outputs=5 \+ taps=3 - 1 <= 6"):
        minimal_filter(5, 3)
