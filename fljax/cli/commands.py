"""The commands. Each is a dataclass whose fields are the flags (tyro), and a ``run`` that does the work."""

from __future__ import annotations

import json
import math
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from fljax.cli import privacy as accountant
from fljax.cli.arguments import overridden, shipped
from fljax.cli.audit import Audit
from fljax.core.check import FljaxError

Positional = tyro.conf.Positional


@dataclass(frozen=True)
class _Experiment:
    """What run and sweep share.

    Attributes:
      experiment: name of a shipped experiment (`fljax list`) or path of a TOML file.
      out: folder of the results (default: results/<name>).
      data_dir: folder with the original data files (default: $FLJAX_DATA).
      fast: a quick look: few rounds and seeds, through every step.
      json: print one JSON object on stdout.
      quiet: no progress.
    """

    experiment: Positional[str]
    out: Path | None = None
    data_dir: str | None = None
    fast: bool = False
    json: bool = False
    quiet: bool = False


@dataclass(frozen=True)
class Run(_Experiment):
    """Run one experiment. Any of its fields can be overridden: --rounds 50 --client.lr 0.3 --privacy.epsilon 4.

    Attributes:
      resume: continue from the checkpoint in the results folder.
    """

    resume: bool = False

    def execute(self, overrides: list[str]) -> None:
        """Runs the experiment and writes its results."""
        from fljax.report.page import write_report
        from fljax.report.tables import print_summary
        from fljax.sim.engine import use_compilation_cache
        from fljax.sim.run import beside, run, run_controls
        from fljax.sweep.record import record_run
        from fljax.sweep.store import check_target, open_results

        experiment = overridden(self.experiment, overrides, data_dir=self.data_dir, fast=self.fast)
        out = self.out or Path("results") / experiment.name
        check_target(out, experiment.name)
        for name in experiment.controls:
            experiment.control(name)  # a mistake in one of them is told before anything runs
        use_compilation_cache()
        outcome = run(experiment, out=out, resume=self.resume, quiet=self.quiet)
        controls = beside(outcome, run_controls(experiment, self.quiet))
        record_run(out, outcome, controls)
        page = write_report(out)
        if self.json:
            more = {"controls": controls} if controls else {}
            _print_json(outcome.summary() | more | {"out": str(out)})
            return
        print_summary(open_results(out))
        if controls:
            print(_lines({"controls": controls}))
        print(outcome.statement.sentence())
        if outcome.stopped:
            print(outcome.stopped)
        print(page)


@dataclass(frozen=True)
class Sweep(_Experiment):
    """Run all trials of an experiment with a sweep, as one compiled program per static structure.

    Attributes:
      dry_run: show trials, programs and the privacy of every cell, and stop.
    """

    dry_run: bool = False

    def execute(self, overrides: list[str]) -> None:
        """Runs the sweep and writes table, figures and page."""
        from fljax.sim.engine import use_compilation_cache
        from fljax.sweep.run import plan, run_sweep
        from fljax.sweep.store import check_target

        experiment = overridden(self.experiment, overrides, data_dir=self.data_dir, fast=self.fast)
        out = self.out or Path("results") / experiment.name
        check_target(out, experiment.name)
        if self.dry_run:
            shown = plan(experiment)
            _print_json(shown) if self.json else print(_lines(shown))
            return
        use_compilation_cache()
        outcome = run_sweep(experiment, quiet=self.quiet)
        self._keep(out, outcome)

    def _keep(self, out: Path, outcome: Any) -> None:
        from fljax.report.page import write_report
        from fljax.report.tables import print_table, summarise
        from fljax.sweep.record import record_sweep
        from fljax.sweep.store import open_results

        record_sweep(out, outcome)
        page, results = write_report(out), open_results(out)
        if self.json:
            programs = results.manifest["timing"]["programs"]
            _print_json(
                {"name": outcome.experiment.name, "trials": len(outcome.trials), "programs": programs, "out": str(out)}
            )
            return
        print_table(summarise(results))
        for timing in outcome.timings:
            t = timing.timing
            print(f"{timing.label}: {timing.trials} trials, compiled in {t.compile_s:.1f} s, ran in {t.total_s:.1f} s")
        print(page)


@dataclass(frozen=True)
class Report:
    """Write tables, figures and report.html of a results folder again.

    Attributes:
      folder: a results folder.
      json: print one JSON object on stdout.
    """

    folder: Positional[Path]
    json: bool = False

    def execute(self) -> None:
        """Writes table, figures and page of results that exist."""
        from fljax.report.page import write_report
        from fljax.report.tables import print_summary, print_table, summarise
        from fljax.sweep.store import open_results

        results = open_results(self.folder)
        page = write_report(self.folder)
        if self.json:
            _print_json({"name": results.manifest["name"], "page": str(page)})
            return
        print_summary(results) if results.manifest["kind"] == "run" else print_table(summarise(results))
        print(page)


