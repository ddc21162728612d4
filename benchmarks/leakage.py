"""How much of an image comes back from one upload, under masks, noise and a sum: real images, several seeds.

    python -m benchmarks.leakage --data fashion_mnist --seeds 5      (needs FLJAX_DATA)
    python -m benchmarks.leakage --data digits --seeds 5

Ten clients of one image each send one local step of round 5; five dense rounds come before, from whose released updates
FisherDropout ranks the neurons. The adversary is the server, knows the masks and runs the client's own algorithm. Every
number is a mean over victims; its spread is over seeds (cohorts, weights, images). Results go to
benchmarks/results/leakage_<data>_cpu.json after every seed; a file that is there is gone on with.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fljax.config import Experiment, validate
from fljax.core.keys import stream
from fljax.leakage.inversion import Effort
from fljax.leakage.on_updates import ignoring_masks, inverted
from fljax.leakage.run import prepare
from fljax.leakage.scene import set_scene
from fljax.leakage.views import declared
from fljax.leakage.work import Work, base_lines, score, truths_of
from fljax.sim.engine import use_compilation_cache

RESULTS = Path(__file__).parent / "results"
ROUND = 5
NOISE = {"privacy.mechanism": "local_gaussian", "privacy.clip": 1.0}


def masks(source: str, keep: float) -> dict[str, Any]:
    """Fields of an experiment whose clients keep a share of the neurons from round 5 on."""
    return {"dropout.source": source, "dropout.keep_rate": keep, "dropout.warmup_rounds": ROUND}


ROWS: dict[str, dict[str, Any]] = {
    "none": {},
    "fisher 0.5": masks("fisher", 0.5),
    "fisher 0.25": masks("fisher", 0.25),
    "random 0.5": masks("random", 0.5),
    "random 0.25": masks("random", 0.25),
    "noise 0.01": NOISE | {"privacy.noise_multiplier": 0.01},
    "sum of 10": {},
}
"""Defences by name; noise is per coordinate, on an upload of norm 1 at most."""

BASE: dict[str, dict[str, Any]] = {
    "fashion_mnist": {
        "data": {"name": "fashion_mnist", "clients": 1000, "examples_per_client": 1},
        "model": {"name": "cnn", "channels": [8, 16], "hidden": 64},
    },
    "digits": {
        "data": {"name": "digits", "examples_per_client": 1},
        "model": {"hidden": [64, 64]},
    },
}


def experiment(data: str, row: str, seed: int) -> Experiment:
    """One row at one seed."""
    shared = {"name": "leakage", "rounds": ROUND + 1, "seed": seed, "client": {"steps": 1, "lr": 0.1}}
    tree = {**shared, "sampler": {"kind": "fixed_size", "cohort": 10}, **BASE[data]}
    return validate(tree).replace(**ROWS[row])


def measure(data: str, row: str, seed: int, effort: Effort) -> dict[str, Any]:
    """PSNR, recovered share and SSIM of one row at one seed; beside it the adversary that ignores masks."""
    asked = experiment(data, row, seed)
    scene, _ = set_scene(asked, ROUND, 10, False)
    defences = [*declared(asked), *(["secure_sum"] if row == "sum of 10" else [])]
    work: Work = prepare(scene, "server", defences, None, effort, stream(jax.random.key(seed), "leakage"))
    guesses = inverted(work, work.view)
    found = {"seen": score(work, guesses, truths_of(work))._asdict()}
    blind = ignoring_masks(work) if row == "fisher 0.5" else None
    if blind is not None:
        found["ignoring_masks"] = score(work, inverted(work, blind), truths_of(work))._asdict()
    lines = base_lines(work, [len(g) for g in guesses])
    return found | {"mean_image": lines["mean_image"]._asdict()}


def main() -> None:
    """Measures all rows, seed by seed, and writes what is there after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=[*BASE], default="digits")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=400)
    args = parser.parse_args()
    use_compilation_cache()
    path = RESULTS / f"leakage_{args.data}_cpu.json"
    asked = {"data": args.data, "model": BASE[args.data]["model"], "iterations": args.iterations}
    rows, before = kept(path, asked)
    start = time.perf_counter() - before
    for seed in range(len(rows["none"]), args.seeds):
        for row in ROWS:
            rows[row].append(measure(args.data, row, seed, Effort(args.iterations)))
            seen = rows[row][-1]["seen"]
            print(f"seed {seed}  {row:<12} {seen['psnr']:5.1f} dB  {seen['share']:.0%}", flush=True)
        done = asked | {
            "seeds": seed + 1,
            "seconds": round(time.perf_counter() - start),
            "processor": f"{platform.machine()}, {os.cpu_count()} cores",
            "jax": jax.__version__,
            "summary": {row: summary(values) for row, values in rows.items()},
            "rows": rows,
        }
        path.write_text(json.dumps(done, indent=1) + "\n")


def kept(path: Path, asked: dict[str, Any]) -> tuple[dict[str, list], float]:
    """(rows by name, seconds) of earlier seeds with the same settings; empty rows where there are none."""
    done = json.loads(path.read_text()) if path.exists() else {}
    if any(done.get(name) != value for name, value in asked.items()) or not set(ROWS) <= set(done["rows"]):
        return {row: [] for row in ROWS}, 0.0
    return {row: done["rows"][row] for row in ROWS}, done["seconds"]


def summary(values: list[dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Mean over seeds, and half of its 95 % interval (Student's t), of every number that tables show."""
    from scipy import stats

    told = {}
    for part in values[0]:
        told[part] = {}
        for name in ("psnr", "share", "ssim"):
            x = np.array([v[part][name] for v in values])
            half = float(stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x))) if len(x) > 1 else 0.0
            told[part][name] = [round(float(x.mean()), 3), round(half, 3)]
    return told


if __name__ == "__main__":
    main()
