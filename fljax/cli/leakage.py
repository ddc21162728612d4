"""``fljax leakage``: attacks on a real round of an experiment, and what they learn beside their base lines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fljax.cli.arguments import overridden
from fljax.cli.shared import ExperimentCommand, print_json

AUDITED = ("status", "epsilon_upper", "epsilon_estimate", "epsilon_lower", "mode")
Attack = Literal["labels", "analytic", "inversion", "positions", "membership", "participation", "exposure"]


@dataclass(frozen=True)
class Leakage(ExperimentCommand):
    """Attack a real round of an experiment: labels, images, membership, positions and participation.

    Any of its fields can be overridden, as for `fljax run`: --data.examples_per_client 1 --privacy.clip 0.1

    Attributes:
      adversary: server, eavesdropper, client, key_holder or outsider.
      assume: defences that the experiment lacks and are taken as given: secure_sum, channel, encryption.
      attacks: which of them (default: all).
      round: the round that is attacked, from 0 (default: the first with masks, else 0).
      victims: clients of the round that are attacked, at the most.
      iterations: of the inversion by gradient descent.
      restarts: of the inversion, from other random images.
      seed: of the adversary's own draws.
      audit: also audit epsilon with canary clients (`fljax audit`).
    """

    adversary: str = "server"
    assume: tuple[str, ...] = ()
    attacks: tuple[Attack, ...] = ()
    round: int | None = None
    victims: int = 24
    iterations: int = 400
    restarts: int = 1
    seed: int = 0
    audit: bool = False

    def execute(self, overrides: list[str]) -> None:
        """Runs the attacks, keeps what they found beside the run's results, and prints it."""
        import dataclasses

        from fljax.leakage import Effort, leakage
        from fljax.sim.engine import use_compilation_cache
        from fljax.sweep.store import check_target

        experiment = overridden(self.experiment, overrides, data_dir=self.data_dir, fast=self.fast)
        out = self.out or Path("results") / experiment.name
        check_target(out, experiment.name)
        use_compilation_cache()
        found = leakage(
            experiment,
            adversary=self.adversary,
            assume=self.assume,
            attacks=self.attacks,
            round=self.round,
            victims=self.victims,
            effort=Effort(self.iterations, self.restarts),
            seed=self.seed,
            quiet=self.quiet,
        )
        if self.audit:
            from fljax.audit import audit

            audited = audit(experiment, quiet=self.quiet).to_dict()
            found = dataclasses.replace(found, audited={k: v for k, v in audited.items() if k in AUDITED})
        page = _keep(out, found)
        if self.json:
            print_json(found.to_dict() | {"out": str(out)})
            return
        print(found.text())
        print(page)


def _keep(out: Path, found: Any) -> Path:
    """Writes what was found into the results folder, and the page of the results again where there are any."""
    from fljax.report.page import write_report
    from fljax.sweep.files import write_json, writing
    from fljax.sweep.store import LEAKAGE, MANIFEST

    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / LEAKAGE, found.to_dict() | {"pictures": found.pictures})
    return write_report(out, endings=()) if (out / MANIFEST).exists() else out / LEAKAGE
