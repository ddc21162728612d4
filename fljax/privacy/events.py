"""What a run did, in the words of a privacy accountant: sampling law + noise + rounds -> one event.

An ``Event`` is plain data: it can be written down, compared and used as a key without importing ``dp_accounting``
(3 seconds). ``Event.dp_event`` builds Google's ``DpEvent`` when an accountant really has to run.

| law | event | neighbouring relation |
|---|---|---|
| ``poisson`` | T x PoissonSampled(q, Gaussian(z)) | add_or_remove_one |
| ``truncated_poisson`` | T x TruncatedSubsampledGaussian(N, q, B, z) | add_or_remove_one |
| ``full`` | T x Gaussian(z) | add_or_remove_one |
| ``fixed_size`` | T x PoissonSampled(C/N, Gaussian(z/2)) | replace_one |
| ``cyclic`` | ceil(T C/N) x Gaussian(z), no amplification | replace_special |
| ``cyclic_poisson`` | ceil(T/b) x PoissonSampled(q, Gaussian(z)), b groups that take turns | add_or_remove_one |

Here z = (standard deviation of the noise on the sum) / (largest L2 norm of one client's contribution).

Source: the events of dp_accounting 0.6; truncation: Ganesh et al., arXiv 2508.15089; why fixed-size cohorts cost more
than Poisson cohorts: Lebeda et al., arXiv 2405.20769.
"""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fljax.core.check import FljaxError, finite, in_range, non_negative, one_of
from fljax.core.types import SamplingLaw

if TYPE_CHECKING:
    from dp_accounting import DpEvent

RELATIONS = {
    "poisson": "add_or_remove_one",
    "truncated_poisson": "add_or_remove_one",
    "full": "add_or_remove_one",
    "fixed_size": "replace_one",
    "cyclic": "replace_special",
    "cyclic_poisson": "add_or_remove_one",
}
"""The neighbouring relation in which the guarantee of each sampling law is stated."""


@dataclass(frozen=True)
class Event:
    """One run as the accountant sees it: ``rounds`` times the same sampled mechanism.

    Attributes:
      kind: the sampling law, a key of ``RELATIONS``.
      relation: neighbouring relation of the guarantee.
      sampler: the sampling law in words, for people.
      rate: q, sampling probability that amplifies (1 where nothing is amplified).
      noise: noise multiplier handed to the accountant (half the real one where a client may be replaced); for ``pure``
        1 / (epsilon of one upload).
      rounds: how many times the mechanism is composed.
      truncation: (N, B) of a truncated Poisson sampler, else None.
      accountant_relation: relation handed to the accountant; differs from ``relation`` for ``fixed_size`` alone, where
        halving the noise has already turned add/remove into replace.
      live: the accountant that can draw a curve over the rounds: ``rdp``, or ``pld`` where no RDP bound is known.
      mechanism: ``gaussian`` | ``pure`` | ``discrete_gaussian`` | ``skellam`` | ``bounded_range`` (one choice of the
        exponential mechanism, whose log-likelihood ratios span at most 1 / noise): one step of the composition.
      detail: further public numbers that the mechanism needs, by name.
      unit: whose whole data is protected: ``user`` or ``example``.
      trust: who adds the noise, see ``core.transform.Noise``.
      population: N to which the guarantee refers (the simulated one under cohort rescaling), or None.
      beside: what else the same clients released in the run, without amplification: neurons that were chosen privately,
        a class that was reported. It is composed with the rounds.
    """

    kind: str
    relation: str
    sampler: str
    rate: float
    noise: float
    rounds: int
    truncation: tuple[int, int] | None = None
    accountant_relation: str = "add_or_remove_one"
    live: str = "rdp"
    mechanism: str = "gaussian"
    detail: tuple[tuple[str, float], ...] = ()
    unit: str = "user"
    trust: str = "central"
    population: int | None = None
    beside: tuple[Event, ...] = ()

    @property
    def rho(self) -> float:
        """What is released beside the rounds, in zero-concentrated DP: an upper bound for curves.

        ``eta^2 / 8`` for a choice of range eta (Cesar and Rogers, arXiv 2004.07223), ``epsilon^2 / 2`` for a pure one,
        ``1 / (2 z^2)`` for a Gaussian.
        """
        parts = {"bounded_range": 8.0, "pure": 2.0, "gaussian": 2.0}
        return sum(part.rounds / part.noise**2 / parts[part.mechanism] for part in self.beside)

    @property
    def key(self) -> str:
        """A short text that is equal for two events exactly when an accountant cannot tell them apart."""
        if self.mechanism == "bounded_range":
            step = f"BoundedRange({1 / self.noise!r})"
        elif self.mechanism == "pure":
            step = f"RandomizedResponse(epsilon={1 / self.noise if self.noise else math.inf!r})"
        elif self.mechanism != "gaussian":
            step = f"{self.mechanism}({self.noise!r}, {dict(self.detail)!r}, rate={self.rate!r})"
        elif self.truncation:
            population, capacity = self.truncation
            step = f"TruncatedSubsampledGaussian({population}, {self.rate!r}, {capacity}, {self.noise!r})"
        elif self.rate < 1:
            step = f"PoissonSampled({self.rate!r}, Gaussian({self.noise!r}))"
        else:
            step = f"Gaussian({self.noise!r})"
        if self.beside:
            return " + ".join([replace(self, beside=()).key, *(part.key for part in self.beside)])
        return f"SelfComposed({step}, {self.rounds})"

    @property
    def dp_event(self) -> DpEvent:
        """The same event as an object of ``dp_accounting``, which is imported here and not before.

        The discrete mechanisms have none there; ``integer_rdp`` accounts for them. ``beside`` is not part of it.
        """
        import dp_accounting as dp

        if self.mechanism == "bounded_range":
            step = dp.ZCDpEvent(1.0 / (8.0 * self.noise**2))
        elif self.mechanism == "pure":  # randomised response dominates every mechanism with the same pure epsilon
            step = dp.RandomizedResponseDpEvent(2.0 / (math.exp(1.0 / self.noise) + 1.0), 2)
        elif self.truncation:
            population, capacity = self.truncation
            step = dp.TruncatedSubsampledGaussianDpEvent(population, self.rate, capacity, self.noise)
        elif self.rate < 1:
            step = dp.PoissonSampledDpEvent(self.rate, dp.GaussianDpEvent(self.noise))
        else:
            step = dp.GaussianDpEvent(self.noise)
        return dp.SelfComposedDpEvent(step, self.rounds)


