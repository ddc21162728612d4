"""What every runner is given and what it hands back. NumPy only: the environments of the simulators differ.

A runner is called as ``python -m benchmarks.vs.<peer>.run --problem P --out O``. It trains ``cohort`` clients a round
for one epoch each by plain SGD, averages their changes without weights, and writes the seconds of every round after the
warm-up, the versions of what it used and the parameters that it ended with.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Problem(NamedTuple):
    """model: ``cnn`` or ``mlp``. x [N, M, ...] float32 and y [N, M] int64: M examples of each of N clients, images as
    [H, W, c]. params: "layer/leaf" -> array, kernels as [h, w, in, out] and [in, out]. cohort: clients a round. batch:
    examples a step; a client takes M / batch steps a round. lr: its learning rate."""

    model: str
    x: np.ndarray
    y: np.ndarray
    params: dict[str, np.ndarray]
    cohort: int
    batch: int
    lr: float


def save(path: Path, problem: Problem) -> None:
    """Writes a problem to an .npz file."""
    arrays = {f"params/{name}": value for name, value in problem.params.items()}
    numbers = {"model": problem.model, "cohort": problem.cohort, "batch": problem.batch, "lr": problem.lr}
    np.savez(path, x=problem.x, y=problem.y, meta=json.dumps(numbers), **arrays)


def load(path: str | Path) -> Problem:
    """Reads what ``save`` wrote."""
    with np.load(path) as file:
        params = {name.removeprefix("params/"): file[name] for name in file.files if name.startswith("params/")}
        return Problem(x=file["x"], y=file["y"], params=params, **json.loads(str(file["meta"])))


def checkable(problem: Problem, clients: int) -> Problem:
    """The same task with a few clients, all of them in every round, each of whom holds one example over and over.

    Whatever order a simulator draws the clients and shuffles the examples in, the result is the same number, so that
    simulators can be compared to the last digits.
    """
    shape = (clients, problem.x.shape[1], *problem.x.shape[2:])
    x = np.broadcast_to(problem.x[:clients, :1], shape).copy()
    y = np.broadcast_to(problem.y[:clients, :1], shape[:2]).copy()
    return problem._replace(x=x, y=y, cohort=clients)


def arguments() -> argparse.Namespace:
    """The flags of every runner. setting: what this simulator can be tuned by, as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--problem", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="name of the .json and .npz files, without the ending")
    parser.add_argument("--rounds", type=int, default=3, help="rounds that are timed")
    parser.add_argument("--warmup", type=int, default=1, help="rounds before those")
    parser.add_argument("--setting", type=json.loads, default={})
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    return parser.parse_args()


def finish(
    out: Path,
    seconds: Sequence[float],
    params: dict[str, np.ndarray],
    packages: Sequence[str],
    extra: dict[str, float] | None = None,
) -> None:
    """Writes what a runner found out: the seconds of each timed round, versions, and the final parameters."""
    versions = {name: importlib.metadata.version(name) for name in packages} | {"python": platform.python_version()}
    np.savez(out.with_suffix(".npz"), **params)
    out.with_suffix(".json").write_text(json.dumps({"seconds": list(seconds), "versions": versions, **(extra or {})}))