@dataclass(frozen=True)
class List:
    """List experiments, data sets, models and the fields that can be swept without recompiling.

    Attributes:
      json: print one JSON object on stdout.
    """

    json: bool = False

    def execute(self) -> None:
        """Prints what there is."""
        from fljax.config import load as read
        from fljax.config import traced_fields
        from fljax.data import DATASETS
        from fljax.models import MODELS

        known = {
            "experiments": {name: read(path).title for name, path in shipped().items()},
            "datasets": {name: _described(info) for name, info in DATASETS.items()},
            "models": {name: (make.__doc__ or "").strip().split("\n")[0] for name, make in MODELS.items()},
            "traced": traced_fields(),
        }
        _print_json(known) if self.json else print(_lines(known))


@dataclass(frozen=True)
class Doctor:
    """Check this installation: versions, devices, a compiled computation, data folder, cache.

    Attributes:
      json: print one JSON object on stdout.
    """

    json: bool = False

    def execute(self) -> None:
        """Prints what this installation has, and what is missing."""
        import jax
        import jax.numpy as jnp

        import fljax
        from fljax.core.provenance import cpu_name
        from fljax.privacy.cache import folder

        product = jax.jit(lambda x: x @ x)(jnp.eye(64))
        checks = {
            "fljax": fljax.__version__,
            "python": platform.python_version(),
            "jax": jax.__version__,
            "devices": [str(d) for d in jax.devices()],
            "cpu": f"{cpu_name()}, {os.cpu_count()} cores",
            "compiles": bool(jnp.array_equal(product, jnp.eye(64))),
            "data_dir": os.environ.get("FLJAX_DATA") or "FLJAX_DATA is not set; only digits and synthetic are at hand",
            "cache": str(folder()),
        }
        _print_json(checks) if self.json else print(_lines(checks))
        if not checks["compiles"]:
            raise FljaxError("Expected a compiled product to be right. Reinstall jax and jaxlib in one version.")


def _described(info: Any) -> str:
    return info.description + (" (your files: --data-dir)" if info.needs_files else "")


def _print_json(value: Any) -> None:
    """One strict JSON object on stdout; numbers that JSON does not have (inf, NaN) become null."""
    print(json.dumps(_strict(value), allow_nan=False, default=str))


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _strict(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _lines(value: Any, indent: str = "") -> str:
    """Nested values as indented lines for people."""
    if isinstance(value, dict):
        deep = [
            f"{indent}{k}:\n{_lines(v, indent + '  ')}" if isinstance(v, dict | list) else f"{indent}{k}: {v}"
            for k, v in value.items()
        ]
        return "\n".join(deep)
    return (
        "\n".join(
            f"{indent}- {_lines(v) if not isinstance(v, dict) else ', '.join(f'{a} {b}' for a, b in v.items())}"
            for v in value
        )
        if isinstance(value, list)
        else f"{indent}{value}"
    )


OVERRIDABLE = {"run": Run, "sweep": Sweep, "audit": Audit}
PLAIN = {"report": Report, "list": List, "doctor": Doctor}


def dispatch(arguments: list[str]) -> int:
    """Parses the arguments and executes the command; returns the exit code."""
    name = arguments[0] if arguments else "--help"
    if name == "--version":
        import fljax

        print(fljax.__version__)
    elif name == "privacy":
        _privacy(arguments[1:])
    elif name in OVERRIDABLE:
        kind = OVERRIDABLE[name]
        command, rest = tyro.cli(kind, args=arguments[1:], prog=f"fljax {name}", return_unknown_args=True)
        return command.execute(rest) or 0
    elif name in PLAIN:
        tyro.cli(PLAIN[name], args=arguments[1:], prog=f"fljax {name}").execute()
    elif name in ("--help", "-h"):
        print(_help())
    else:
        raise FljaxError(
            f"Expected command {name!r} to be one of {', '.join([*OVERRIDABLE, *PLAIN, 'privacy'])}. Try fljax --help."
        )
    return 0


def _privacy(arguments: list[str]) -> None:
    commands: dict[str, Any] = dict(accountant.COMMANDS)
    command = tyro.extras.subcommand_cli_from_dict(commands, args=arguments, prog="fljax privacy")
    answer = command.run()
    _print_json(answer) if command.json else print(_lines(answer))


def _help() -> str:
    """The first thing somebody sees."""
    first = {name: (c.__doc__ or "").split("\n")[0] for name, c in (OVERRIDABLE | PLAIN).items()}
    first["privacy"] = "Accountant: the epsilon of a noise, the noise for an epsilon, the price of a choice."
    rows = "\n".join(f"  {name:<9}{text}" for name, text in first.items())
    return f"fljax: a simulator of private federated learning\n\n{rows}\n\nfljax COMMAND --help tells the rest."
