"""What a client's step costs by the number of clients that are computed at once.

    python -m benchmarks.widths --out benchmarks/results

64 clients with as many examples each, four steps of SGD, of models of 650 to 199,210 parameters: a round for each
number of clients at a time, all in turn. It is what the rule of ``perf.chunk`` on a CPU was read off
(``fljax.server.execute.auto_chunk``).
"""

from __future__ import annotations

import argparse
import os
from typing import Any

import numpy as np

import fljax
from benchmarks.programs import compiled_round, turns
from benchmarks.report import add_flags, deliver, finished
from benchmarks.workloads import Variant, Workload, generated
from fljax.models import mlp

MODELS = {
    "64-10": ((64,), ()),
    "64-32-10": ((64,), (32,)),
    "64-64-10": ((64,), (64,)),
    "784-10": ((784,), ()),
    "64-128-64-10": ((64,), (128, 64)),
    "784-32-10": ((784,), (32,)),
    "784-48-10": ((784,), (48,)),
    "784-64-10": ((784,), (64,)),
    "784-200-200-10": ((784,), (200, 200)),
}
COHORT, STEPS, BATCH = 64, 4, 10


def workload(name: str, cohort: int, batch: int = BATCH) -> Workload:
    """Twice as many clients as take part in a round."""
    shape, hidden = MODELS[name]
    data = generated(2 * cohort, STEPS * batch, shape, 10)
    return Workload(
        name, mlp(shape, 10, hidden=hidden), fljax.make_loss("classification"), data, cohort, STEPS, batch, 0.1
    )


def measure(work: Workload, widths: list[int], calls: int) -> dict[str, float]:
    """Clients at a time -> seconds of a client's step, the medians over turns."""
    programs = [compiled_round(work, Variant(), fljax.PerfFlags(width), 2) for width in widths]
    seconds = np.median(turns(programs, calls), axis=0) / (work.cohort * STEPS)
    return {str(width): float(value) for width, value in zip(widths, seconds, strict=True)}


def lines(result: dict[str, Any]) -> list[str]:
    """A line for each model: microseconds by clients at a time."""
    return [
        f"{row['model']:16} {row['parameters']:8,} parameters: "
        + "  ".join(f"{width}: {1e6 * value:.2f} us" for width, value in row["seconds"].items())
        + f"   chosen: {row['chosen']}"
        for row in result["rows"]
    ]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=sorted(MODELS), default=list(MODELS))
    parser.add_argument("--cohort", type=int, default=COHORT, help="clients a round, a power of two")
    parser.add_argument("--calls", type=int, default=9, help="timed calls, after one that warms up")
    add_flags(parser)
    args, load = parser.parse_args(), os.getloadavg()
    widths = [2**k for k in range(args.cohort.bit_length()) if 2**k <= args.cohort]
    rows = []
    for name in args.models:
        work = workload(name, args.cohort)
        seconds = measure(work, widths, args.calls)
        rows.append({"model": name, "parameters": work.model.num_params(), "seconds": seconds, "chosen": work.chunk})
    result = finished("widths", {"settings": {"cohort": args.cohort, "calls": args.calls}, "rows": rows}, load)
    deliver(result, "widths", args, lines(result))


if __name__ == "__main__":
    main()
