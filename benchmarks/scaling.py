"""How time and memory of a round grow with clients, cohort, rounds, parameters and devices.

    python -m benchmarks.scaling
    python -m benchmarks.scaling --axes cohort devices --json
    python -m benchmarks.scaling --tiny

Each axis doubles (or multiplies by ten) one number of an MLP on generated data and leaves the others alone; rows of one
axis are timed in turn. ``growth`` is the time relative to the row before, per doubling: 2 is linear. Devices run in
processes of their own, which need their number before they start.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import numpy as np

import fljax
from benchmarks.programs import compiled_round, matmul_peak, peak_size, speed, turns
from benchmarks.report import add_flags, deliver, finished, so_far
from benchmarks.workloads import Variant, Workload, generated
from fljax.models import mlp
from fljax.sim.mesh import client_mesh

ROOT = Path(__file__).parents[1]
AXES = ("clients", "cohort", "rounds", "parameters", "devices")
VALUES = {
    "clients": (1_000, 10_000, 100_000, 1_000_000),
    "cohort": (50, 100, 200, 1_000, 10_000),
    "rounds": (10, 20, 40),
    "parameters": (64, 256, 1024, 4096),  # hidden units
}
TINY = {"clients": (20, 40), "cohort": (4, 8), "rounds": (1, 2), "parameters": (8, 16)}


def workload(clients: int, cohort: int, hidden: int) -> Workload:
    """Clients of 10 examples with 64 features, 2 steps of 10: little data, so that a million clients fit."""
    model, loss = mlp((64,), 10, hidden=(hidden,)), fljax.make_loss("classification")
    return Workload("scaling", model, loss, generated(clients, 10, (64,), 10), cohort, 2, 10, 0.1)


def along(axis: str, values: tuple[int, ...], calls: int, size: int) -> list[dict[str, Any]]:
    """One row per value of an axis; all rows are timed in turn."""
    numbers = [{"clients": 2 * values[-1] if axis == "cohort" else 1_000, "cohort": 100, "hidden": 256} for _ in values]
    if axis == "clients":
        numbers = [{"clients": n, "cohort": 100, "hidden": 256} for n in values]
    elif axis in ("cohort", "parameters"):
        field = "cohort" if axis == "cohort" else "hidden"
        numbers = [row | {field: n} for row, n in zip(numbers, values, strict=True)]
    works = [workload(**row | {"cohort": min(row["cohort"], row["clients"])}) for row in numbers]
    lengths = values if axis == "rounds" else (1,) * len(values)
    perf = fljax.PerfFlags()
    programs = [compiled_round(work, Variant(), perf, n) for work, n in zip(works, lengths, strict=True)]
    seconds = turns([*programs, matmul_peak(size)], calls)
    rows = []
    for i, (value, work, program) in enumerate(zip(values, works, programs, strict=True)):
        row = {"value": value, "parameters": work.model.num_params(), "compile_s": program.compile_s}
        row |= speed(work, seconds[:, i], seconds[:, -1], size)
        row["temporary_bytes"] = program.program.memory_analysis().temp_size_in_bytes
        rows.append(row)
    return grown(rows, np.array(lengths))


def grown(rows: list[dict[str, Any]], lengths: np.ndarray) -> list[dict[str, Any]]:
    """Adds the time of a whole call relative to the row before, per doubling of the value."""
    for i, (before, row) in enumerate(pairwise(rows)):
        ratio = lengths[i + 1] * row["steady_s_per_round"] / (lengths[i] * before["steady_s_per_round"])
        row["growth"] = float(ratio ** (1 / math.log2(row["value"] / before["value"])))
    return rows


def over_devices(counts: tuple[int, ...], calls: int, size: int, cohort: int) -> list[dict[str, Any]]:
    """The round of an MLP with a quarter of a million parameters on several devices, each count in its own process."""
    rows = []
    for count in counts:
        code = f"from benchmarks.scaling import on_devices; on_devices({count}, {calls}, {size}, {cohort})"
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        if jax.default_backend() == "cpu" and count > 1:
            env |= {"JAX_NUM_CPU_DEVICES": str(count), "NPROC": str(max(16, 2 * count))}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)
        if done.returncode:
            raise RuntimeError(f"Expected a round on {count} devices: {done.stderr.strip().splitlines()[-1]}")
        rows.append({"value": count, **json.loads(done.stdout.splitlines()[-1])})
    for row in rows:
        row["speedup"] = rows[0]["steady_s_per_round"] / row["steady_s_per_round"]
    return rows


def on_devices(count: int, calls: int, size: int, cohort: int) -> None:
    """Measures on this many devices and prints the row; the body of the processes of ``over_devices``."""
    work = workload(2 * cohort, cohort, 2048)
    perf = fljax.PerfFlags(mesh=client_mesh(count))
    program = compiled_round(work, Variant(), perf)
    seconds = turns([program, matmul_peak(size)], calls)
    print(json.dumps({"compile_s": program.compile_s, **speed(work, seconds[:, 0], seconds[:, 1], size)}))


def lines(result: dict[str, Any]) -> list[str]:
    """The result as a table."""
    text = []
    for axis, rows in result["axes"].items():
        for row in rows:
            extra = f"x{row['growth']:.2f} per doubling" if "growth" in row else ""
            extra = f"{row['speedup']:.2f} times as fast as on one" if "speedup" in row else extra
            memory = f"{row['temporary_bytes'] / 1e6:9.1f} MB" if "temporary_bytes" in row else " " * 12
            text.append(
                f"{axis:10s} {row['value']:9,d}  compile {row['compile_s']:5.1f} s  round "
                f"{1e3 * row['steady_s_per_round']:9.2f} ms  {100 * row['share_of_matmul_peak']:5.1f} % of peak "
                f"{memory}  {extra}"
            )
    return text


def main() -> None:
    """Parses the flags, measures, prints, and writes a JSON file where --out is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--calls", type=int, default=5, help="timed calls, after one that warms up")
    parser.add_argument("--devices", type=int, nargs="+", help="numbers of devices (default: 1 and all, or the cores)")
    parser.add_argument("--tiny", action="store_true", help="small numbers, to see that it runs")
    add_flags(parser)
    args, load = parser.parse_args(), os.getloadavg()
    values, size = (TINY, 256) if args.tiny else (VALUES, peak_size())
    there = os.cpu_count() or 1 if jax.default_backend() == "cpu" else jax.device_count()
    counts = tuple(args.devices or sorted({1, there}))
    result = {"settings": {"axes": args.axes, "tiny": args.tiny, "devices": counts}, "axes": {}}
    for axis in args.axes:
        if axis == "devices":
            result["axes"][axis] = over_devices(counts, args.calls, size, 4 if args.tiny else 100)
        else:
            result["axes"][axis] = along(axis, values[axis], args.calls, size)
        so_far(finished("scaling", result, load), args, f"{axis} is measured")
    deliver(finished("scaling", result, load), "scaling", args, lines(result))


if __name__ == "__main__":
    main()
