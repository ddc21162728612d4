"""Time of one round, next to the same SGD steps run centrally by the same model.

    python -m benchmarks.round --workload cohort_cnn
    python -m benchmarks.round --workload cohort_cnn --privacy central --out benchmarks/results
    python -m benchmarks.round --workload cohort_cnn --keep 0.25 --dropout-exec compact --json

Compile and steady time are reported apart. The steady time is the median over calls of --rounds-per-call rounds, each
waited for and each followed by the central program, and by the plain round (dense, not private) where the round is
neither, so that all meet the same machine; the first turn only warms up.
It needs jax, flax, optax and numpy.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fljax
from benchmarks.workloads import PRIVACY, WORKLOADS, Variant, Workload, central, make_round
from fljax.core.provenance import provenance
from fljax.models import model_flops
from fljax.server.execute import auto_chunk
from fljax.sim.mesh import client_mesh


def timed(function: Any, *args: Any) -> tuple[float, Any]:
    """Seconds until the result is there, and the result."""
    start = time.perf_counter()
    result = jax.block_until_ready(function(*args))
    return time.perf_counter() - start, result


class Measured(NamedTuple):
    """A compiled program, its compile seconds, and a call that runs it once and returns the seconds."""

    program: Any
    compile_s: float
    call: Callable[[], float]


def compiled_round(work: Workload, variant: Variant, args: argparse.Namespace) -> Measured:
    """The federated round; every call continues where the last one stopped."""
    perf = fljax.PerfFlags(args.chunk, client_mesh(args.devices))
    round_, hparams = make_round(work, variant, perf)
    key = jax.random.key(0)
    held = {"state": round_.init(key, work.model.init(key), hparams), "done": 0}

    def rounds(t0, key, state, data, hparams):
        def body(state, t):
            return round_.step(t, key, state, data, hparams)[0], None

        return jax.lax.scan(body, state, t0 + jnp.arange(args.rounds_per_call))[0]

    start = time.perf_counter()
    program = jax.jit(rounds, donate_argnums=2).lower(jnp.int32(0), key, held["state"], work.data, hparams).compile()
    compile_s = time.perf_counter() - start

    def call() -> float:
        spent, held["state"] = timed(program, jnp.int32(held["done"]), key, held["state"], work.data, hparams)
        held["done"] += args.rounds_per_call
        return spent / args.rounds_per_call

    return Measured(program, compile_s, call)


def compiled_central(work: Workload, variant: Variant) -> Measured:
    """The same number of SGD steps as a round, without federation, of the same (perhaps physically small) model."""
    steps = work.cohort * work.steps
    rows = np.arange(steps * work.batch).reshape(steps, work.batch) % work.data.x.shape[0]
    x, y = work.data.x[rows], work.data.y[rows]
    params = work.model.init(jax.random.key(0))
    if variant.execution == "compact" and variant.keep is not None and work.model.groups is not None:
        counts = work.model.groups.counts(variant.keep)
        params = work.model.groups.extract(params, {group: np.arange(n) for group, n in counts.items()})
    start = time.perf_counter()
    program = jax.jit(central(work)).lower(params, x, y).compile()
    return Measured(program, time.perf_counter() - start, lambda: timed(program, params, x, y)[0])


def measure(work: Workload, variant: Variant, args: argparse.Namespace) -> dict[str, Any]:
    """All programs in turn, so that whatever else the machine does hits all; the first turn warms up."""
    programs = [compiled_round(work, variant, args), compiled_central(work, variant)]
    if variant != Variant():
        programs.append(compiled_round(work, Variant(), args))
    turns = np.array([[p.call() for p in programs] for _ in range(args.calls + 1)])[1:]
    seconds = np.median(turns, axis=0)
    result = {
        "round": {
            "compile_s": programs[0].compile_s,
            "steady_s_per_round": float(seconds[0]),
            "fastest_s_per_round": float(turns[:, 0].min()),
            "examples_per_s": float(work.examples_per_round / seconds[0]),
            "temporary_bytes": programs[0].program.memory_analysis().temp_size_in_bytes,
        },
        "central": {
            "compile_s": programs[1].compile_s,
            "steady_s": float(seconds[1]),
            "fastest_s": float(turns[:, 1].min()),
        },
        "round_over_central": float(np.median(turns[:, 0] / turns[:, 1])),
    }
    if variant != Variant():
        result["plain"] = {"steady_s_per_round": float(seconds[2]), "fastest_s_per_round": float(turns[:, 2].min())}
        result["round_over_plain"] = float(np.median(turns[:, 0] / turns[:, 2]))
    if variant.keep is not None:
        result["flops_over_plain"] = flop_share(work, variant)
    return result


def flop_share(work: Workload, variant: Variant) -> float:
    """FLOPs of the clients' forward passes, relative to dense ones; the tiers are equally large."""
    assert variant.keep is not None and work.model.groups is not None
    shape = work.data.x.shape[1:]
    counts = [work.model.groups.counts(float(np.float32(variant.keep) * np.float32(r))) for r in variant.tiers]
    if variant.execution == "masked":
        return 1.0
    return float(np.mean([model_flops(work.model, shape, c) for c in counts]) / model_flops(work.model, shape))


