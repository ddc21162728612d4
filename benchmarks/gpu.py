"""Everything that is measured on a GPU, in one command and in under ten minutes.

    python -m benchmarks.gpu --prepare
    python -m benchmarks.gpu --out results/gpu
    python -m benchmarks.gpu --tiny --out results/gpu_tiny

``PARTS`` lie in the order of their weight, each a process of its own with a limit of seconds. The limits of ``FIRST``
together are less than the time (--budget seconds), so that those always run; the others follow while time is left, each
where at least half of its limit is. A part that reaches its limit is ended: what it has told by then (rounds so far,
turns so far) is kept and marked ``unfinished``. Each part's JSON lies in --out beside ``gpu.json``, which has them all
and is written anew after every part. At the end stands what is missing, with the command that measures it alone.
``--tiny`` shows that everything runs, on any device.

The other simulators need an interpreter with a PyTorch for this GPU. ``--prepare`` builds one for each, outside of the
budget, and says what failed; it needs a package index, or a folder of wheels (see vs/environments.py). An interpreter
that is there is named by ``FLJAX_BENCH_PYTORCH``, and by ``FLJAX_BENCH_PFL`` if it has pfl-research. A simulator
without either is reported absent, and costs nothing; the loop over clients in plain JAX runs in any case.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.vs import environments

ROOT = Path(__file__).parents[1]
PEERS = ("pytorch", "pfl", "jax")


class Part(NamedTuple):
    """One measurement: a module and its flags. limit_s: it is ended after so many seconds."""

    name: str
    module: str
    flags: str
    limit_s: float


FIRST = (
    Part("round_cohort_cnn", "round", "--workload cohort_cnn --rounds-per-call 10", 60),
    Part("round_tiny_mlp", "round", "--workload tiny_mlp --rounds-per-call 100", 45),
    Part("vs_cohort_cnn", "vs", f"--workload cohort_cnn --peers {' '.join(PEERS)} --turns 2 --rounds 10", 160),
    Part("trials_tiny_mlp", "trials", "--trials 32", 60),
    Part("profile_cohort_cnn", "profile", "--workload cohort_cnn", 50),
    Part("scaling", "scaling", "--axes cohort parameters", 75),
    Part("w1", "long_run", "--rounds 1500", 100),
)
PARTS = (
    *FIRST,
    Part("round_bfloat16", "round", "--workload cohort_cnn --precision bfloat16 --rounds-per-call 10", 60),
    Part("round_chunk_all", "round", "--workload cohort_cnn --chunk 0 --rounds-per-call 10", 45),
    Part("round_chunk_10", "round", "--workload cohort_cnn --chunk 10 --rounds-per-call 5", 45),
    Part("round_chunk_1", "round", "--workload cohort_cnn --chunk 1 --rounds-per-call 2", 60),
    Part("round_private", "round", "--workload cohort_cnn --privacy central --rounds-per-call 10", 60),
    Part("profile_tiny_mlp", "profile", "--workload tiny_mlp --rounds 20", 45),
    Part("vs_tiny_mlp", "vs", f"--workload tiny_mlp --peers {' '.join(PEERS)} --turns 2", 150),
    Part("round_emnist_natural", "round", "--workload emnist_natural --rounds-per-call 10", 60),
    Part("round_long_tailed", "round", "--workload long_tailed_cnn --rounds-per-call 5", 60),
    Part("round_resnet18", "round", "--workload resnet18_cifar --cohort 20 --rounds-per-call 2", 90),
    Part("scaling_clients", "scaling", "--axes clients", 90),
    Part("trials_w3", "trials", "--grid w3 --rounds 20 --trials 100", 60),
    Part("convolutions", "convolutions", "--calls 5", 90),
    Part("compile", "compile_time", "--starts 1", 90),
)
SMALL = "--clients 4 --cohort 2 --calls 1"
TINY = {
    "round": f"{SMALL} --rounds-per-call 1 --peak-size 128",
    "vs": "--workload tiny_mlp --clients 5 --cohort 3 --rounds 1 --turns 1 --peers jax",
    "trials": f"{SMALL} --trials 30 --rounds 1",
    "profile": f"{SMALL} --rounds 1 --peak-size 128 --megabytes 8",
    "scaling": "--tiny --calls 1",
    "long_run": "--clients 4 --cohort 2 --rounds 2 --rounds-per-call 1 --test 20 --every 1",
    "convolutions": "--tiny --calls 1 --steps 1",
    "compile_time": "--workload tiny_mlp --clients 4",
}
"""Module -> flags that come after a part's own in a tiny run, and win."""


