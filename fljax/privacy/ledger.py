"""What a run has spent after every round, and how a resumed run is held to it.

Epsilon after t rounds is a function of public numbers and of t alone. A run that is resumed therefore neither pays for
a round twice nor forgets one, provided that the checkpoint and the experiment agree on the event and on t: the ledger
checks both.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fljax.core.check import FljaxError
from fljax.core.transform import Noise
from fljax.core.types import SamplingLaw
from fljax.privacy.accounting import epsilon_series
from fljax.privacy.mechanisms import make_event


class Ledger(NamedTuple):
    """The privacy spending of one run.

    event: key of the event of a whole run, "" where no epsilon is stated. spent: [T] float64, epsilon after rounds
    1..T by the fast accountant named ``label``; never below the reported one. Empty where no epsilon is stated.
    """

    event: str = ""
    spent: np.ndarray = np.zeros(0)
    label: str = ""

    def entry(self, done: int) -> dict[str, Any]:
        """What a checkpoint writes down after ``done`` rounds."""
        return {"event": self.event, "rounds": done, "epsilon": float(self.spent[done - 1]) if self.event else None}

    def check(self, entry: Any, done: int, path: str) -> None:
        """Raises FljaxError unless the entry of a checkpoint is exactly the one that this ledger makes."""
        if entry == self.entry(done):
            return
        found = "none"
        if isinstance(entry, dict):
            found = (
                f"{entry.get('rounds')} rounds of {entry.get('event') or 'no noise'}, epsilon {entry.get('epsilon')}"
            )
        raise FljaxError(
            f"{path}: expected its privacy ledger ({found}) to be {done} rounds of {self.event or 'no noise'}. "
            "Start anew in another folder with --out."
        )


def open_ledger(law: SamplingLaw, noise: Noise, rounds: int, delta: float) -> Ledger:
    """The ledger of a run of T rounds.

    Args: as ``accounting.epsilon``.
    """
    event = make_event(law, noise, rounds)
    label = "RDP" if event.live == "rdp" else "PLD"
    return Ledger(event.key, np.asarray(epsilon_series(law, noise, rounds, delta), float), label)
