"""Data on disk against data on the device: the round of ``cohort_cnn``'s model, in turn.

    python -m benchmarks.streaming --out benchmarks/results
    python -m benchmarks.streaming --clients 12 --cohort 4 --rounds 4 --turns 1

Images of bytes lie in memory-mapped files. One run holds all of them on the device, the other one streams: while the
device computes one call, the host gathers the examples of the next. Every run is a start of its own, as by ``fljax
run``; the seconds are those of a round in steady state, the ratio is that within a turn. ``data_bytes`` is what of the
training data lies on the device: all of it, or the examples of the cohorts of two calls.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import fljax
from benchmarks.report import add_flags, deliver, finished

SHAPE, EXAMPLES, CLASSES = (28, 28, 1), 50, 10


def write_data(folder: Path, clients: int) -> None:
    """Clients of 50 random images of bytes, as the dataset ``npy`` reads them."""
    rng, count = np.random.default_rng(0), clients * EXAMPLES
    for name, number in (("", count), ("test_", 100)):
        np.save(folder / f"{name}x.npy", rng.integers(256, size=(number, *SHAPE), dtype=np.uint8))
        labels = np.concatenate([np.arange(CLASSES), rng.integers(CLASSES, size=number - CLASSES)])
        np.save(folder / f"{name}y.npy", labels)
    np.save(folder / "client_id.npy", np.repeat(np.arange(clients), EXAMPLES))


def experiment(folder: Path, args: argparse.Namespace, streamed: bool) -> fljax.Experiment:
    """FedAvg with 5 steps of batch 10, as ``cohort_cnn``."""
    return fljax.Experiment.model_validate(
        {
            "name": "streaming",
            "rounds": args.rounds,
            "eval_every": 10 * args.rounds,
            "data": {"name": "npy", "dir": str(folder), "streamed": streamed},
            "model": {"name": "cnn"},
            "client": {"lr": 0.1, "epochs": 1, "batch_size": 10},
            "sampler": {"kind": "fixed_size", "cohort": args.cohort},
            "perf": {"rounds_per_call": args.rounds_per_call, "seconds_per_call": 1e9},
        }
    )


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Both runs in turn."""
    seconds: dict[str, list[float]] = {"resident": [], "streamed": []}
    with tempfile.TemporaryDirectory() as name:
        write_data(Path(name), args.clients)
        for _ in range(args.turns):
            for way, times in seconds.items():
                outcome = fljax.run(experiment(Path(name), args, way == "streamed"), quiet=True)
                times.append(outcome.timing.steady_s_per_round)
    client = 4 * EXAMPLES * int(np.prod(SHAPE))
    held = {"resident": args.clients, "streamed": 2 * args.rounds_per_call * args.cohort}
    return {
        **{
            way: {
                "steady_s_per_round": float(np.median(times)),
                "fastest_s_per_round": min(times),
                "slowest_s_per_round": max(times),
                "data_bytes": client * held[way],
            }
            for way, times in seconds.items()
        },
        "streamed_over_resident": float(np.median(np.divide(seconds["streamed"], seconds["resident"]))),
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=1000, help="population")
    parser.add_argument("--cohort", type=int, default=50, help="clients a round")
    parser.add_argument("--rounds", type=int, default=12, help="rounds of a run")
    parser.add_argument("--rounds-per-call", type=int, default=3, help="rounds of a compiled call")
    parser.add_argument("--turns", type=int, default=3, help="runs of each kind")
    add_flags(parser)
    args, load = parser.parse_args(), os.getloadavg()
    names = ("clients", "cohort", "rounds", "rounds_per_call", "turns")
    result = finished("streaming", {"settings": {n: getattr(args, n) for n in names}, **measure(args)}, load)
    text = [f"cohort of {args.cohort} of {args.clients} clients, {args.rounds_per_call} rounds a call"]
    for way in ("resident", "streamed"):
        row = result[way]
        span = f"{row['fastest_s_per_round']:.4f} to {row['slowest_s_per_round']:.4f}"
        text.append(f"  {way:9} {row['steady_s_per_round']:.4f} s a round ({span}), {row['data_bytes'] / 1e6:.0f} MB")
    text.append(f"  streamed / resident {result['streamed_over_resident']:.3f}")
    deliver(result, "streaming", args, text)


if __name__ == "__main__":
    main()
