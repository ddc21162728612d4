"""``fljax list`` and ``fljax report``: what there is, and what was found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from fljax.cli.arguments import load_experiment, shipped
from fljax.cli.shared import lines, print_json


@dataclass(frozen=True)
class Report:
    """Write tables, figures and report.html of a results folder again.

    Attributes:
      folder: a results folder.
      json: print one JSON object on stdout.
    """

    folder: tyro.conf.Positional[Path]
    json: bool = False

    def execute(self) -> None:
        """Writes table, figures and page of results that exist."""
        from fljax.report.page import write_report
        from fljax.report.tables import print_summary, print_table, summarise
        from fljax.sweep.store import open_results

        results = open_results(self.folder)
        page = write_report(self.folder)
        if self.json:
            print_json({"name": results.manifest["name"], "page": str(page)})
            return
        print_summary(results) if results.manifest["kind"] == "run" else print_table(summarise(results))
        print(page)


@dataclass(frozen=True)
class Cite:
    """Print BibTeX of the methods that an experiment uses, for the paper it ends up in.

    Attributes:
      experiment: name of a shipped experiment (`fljax list`) or path of a TOML file.
    """

    experiment: tyro.conf.Positional[str]

    def execute(self) -> None:
        """Prints the entries."""
        from fljax.report.citation import citation

        print(citation(load_experiment(self.experiment)), end="")


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
        print_json(known) if self.json else print(lines(known))


def _described(info: Any) -> str:
    return info.description + (" (your files: --data-dir)" if info.needs_files else "")
