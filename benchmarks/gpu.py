"""Everything that is measured on a GPU, in one command and in under ten minutes.

    python -m benchmarks.gpu --out results/gpu
    python -m benchmarks.gpu --tiny --out results/gpu_tiny

Parts, in the order of their weight: the round (all workloads, and ``cohort_cnn`` by chunk), the 1,500 rounds of
``long_run``, the plain PyTorch loop and pfl-research on the same device, the sweep, what bounds the round, scaling,
compilation. Each is a process of its own, whose JSON lies in --out beside ``gpu.json``, which has them all and is
written anew after every part. What the time (--budget seconds) does not suffice for is listed under ``skipped``.
``--tiny`` shows that everything runs, on any device.

The simulators need an interpreter with a PyTorch for this GPU: ``FLJAX_BENCH_PYTORCH`` and ``FLJAX_BENCH_PFL`` name one
each; otherwise environments are built, where a package index can be reached. A part that fails is reported as such.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]


class Part(NamedTuple):
    """One measurement. limit_s: it is ended after so many seconds. tiny: flags instead of these in a tiny run."""

    name: str
    module: str
    flags: str
    limit_s: float
    tiny: str


SMALL = "--clients 4 --cohort 2 --calls 1 --peak-size 128"
PARTS = (
    Part(
        "round_cohort_cnn", "round", "--workload cohort_cnn --rounds-per-call 10", 60, f"--workload cohort_cnn {SMALL}"
    ),
    Part("round_tiny_mlp", "round", "--workload tiny_mlp --rounds-per-call 100", 60, f"--workload tiny_mlp {SMALL}"),
    Part("w1", "long_run", "", 120, "--rounds 2 --rounds-per-call 1 --clients 4 --cohort 2 --test 20 --every 1"),
    Part("vs_cohort_cnn", "vs", "--workload cohort_cnn --peers pytorch pfl --turns 2", 150, ""),
    Part("trials_tiny_mlp", "trials", "", 60, "--trials 2 --rounds 1 --calls 1 --clients 8 --cohort 4"),
    Part("profile_cohort_cnn", "profile", "", 60, f"--workload tiny_mlp {SMALL} --megabytes 8"),
    Part("round_private", "round", "--workload cohort_cnn --privacy central --rounds-per-call 10", 60, ""),
    Part("round_emnist_natural", "round", "--workload emnist_natural --rounds-per-call 10", 60, ""),
    Part("round_resnet18", "round", "--workload resnet18_cifar --cohort 20 --rounds-per-call 2", 90, ""),
    Part("round_long_tailed", "round", "--workload long_tailed_cnn --rounds-per-call 5", 60, ""),
    Part("round_chunk_1", "round", "--workload cohort_cnn --chunk 1 --rounds-per-call 2", 60, ""),
    Part("round_chunk_10", "round", "--workload cohort_cnn --chunk 10 --rounds-per-call 5", 60, ""),
    Part("scaling", "scaling", "--axes cohort parameters clients", 90, ""),
    Part("trials_w3", "trials", "--grid w3 --rounds 20 --trials 100", 60, ""),
    Part("convolutions", "convolutions", "--calls 5", 90, "--tiny --calls 1 --steps 1"),
    Part("profile_tiny_mlp", "profile", "--workload tiny_mlp --rounds 20", 45, ""),
    Part("compile", "compile_time", "--starts 1", 90, ""),
)


def measured(part: Part, flags: str, limit_s: float) -> dict[str, Any]:
    """The JSON of one part, or ``error`` with its last line."""
    command = [sys.executable, "-m", f"benchmarks.{part.module}", *flags.split(), "--json"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    begin, pipe = time.perf_counter(), subprocess.PIPE
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=pipe, stderr=pipe, text=True)
    try:
        output, errors = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        process.terminate()  # not killed: it ends what it has started itself
        process.communicate()
        return {"error": f"not finished after {limit_s:.0f} s", "took_s": limit_s}
    took = time.perf_counter() - begin
    if process.returncode:
        lines = [line for line in errors.splitlines() if line.strip()] or ["no message"]
        return {"error": lines[-1][:500], "took_s": took}
    return {**json.loads(output.splitlines()[-1]), "took_s": took}


def main() -> None:
    """Runs the parts and writes their JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the JSON files")
    parser.add_argument("--budget", type=float, default=570, help="seconds for all parts")
    parser.add_argument("--parts", nargs="+", choices=[part.name for part in PARTS], help="only these")
    parser.add_argument("--tiny", action="store_true", help="small numbers, on whatever device there is")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda", help="of the other simulators")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    begin, result = time.perf_counter(), {"benchmark": "gpu", "tiny": args.tiny, "parts": {}, "skipped": []}
    chosen = [p for p in PARTS if (p.name in args.parts if args.parts else p.tiny or not args.tiny)]
    for part in chosen:
        left = args.budget - (time.perf_counter() - begin)
        if left < 10:
            result["skipped"].append(part.name)
            continue
        flags = part.tiny if args.tiny else part.flags + (f" --device {args.device}" if part.module == "vs" else "")
        found = measured(part, flags, min(part.limit_s, left))
        result["parts"][part.name] = found
        print(f"{part.name:22s} {found['took_s']:6.1f} s  {found.get('error', 'measured')}", flush=True)
        if "error" not in found:
            (args.out / f"{part.name}.json").write_text(json.dumps(found, indent=1) + "\n")
        result["took_s"] = time.perf_counter() - begin
        (args.out / "gpu.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"{result['took_s']:.0f} s in all; skipped: {', '.join(result['skipped']) or 'nothing'}")
    sys.exit(any("error" in found for found in result["parts"].values()))


if __name__ == "__main__":
    main()
