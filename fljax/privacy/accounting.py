"""Epsilon from an event: PLD for what is reported, RDP for what is shown live.

Reported numbers come from Google's ``dp_accounting`` (privacy loss distributions, discretised at 1e-4, always rounded
towards a larger epsilon) and are kept on disk. Live curves come from ``rdp``, our own vectorised accountant.

Source: Koskela et al., arXiv 1906.03049, and Doroshenko et al., arXiv 2207.04380 (PLD).
"""

from __future__ import annotations

import math
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
    if law.kind in ("cyclic", "cyclic_poisson"):  # clients take turns
        times = np.array([make_event(law, noise, int(t)).rounds for t in times])
    if event.mechanism in INTEGER:
        return integer_epsilon(event, times, delta)
    if event.live == "pld":
        return _pld_series(event, times, delta)
    return rdp_epsilon(event.rate, event.noise, times, delta)


def _pld_series(event: Event, times: np.ndarray, delta: float) -> np.ndarray:
    step = one_round(event, grid_for(rough_epsilon(event, delta), COARSE), proven=True)
    stops = np.unique(np.ceil(np.geomspace(1, times[-1], 24)).astype(int))
    values = [step.self_compose(int(stop)).get_epsilon_for_delta(delta) for stop in stops]
    return np.maximum.accumulate(values)[np.searchsorted(stops, times)]


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
    if proven and assumes_worst_pair(event):
        parts = {"event": event.key, "delta": delta, "relation": event.relation, "grid": grid}
        return cache.remember(lambda: _worst_of_both(event, delta, grid), "fixed_size_bound", **parts)
    parts = {"event": event.key, "delta": delta, "relation": event.accountant_relation, "grid": grid}
    return cache.remember(lambda: _run_accountant(event, delta, grid), f"epsilon_{accountant}", **parts)


def _run_accountant(event: Event, delta: float, grid: float | None) -> float:
    if event.mechanism in INTEGER:
        return float(integer_epsilon(event, [event.rounds], delta)[0])
    if event.mechanism == "pure" and grid is not None:
        # PLDAccountant of dp_accounting 0.6 counts a repeated randomised response once; hence by hand.
        return float(one_round(event, grid).self_compose(event.rounds).get_epsilon_for_delta(delta))
    return float(new_accountant(event, grid).compose(event.dp_event).get_epsilon(delta))


def new_accountant(event: Event, grid: float | None) -> Any:
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


def rough_epsilon(event: Event, delta: float) -> float:
    """A quick bound, in microseconds to milliseconds."""
    if event.mechanism == "pure":
        return event.rounds / event.noise if event.noise else math.inf
    if event.mechanism in INTEGER:
        return float(integer_epsilon(event, [event.rounds], delta)[0])
    return float(rdp_epsilon(event.rate, event.noise, event.rounds, delta))


def hopeless(event: Event, delta: float) -> bool:
    """Whether epsilon is infinite, or so large that it is given as infinite."""
    return event.noise == 0 or rough_epsilon(event, delta) > LARGEST


def grid_for(rough: float, finest: float) -> float:
    """The grid, coarser by powers of ten where epsilon is so large that the fine one would exhaust the memory."""
    return finest * 10.0 ** max(0, math.ceil(math.log10(max(rough, 1e-9) / 100)))
