"""What it costs to release only the best of several private trials.

The choice depends on the data, so that its epsilon is larger than that of one trial. What is bounded is the procedure
of Papernot and Steinke: the number of trials is random (after each trial one stops with probability 1/K, so that K are
expected), every trial is run on fresh randomness with hyper-parameters drawn from a distribution that does not depend
on the data, and the best is released. What ranks the trials must itself be part of what a trial releases, or be
computed from that and public data; an accuracy on the clients' own data is neither. A plain best of a fixed grid is not
covered: no bound as good is known for it.

Sources: Papernot and Steinke, "Hyperparameter tuning with Renyi differential privacy", ICLR 2022 (arXiv 2110.03620);
with privacy profiles in the place of Renyi divergences: Koskela, Redberg and Wang, "Privacy profiles for private
selection", ICML 2024 (arXiv 2402.06701).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from fljax.core.check import FljaxError
from fljax.core.transform import Noise
from fljax.core.types import SamplingLaw
from fljax.privacy import cache
from fljax.privacy.accounting import COARSE, GRID, all_rounds, evaluate, grid_for, hopeless, rough_epsilon
from fljax.privacy.events import Event, check_delta
from fljax.privacy.integer_rdp import INTEGER, ORDERS, integer_curve, to_epsilon
from fljax.privacy.mechanisms import make_event

PROCEDURE = (
    "epsilon_selection covers releasing only the best of a random number of trials, of which as many as stated are "
    "expected (one stops after each with the same probability; Papernot and Steinke 2022), ranked by what the trials "
    "release or by public data. It does not cover a plain best of a fixed grid."
)

GAPS = 65
"""Numbers e that are tried, see ``best_of``."""

Profile = Callable[[np.ndarray], np.ndarray]
"""epsilon >= 0, [n] -> the smallest delta [n], for both orders of the neighbours."""


def selection_epsilon(law: SamplingLaw, noise: Noise | float, rounds: int, delta: float, trials: float) -> float:
    """Epsilon of releasing only the best of a geometric number of trials with mean K, each of T rounds.

    Args:
      law, noise, rounds, delta: of one trial, as for ``accounting.epsilon``.
      trials: K >= 1, the expected number of trials; 1 is one trial without a choice.

    Returns:
      epsilon at the same delta, by PLD (grid 1e-3), by Renyi divergences for the discrete mechanisms; infinity without
      noise.

    Guarantees:
      At least the epsilon of one trial, which is proven (``stated_epsilon``).

    Raises:
      FljaxError: a value out of range.
    """
    event = make_event(law, noise, rounds)
    check_delta(delta, event.population or law.population)
    return select_event(event, float(delta), trials)


def select_event(event: Event, delta: float, trials: float) -> float:
    """``selection_epsilon`` of an event."""
    if not 1 <= trials < math.inf:
        raise FljaxError(f"Expected trials={trials!r} to be a number >= 1. It says how many trials are expected.")
    one = evaluate(event, delta, "pld", GRID, proven=True)
    if trials == 1 or hopeless(event, delta):
        return one
    question = {"event": event.key, "delta": delta, "relation": event.relation, "trials": float(trials)}
    return max(one, cache.remember(lambda: _compute(event, delta, trials), "selection", **question))


def _compute(event: Event, delta: float, trials: float) -> float:
    if event.mechanism in INTEGER:
        curve = event.rounds * integer_curve(event)
        return best_of(float(to_epsilon(curve, delta / trials)), _profile(curve), trials)
    grid = grid_for(rough_epsilon(event, delta), COARSE)
    losses = all_rounds(event, grid, proven=True)
    return best_of(float(losses.get_epsilon_for_delta(delta / trials)), losses.get_delta_for_epsilon, trials)


def _profile(curve: np.ndarray) -> Profile:
    """From Renyi divergences r(a): ``log delta = (a - 1) (r(a) + log(1 - 1/a) - epsilon) - log a``, the best order."""
    orders = np.array(ORDERS, float)
    offsets = (orders - 1) * (curve + np.log1p(-1 / orders)) - np.log(orders)
    return lambda epsilon: np.exp(np.minimum(np.min(offsets - np.outer(epsilon, orders - 1), axis=-1), 0.0))


def best_of(strict: float, profile: Profile, trials: float) -> float:
    """Epsilon of the best of a geometric number of trials.

    Let d be the privacy profile of one trial. An output at rank u = Pr[a trial does better] is released with density
    ``w(u) = 1/K (1/K + (1 - 1/K) u)^-2`` times that of one trial, at most K times. The neighbour's rank is at most
    ``min(1, exp(e) u + d(e))`` for every e >= 0, so that w falls by no more than a factor b^2 to the neighbour's, and

        delta(epsilon + 2 log b) <= K d(epsilon),
        b = max(1 + (K - 1) d(e), 1 / (1/K + (1 - 1/K) (1 - d(e)) exp(-e))), at most K.

    Args:
      strict: epsilon of one trial at delta / K. profile: d of one trial. trials: K > 1.

    Returns:
      ``strict + 2 log b`` at the best e.
    """
    gaps, stop = np.linspace(0.0, math.log(trials), GAPS), 1.0 / trials
    deltas = np.asarray(profile(gaps), float)
    ratios = np.maximum(1 + (trials - 1) * deltas, 1 / (stop + (1 - stop) * (1 - deltas) * np.exp(-gaps)))
    return strict + 2 * math.log(min(float(ratios.min()), trials))
