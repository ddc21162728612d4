"""fljax next to other simulators on the same machine.

    python -m benchmarks.vs --workload cohort_cnn
    python -m benchmarks.vs --workload tiny_mlp --peers pytorch pfl --turns 3 --json
    python -m benchmarks.vs --workload cohort_cnn --out benchmarks/results
    python -m benchmarks.vs --prepare --peers pytorch pfl --device cuda

Builds the environments that are missing (see environments.py; not with --no-build), tries the settings of each
simulator, checks that it does the same arithmetic as fljax, and then lets them alternate, each turn in a fresh process
with its best setting. Data loading, start-up and compilation are not counted. ``--prepare`` only builds, and says of
each simulator whether it runs: what needs a network can so come before what needs a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from typing import Any

import jax
import numpy as np

from benchmarks.report import add_flags, deliver, finished, so_far
from benchmarks.vs import environments
from benchmarks.vs import problem as problems
from benchmarks.vs.compare import Length, compare
from benchmarks.workloads import WORKLOADS
from fljax.core import tree

LENGTHS = {"cohort_cnn": Length(rounds=3, warmup=1, per_call=1), "tiny_mlp": Length(rounds=60, warmup=10, per_call=20)}
MODELS = {"cohort_cnn": "cnn", "tiny_mlp": "mlp"}


def make_problem(name: str, clients: int | None = None, cohort: int | None = None) -> problems.Problem:
    """A workload as a problem that every runner can read; smaller where clients and cohort are given."""
    sizes = {k: v for k, v in {"clients": clients, "cohort": cohort}.items() if v is not None}
    work = WORKLOADS[name](**sizes)
    shape = (work.data.population, work.data.max_size)
    x, y = np.asarray(work.data.x), np.asarray(work.data.y).astype(np.int64)
    params = {k: np.asarray(v) for k, v in tree.named_leaves(work.model.init(jax.random.key(0))).items()}
    x, y = x.reshape(*shape, *x.shape[1:]), y.reshape(shape)
    return problems.Problem(MODELS[name], x, y, params, work.cohort, work.batch, work.lr)


def table(result: dict) -> str:
    """One line per simulator, the fastest first."""
    peers = result["peers"]
    lines = [f"{'':10s} {'s/round':>9s} {'fastest':>9s} {'slowest':>9s} {'x fljax':>8s} {'differs by':>10s}  setting"]
    for name in sorted(peers, key=lambda p: peers[p].get("steady_s_per_round", float("inf"))):
        row = peers[name]
        if "error" in row:
            lines.append(f"{name:10s} {row['error']}")
            continue
        numbers = [row[f"{what}_s_per_round"] for what in ("steady", "fastest", "slowest")]
        text = " ".join(f"{value:9.4f}" for value in numbers)
        lines.append(
            f"{name:10s} {text} {row.get('over_fljax', float('nan')):8.2f} {row.get('difference', float('nan')):10.1e}"
            f"  {json.dumps(row['setting'])}"
        )
    return "\n".join(lines)


def main() -> None:
    """Parses the flags, compares, prints the table, and writes a JSON file where --out is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=sorted(LENGTHS), default="cohort_cnn")
    parser.add_argument("--peers", nargs="+", choices=environments.PEERS[1:], default=list(environments.PEERS[1:]))
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--clients", type=int, help="population (default: the workload's)")
    parser.add_argument("--cohort", type=int, help="clients a round (default: the workload's)")
    parser.add_argument("--rounds", type=int, help="timed rounds of one turn (default: 3, or 60 of tiny_mlp)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--prepare", action="store_true", help="build the environments, measure nothing")
    parser.add_argument("--no-build", action="store_true", help="report peers without an environment as absent")
    add_flags(parser)
    args = parser.parse_args()
    if args.prepare:
        sys.exit(not environments.prepare(args.peers, args.device))
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the runners need the GPU's memory
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that the runner's processes are ended too
    length = LENGTHS[args.workload]
    if args.rounds:
        length = Length(args.rounds, 1, min(length.per_call, args.rounds))
    load = os.getloadavg()
    problem = make_problem(args.workload, args.clients, args.cohort)
    numbers = {"clients": len(problem.x), "cohort": problem.cohort, "turns": args.turns, **length._asdict()}
    numbers |= {"device": args.device}
    told = {"workload": args.workload, "settings": numbers}

    def tell(peers: dict[str, Any], line: str) -> None:
        so_far(finished("vs", told | {"peers": peers}, load), args, line)

    peers = compare(problem, ["fljax", *args.peers], length, args.turns, args.device, not args.no_build, tell)
    result = told | {"peers": peers}
    deliver(finished("vs", result, load), f"vs_{args.workload}", args, [table(result)])
    if "error" in peers["fljax"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
