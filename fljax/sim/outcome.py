"""What a finished run holds, and how it shows itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fljax.config import Experiment
from fljax.core import html
from fljax.core.types import Params
from fljax.privacy.statement import PrivacyStatement
from fljax.sim.build import Program
from fljax.sim.defence import detection
from fljax.sim.devices import totals
from fljax.sim.engine import Timing, bytes_sent, finals
from fljax.sim.live import history_view
from fljax.sim.secure import describe_secure


@dataclass(frozen=True)
class Outcome:
    """A finished run.

    experiment, program: what ran. statement: what may be said about its privacy. params: the final shared model.
    history: metrics by name, [T]; evaluation metrics are NaN in rounds without one. timing: seconds.
      encryption: what was encrypted, and what the checks of real messages found: by part.
      chosen_by: what chose the clients per batch: rule, asked, probe, or memory. cache: warm if all programs were read
      from disk, else cold.
    """

    experiment: Experiment
    program: Program
    statement: PrivacyStatement
    params: Params
    history: dict[str, np.ndarray]
    timing: Timing
    encryption: dict[str, dict[str, Any]] = field(default_factory=dict)
    chosen_by: str = "rule"
    cache: str = "cold"

    @property
    def stopped(self) -> str:
        """Why the run ended before the rounds it was asked for; empty if it did not."""
        done, asked = len(self.history["participants"]), self.experiment.rounds
        budget = self.experiment.privacy.budget
        return "" if done == asked else f"stopped after {done} of {asked} rounds: the next would exceed ε = {budget:g}"

    @property
    def final(self) -> dict[str, float]:
        """The evaluation metrics after the last round."""
        return {name: float(v) for name, v in finals(self.history).items()}

    @property
    def communication(self) -> dict[str, int]:
        """Bytes sent by all clients together, and to them."""
        up, down = bytes_sent(self.history)
        return {"uplink_bytes": int(up), "downlink_bytes": int(down)}

    @property
    def simulated(self) -> dict[str, float]:
        """Seconds that the rounds would take on the devices, and the clients' operations; {} without devices."""
        return totals(self.history)

    @property
    def secure(self) -> dict[str, Any]:
        """Words and masks: who reads what, bits, graph, expansion, aborted rounds; {} where floats are sent."""
        groups = self.program.model.groups
        return describe_secure(self.experiment, self.program.sampler, self.params, self.history, groups)

    @property
    def detection(self) -> dict[str, float]:
        """How well a robust rule told malicious clients apart; {} without an attack, or for a rule that weighs none."""
        return {name: float(v) for name, v in detection(self.history).items()}

    def summary(self) -> dict:
        """What ``fljax run --json`` prints: final, privacy, communication, simulated (with devices), secure (with
        words), detection (with an attack), timing."""
        timing: dict[str, Any] = {"compile_s": self.timing.compile_s, "cache": self.cache}
        timing["steady_s_per_round"] = self.timing.steady_s_per_round
        parts = {"final": self.final, "privacy": self.statement.to_dict(), "stopped": self.stopped}
        parts["communication"] = self.communication
        chunk, waste = self.program.chunk, self.program.waste
        parts["execution"] = {"chunk": chunk, "padding_waste": waste, "chosen_by": self.chosen_by}
        if self.simulated:
            parts["simulated"] = self.simulated
        if self.encryption:
            parts["encryption"] = self.encryption
        if secure := self.secure:
            parts["secure"] = secure
        if self.detection:
            parts["detection"] = self.detection
        return {"name": self.experiment.name, **parts, "timing": timing}

    def _repr_html_(self) -> str:
        """For notebooks: what it reached, what may be claimed, what it cost, and the metrics over the rounds."""
        up, down = self.communication.values()
        rounds = len(self.history["participants"])
        reached = [(name.replace("_", " "), html.number(value)) for name, value in self.final.items()]
        cost = [("rounds", self.stopped or str(rounds)), ("uplink", f"{up / 1e6:.4g} MB")]
        cost += [("downlink", f"{down / 1e6:.4g} MB")]
        seen = self.simulated | self.detection
        cost += [(name.replace("_", " "), html.number(value)) for name, value in seen.items()]
        t = self.timing
        cost += [("compiled in", f"{t.compile_s:.1f} s, {self.cache} cache"), ("ran in", f"{t.total_s:.1f} s")]
        covered = "".join(html.paragraph(sentence, soft=True) for sentence in self.statement.caveats)
        caveats = html.details("what this does not cover", covered) if self.statement.epsilon is not None else ""
        title = self.experiment.title or self.experiment.name
        claim = html.paragraph(self.statement.sentence())
        return html.card(
            title, html.pairs(reached + cost), claim, caveats, history_view(self.history), note="a finished run"
        )
