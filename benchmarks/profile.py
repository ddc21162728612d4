"""What bounds a round: a profile of the device, next to the roofline.

    python -m benchmarks.profile --workload cohort_cnn
    python -m benchmarks.profile --workload tiny_mlp --trace /tmp/trace

Reported: operations (kernels) that the device ran in a round and the seconds it was busy with them, to be held against
the seconds of the round (a GPU that is idle in between waits for launches); the operations that took longest; and two
lower bounds of the round's time: its matrix products at the peak of one, and the passes over the parameters that SGD
cannot do without at the memory bandwidth, both measured in this call. ``--trace`` keeps the trace for a viewer.

At last, what bounds the round, whichever has the largest share of its seconds: ``launches`` (the device is idle, or
works on operations as short as their launch), ``matrix units`` (longer operations that are products, by their names) or
``bandwidth`` (all longer others, which read and write and calculate little).
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fljax
from benchmarks.programs import Measured, compiled_round, matmul_peak, peak_size, speed, timed, turns
from benchmarks.report import add_flags, deliver, finished
from benchmarks.workloads import WORKLOADS, Variant

SKIPPED = ("ThreadpoolListener", "ThunkExecutor", "PjRt", "Tfrt", "CommonPjRt", "$", "end: ", "thread", "while", "call")
"""Beginnings of the names of events that are no operations of the program, or hold others, on a CPU."""
PASSES = 6
"""Over the parameters in a step of SGD: read forward and backward, gradient written and read, both by the update."""


SHORT_S = 5e-6
"""Operations that take less than this in the mean cost their launch, not their work: GPUs need 2 to 5 us for one."""
PRODUCTS = ("gemm", "gemv", "dot", "conv", "cutlass", "cublas", "cudnn", "xmma", "nvjet", "wgmma", "ynn")
"""Parts of the names of matrix products and convolutions, by XLA, its libraries, and on a CPU. ``convert`` is none."""


def copy_bandwidth(megabytes: int) -> Measured:
    """Adds one to an array that no cache holds: one read and one write of it; the seconds of one call."""
    array = jnp.zeros(megabytes * 2**18, jnp.float32)
    program = jax.jit(lambda x: x + 1).lower(array).compile()
    return Measured(program, 0.0, lambda: min(timed(program, array)[0] for _ in range(3)))


def device_events(folder: Path) -> dict[str, tuple[int, float]]:
    """name -> (how often, seconds) of all operations that devices ran, from the trace in a folder.

    On a GPU these are the events of its streams; on a CPU, which has no device of its own in a trace, those that XLA's
    threads report: operations that run at the same time on two threads count twice.
    """
    paths = sorted(folder.rglob("*.xplane.pb"))
    if not paths:
        raise RuntimeError(f"Expected a trace in {folder}.")
    found: dict[str, tuple[int, float]] = defaultdict(lambda: (0, 0.0))
    planes = list(jax.profiler.ProfileData.from_file(str(paths[-1])).planes)
    devices = [
        plane for plane in planes if plane.name.startswith("/device:GPU") or plane.name.startswith("/device:TPU")
    ]
    for plane in devices or [plane for plane in planes if plane.name == "/host:CPU"]:
        for line in plane.lines:
            if (devices and not line.name.startswith("Stream")) or (not devices and line.name.startswith("python")):
                continue
            for event in line.events:
                if not event.name.startswith(SKIPPED):
                    count, seconds = found[event.name]
                    found[event.name] = (count + 1, seconds + event.duration_ns / 1e9)
    return dict(found)


def verdict(events: dict[str, tuple[int, float]], seconds: float) -> dict[str, Any]:
    """What bounds some rounds.

    Args:
      events: name -> (how often, seconds) of the operations in these rounds.
      seconds: of the clock for these rounds. Operations that run side by side may add up to more: shares are of that.

    Returns:
      ``bound_by``, the largest of ``shares``; these, of launches, bandwidth and matrix units, together 1; ``idle``, the
      part of launches in which the device did nothing; all in one ``line``. A name belongs to one of the three whole,
      by the mean of its operations.
    """
    spent = {"launches": 0.0, "bandwidth": 0.0, "matrix units": 0.0}
    for name, (count, took) in events.items():
        product = any(part in name.lower().replace("convert", "") for part in PRODUCTS)
        spent["launches" if took < SHORT_S * count else "matrix units" if product else "bandwidth"] += took
    busy = sum(spent.values())
    idle = max(0.0, seconds - busy)
    spent["launches"] += idle
    shares = {name: value / (busy + idle) for name, value in spent.items()}
    first, idle = max(shares, key=shares.__getitem__), idle / (busy + idle)
    each = ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items())
    line = f"bound by {first}: {each} of the round; the device is idle for {100 * idle:.0f} %"
    return {"bound_by": first, "shares": shares, "idle": idle, "line": line}


def profile(work: Any, rounds: int, calls: int, size: int, megabytes: int, folder: Path) -> dict[str, Any]:
    """Times the round, then traces one call, and puts both next to the machine's bounds."""
    program = compiled_round(work, Variant(), fljax.PerfFlags(), rounds)
    seconds = turns([program, matmul_peak(size), copy_bandwidth(megabytes)], calls)
    with jax.profiler.trace(str(folder)):
        traced = program.call()
    events = device_events(folder)
    count, busy = sum(n for n, _ in events.values()) / rounds, sum(s for _, s in events.values()) / rounds
    longest = sorted(events.items(), key=lambda item: -item[1][1])[:12]
    bandwidth = 2 * megabytes * 2**20 / np.median(seconds[:, 2])
    moved = PASSES * 4.0 * work.model.num_params() * work.steps_per_round
    result = speed(work, seconds[:, 0], seconds[:, 1], size)
    return {
        "round": {"compile_s": program.compile_s, **result},
        "traced_s_per_round": traced,
        "operations_per_round": count,
        "busy_s_per_round": busy,
        "longest": [{"name": n, "calls_per_round": c / rounds, "s_per_round": s / rounds} for n, (c, s) in longest],
        "bounds": {
            "by_matmul_s": result["flop_per_round"] / result["matmul_peak_flop_per_s"],
            "bandwidth_bytes_per_s": float(bandwidth),
            "parameter_bytes": moved,
            "by_parameter_bytes_s": float(moved / bandwidth),
        },
        "verdict": verdict(events, rounds * result["steady_s_per_round"]),
    }


