"""Cold and warm compilation of a round, and what importing fljax costs on top of importing JAX.

    python -m benchmarks.compile_time
    python -m benchmarks.compile_time --workload tiny_mlp --starts 3 --json

Every start is a process of its own. A cold start has an empty compilation cache on disk, the warm one after it finds
there what the cold one has written. ``compile_s`` is tracing, lowering and compiling (or reading) together. fljax loads
its modules when they are first used; so the import is timed with those of a round, and with those of the command line.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import add_flags, deliver, finished
from benchmarks.workloads import WORKLOADS

ROOT = Path(__file__).parents[1]
IMPORTS = """
import json, time
a = time.perf_counter(); import jax
b = time.perf_counter(); import fljax; fljax.recipes; fljax.Training; fljax.FederatedData
c = time.perf_counter(); import fljax.cli.commands; fljax.run; import fljax.sweep.run
print(json.dumps([b - a, c - b, time.perf_counter() - b]))
"""


def compile_once(workload: str, clients: int | None) -> None:
    """Prints the compile seconds of a round, with the compilation cache of the command line; the body of a start."""
    from fljax.sim.engine import use_compilation_cache

    use_compilation_cache()
    import fljax
    from benchmarks.programs import compiled_round
    from benchmarks.workloads import Variant

    work = WORKLOADS[workload](**({"clients": clients, "cohort": min(clients, 50)} if clients else {}))
    begin = time.perf_counter()
    measured = compiled_round(work, Variant(), fljax.PerfFlags())
    whole = time.perf_counter() - begin
    first = measured.call()
    print(json.dumps({"compile_s": measured.compile_s, "init_and_compile_s": whole, "first_round_s": first}))


def start(code: str, cache: str | None = None) -> Any:
    """What a fresh Python process prints last, as JSON."""
    env = os.environ | {"PYTHONPATH": str(ROOT)} | ({"FLJAX_CACHE": cache} if cache else {})
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise RuntimeError(f"Expected a start to succeed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def summary(values: list[float]) -> dict[str, float]:
    """Median, fastest, slowest."""
    return {"median": float(np.median(values)), "fastest": min(values), "slowest": max(values)}


def main() -> None:
    """Parses the flags, measures, prints, and writes a JSON file where --out is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=sorted(WORKLOADS), default="cohort_cnn")
    parser.add_argument("--clients", type=int, help="population (default: the workload's)")
    parser.add_argument("--starts", type=int, default=3, help="of each kind")
    add_flags(parser)
    args, load = parser.parse_args(), os.getloadavg()
    imports = np.array([start(IMPORTS) for _ in range(args.starts)])
    code = f"from benchmarks.compile_time import compile_once; compile_once({args.workload!r}, {args.clients})"
    cold, warm = [], []
    for _ in range(args.starts):
        with tempfile.TemporaryDirectory() as cache:
            cold.append(start(code, cache))
            warm.append(start(code, cache))
    result: dict[str, Any] = {"workload": args.workload, "settings": {"starts": args.starts, "clients": args.clients}}
    for kind, rows in (("cold", cold), ("warm", warm)):
        values = {name: [row[name] for row in rows] for name in rows[0]}
        result[kind] = {"compile_s": float(np.median(values["compile_s"]))}
        result[kind] |= {name: summary(column) for name, column in values.items() if name != "compile_s"}
        result[kind]["compile"] = summary(values["compile_s"])
    columns = dict(zip(("jax", "parts_after_jax", "all_after_jax"), imports.T.tolist(), strict=True))
    result["import"] = {"import_s": float(np.median(columns["all_after_jax"]))}
    result["import"] |= {name: summary(column) for name, column in columns.items()}
    text = [
        f"{args.workload}, {args.starts} starts of each kind",
        *(
            f"  {kind:5s} compile {result[kind]['compile_s']:.2f} s ({result[kind]['compile']['fastest']:.2f} to "
            f"{result[kind]['compile']['slowest']:.2f}); with the initial state "
            f"{result[kind]['init_and_compile_s']['median']:.2f} s, first round "
            f"{result[kind]['first_round_s']['median']:.2f} s"
            for kind in ("cold", "warm")
        ),
        f"  import jax {result['import']['jax']['median']:.2f} s, then the parts of a round "
        f"{result['import']['parts_after_jax']['median']:.2f} s, or all of fljax {result['import']['import_s']:.2f} s",
    ]
    deliver(finished("compile_time", result, load), f"compile_{args.workload}", args, text)


if __name__ == "__main__":
    main()
