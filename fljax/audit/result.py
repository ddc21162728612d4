"""What an audit found: its numbers, its verdict, and how it is printed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fljax.audit.estimate import SIGNIFICANCE, Bounds, Estimate
from fljax.privacy.statement import PrivacyStatement


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes:
      name: of the experiment.
      mode: ``implementation`` (real clients send zeros) or ``realistic`` (they train).
      statement: what the accountant says of the run with canaries.
      delta: at which epsilon is meant everywhere here.
      estimate: from a normal fit to the scores. bounds: by counting, certified.
      rounds, parameters, seed: T, P, seed of the audit. seconds: wall time of everything.
      epsilon_experiment: epsilon that the experiment itself states, without canaries; None without one.
      caveats: sentences that belong to the numbers.
      scores, signs: [k] of all canaries, see ``scores`` and ``canaries.Canaries``.
    """

    name: str
    mode: str
    statement: PrivacyStatement
    delta: float
    estimate: Estimate
    bounds: Bounds
    rounds: int
    parameters: int
    seed: int
    seconds: float
    epsilon_experiment: float | None
    caveats: tuple[str, ...]
    scores: np.ndarray
    signs: np.ndarray

    @property
    def epsilon_upper(self) -> float | None:
        """The accountant's epsilon of the run with canaries; None where no valid one is stated."""
        return self.statement.epsilon if self.statement.status == "valid" else None

    @property
    def status(self) -> str:
        """``violated``: the certified lower bound exceeds the claim. ``suspicious``: the low end of the estimate does;
        of sound runs one in a thousand at the most. ``consistent``: neither. Without a valid epsilon the status of the
        ``PrivacyStatement``: ``none``, ``refused`` or ``values_only``."""
        if self.epsilon_upper is None:
            return self.statement.status
        if self.bounds.lower > self.epsilon_upper:
            return "violated"
        return "suspicious" if self.estimate.low > self.epsilon_upper else "consistent"

    @property
    def reason(self) -> str:
        """The status in a sentence."""
        lower, low, upper = self.bounds.lower, self.estimate.low, self.epsilon_upper
        if upper is None:
            return f"There is no claim to test: {self.statement.reason}."
        claim = f"the claimed epsilon {upper:.4g}"
        return {
            "violated": f"The certified lower bound {lower:.4g} exceeds {claim}: the run is not as private as claimed.",
            "suspicious": f"The low end {low:.4g} of the estimate exceeds {claim}; audit again with other seeds.",
            "consistent": f"Nothing speaks against {claim}.",
        }[self.status]

    def to_dict(self) -> dict[str, Any]:
        """The audit as JSON values, without the scores of single canaries."""
        return {
            "name": self.name,
            "status": self.status,
            "reason": self.reason,
            "mode": self.mode,
            "epsilon_upper": self.epsilon_upper,
            "epsilon_estimate": self.estimate.epsilon,
            "epsilon_estimate_low": self.estimate.low,
            "epsilon_lower": self.bounds.lower,
            "epsilon_lower_bound": self.bounds.name,
            "epsilon_clopper_pearson": self.bounds.clopper_pearson,
            "epsilon_experiment": self.epsilon_experiment,
            "delta": self.delta,
            "significance": SIGNIFICANCE,
            "canaries_in": int(np.sum(self.signs > 0)),
            "canaries_out": int(np.sum(self.signs <= 0)),
            "out": "opposite" if np.any(self.signs < 0) else "absent",
            "score_mean": self.estimate.mean,
            "score_sd": self.estimate.sd,
            "rounds": self.rounds,
            "parameters": self.parameters,
            "seed": self.seed,
            "seconds": self.seconds,
            "caveats": list(self.caveats),
        }

    def text(self) -> str:
        """A few lines for people."""
        says = self.to_dict()
        claim = "none" if self.epsilon_upper is None else f"{self.epsilon_upper:.4g}"
        rows = [
            f"audit of {self.name} ({self.mode}): {self.status.upper()}. {self.reason}",
            f"epsilon at delta = {self.delta:.3g} after {self.rounds} rounds",
            f"  claimed    {claim}",
            f"  estimated  {self.estimate.epsilon:.4g}, low end {self.estimate.low:.4g}",
            f"  certified  at least {self.bounds.lower:.4g} ({self.bounds.name}, significance {SIGNIFICANCE:g})",
            f"{says['canaries_in']} canaries in, {says['canaries_out']} {says['out']}; {self.parameters} parameters",
        ]
        return "\n".join(rows + [f"- {caveat}" for caveat in self.caveats])
