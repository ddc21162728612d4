"""What an adversary learns from what it sees of a round: views that defences declare, and attacks that take only them.

``leakage(experiment)`` is the whole of it; see docs/leakage.md for what is measured and what was found.
"""

from __future__ import annotations

from fljax.leakage.inversion import Effort
from fljax.leakage.result import Leakage
from fljax.leakage.run import leakage
from fljax.leakage.views import ADVERSARIES, DEFENCES, AdversaryView, declared, visible

__all__ = ["ADVERSARIES", "DEFENCES", "AdversaryView", "Effort", "Leakage", "declared", "leakage", "visible"]
