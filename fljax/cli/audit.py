"""``fljax audit``: canary clients in the round of an experiment, and its epsilon put to the test."""

from __future__ import annotations

import json
from dataclasses import dataclass

import tyro

from fljax.cli.arguments import overridden


@dataclass(frozen=True)
class Audit:
    """Audit the privacy of an experiment with canary clients; exit code 1 where its epsilon is violated.

    Any of its fields can be overridden, as for `fljax run`: --rounds 50 --privacy.clip 0.1

    Attributes:
      experiment: name of a shipped experiment (`fljax list`) or path of a TOML file.
      canaries: canary clients, 20 to a quarter of the parameters.
      mode: implementation (real clients send zeros: fast and tight) or realistic (they train).
      seed: of canaries, cohorts and noise.
      data_dir: folder with the original data files (default: $FLJAX_DATA).
      fast: a quick look: few rounds.
      json: print one JSON object on stdout.
      quiet: no progress.
    """

    experiment: tyro.conf.Positional[str]
    canaries: int = 500
    mode: str = "implementation"
    seed: int = 0
    data_dir: str | None = None
    fast: bool = False
    json: bool = False
    quiet: bool = False

    def execute(self, overrides: list[str]) -> int:
        """Runs the audit and prints it; returns the exit code."""
        from fljax.audit import audit
        from fljax.sim.engine import use_compilation_cache

        experiment = overridden(self.experiment, overrides, data_dir=self.data_dir, fast=self.fast)
        use_compilation_cache()
        found = audit(experiment, canaries=self.canaries, mode=self.mode, seed=self.seed, quiet=self.quiet)
        print(json.dumps(found.to_dict(), allow_nan=False) if self.json else found.text())
        return 1 if found.status == "violated" else 0
