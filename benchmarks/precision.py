"""What computing in bfloat16 changes in accuracy: the same seeds, cohorts and noise once in each format.

    python -m benchmarks.precision
    python -m benchmarks.precision --experiments digits_dp_fedavg --seeds 5 --json

Each experiment of ``ROWS`` runs as two sweeps over seeds that differ in ``client.precision`` alone, so that the runs of
one seed are a pair. Reported for each: the last test accuracy of every seed in both formats, the mean of the pairs'
differences with its standard error, and the standard deviation of float32 over seeds. ``within_noise`` is true where
the difference and two standard errors together are less than that deviation: bfloat16 then changes less than a seed.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

import numpy as np

import fljax
from benchmarks.report import add_flags, deliver, finished
from fljax.cli.arguments import load_experiment
from fljax.sim.engine import use_compilation_cache

ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "digits_fedavg": ("digits_fedavg", {}),
    "digits_fedavg_cnn": (
        "digits_fedavg",
        {
            "data.options": {"image": True},
            "model.name": "cnn",
            "model.channels": (8, 16),
            "model.hidden": 32,
            "client.lr": 0.1,
        },
    ),
    "digits_dp_fedavg": ("digits_dp_fedavg", {}),
}
"""Name -> (experiment, fields that differ from its file)."""
FORMATS = ("float32", "bfloat16")


def accuracies(row: str, precision: str, seeds: int, rounds: int | None) -> np.ndarray:
    """Test accuracy [seeds] after the last round."""
    name, fields = ROWS[row]
    fields = fields | {"client.precision": precision, "sweep.seeds": seeds}
    experiment = load_experiment(name).replace(**fields, **({"rounds": rounds} if rounds else {}))
    return fljax.run_sweep(experiment, quiet=True).history["test_accuracy"][:, -1].astype(np.float64)


def paired(accuracy: dict[str, np.ndarray]) -> dict[str, Any]:
    """What the pairs say. accuracy: by format, [seeds] of the same seeds in the same order."""
    float32, bfloat16 = (accuracy[name] for name in FORMATS)
    change = bfloat16 - float32
    mean, error = float(change.mean()), float(change.std(ddof=1) / np.sqrt(len(change)))
    deviation = float(float32.std(ddof=1))
    return {
        "accuracy": {name: values.tolist() for name, values in accuracy.items()},
        "mean": {name: float(values.mean()) for name, values in accuracy.items()},
        "difference": mean,
        "standard_error": error,
        "deviation_over_seeds": deviation,
        "within_noise": abs(mean) + 2 * error < deviation,
    }


def main() -> None:
    """Parses the flags, runs everything, prints, and writes a JSON file where --out is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--rounds", type=int, help="of every run (default: the experiment's)")
    add_flags(parser)
    args, load = parser.parse_args(), os.getloadavg()
    if args.seeds < 2:
        parser.error(f"Expected --seeds of at least 2, found {args.seeds}: a standard error needs two pairs.")
    use_compilation_cache()
    rows = {
        row: paired({name: accuracies(row, name, args.seeds, args.rounds) for name in FORMATS})
        for row in args.experiments
    }
    text = [
        f"{row}: bfloat16 {100 * r['mean']['bfloat16']:.2f} %, float32 {100 * r['mean']['float32']:.2f} %; in pairs "
        f"{100 * r['difference']:+.3f} ± {100 * r['standard_error']:.3f} points, over seeds "
        f"{100 * r['deviation_over_seeds']:.2f}: {'within' if r['within_noise'] else 'NOT within'} noise"
        for row, r in rows.items()
    ]
    result = {"settings": {"seeds": args.seeds, "rounds": args.rounds}, "rows": rows}
    deliver(finished("precision", result, load), "precision", args, text)


if __name__ == "__main__":
    main()
