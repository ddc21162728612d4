"""``fljax data inspect``: what data look like, and how a partition divides them among clients."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from fljax.cli.shared import lines, print_json
from fljax.core.check import FljaxError

if TYPE_CHECKING:
    import numpy as np

    from fljax.config import Experiment
    from fljax.data import Dataset, PartitionSummary

MOST_ROWS, MOST_LABELS = 15, 40
SHADES = " ░▒▓█"
ABOUT = ("name", "description", "licence", "task", "classes", "input_shape", "test_examples", "unseen_clients")
"""What is told to people beside the rows of the summary."""


@dataclass(frozen=True)
class Inspect:
    """Show a data set and its partition: sizes of the clients, labels over all and per client.

    Fields of the section data can be given as for `fljax run`: --data.partition dirichlet --data.alpha 0.1

    Attributes:
      name: data set (`fljax list`), or an experiment, whose data are shown.
      data_dir: folder with the original data files (default: $FLJAX_DATA).
      figure: also draw sizes and labels into this file (.png, .svg, .pdf).
      json: print one JSON object on stdout, with the sizes and label counts of every client.
    """

    name: tyro.conf.Positional[str]
    data_dir: str | None = None
    figure: Path | None = None
    json: bool = False

    def execute(self, overrides: list[str]) -> None:
        """Loads the data and prints what they are."""
        experiment = _with_data(self.name, overrides, self.data_dir)
        if self.figure is not None and self.figure.suffix not in (".png", ".svg", ".pdf"):
            raise FljaxError(f"Expected figure={str(self.figure)!r} to end in .png, .svg or .pdf.")
        from fljax.sim.build import load_data

        dataset = load_data(experiment.data)
        summary = dataset.summary()
        if self.figure is not None:
            _draw(summary, self.figure)
        facts = _facts(dataset, summary)
        if self.json:
            counts = None if summary.histogram is None else summary.histogram.tolist()
            figure = {} if self.figure is None else {"figure": str(self.figure)}
            print_json(facts | {"sizes": summary.sizes.tolist(), "label_counts": counts} | figure)
            return
        print(lines({name: facts[name] for name in ABOUT} | dict(summary.rows())))
        print(_labels_text(summary))
        if self.figure is not None:
            print(self.figure)


def _with_data(name: str, overrides: list[str], data_dir: str | None) -> Experiment:
    """An experiment whose data are asked for: the named one, or one with the named data set."""
    from fljax.cli.arguments import load_experiment, overridden, shipped
    from fljax.cli.parse import meant
    from fljax.config import validate
    from fljax.data import DATASETS

    if name not in DATASETS:
        if name not in shipped() and not name.endswith(".toml") and "/" not in name:
            known = [*DATASETS, *shipped()]
            hint = meant(name, known)
            raise FljaxError(f"Expected name={name!r} to be a data set or an experiment.{hint} `fljax list` shows all.")
        return overridden(load_experiment(name), overrides, data_dir=data_dir)
    return overridden(validate({"name": name, "data": {"name": name}}, name), overrides, data_dir=data_dir)


def _facts(dataset: Dataset, summary: PartitionSummary) -> dict[str, Any]:
    """What the data are, and the numbers of the partition, as JSON values."""
    import numpy as np

    facts: dict[str, Any] = {
        "name": dataset.name,
        "description": dataset.description,
        "licence": dataset.licence,
        "task": dataset.task,
        "classes": dataset.num_classes,
        "input_shape": " x ".join(map(str, dataset.input_shape)),
        "clients": len(summary.sizes),
        "examples": int(summary.sizes.sum()),
        "test_examples": len(dataset.test.x),
        "unseen_clients": 0 if dataset.unseen is None else dataset.unseen.population,
        "size_min": int(summary.sizes.min()),
        "size_median": float(np.median(summary.sizes)),
        "size_max": int(summary.sizes.max()),
    }
    if summary.effective_labels is not None:
        filled = summary.effective_labels[summary.sizes > 0]
        facts["effective_labels_median"] = float(np.median(filled)) if len(filled) else None
    return facts


def _labels_text(summary: PartitionSummary) -> str:
    """The labels over all clients as bars, and those of some clients, evenly spaced by size, as shades."""
    import numpy as np

    if summary.histogram is None or summary.histogram.shape[1] > MOST_LABELS:
        return ""
    total = summary.histogram.sum(axis=0)
    shares = total / max(total.sum(), 1)
    bars = [f"  {k:>3} {100 * s:5.1f} % {'█' * round(40 * s / max(shares.max(), 1e-9))}" for k, s in enumerate(shares)]
    by_size = np.argsort(summary.sizes, kind="stable")
    picked = by_size[np.unique(np.linspace(0, len(by_size) - 1, min(MOST_ROWS, len(by_size))).astype(int))]
    rows = [f"  {k:>6} {summary.sizes[k]:>8}  {_shaded(summary.histogram[k])}" for k in picked]
    legend = f"share of each label 0 .. {len(total) - 1}, from none to most: {SHADES}"
    return "\n".join(["labels over all clients:", *bars, f"clients by size; {legend}", "  client examples", *rows])


def _shaded(counts: np.ndarray) -> str:
    """One character a label: the darker, the larger its share of the client's most frequent label."""
    most = max(int(counts.max()), 1)
    return "|" + "".join(SHADES[-(-int(c) * (len(SHADES) - 1) // most)] for c in counts) + "|"


def _draw(summary: PartitionSummary, file: Path) -> None:
    from fljax.data.summary import plot_partition

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        plot_partition(summary).savefig(file)
    except OSError as error:
        raise FljaxError(f"{file}: cannot be written ({error.strerror}). Choose another file by --figure.") from None
