"""Minimal filtering: m outputs of a filter with r taps from m + r - 1 products instead of m r.

``outputs = A [(G filter) * (B inputs)]`` with ``*`` element by element. Filtering is the transpose of multiplying two
polynomials, and a product of degree ``m + r - 2`` is fixed by its values at ``m + r - 1`` points: ``G`` and ``A``
evaluate, ``B`` interpolates. The more points, the larger their powers, and the rounding errors with them.

Source: Winograd, "Arithmetic Complexity of Computations", 1980; Lavin and Gray, "Fast Algorithms for Convolutional
Neural Networks", CVPR 2016.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import cache
from typing import NamedTuple

Matrix = tuple[tuple[float, ...], ...]
POINTS = tuple(map(Fraction, (0, 1, -1, 2, -2)))
"""Where the polynomials are evaluated, the smallest powers first; infinity, the leading coefficient, comes last."""
MOST_PRODUCTS = len(POINTS) + 1


class MinimalFilter(NamedTuple):
    """The three matrices of ``outputs = A [(G filter) * (B inputs)]``.

    a: [m, n] of products -> outputs.
    g: [n, r] of the filter.
    b: [n, n] of inputs; whole numbers.
    """

    a: Matrix
    g: Matrix
    b: Matrix


@cache
def minimal_filter(outputs: int, taps: int) -> MinimalFilter:
    """The algorithm for ``y[i] = sum_k f[k] x[i + k]``, exact in rational numbers.

    Args:
      outputs: m of them, together.
      taps: r, the length of the filter.

    Returns:
      MinimalFilter with n = m + r - 1 products, at most 6.
    """
    n = outputs + taps - 1
    if n > MOST_PRODUCTS:
        raise ValueError(f"Expected outputs={outputs} + taps={taps} - 1 <= {MOST_PRODUCTS}, the points there are.")
    interpolate = list(zip(*_inverse(_powers(n, n)), strict=True))
    # Whole numbers in B, the fractions in G: the filter is transformed once for all places.
    scale = [_whole(row) for row in interpolate]
    return MinimalFilter(
        a=_floats(zip(*_powers(n, outputs), strict=True)),
        g=_floats([[v / s for v in row] for row, s in zip(_powers(n, taps), scale, strict=True)]),
        b=_floats([[v * s for v in row] for row, s in zip(interpolate, scale, strict=True)]),
    )


def _powers(n: int, columns: int) -> list[list[Fraction]]:
    """Row per point, infinity last: the powers that a polynomial with so many coefficients is evaluated by."""
    leading = [Fraction(column == columns - 1) for column in range(columns)]
    return [[point**column for column in range(columns)] for point in POINTS[: n - 1]] + [leading]


def _whole(row: Sequence[Fraction]) -> Fraction:
    """The least factor that makes a row whole."""
    return Fraction(math.lcm(*(value.denominator for value in row)))


def _inverse(matrix: list[list[Fraction]]) -> list[list[Fraction]]:
    """By Gauss-Jordan elimination."""
    n = len(matrix)
    rows = [row + [Fraction(i == j) for j in range(n)] for i, row in enumerate(matrix)]
    for column in range(n):
        pivot = next(i for i in range(column, n) if rows[i][column] != 0)
        rows[column], rows[pivot] = rows[pivot], rows[column]
        rows[column] = [v / rows[column][column] for v in rows[column]]
        for i in range(n):
            if i != column:
                rows[i] = [v - rows[i][column] * p for v, p in zip(rows[i], rows[column], strict=True)]
    return [row[n:] for row in rows]


def _floats(rows: Iterable[Iterable[Fraction]]) -> Matrix:
    return tuple(tuple(map(float, row)) for row in rows)