def command(part: Part, tiny: bool, device: str) -> list[str]:
    """What measures a part, after the interpreter. device: of the other simulators, unless it is a tiny run."""
    words = ["-m", f"benchmarks.{part.module}", *part.flags.split()]
    if tiny:
        words += TINY[part.module].split()
    elif part.module == "vs":
        words += ["--device", device]
    return [*words, *(["--no-build"] if part.module == "vs" else []), "--tell", "--json"]


def measured(words: list[str], limit_s: float) -> dict[str, Any]:
    """The JSON of one part. Where it is ended, what it had told, with ``unfinished``; where it fails, ``error``."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    begin, pipe = time.perf_counter(), subprocess.PIPE
    process = subprocess.Popen([sys.executable, *words], cwd=ROOT, env=env, stdout=pipe, stderr=pipe, text=True)
    ended = False
    try:
        output, errors = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        ended = True
        process.terminate()  # not killed: it ends what it has started itself
        try:
            output, errors = process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            output, errors = process.communicate()
    found = told(output) | {"took_s": time.perf_counter() - begin}
    if ended and len(found) > 1:
        return found | {"unfinished": f"ended after {limit_s:.0f} s"}
    if ended:
        return found | {"error": f"told nothing in {limit_s:.0f} s"}
    if process.returncode:
        lines = [line for line in errors.splitlines() if line.strip()] or ["no message"]
        return found | {"error": lines[-1][:500]}
    return found


def told(output: str) -> dict[str, Any]:
    """The last whole line of JSON, or nothing."""
    for line in reversed([line for line in output.splitlines() if line.startswith("{")]):
        try:
            return json.loads(line)
        except json.JSONDecodeError:  # cut short
            continue
    return {}


def notes(found: dict[str, Any]) -> list[str]:
    """What is to be said at once of a part: what bounds a round, and which simulators are missing."""
    bound = [found["verdict"]["line"]] if "verdict" in found else []
    return bound + [f"{peer}: {row['error']}" for peer, row in found.get("peers", {}).items() if "error" in row]


def missing(parts: list[Part], result: dict[str, Any], tiny: bool, device: str) -> list[dict[str, str]]:
    """The parts that are not measured whole: name, why, and the command that measures it alone."""
    rows = []
    for part in parts:
        found = result["parts"].get(part.name, {"error": "no time was left"})
        why = found.get("error") or found.get("unfinished")
        if why:
            rows.append({"part": part.name, "why": why, "command": "python " + shlex.join(command(part, tiny, device))})
    return rows


def main() -> None:
    """Prepares, or runs the parts and writes their JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepare", action="store_true", help="build the other simulators' environments, no more")
    parser.add_argument("--out", type=Path, help="folder for the JSON files")
    parser.add_argument("--budget", type=float, default=570, help="seconds for all parts")
    parser.add_argument("--parts", nargs="+", choices=[part.name for part in PARTS], help="only these")
    parser.add_argument("--tiny", action="store_true", help="small numbers, on whatever device there is")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda", help="of the other simulators")
    args = parser.parse_args()
    if args.prepare:
        sys.exit(not environments.prepare(PEERS, args.device))
    if args.out is None:
        parser.error("Expected --out FOLDER for the JSON files, or --prepare.")
    args.out.mkdir(parents=True, exist_ok=True)
    chosen = [part for part in PARTS if not args.parts or part.name in args.parts]
    begin, result = time.perf_counter(), {"benchmark": "gpu", "tiny": args.tiny, "parts": {}}
    for part in chosen:
        left = args.budget - (time.perf_counter() - begin)
        if left >= part.limit_s / 2:
            found = measured(command(part, args.tiny, args.device), min(part.limit_s, left))
            result["parts"][part.name] = found
            state = found.get("error") or found.get("unfinished") or "measured"
            print(f"{part.name:22s} {found['took_s']:6.1f} s  {state}", flush=True)
            print("".join(f"    {line}\n" for line in notes(found)), end="", flush=True)
            (args.out / f"{part.name}.json").write_text(json.dumps(found, indent=1) + "\n")
        result |= {"took_s": time.perf_counter() - begin, "missing": missing(chosen, result, args.tiny, args.device)}
        (args.out / "gpu.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"{result['took_s']:.0f} s in all; missing: {len(result['missing']) or 'nothing'}")
    for row in result["missing"]:
        print(f"  {row['part']}: {row['why']}\n    {row['command']}")
    sys.exit(any("error" in found for found in result["parts"].values()))


if __name__ == "__main__":
    main()