def sampled_gaussian(law: SamplingLaw, noise_multiplier: float, rounds: int) -> Event:
    """The event of Gaussian noise on the sum of a sampled cohort, T times.

    Args:
      law: how cohorts were drawn.
      noise_multiplier: z >= 0, std of the noise on the sum / largest L2 norm of one client's contribution. With 0 the
        event is well formed and means no privacy at all (epsilon is infinite).
      rounds: T >= 1.

    Returns:
      The event. Its noise is that of an accountant in ``accountant_relation``.

    Guarantees:
      An (epsilon, delta) bound for the event holds for the released model in ``Event.relation``, for every data set,
      provided that cohorts follow ``law`` and that no client moves the noised sum by more than the bound in z. For
      ``fixed_size`` see ``accounting.fixed_size_bound``.

    Raises:
      FljaxError: an unknown law, a value out of range, or a law whose parts contradict each other.
    """
    build = {
        "poisson": _poisson,
        "truncated_poisson": _truncated,
        "full": _full,
        "fixed_size": _fixed_size,
        "cyclic": _cyclic,
        "cyclic_poisson": _cyclic_poisson,
    }
    return build[law.kind](law, float(noise_multiplier), int(rounds))


def participations(law: SamplingLaw, rounds: int) -> int:
    """In how many of T rounds one client may take part at most: all of them, or its turns in a cyclic order."""
    if law.kind == "cyclic_poisson":
        return -(-int(rounds) // law.groups)
    return _cyclic(law, 1.0, int(rounds)).rounds if law.kind == "cyclic" else int(rounds)


def check_run(law: SamplingLaw, noise_multiplier: float, rounds: int) -> None:
    """Raises FljaxError, in one line, unless the three describe a run that could have taken place."""
    one_of(RELATIONS, sampler=law.kind)
    if law.population is not None:
        _count("population", law.population)
    in_range(0, 1, closed="right", sampling_rate=law.rate, remedy="It is the share of the clients in a round.")
    non_negative("Use 0 for no noise.", noise_multiplier=noise_multiplier)
    finite(noise_multiplier=noise_multiplier)
    _count("rounds", rounds)
    if law.kind == "poisson" and law.capacity is not None and not (law.population and law.capacity >= law.population):
        raise FljaxError(
            f"Expected capacity={law.capacity!r} to be None for sampler 'poisson'. "
            "Cohorts that are cut off at a capacity are 'truncated_poisson'."
        )


def check_delta(delta: float, population: int | None) -> None:
    """Raises FljaxError unless 0 < delta < 1, and delta < 1/N where the population N is known.

    With delta >= 1/N a mechanism that publishes one random client's data in the clear would count as private.
    """
    in_range(0, 1, closed="neither", delta=delta)
    if population is not None and delta >= 1 / population:
        raise FljaxError(
            f"Expected delta={delta!r} < 1/population = {1 / population:.6g}. "
            f"Use {max(population, 2) ** -1.1:.3g} (population^-1.1) or smaller."
        )


def _count(name: str, value: Any) -> None:
    if not isinstance(value, numbers.Real) or not float(value) >= 1 or float(value) % 1 != 0:  # NaN, infinity too
        raise FljaxError(f"Expected {name}={value!r} to be a whole number >= 1.")


def _poisson(law: SamplingLaw, noise: float, rounds: int) -> Event:
    return Event(law.kind, RELATIONS[law.kind], f"Poisson sampling, q={law.rate:g}", float(law.rate), noise, rounds)


def _truncated(law: SamplingLaw, noise: float, rounds: int) -> Event:
    if law.capacity is None or law.population is None:
        missing = "capacity" if law.capacity is None else "population"
        raise FljaxError(f"Expected {missing}=None to be a number for sampler 'truncated_poisson'. Give both.")
    _count("capacity", law.capacity)
    if law.capacity >= law.population:  # nothing is ever cut off
        return _poisson(law._replace(kind="poisson", capacity=None), noise, rounds)
    return Event(
        kind=law.kind,
        relation=RELATIONS[law.kind],
        sampler=f"Poisson sampling, q={law.rate:g}, cut off uniformly at {law.capacity} of {law.population} clients",
        rate=float(law.rate),
        noise=noise,
        rounds=rounds,
        truncation=(int(law.population), int(law.capacity)),
        live="pld",  # a rare event with a large loss has no useful Renyi divergence
    )


def _full(law: SamplingLaw, noise: float, rounds: int) -> Event:
    if law.rate != 1:
        raise FljaxError(f"Expected sampling_rate={law.rate!r} to be 1 for sampler 'full'. Use 'poisson' to sample.")
    return Event(law.kind, RELATIONS[law.kind], "all clients in every round", 1.0, noise, rounds)


def _fixed_size(law: SamplingLaw, noise: float, rounds: int) -> Event:
    cohort = cohort_of(law)
    size = f"{cohort} of {law.population} clients" if cohort else f"a share {law.rate:g} of the clients"
    return Event(
        kind=law.kind,
        relation=RELATIONS[law.kind],
        sampler=f"cohorts of fixed size without replacement, {size}, accounted as Poisson with half the noise",
        rate=cohort / law.population if cohort and law.population else float(law.rate),
        noise=noise / 2,  # replacing a client moves the sum by twice its bound
        rounds=rounds,
        live="pld",
    )


def _cyclic(law: SamplingLaw, noise: float, rounds: int) -> Event:
    cohort = cohort_of(law)
    if cohort and law.population:
        turns = -(-rounds * cohort // law.population)
    else:  # the slack undoes rounding of the rate: 30 rounds at rate 0.1 are 3 turns
        turns = max(1, math.ceil(rounds * float(law.rate) * (1 - 1e-6)))
    return Event(
        kind=law.kind,
        relation=RELATIONS[law.kind],
        sampler=f"clients in a fixed cyclic order, at most {turns} turns each, no amplification by sampling",
        rate=1.0,
        noise=noise,
        rounds=turns,
        accountant_relation="replace_special",
    )


def _cyclic_poisson(law: SamplingLaw, noise: float, rounds: int) -> Event:
    _count("groups", law.groups)
    words = f"{law.groups} groups in turns, Poisson sampling within a group, q={law.rate:g}"
    truncation = None
    if law.capacity is not None:
        if law.population is None:
            raise FljaxError("Expected population=None to be a number for sampler 'cyclic_poisson' with a capacity.")
        largest = -(-law.population // law.groups)
        if law.capacity < largest:
            words += f", cut off uniformly at {law.capacity} of {largest} clients"
            truncation = (largest, int(law.capacity))
    return Event(
        kind=law.kind,
        relation=RELATIONS[law.kind],
        sampler=words,
        rate=float(law.rate),
        noise=noise,
        rounds=participations(law, rounds),
        truncation=truncation,
        live="pld" if truncation else "rdp",
    )


def cohort_of(law: SamplingLaw) -> int | None:
    """The cohort size behind ``rate = cohort / population``; None where the population is not known."""
    if law.population is None:
        return None
    exact = float(law.rate) * law.population
    cohort = max(1, round(exact))
    if abs(exact - cohort) > 1e-4 * cohort:  # the rate may have been a float32
        raise FljaxError(
            f"Expected sampling_rate={law.rate!r} to be a whole cohort / population={law.population} for sampler "
            f"{law.kind!r}. Use {cohort}/{law.population} = {cohort / law.population:.8g}."
        )
    return cohort
