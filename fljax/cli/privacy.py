"""``fljax privacy epsilon | calibrate | select``: the accountant on the command line.

The dataclasses are the flags. ``run`` returns a plain dict, which ``execute`` prints as a table or as JSON.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from fljax.cli.shared import lines, print_json
from fljax.core.check import FljaxError
from fljax.core.types import SamplingLaw

Sampler = Literal["poisson", "truncated_poisson", "fixed_size", "full", "cyclic", "cyclic_poisson"]
Relation = Literal["add_or_remove_one", "replace_one", "replace_special"]
Accountant = Literal["pld", "rdp"]


@dataclass(frozen=True, kw_only=True)
class _Question:
    """What all commands need to know.

    Attributes:
      rounds: number of rounds T.
      sampling_rate: share q of the clients that take part in a round.
      delta: the delta of (epsilon, delta); default population^-1.1.
      population: number of clients N; without it, delta < 1/N is unchecked.
      sampler: how cohorts are drawn.
      cohort: clients in a round, for fixed_size and cyclic (with --population it gives the sampling rate).
      capacity: largest cohort of truncated_poisson.
      groups: groups of clients that take turns, for cyclic_poisson.
      relation: checked against the neighbouring relation of the sampler; it cannot be chosen.
      accountant: pld (tight) or rdp (fast, looser).
      json: print JSON.
    """

    rounds: int
    sampling_rate: float | None = None
    delta: float | None = None
    population: int | None = None
    sampler: Sampler = "poisson"
    cohort: int | None = None
    capacity: int | None = None
    groups: int = 1
    relation: Relation | None = None
    accountant: Accountant = "pld"
    json: bool = False

    def run(self) -> dict[str, Any]:
        """The answer; every command has its own."""
        raise NotImplementedError

    def execute(self) -> None:
        """Prints the answer."""
        answer = self.run()
        print_json(answer) if self.json else print(lines(answer))

    def _law(self) -> SamplingLaw:
        if self.cohort is not None and self.sampler not in ("fixed_size", "cyclic"):
            raise FljaxError(
                f"Expected cohort={self.cohort!r} to be absent for sampler {self.sampler!r}. Use sampling_rate."
            )
        if self.capacity is not None and self.sampler != "truncated_poisson":
            raise FljaxError(
                f"Expected capacity={self.capacity!r} to be absent for sampler {self.sampler!r}. Use truncated_poisson."
            )
        if self.groups != 1 and self.sampler != "cyclic_poisson":
            raise FljaxError(
                f"Expected groups={self.groups!r} to be absent for sampler {self.sampler!r}. Use cyclic_poisson."
            )
        return SamplingLaw(self.sampler, self._rate(), self.population, self.capacity, self.groups)

    def _rate(self) -> float:
        if self.cohort is not None:
            if self.population is None:
                raise FljaxError(f"Expected population=None to be a number with cohort={self.cohort!r}. Give both.")
            if not 1 <= self.cohort <= self.population:
                raise FljaxError(f"Expected cohort={self.cohort!r} in [1, population={self.population!r}].")
            rate = self.cohort / self.population
            if self.sampling_rate is not None and not math.isclose(rate, self.sampling_rate, rel_tol=1e-4):
                raise FljaxError(
                    f"Expected sampling_rate={self.sampling_rate!r} to be cohort / population = {rate:.6g}. Omit it."
                )
            return rate
        if self.sampling_rate is None:
            if self.sampler == "full":
                return 1.0
            raise FljaxError(f"Expected sampling_rate=None to be a number in (0, 1] for sampler {self.sampler!r}.")
        return self.sampling_rate

    def _delta(self) -> float:
        from fljax.privacy.accounting import default_delta

        if self.delta is not None:
            return self.delta
        if self.population is None:
            raise FljaxError(
                "Expected delta=None to be a number. Give delta, or population for delta = population^-1.1."
            )
        return default_delta(self.population)

    def _common(self, law: SamplingLaw, noise_multiplier: float, delta: float) -> dict[str, Any]:
        """Checks the relation and says what the numbers depend on."""
        from fljax.privacy.mechanisms import make_event
        from fljax.privacy.statement import CAVEATS

        event = make_event(law, noise_multiplier, self.rounds)
        if self.relation is not None and self.relation != event.relation:
            raise FljaxError(
                f"Expected relation={self.relation!r} to be {event.relation!r}, the relation of sampler "
                f"{law.kind!r}. Leave relation out, or choose another sampler."
            )
        known = law.population is not None
        return {
            "delta": delta,
            "relation": event.relation,
            "unit": "user",
            "sampler": event.sampler,
            "sampling_rate": law.rate,
            "population": law.population,
            "rounds": self.rounds,
            "accountant": self.accountant,
            "delta_check": "ok" if known else "unchecked: population is not known, delta must be below 1/population",
            "delta_source": "given" if self.delta is not None else "population^-1.1",
            "caveats": list(CAVEATS),
        }


@dataclass(frozen=True, kw_only=True)
class Epsilon(_Question):
    """Epsilon of a run that was noised with a given multiplier.

    Attributes:
      noise_multiplier: std of the noise on the sum / largest L2 norm of one client's contribution.
    """

    noise_multiplier: float

    def run(self) -> dict[str, Any]:
        """Returns the answer; epsilon is infinite without noise. Raises FljaxError for what cannot be answered."""
        from fljax.privacy.accounting import epsilon

        law, delta = self._law(), self._delta()
        common = self._common(law, self.noise_multiplier, delta)
        value = epsilon(law, self.noise_multiplier, self.rounds, delta, accountant=self.accountant)
        answer = {"epsilon": value, "noise_multiplier": self.noise_multiplier} | common
        return answer | _fixed_size(law, self.noise_multiplier, self.rounds, delta)


@dataclass(frozen=True, kw_only=True)
class Calibrate(_Question):
    """The smallest noise multiplier whose epsilon does not exceed a target.

    Attributes:
      epsilon: the target.
    """

    epsilon: float

    def run(self) -> dict[str, Any]:
        """Returns the multiplier and the epsilon that it reaches. Raises FljaxError for what cannot be answered."""
        from fljax.privacy.accounting import epsilon
        from fljax.privacy.calibration import calibrate

        law, delta = self._law(), self._delta()
        common = self._common(law, 1.0, delta)
        noise = calibrate(law, self.epsilon, self.rounds, delta, accountant=self.accountant)
        reached = epsilon(law, noise, self.rounds, delta, accountant=self.accountant)
        answer = {"noise_multiplier": noise, "epsilon": reached, "target_epsilon": self.epsilon} | common
        return answer | _fixed_size(law, noise, self.rounds, delta)


@dataclass(frozen=True, kw_only=True)
class Select(_Question):
    """What it costs to release only the best of several trials that were all noised with a given multiplier.

    Attributes:
      noise_multiplier: std of the noise on the sum / largest L2 norm of one client's contribution, of every trial.
      trials: how many trials are expected, >= 1; their number is random, see the caveats of the answer.
    """

    noise_multiplier: float
    trials: float

    def run(self) -> dict[str, Any]:
        """Returns epsilon of one trial and of the choice. Raises FljaxError for what cannot be answered."""
        from fljax.privacy.accounting import stated_epsilon
        from fljax.privacy.selection import PROCEDURE, selection_epsilon

        if self.accountant != "pld":
            raise FljaxError(f"Expected accountant={self.accountant!r} to be 'pld' for a choice. Leave it out.")
        law, delta = self._law(), self._delta()
        common = self._common(law, self.noise_multiplier, delta)
        asked = (law, self.noise_multiplier, self.rounds, delta)
        chosen = selection_epsilon(*asked, self.trials)
        answer = {"epsilon": stated_epsilon(*asked), "epsilon_selection": chosen, "trials": self.trials}
        answer |= {"noise_multiplier": self.noise_multiplier} | common
        return answer | {"caveats": [PROCEDURE, *common["caveats"][:-1]]}


def _fixed_size(law: SamplingLaw, noise_multiplier: float, rounds: int, delta: float) -> dict[str, float]:
    """The proven bound that belongs next to the epsilon of fixed-size cohorts."""
    from fljax.privacy.accounting import fixed_size_bound

    if law.kind != "fixed_size":
        return {}
    return {"epsilon_proven_bound": fixed_size_bound(law, noise_multiplier, rounds, delta)}
