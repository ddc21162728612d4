"""A budget instead of a number of rounds: how long a run may go on before it would spend more."""

from __future__ import annotations

from fljax.core.check import positive
from fljax.core.transform import Noise
from fljax.core.types import SamplingLaw
from fljax.privacy.accounting import stated_epsilon


def affordable_rounds(law: SamplingLaw, noise: Noise | float, rounds: int, delta: float, budget: float) -> int:
    """The largest number of rounds, at most ``rounds``, whose epsilon does not exceed the budget; 0 if none is.

    Found by bisection, since epsilon does not fall with the number of rounds; every value is the one that a statement
    prints, and is kept in its cache. It is a function of public numbers alone, known before anything is compiled, and
    the same after a resume: no round is counted twice and none is lost.

    Args:
      law: how cohorts are drawn. noise: what was added, or z. rounds: T asked for. delta: of the budget.
      budget: epsilon > 0.

    Raises:
      FljaxError: a value out of range.
    """
    positive("Leave the budget out to train without one.", budget=budget)
    if stated_epsilon(law, noise, rounds, delta) <= budget:
        return rounds
    low, high = 0, rounds  # epsilon(low) is within the budget, epsilon(high) is not
    while high - low > 1:
        middle = (low + high) // 2
        if stated_epsilon(law, noise, middle, delta) <= budget:
            low = middle
        else:
            high = middle
    return low
