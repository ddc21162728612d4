"""A sweep that runs in seconds, and one whose trials cost nothing: known functions of their settings."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from fljax.config import Experiment, validate
from fljax.core.types import Hparams
from fljax.privacy.ledger import Ledger
from fljax.privacy.statement import PrivacyStatement
from fljax.sweep import folder as sweep_folder
from fljax.sweep.run import Done, Resolved

SWEEP = {
    "name": "small_sweep",
    "rounds": 6,
    "eval_every": 2,
    "data": {"name": "synthetic", "clients": 6},
    "model": {"name": "logistic"},
    "client": {"steps": 1, "batch_size": 4},
    "sampler": {"kind": "poisson", "rate": 0.5},
    "privacy": {"mechanism": "central_gaussian", "noise_multiplier": 1.0, "clip": 0.5},
    "perf": {"trials_per_batch": 3, "rounds_per_call": 2},
}


def experiment(sweep: dict | None = None, **fields) -> Experiment:
    """Two learning rates, two clips, two seeds: three batches of three, the last one filled up."""
    axes = {"grid": {"client.lr": [0.1, 0.3], "privacy.clip": [0.5, 1.0]}, "seeds": 2}
    base = validate({**SWEEP, "sweep": axes if sweep is None else sweep})
    return base.replace(**fields) if fields else base


def accuracy(lr: float, seed: int) -> float:
    """What a trial that costs nothing reaches."""
    return round(lr + 0.001 * seed, 6)


def fake_runner(log: Path | None = None, seconds: float = 0.0):
    """A stand-in for ``make_runner``: notes which shards ran, and takes its time."""

    def make(plan, pending, quiet=False, check=None, kept=None):
        def run(shard, saved):
            if log is not None:
                with open(log, "a") as file:
                    file.write(json.dumps(shard) + "\n")
            time.sleep(seconds)
            batch = plan.batch(shard)
            histories = [_history(t.values.get("client.lr", 0.1), t.values["run.seed"]) for t in batch.trials]
            said = PrivacyStatement("none", "no noise was asked for")
            resolved = [Resolved(Hparams(), said, Ledger())] * len(histories)
            return Done(batch, resolved, histories, 0.0, [(10, 0.1)])

        return run

    return make


def _history(lr: float, seed: int) -> dict[str, np.ndarray]:
    rounds = np.arange(1, 5)
    links = {f"{link}_{unit}": np.ones(4, np.int32) for link in ("uplink", "downlink") for unit in ("kib", "rest")}
    seen = {"test_accuracy": (accuracy(lr, seed) * rounds / 4).astype(np.float64)}
    return {"participants": np.full(4, 3.0), **links, **seen}


def worker(folder: str, log: str, seconds: str) -> None:
    """A worker process of a sweep whose trials cost nothing."""
    sweep_folder.make_runner = fake_runner(Path(log), float(seconds))
    sweep_folder.POLL_S = 0.05
    plan = sweep_folder.stored_plan(Path(folder))
    sweep_folder.work(Path(folder), plan, quiet=True, wait=True)
    sweep_folder.finish(Path(folder), plan)


if __name__ == "__main__":
    worker(*sys.argv[1:])
