"""Fields of a sweep that are drawn instead of listed: independent random values, and evenly spread Sobol points."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fljax.core.check import FljaxError
from fljax.sections import DrawnConfig, SweepConfig


def draws(sweep: SweepConfig) -> list[dict[str, Any]]:
    """The points of ``sweep.random`` and ``sweep.sobol``: one axis of ``sweep.samples`` points, empty without them.

    Point k is the same whatever the number of samples, and a random field keeps its values when other fields are added:
    more points extend a sweep that was run before.
    """
    columns: dict[str, list[Any]] = {}
    for name, drawn in sweep.random.items():
        if name in sweep.sobol:
            raise FljaxError(f"Expected {name} on one axis, found it in sweep.random and sweep.sobol. Remove one.")
        rng = np.random.default_rng([sweep.sample_seed, *name.encode()])
        columns[name] = [place(drawn, u) for u in rng.random(sweep.samples)]
    if sweep.sobol:
        unit = sobol_points(sweep.samples, len(sweep.sobol), sweep.sample_seed)
        for column, (name, drawn) in zip(unit.T, sweep.sobol.items(), strict=True):
            columns[name] = [place(drawn, u) for u in column]
    if not columns:
        return []
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def sobol_points(count: int, dimensions: int, seed: int) -> np.ndarray:
    """[count, dimensions] scrambled Sobol points in [0, 1): evenly spread, most so where count is a power of two.

    Source: Owen, "Randomly permuted (t, m, s)-nets" (1995), as scipy.stats.qmc has it.
    """
    from scipy.stats import qmc

    engine = qmc.Sobol(dimensions, scramble=True, rng=np.random.default_rng(seed))
    # Whole powers of two are drawn and cut: SciPy warns about other numbers, and more points keep the first ones.
    return engine.random_base2(math.ceil(math.log2(count)))[:count]


def place(drawn: DrawnConfig, u: float) -> Any:
    """The value at the share u in [0, 1) of a distribution.

    ``low + u (high - low)``, or ``low (high / low)^u`` on a log scale; whole numbers have equal shares of [0, 1) there,
    from half below the lowest to half above the highest where the scale is logarithmic.
    """
    if drawn.choice:
        return drawn.choice[int(u * len(drawn.choice))]
    assert drawn.low is not None and drawn.high is not None
    low, high = drawn.low, drawn.high
    if drawn.integer and drawn.scale == "linear":
        return int(low) + int(u * (high - low + 1))
    if drawn.integer:
        low, high = low - 0.5, high + 0.5
    value = low * (high / low) ** u if drawn.scale == "log" else low + u * (high - low)
    return min(max(round(value), int(drawn.low)), int(drawn.high)) if drawn.integer else float(value)


def named(sweep: SweepConfig, points: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the axes that tell the points apart: the first field whose values all differ, else all of them."""
    fields = [*sweep.random, *sweep.sobol]
    for name in fields:
        if len({point[name] for point in points}) == len(points):
            return [name]
    return fields
