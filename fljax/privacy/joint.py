"""Several releases of one round as one, and rounds of different kinds as one run.

A round that answers two questions about the same clients, such as an update and a score for its mask, is one Gaussian
mechanism: the noise of a question hides its own part of the message, and all parts come from one client.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from typing import Any

from fljax.core.check import FljaxError, non_negative, one_of, positive
from fljax.privacy import cache
from fljax.privacy.accounting import (
    GRID,
    LARGEST,
    assumes_worst_pair,
    check_accountant,
    grid_for,
    new_accountant,
    one_round,
    rough_epsilon,
)
from fljax.privacy.events import Event, check_delta
from fljax.privacy.integer_rdp import INTEGER


def effective_multiplier(*multipliers: float) -> float:
    """The multiplier of one Gaussian mechanism that tells as much as all of them: ``(sum_i z_i^-2)^(-1/2)``.

    Args:
      *multipliers: z_i >= 0, each std / L2 bound of one part of what the same clients send in the same round. Infinity
        is a part that is not released.

    Returns:
      z of the joint release, for the same sampled accountant; 0 where any part has no noise.

    Raises:
      FljaxError: a multiplier below 0, or none at all.

    Source: as ``split_noise_multiplier`` of TensorFlow Privacy; the sum of squares of the parts' relative norms is
    largest where each is at its bound.
    """
    if not multipliers:
        raise FljaxError("Expected multipliers=() to hold a number. Give the noise multiplier of every release.")
    for multiplier in multipliers:
        non_negative("Use 0 for no noise.", noise_multiplier=multiplier)
    if min(multipliers) == 0:
        return 0.0
    precision = math.fsum(z**-2 for z in multipliers)
    return precision**-0.5 if precision else math.inf


def split_multiplier(multiplier: float, shares: Sequence[float]) -> tuple[float, ...]:
    """Divides one Gaussian mechanism into several: ``z_i = z / sqrt(f_i)``, so that ``effective_multiplier`` is z.

    Args:
      multiplier: z >= 0 of the joint release.
      shares: f_i > 0 that sum to 1; a part with 5 % of the budget gets 4.5 times the noise.

    Raises:
      FljaxError: a value out of range, or shares with another sum.
    """
    non_negative("Use 0 for no noise.", noise_multiplier=multiplier)
    for share in shares:
        positive("Leave out what is not released.", share=share)
    if not math.isclose(math.fsum(shares), 1.0, rel_tol=1e-9):
        raise FljaxError(f"Expected shares={tuple(shares)!r} to sum to 1. Divide them by their sum.")
    return tuple(multiplier / math.sqrt(share) for share in shares)


def compose_epsilon(parts: Sequence[tuple[Event, int]], delta: float, *, accountant: str = "pld") -> float:
    """Epsilon of a run whose rounds are not all alike, such as one that pays for a mask in some rounds.

    Args:
      parts: (event, times): the event, with the rounds that it holds, happens so many times (>= 0). All parts are in
        one relation, at one unit, under one trust model. A rho-zCDP release is, for ``rdp``, a Gaussian of multiplier
        ``(2 rho)^(-1/2)``.
      delta: in (0, 1), and below 1/N where the events know the population N.
      accountant: ``pld`` or ``rdp``, as for ``accounting.epsilon``.

    Returns:
      epsilon, proven for cohorts of a fixed size too; infinity where a part has no noise.

    Raises:
      FljaxError: nothing to compose, parts that do not fit each other, or events that the accountant cannot treat.
    """
    one_of(("pld", "rdp"), accountant=accountant)
    used = [(event, times) for event, times in parts if _count(times)]
    _check(used, accountant)
    check_delta(delta, used[0][0].population)
    if any(event.noise == 0 for event, _ in used):
        return math.inf
    rough = sum(times * rough_epsilon(event, delta) for event, times in used)
    if rough > LARGEST:
        return math.inf
    grid = grid_for(rough, GRID) if accountant == "pld" else None
    key = sorted([event.key, times] for event, times in used)
    question = {"parts": key, "delta": float(delta), "relation": used[0][0].relation, "grid": grid}
    return cache.remember(lambda: _compose(used, delta, grid), f"compose_{accountant}", **question)


def _count(times: Any) -> int:
    if times != int(times) or times < 0:
        raise FljaxError(f"Expected times={times!r} to be a whole number >= 0. It says how often an event happens.")
    return int(times)


def _check(parts: Sequence[tuple[Event, int]], accountant: str) -> None:
    """Raises FljaxError unless the parts can be composed."""
    if not parts:
        raise FljaxError("Expected parts=() to hold an event that happens. Give (event, times) pairs.")
    kinds = {(e.relation, e.accountant_relation, e.unit, e.trust, e.population) for e, _ in parts}
    if len(kinds) > 1:
        named = " and ".join(sorted({f"{e.relation} per {e.unit}, {e.trust}, N={e.population}" for e, _ in parts}))
        raise FljaxError(f"Expected parts of one run to share a relation, {named}. Account for them apart.")
    for event, _ in parts:
        check_accountant(accountant, event)
        if event.mechanism in INTEGER:
            raise FljaxError(f"Expected mechanism={event.mechanism!r} to be Gaussian to be composed with others.")


def _compose(parts: Sequence[tuple[Event, int]], delta: float, grid: float | None) -> float:
    by_hand = any(assumes_worst_pair(event) or event.mechanism == "pure" for event, _ in parts)
    if grid is not None and by_hand:
        losses = [one_round(e, grid, proven=True).self_compose(e.rounds * times) for e, times in parts]
        return float(reduce(lambda a, b: a.compose(b), losses).get_epsilon_for_delta(delta))
    total = new_accountant(parts[0][0], grid)
    for event, times in parts:
        total.compose(event.dp_event, times)
    return float(total.get_epsilon(delta))
