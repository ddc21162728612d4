"""``fljax run``: one experiment and its controls, kept and reported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fljax.cli.arguments import overridden
from fljax.cli.shared import ExperimentCommand, lines, print_json


@dataclass(frozen=True)
class Run(ExperimentCommand):
    """Run one experiment. Any of its fields can be overridden: --rounds 50 --client.lr 0.3 --privacy.epsilon 4.

    Ctrl-C and SIGTERM write a checkpoint at the end of the running call, a few seconds at most; --resume goes on there.

    Attributes:
      resume: continue from the checkpoint in the results folder; the result is bit-identical to an unbroken run.
      dry_run: show clients at a time, memory, operations, expected time and epsilon, and stop; nothing is kept.
      track: also send the metrics of every round to these trackers.
    """

    resume: bool = False
    dry_run: bool = False
    track: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()

    def execute(self, overrides: list[str]) -> None:
        """Runs the experiment and writes its results."""
        from fljax.report.page import write_report
        from fljax.report.tables import print_summary
        from fljax.sim.engine import use_compilation_cache
        from fljax.sim.forecast import forecast
        from fljax.sim.hosts import is_first
        from fljax.sim.run import beside, run, run_controls
        from fljax.sweep.record import record_run
        from fljax.sweep.store import check_target, open_results

        experiment = overridden(self.experiment, overrides, data_dir=self.data_dir, fast=self.fast)
        out = self.out or Path("results") / experiment.name
        check_target(out, experiment.name)
        for name in experiment.controls:
            experiment.control(name)  # a mistake in one of them is told before anything runs
        use_compilation_cache()
        if self.dry_run:
            shown = forecast(experiment, self.quiet)
            print_json(shown) if self.json else print(lines(shown))
            return
        outcome = run(experiment, out=out, resume=self.resume, quiet=self.quiet, track=self.track)
        controls = beside(outcome, run_controls(experiment, self.quiet))
        if not is_first():
            return
        record_run(out, outcome, controls)
        page = write_report(out, endings=())
        if self.json:
            more = {"controls": controls} if controls else {}
            print_json(outcome.summary() | more | {"out": str(out)})
            return
        print_summary(open_results(out))
        if controls:
            print(lines({"controls": controls}))
        print(outcome.statement.sentence())
        if outcome.stopped:
            print(outcome.stopped)
        print(page)