def label(variant: Variant) -> str:
    """What tells the file of a variant from others."""
    privacy = "" if variant.privacy == "none" else f"_{variant.privacy}"
    tiers = "_tiers" if len(variant.tiers) > 1 else ""
    return privacy + ("" if variant.keep is None else f"_keep{variant.keep:g}_{variant.execution}{tiers}")


def main() -> None:
    """Parses the flags, measures, prints, and writes a JSON file where --out is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=sorted(WORKLOADS), default="cohort_cnn")
    parser.add_argument("--cohort", type=int, help="clients a round (default: the workload's)")
    parser.add_argument("--chunk", type=int, help="clients per vmapped batch; 0 all, 1 one by one (default: chosen)")
    parser.add_argument("--devices", type=int, default=1, help="devices to spread the clients over")
    parser.add_argument("--privacy", choices=PRIVACY, default="none", help="who clips and noises")
    parser.add_argument("--keep", type=float, help="keep rate of dropout of neurons (default: no dropout)")
    parser.add_argument("--dropout-exec", choices=("masked", "compact"), default="masked")
    parser.add_argument(
        "--tiers", type=float, nargs="+", default=[1.0], help="keep rates of classes, relative to --keep"
    )
    parser.add_argument("--rounds-per-call", type=int, default=1)
    parser.add_argument("--calls", type=int, default=5, help="timed calls, after one that warms up")
    parser.add_argument("--json", action="store_true", help="print JSON only")
    parser.add_argument("--out", type=Path, help="folder for a JSON file")
    args = parser.parse_args()
    work = WORKLOADS[args.workload](**({"cohort": args.cohort} if args.cohort else {}))
    chunk = auto_chunk(work.model.num_params(), work.cohort) if args.chunk is None else args.chunk
    variant = Variant(args.privacy, args.keep, args.dropout_exec, tuple(args.tiers))
    result = {
        "workload": args.workload,
        "settings": {"cohort": work.cohort, "chunk": chunk, "devices": args.devices, **variant._asdict()},
        **measure(work, variant, args),
        "provenance": provenance(),
    }
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        name = f"{args.workload}{label(variant)}_{jax.default_backend()}.json"
        (args.out / name).write_text(json.dumps(result, indent=1) + "\n")
    if args.json:
        print(json.dumps(result))
        return
    r, c, ratio = result["round"], result["central"], result["round_over_central"]
    print(f"{args.workload}: {work.cohort} clients x {work.steps} steps of {work.batch}, chunk {chunk}")
    print(f"  round    compile {r['compile_s']:.1f} s, steady {r['steady_s_per_round']:.4f} s")
    print(f"           {r['examples_per_s']:,.0f} examples/s")
    if "round_over_plain" in result:
        print(f"  the plain round takes {result['plain']['steady_s_per_round']:.4f} s")
        print(f"  ratio {result['round_over_plain']:.3f} (FLOPs {result.get('flops_over_plain', 1.0):.3f})")
    print(f"  central  compile {c['compile_s']:.1f} s, steady {c['steady_s']:.4f} s; a round costs {ratio:.2f}x")


if __name__ == "__main__":
    main()
