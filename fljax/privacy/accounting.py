"""Epsilon from an event: PLD for what is reported, RDP for what is shown live.

Reported numbers come from Google's ``dp_accounting`` (privacy loss distributions, discretised at 1e-4, always rounded
towards a larger epsilon) and are kept on disk. Live curves come from ``rdp``, our own vectorised accountant.

Source: Koskela et al., arXiv 1906.03049, and Doroshenko et al., arXiv 2207.04380 (PLD).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np

from fljax.core.check import FljaxError, one_of
from fljax.core.transform import Noise
from fljax.core.types import SamplingLaw
from fljax.privacy import cache
from fljax.privacy.events import Event, check_delta
from fljax.privacy.integer_rdp import INTEGER, integer_epsilon
from fljax.privacy.mechanisms import make_event
from fljax.privacy.rdp import rdp_epsilon

GRID = 1e-4  # discretisation of privacy losses behind reported numbers
COARSE = 1e-3  # ten times faster, never smaller; used for searching and for live curves
LARGEST = 1e5  # a larger epsilon is given as infinity: it protects nobody, and its losses do not fit into memory


def default_delta(population: int) -> float:
    """delta = N^-1.1, the convention of the federated literature; always below 1/N.

    Raises:
      FljaxError: unless N >= 2.
    """
    if not population >= 2:
        raise FljaxError(f"Expected population={population!r} >= 2. Give delta yourself.")
    return float(population) ** -1.1


def epsilon(law: SamplingLaw, noise: Noise | float, rounds: int, delta: float, *, accountant: str = "pld") -> float:
    """Epsilon of a whole run, in the neighbouring relation of its sampling law.

    Args:
      law: how cohorts were drawn.
      noise: what was added. A bare number is z >= 0 of central Gaussian noise: std on the sum / largest L2 norm of one
        client's contribution.
      rounds: T >= 1.
      delta: in (0, 1), and below 1/N where the law knows the population N.
      accountant: ``pld`` (grid 1e-4; what to report) or ``rdp`` (default orders of dp_accounting; not for
        ``truncated_poisson`` and ``fixed_size``). The discrete mechanisms have their own curve under both names.

    Returns:
      epsilon; infinity for z = 0, and where it would exceed 1e5.

    Guarantees:
      Never below the epsilon of the event; answers are the same whether computed or read from the disk cache.

    Raises:
      FljaxError: a value out of range, or an accountant that cannot treat the event.
    """
    one_of(("pld", "rdp"), accountant=accountant)
    event = make_event(law, noise, rounds)
    check_delta(delta, event.population or law.population)
    check_accountant(accountant, event)
    return evaluate(event, float(delta), accountant, GRID if accountant == "pld" else None)


def stated_epsilon(law: SamplingLaw, noise: Noise | float, rounds: int, delta: float) -> float:
    """The epsilon that a statement may print, that budgets count and that calibration meets: proven in every case.

    It is ``epsilon``, but for Gaussian noise on cohorts of a fixed size, where it is ``fixed_size_bound``.

    Args, raises: as ``epsilon``.
    """
    event = make_event(law, noise, rounds)
    check_delta(delta, event.population or law.population)
    return evaluate(event, float(delta), "pld", GRID, proven=True)


def fixed_size_bound(law: SamplingLaw, noise: Noise | float, rounds: int, delta: float) -> float:
    """Epsilon of fixed-size cohorts without assuming that one worst pair of data sets is worst in every round.

    ``epsilon`` composes, for each direction of the replacement, the pair that is worst in a single round. No data set
    is known that does worse, but under replace_one no proof is known either. This bound composes the pair whose
    divergence is max over both directions at every order (Zhu et al., arXiv 2106.08567, Prop. 30), which dominates
    every data set in every round: it is proven, and 3 to 26 % larger.

    Args, raises: as ``epsilon``, for the law ``fixed_size`` alone.
    """
    one_of(("fixed_size",), sampler=law.kind)
    return stated_epsilon(law, noise, rounds, delta)


def epsilon_series(law: SamplingLaw, noise: Noise | float, rounds: int, delta: float) -> np.ndarray:
    """Epsilon spent after rounds 1..T, for live display; say that it comes from ``make_event(...).live``.

    By RDP, all rounds at once, in milliseconds. Truncated and fixed-size cohorts have no useful RDP bound: there the
    coarse PLD is evaluated at 24 round numbers, and each round shows the value of the next one (so the last is exact).

    Args:
      law, noise, rounds, delta: as for ``epsilon``.

    Returns:
      [T] float64, non-decreasing; infinite where there is no noise. The last is not below ``stated_epsilon``.

    Raises:
      FljaxError: as ``make_event`` and ``check_delta``.
    """
    event = make_event(law, noise, rounds)
    check_delta(delta, event.population or law.population)
    times = np.arange(1, rounds + 1)
    if hopeless(event, delta):
        return np.full(rounds, np.inf)
    after = [event] * rounds
    if law.kind in ("cyclic", "cyclic_poisson") or event.beside:  # clients take turns, or more is released
        after = [make_event(law, noise, int(t)) for t in times]
        times = np.array([one.rounds for one in after])
    if event.mechanism in INTEGER:
        return integer_epsilon(event, times, delta)
    if event.live == "pld":
        return _pld_series(event, times, lambda t: after[t - 1].beside, delta)
    return rdp_epsilon(event.rate, event.noise, times, delta, [one.rho for one in after])


def _pld_series(
    event: Event, times: np.ndarray, beside: Callable[[int], tuple[Event, ...]], delta: float
) -> np.ndarray:
    grid = grid_for(rough_epsilon(event, delta), COARSE)
    step = one_round(event, grid, proven=True)
    stops = np.unique(np.ceil(np.geomspace(1, len(times), 24)).astype(int))
    values = []
    for stop in map(int, stops):
        others = [one_round(part, grid).self_compose(part.rounds) for part in beside(stop)]
        spent = reduce(lambda a, b: a.compose(b), others, step.self_compose(int(times[stop - 1])))
        values.append(spent.get_epsilon_for_delta(delta))
    return np.maximum.accumulate(values)[np.searchsorted(stops, np.arange(1, len(times) + 1))]


# ---- one event ------------------------------------------------------------------------------------------------------


def check_accountant(accountant: str, event: Event) -> None:
    """Raises FljaxError where RDP is asked for an event for which it has no bound."""
    if accountant == "rdp" and event.live != "rdp":
        raise FljaxError(f"Expected accountant='rdp' to be 'pld' for sampler {event.kind!r}. RDP has no bound for it.")


def assumes_worst_pair(event: Event) -> bool:
    """Whether ``epsilon`` takes the worst pair of data sets of one round to be the worst in all rounds, unproven."""
    return event.relation == "replace_one" and event.rate < 1 and event.mechanism == "gaussian"


def evaluate(event: Event, delta: float, accountant: str, finest: float | None, *, proven: bool = False) -> float:
    """Epsilon of an event, from the disk where it is known.

    Args:
      event, delta: valid. accountant: ``pld`` or ``rdp``. finest: the grid of the PLD, None for RDP.
      proven: without the assumption of ``assumes_worst_pair``.

    Returns:
      epsilon, or infinity where it would exceed ``LARGEST``.
    """
    if hopeless(event, delta):
        return math.inf
    grid = None if finest is None else grid_for(rough_epsilon(event, delta), finest)
    if proven and assumes_worst_pair(event) and not event.beside:
        parts = {"event": event.key, "delta": delta, "relation": event.relation, "grid": grid}
        return cache.remember(lambda: _worst_of_both(event, delta, grid), "fixed_size_bound", **parts)
    parts = {"event": event.key, "delta": delta, "relation": event.accountant_relation, "grid": grid}
    return cache.remember(lambda: _run_accountant(event, delta, grid), f"epsilon_{accountant}", **parts)


def _run_accountant(event: Event, delta: float, grid: float | None) -> float:
    if event.mechanism in INTEGER:
        return float(integer_epsilon(event, [event.rounds], delta)[0])
    if grid is not None and (event.mechanism == "pure" or event.beside):
        # PLDAccountant of dp_accounting 0.6 counts a repeated randomised response once; hence by hand.
        return float(all_rounds(event, grid, proven=True).get_epsilon_for_delta(delta))
    accountant = _new_accountant(event, grid).compose(event.dp_event)
    for part in event.beside:
        accountant.compose(part.dp_event)
    return float(accountant.get_epsilon(delta))


def all_rounds(event: Event, grid: float, *, proven: bool = False) -> Any:
    """The privacy loss distribution of a whole run, with what was released beside its rounds. Args as ``one_round``."""
    parts = [event, *event.beside]
    losses = [one_round(part, grid, proven=proven).self_compose(part.rounds) for part in parts]
    return reduce(lambda a, b: a.compose(b), losses)


def _new_accountant(event: Event, grid: float | None) -> Any:
    """An empty accountant of dp_accounting in the relation of an event: PLD on a grid, or RDP for None."""
    import dp_accounting as dp

    relation = dp.NeighboringRelation[event.accountant_relation.upper()]
    if grid is None:
        return dp.rdp.RdpAccountant(neighboring_relation=relation)
    return dp.pld.PLDAccountant(relation, grid)


def _worst_of_both(event: Event, delta: float, grid: float | None) -> float:
    step = one_round(event, grid or GRID, proven=True)
    return float(step.self_compose(event.rounds).get_epsilon_for_delta(delta))


def one_round(event: Event, grid: float, *, proven: bool = False) -> Any:
    """The privacy loss distribution of one step of the composition.

    Args:
      event: not of the discrete mechanisms. grid: of the discretisation.
      proven: the pair that dominates all data sets in all rounds, see ``fixed_size_bound``.
    """
    from dp_accounting.pld import privacy_loss_distribution as pld

    options = {"value_discretization_interval": grid}
    if proven and assumes_worst_pair(event):
        return _symmetric(event, grid)
    if event.mechanism == "bounded_range":
        return _bounded_range(1.0 / event.noise, grid)
    if event.mechanism == "pure":
        return pld.from_randomized_response(2.0 / (math.exp(1.0 / event.noise) + 1.0), 2, **options)
    if event.truncation:
        population, capacity = event.truncation
        return pld.from_truncated_subsampled_gaussian_mechanism(
            population, event.rate, capacity, event.noise, **options
        )
    return pld.from_gaussian_mechanism(event.noise, sampling_prob=event.rate, **options)


def _symmetric(event: Event, grid: float) -> Any:
    """The pair with h(e^x) = the one-round delta for x >= 0, and its mirror image for x < 0."""
    from dp_accounting.pld import pld_pmf
    from dp_accounting.pld import privacy_loss_distribution as pld

    step = one_round(event, grid)
    reach = 1.0
    while step.get_delta_for_epsilon(reach) > 1e-20 and reach < 1e6:
        reach *= 1.25
    last = math.ceil(reach / grid)
    losses = grid * np.arange(last + 1)
    right = np.asarray(step.get_delta_for_epsilon(losses))
    left = -np.expm1(-losses[1:]) + np.exp(-losses[1:]) * right[1:]
    deltas = np.minimum.accumulate(np.concatenate([left[::-1], right]))
    pmf = pld_pmf.create_pmf_pessimistic_connect_dots_fixed_gap(grid, -last, last, deltas)
    return pld.PrivacyLossDistribution(pmf)


def _bounded_range(width: float, grid: float) -> Any:
    """One choice whose log-likelihood ratios span at most eta: the worst of all such pairs at every epsilon,

        h(x) = (1 - exp((x - eta) / 2))^2 / (1 - exp(-eta))    for |x| <= eta,

    the largest of ``q (e^t - e^x)`` over the two-point pairs with losses t and t - eta, which dominate such mechanisms
    (Dong, Durfee, Rogers, ICML 2020, arXiv 1909.13830). As a bound on every choice it may be composed with anything,
    also where a choice depends on earlier ones (Zhu, Dong, Wang, AISTATS 2022, arXiv 2106.08567, Thm. 10).
    """
    from dp_accounting.pld import pld_pmf
    from dp_accounting.pld import privacy_loss_distribution as pld

    last = math.ceil(width / grid)
    x = grid * np.arange(-last, last + 1)
    inside = np.square(np.expm1((np.minimum(x, width) - width) / 2)) / -np.expm1(-width)
    deltas = np.where(x < -width, -np.expm1(x), inside)
    pmf = pld_pmf.create_pmf_pessimistic_connect_dots_fixed_gap(grid, -last, last, deltas)
    return pld.PrivacyLossDistribution(pmf)


def rough_epsilon(event: Event, delta: float) -> float:
    """A quick bound, in microseconds to milliseconds."""
    if event.mechanism == "pure":
        return sum(part.rounds / part.noise if part.noise else math.inf for part in (event, *event.beside))
    if event.mechanism in INTEGER:
        return float(integer_epsilon(event, [event.rounds], delta)[0])
    return float(rdp_epsilon(event.rate, event.noise, event.rounds, delta, event.rho))


def hopeless(event: Event, delta: float) -> bool:
    """Whether epsilon is infinite, or so large that it is given as infinite."""
    return event.noise == 0 or rough_epsilon(event, delta) > LARGEST


def grid_for(rough: float, finest: float) -> float:
    """The grid, coarser by powers of ten where epsilon is so large that the fine one would exhaust the memory."""
    return finest * 10.0 ** max(0, math.ceil(math.log10(max(rough, 1e-9) / 100)))
