"""Empirical privacy audit: canary clients inside the compiled round, and what their traces say about epsilon.

``audit(experiment)`` is the whole of it; see docs/audit.md for what is measured and what it proves.
"""

from __future__ import annotations

from fljax.audit.result import Audit
from fljax.audit.run import audit

__all__ = ["Audit", "audit"]
