"""Rounds of small models with the weight gradients of their dense layers as products, and as sums of outer products.

    python -m benchmarks.dense --out benchmarks/results

Clients of the models of ``benchmarks.widths`` take four steps of SGD, by examples of a batch and clients at a time;
both ways take turns. ``relative`` is the round by outer products over that by products; ``chosen`` is what
``dense_product`` does (``fljax.models.product``).
"""

from __future__ import annotations

import argparse
import os
from typing import Any
from unittest.mock import patch

import numpy as np

import fljax
from benchmarks.programs import Measured, compiled_round, turns
from benchmarks.report import add_flags, deliver, finished
from benchmarks.widths import STEPS, workload
from benchmarks.workloads import Variant, Workload
from fljax.models import product

MODELS = ("64-64-10", "784-10", "784-32-10", "784-200-200-10")
ROWS, TOGETHER = (10, 20, 32, 64), (1, 8, 32)


def compiled(work: Workload, together: int, most: int) -> Measured:
    """A round with so many clients at a time, whose layers use outer products up to ``most`` examples."""
    with patch.object(product, "MOST_ROWS", most):
        return compiled_round(work, Variant(), fljax.PerfFlags(together), 2)


def measure(name: str, rows: int, together: int, calls: int) -> dict[str, float]:
    """Seconds of a client's step by products, and the round by outer products relative to that one in turn."""
    work = workload(name, max(together, 4), rows)
    by_products, by_sums = turns([compiled(work, together, most) for most in (0, rows)], calls).T
    return {
        "product_s": float(np.median(by_products)) / work.cohort / STEPS,
        "relative": float(np.median(by_sums / by_products)),
    }


def lines(result: dict[str, Any]) -> list[str]:
    """A line for each model and batch size: microseconds by products, and the other way relative to it."""
    return [
        f"{row['model']:16} batches of {row['examples']}: "
        + "  ".join(f"{n}: {1e6 * s['product_s']:.2f} us {s['relative']:.2f}" for n, s in row["clients"].items())
        + f"   chosen: {row['chosen']}"
        for row in result["rows"]
    ]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rows", nargs="+", type=int, default=list(ROWS), help="examples of a batch")
    parser.add_argument("--together", nargs="+", type=int, default=list(TOGETHER), help="clients at a time")
    parser.add_argument("--calls", type=int, default=15, help="timed calls, after one that warms up")
    add_flags(parser)
    args, load = parser.parse_args(), os.getloadavg()
    rows = [
        {
            "model": name,
            "examples": rows,
            "clients": {str(n): measure(name, rows, n, args.calls) for n in args.together},
            "chosen": "outer products" if product.sums(rows) else "product",
        }
        for name in args.models
        for rows in args.rows
    ]
    result = finished("dense", {"settings": {"calls": args.calls, "steps": STEPS}, "rows": rows}, load)
    deliver(result, "dense", args, lines(result))


if __name__ == "__main__":
    main()