def main() -> None:
    """Parses the flags, measures, prints, and writes a JSON file where --out is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=sorted(WORKLOADS), default="cohort_cnn")
    parser.add_argument("--clients", type=int, help="population (default: the workload's)")
    parser.add_argument("--cohort", type=int, help="clients a round (default: the workload's)")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of a call")
    parser.add_argument("--calls", type=int, default=3, help="timed calls, after one that warms up")
    parser.add_argument("--peak-size", type=int, default=peak_size(), help="rows of the product that tells the peak")
    parser.add_argument("--megabytes", type=int, default=512, help="of the array that tells the bandwidth")
    parser.add_argument("--trace", type=Path, help="folder that keeps the trace")
    add_flags(parser)
    args, load = parser.parse_args(), os.getloadavg()
    sizes = {name: value for name in ("clients", "cohort") if (value := getattr(args, name)) is not None}
    work = WORKLOADS[args.workload](**sizes)
    with tempfile.TemporaryDirectory() as name:
        folder = args.trace or Path(name)
        found = profile(work, args.rounds, args.calls, args.peak_size, args.megabytes, folder)
    result = {"workload": args.workload, "settings": {"rounds": args.rounds, **sizes}, **found}
    steady = found["round"]["steady_s_per_round"]
    text = [
        f"{args.workload}: round {1e3 * steady:.2f} ms, of which the matrix products alone need "
        f"{1e3 * found['bounds']['by_matmul_s']:.2f} ms at this machine's peak",
        f"  and the passes over the parameters {1e3 * found['bounds']['by_parameter_bytes_s']:.2f} ms at its bandwidth",
        f"  {found['operations_per_round']:,.0f} operations a round, together {1e3 * found['busy_s_per_round']:.2f} ms",
        *(
            f"  {1e3 * row['s_per_round']:9.3f} ms {row['calls_per_round']:8.0f} x  {row['name'][:80]}"
            for row in found["longest"]
        ),
        f"  {found['verdict']['line']}",
    ]
    deliver(finished("profile", result, load), f"profile_{args.workload}", args, text)


if __name__ == "__main__":
    main()
