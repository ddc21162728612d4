"""Trackers: TensorBoard, Weights & Biases and MLflow as places to which the metrics of a run are sent as it goes.

A tracker gets numbers between two calls, never inside of one. It is a spectator: when it fails, that is said once and
the run goes on without it. Its package is imported when it is asked for; its files lie in hidden folders of the
results, which stay those of fljax.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from fljax.config import Experiment
from fljax.core.check import FljaxError, one_of


class Tracker(NamedTuple):
    """Where metrics go.

    Attributes:
      name: for messages.
      log: (round, {metric: finite number}) for every round done, counted from 1, in order.
      close: () once, also when the run fails.
    """

    name: str
    log: Callable[[int, Mapping[str, float]], None]
    close: Callable[[], None]


def tensorboard(experiment: Experiment, folder: Path | None) -> Tracker:
    """Event files for TensorBoard in ``<results folder>/.tensorboard``."""
    assert folder is not None, "check_trackers refuses it"
    writer = _package("tensorboard").SummaryWriter(logdir=str(folder / ".tensorboard"))
    writer.add_text("experiment", f"```json\n{json.dumps(_settings(experiment), indent=2, default=str)}\n```")

    def log(t: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            writer.add_scalar(name, value, global_step=t)
        writer.flush()

    return Tracker("tensorboard", log, writer.close)


def wandb(experiment: Experiment, folder: Path | None) -> Tracker:
    """A run of Weights & Biases, in the project $WANDB_PROJECT or ``fljax``."""
    project = os.environ.get("WANDB_PROJECT", "fljax")
    place = None if folder is None else folder / ".wandb"
    if place is not None:
        place.mkdir(parents=True, exist_ok=True)
    settings = _settings(experiment)
    run = _package("wandb").init(project=project, name=experiment.name, dir=place and str(place), config=settings)
    return Tracker("wandb", lambda t, metrics: run.log(dict(metrics), step=t), run.finish)


def mlflow(experiment: Experiment, folder: Path | None) -> Tracker:
    """A run of MLflow at $MLFLOW_TRACKING_URI, in the experiment $MLFLOW_EXPERIMENT_NAME or ``fljax``."""
    package = _package("mlflow")
    if "MLFLOW_EXPERIMENT_NAME" not in os.environ and "MLFLOW_EXPERIMENT_ID" not in os.environ:
        package.set_experiment("fljax")
    package.start_run(run_name=experiment.name)
    package.log_params(_flat(_settings(experiment)))

    def log(t: int, metrics: Mapping[str, float]) -> None:
        package.log_metrics(dict(metrics), step=t, synchronous=False)  # a data base takes 40 ms for a row

    return Tracker("mlflow", log, package.end_run)  # waits for what is on its way


TRACKERS: dict[str, Callable[[Experiment, Path | None], Tracker]] = {
    "tensorboard": tensorboard,
    "wandb": wandb,
    "mlflow": mlflow,
}
"""(experiment, results folder or None) -> an open tracker."""

PACKAGES = {
    "tensorboard": ("tensorboardX", 'pip install "fljax[tensorboard]"'),
    "wandb": ("wandb", "pip install wandb"),
    "mlflow": ("mlflow", "pip install mlflow-skinny"),
}
"""What a tracker imports, and how to get it."""


def _package(name: str) -> ModuleType:
    package, remedy = PACKAGES[name]
    try:
        return importlib.import_module(package)
    except ImportError:
        raise FljaxError(f"Tracker {name!r} needs the package {package}, which is missing. {remedy}") from None


Tell = Callable[[Mapping[str, np.ndarray], int], None]
"""(history with leaves [rounds done, ...], first round that is new): tells the trackers of a run what is new."""


def check_trackers(asked: Sequence[str | Tracker], folder: Path | None) -> None:
    """Raises FljaxError in one line for a tracker that does not exist, or that lacks its package or its folder."""
    for tracker in asked:
        if isinstance(tracker, str):
            one_of(TRACKERS, track=tracker)
            _package(tracker)
    if folder is None and "tensorboard" in asked:
        raise FljaxError("Tracker 'tensorboard' writes files: give the run a results folder with out=.")


@contextmanager
def open_trackers(asked: Sequence[str | Tracker], experiment: Experiment, folder: Path | None) -> Iterator[Tell]:
    """Opens the trackers of a run, and closes them at its end.

    Args:
      asked: names of ``TRACKERS``, or open trackers of one's own.
      experiment: what runs; trackers show its fields. folder: of the results.

    Yields:
      What tells them about new rounds, between two calls. Numbers that are not finite, such as metrics of rounds
      without an evaluation, are left out.

    A tracker that cannot be opened, or fails later, is reported once on stderr and left out from then on.
    """
    alive: list[Tracker] = []
    for tracker in asked:
        if not isinstance(tracker, str):
            alive.append(tracker)
            continue
        try:
            alive.append(TRACKERS[tracker](experiment, folder))
        except Exception as error:  # a spectator's failure is not the run's
            _failed(tracker, error)

    def each(act: Callable[[Tracker], None]) -> None:
        for tracker in list(alive):
            try:
                act(tracker)
            except Exception as error:
                alive.remove(tracker)
                _failed(tracker.name, error)

    def tell(history: Mapping[str, np.ndarray], first: int) -> None:
        for t in range(first, len(history["participants"]) if alive else first):
            metrics = _measured(history, t)
            each(lambda tracker, t=t, metrics=metrics: tracker.log(t + 1, metrics))

    try:
        yield tell
    finally:
        each(lambda tracker: tracker.close())


def _measured(history: Mapping[str, np.ndarray], t: int) -> dict[str, float]:
    """The finite numbers of round t."""
    row = {name: float(values[t]) for name, values in history.items() if np.ndim(values[t]) == 0}
    return {name: value for name, value in row.items() if math.isfinite(value)}


def _failed(name: str, error: Exception) -> None:
    reason = " ".join(str(error).split()) or type(error).__name__
    print(f"tracker {name} failed and is left out from here on: {reason}", file=sys.stderr, flush=True)


def _settings(experiment: Experiment) -> dict[str, Any]:
    """The fields of the experiment as JSON values."""
    return experiment.model_dump(mode="json")


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted names."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat
