"""What may be said about the privacy of a run: an epsilon with all it depends on, or the reason for none.

A ``PrivacyStatement`` is the only object from which fljax prints an epsilon. It cannot be built in a contradictory
state: a refused run carries no number that somebody could quote.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from fljax.core.check import FljaxError
from fljax.core.transform import Noise
from fljax.core.types import SamplingLaw
from fljax.privacy.accounting import assumes_worst_pair, default_delta, stated_epsilon
from fljax.privacy.events import Event
from fljax.privacy.mechanisms import as_noise, make_event

STATUSES = ("none", "valid", "values_only", "refused")

CAVEATS = (
    "The random numbers of the simulator are not hardened against attackers.",
    "Metrics that are shown to the experimenter are not covered.",
    "Choosing the best trial of a sweep on private data costs more than one trial, and is not counted in this epsilon: "
    "see `fljax privacy select`.",
)
"""True of every run of a simulator, and so part of every statement."""

TRUST = {
    "central": "The server is trusted: it sees the sum before the noise is added.",
    "local": "The server need not be trusted: every upload is noised before it leaves its client.",
    "distributed": "The server sees the sum alone, through a secure sum that is assumed and not simulated by "
    "cryptography; at least {shares} clients of a round have to add their noise.",
    "record": "Neither the server nor other clients need to be trusted: every step is noised by the client itself.",
}
"""Whom the clients have to trust, by trust model."""

PROVEN_FIXED_SIZE = (
    "Epsilon is proven for every data set in every round; the usual number for cohorts of a fixed size, which takes "
    "the worst pair of data sets of one round to be the worst in all, is 3 to 26 % smaller (`fljax privacy epsilon`)."
)

RESCALED = (
    "Cohorts stand for cohorts {factor:.4g} times as large (noise_scale = {scale:.4g}): epsilon is that of a simulated "
    "population of {population} clients and not of the {real} that ran; the noise on the average is that of the large "
    "cohort."
)

NO_POPULATION = "The population is not known, so that delta < 1/population is unchecked."


@dataclass(frozen=True)
class PrivacyStatement:
    """What is claimed about one run.

    Attributes:
      status: ``none`` (no noise was asked for), ``valid`` ((epsilon, delta)-DP holds), ``values_only`` (epsilon bounds
        the perturbed values given a transmitted mask that is not covered; no guarantee for the round), or ``refused``.
      reason: why there is no valid epsilon; empty when valid.
      epsilon, delta: the guarantee; epsilon is None unless the status is ``valid`` or ``values_only``.
      unit: whose whole data is protected: ``user``, or ``example`` where clients noise their own training steps.
      trust: who adds the noise and whom the clients trust: ``central``, ``local``, ``distributed`` or ``record``.
      mechanism: kind of noise.
      relation: neighbouring relation.
      sampler: the sampling law in words.
      accountant: what computed epsilon.
      population: N, or None where it is not known.
      noise_multiplier: z, noise on the sum / largest contribution of one client.
      rounds: T.
      distribution: where every client has an epsilon of its own (record level), quantiles over the clients by name;
        ``epsilon`` is then the largest.
      caveats: sentences that belong to the number.
      event: what was composed, or None where no epsilon is stated; ``to_dict`` leaves it out.

    Raises:
      FljaxError: an unknown status, a refused or noiseless run with an epsilon, a valid one without a finite epsilon,
        or a status other than ``valid`` without a reason.
    """

    status: str
    reason: str = ""
    epsilon: float | None = None
    delta: float | None = None
    unit: str = "user"
    trust: str = "central"
    mechanism: str = "gaussian"
    relation: str | None = None
    sampler: str | None = None
    accountant: str | None = None
    population: int | None = None
    noise_multiplier: float | None = None
    rounds: int | None = None
    distribution: dict[str, float] | None = None
    caveats: tuple[str, ...] = CAVEATS
    event: Event | None = None

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise FljaxError(f"Expected status={self.status!r} to be one of {', '.join(STATUSES)}.")
        claims = self.status in ("valid", "values_only")
        if not claims and self.epsilon is not None:
            raise FljaxError(f"Expected epsilon={self.epsilon!r} to be None for status {self.status!r}.")
        if claims and not (self.epsilon is not None and math.isfinite(self.epsilon) and self.epsilon >= 0):
            raise FljaxError(f"Expected epsilon={self.epsilon!r} to be a finite number for status {self.status!r}.")
        if claims and not (self.delta is not None and 0 < self.delta < 1):
            raise FljaxError(f"Expected delta={self.delta!r} in (0, 1) for status {self.status!r}.")
        if self.status != "valid" and not self.reason:
            raise FljaxError(f"Expected reason='' to say why the status is {self.status!r}.")

    def to_dict(self) -> dict[str, Any]:
        """The statement as JSON values: tuples become lists, numbers that are not finite become text."""
        values = asdict(replace(self, event=None)) | {"caveats": list(self.caveats)}
        del values["event"]
        return {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}

    def sentence(self) -> str:
        """One line for people. Epsilon is rounded up, so that the line never promises more than the number."""
        if self.status == "none":
            return f"No differential privacy: {self.reason}."
        if self.status == "refused":
            return f"No ε is stated: {self.reason}"
        claim = f"ε = {_round_up(self.epsilon)}, δ = {self.delta:.3g}"
        basis = (
            f"per {self.unit} ({self.relation}; {self.sampler}; z = {_short(self.noise_multiplier)}; "
            f"{self.rounds} rounds; {self.accountant})"
        )
        if self.status == "values_only":
            return f"ε = {_round_up(self.epsilon)} {self.reason} (δ = {self.delta:.3g}, {basis})"
        return f"({claim})-DP {basis}."


def state_privacy(
    law: SamplingLaw,
    noise: Noise | float | None,
    rounds: int,
    delta: float | None,
    reasons: Sequence[str] = (),
    values_only: str | None = None,
) -> PrivacyStatement:
    """States the privacy of a run, from what ran.

    Args:
      law: how cohorts were drawn.
      noise: what was added; a bare number is z of central Gaussian noise. 0 or None means that none was asked for.
      rounds: T that ran.
      delta: None takes population^-1.1, and a caveat says so.
      reasons: why the run cannot claim an epsilon, one sentence each; empty where nothing speaks against it.
      values_only: why the epsilon would bound the sent values alone, or None.

    Returns:
      ``none`` without noise; ``refused`` with any reason, or where the accountant refuses (its one line is the
      reason); else ``valid`` (or ``values_only``) with epsilon by PLD, or by RDP for the discrete mechanisms. At the
      end of a long run this function does not raise.
    """
    given = as_noise(noise or 0.0)
    common: dict[str, Any] = {
        "population": law.population,
        "noise_multiplier": noise if noise is None else given.multiplier,
        "rounds": rounds,
        "trust": given.trust,
        "mechanism": given.kind,
    }
    if given.multiplier == 0:
        return PrivacyStatement("none", "no noise was asked for", delta=delta, **common)
    if reasons:
        return PrivacyStatement("refused", " ".join(reasons[:3]), delta=delta, **common)
    try:
        event = make_event(law, given, rounds)
        common |= {"population": event.population, "unit": event.unit}
        delta, caveats = _delta(event.population, delta)
        value = stated_epsilon(law, given, rounds, delta)
    except FljaxError as error:
        return PrivacyStatement("refused", str(error), delta=delta, **common)
    if not math.isfinite(value):
        reason = f"Expected noise_multiplier={given.multiplier!r} to give epsilon <= 1e5. Use more noise."
        return PrivacyStatement("refused", reason, delta=delta, **common)
    return PrivacyStatement(
        status="values_only" if values_only else "valid",
        reason=values_only or "",
        epsilon=value,
        delta=delta,
        relation=event.relation,
        sampler=event.sampler,
        accountant=_accountant(event),
        caveats=caveats + _caveats(law, given, event) + CAVEATS,
        event=event,
        **common,
    )


def _caveats(law: SamplingLaw, noise: Noise, event: Event) -> tuple[str, ...]:
    """What belongs to an epsilon of this event: whom it trusts, and what it assumes."""
    detail = dict(noise.detail)
    caveats = [TRUST[event.trust].format(shares=f"{detail.get('shares', math.nan):.0f}")]
    if assumes_worst_pair(event):
        caveats.append(PROVEN_FIXED_SIZE)
    scale = detail.get("noise_scale", 1.0)
    if scale != 1.0:
        caveats.append(RESCALED.format(factor=1 / scale, scale=scale, population=event.population, real=law.population))
    return tuple(caveats)


def _accountant(event: Event) -> str:
    return "PLD (dp_accounting)" if event.mechanism in ("gaussian", "pure") else "RDP (fljax)"


def _delta(population: int | None, delta: float | None) -> tuple[float, tuple[str, ...]]:
    """Delta and the caveats that come with it."""
    if delta is not None:
        return delta, () if population is not None else (NO_POPULATION,)
    if population is None:
        raise FljaxError(
            "Expected delta=None to be a number where the population is not known. Use delta < 1/population."
        )
    delta = default_delta(population)
    return delta, (f"No delta was given: population^-1.1 = {delta:.3g} was taken.",)


def _round_up(value: float | None) -> str:
    """Four significant digits, never below the value."""
    assert value is not None  # a status with an epsilon has one, see __post_init__
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    unit = 10.0 ** (math.floor(math.log10(value)) - 3)
    return f"{math.ceil(value / unit * (1 - 1e-12)) * unit:.4g}"


def _short(value: float | None) -> str:
    return "unknown" if value is None else f"{value:g}"
