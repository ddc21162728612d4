"""Time of one round, next to the same SGD steps run centrally by the same model.

    python -m benchmarks.round --workload cohort_cnn
    python -m benchmarks.round --workload cohort_cnn --privacy central --out benchmarks/results
    python -m benchmarks.round --workload cohort_cnn --secure counter
    python -m benchmarks.round --workload cohort_cnn --precision bfloat16
    python -m benchmarks.round --workload cohort_cnn --keep 0.25 --dropout-exec compact --json
    python -m benchmarks.round --workload cohort_cnn --compare benchmarks/results/cohort_cnn_cpu.json

Compile and steady time are reported apart. The steady time is the median over calls of --rounds-per-call rounds, each
waited for and each followed by the central program and a large matrix product (the peak that the share refers to), both
in the round's precision; by the plain round (dense, not private, in float32) where the round is another; and by the
round of equal clients with as many examples where the workload's clients are long-tailed. So all meet the same machine;
the first turn only warms up.
It needs jax, flax, optax and numpy.
"""

from __future__ import annotations

import argparse
import os
from contextlib import nullcontext
from typing import Any, get_args

import numpy as np

import fljax
from benchmarks.programs import compiled_central, compiled_round, matmul_peak, peak_size, speed, spread, turns
from benchmarks.report import add_flags, deliver, finished
from benchmarks.workloads import PRIVACY, SECURE, WORKLOADS, Variant, Workload, equal_twin
from fljax.models import model_flops
from fljax.models.convolution import convolutions_by
from fljax.models.precision import Precision
from fljax.server.execute import padding_waste
from fljax.sim.mesh import client_mesh


def measure(work: Workload, variant: Variant, args: argparse.Namespace) -> dict[str, Any]:
    """All programs in turn, so that whatever else the machine does hits all; the first turn warms up."""
    perf, length, size = fljax.PerfFlags(args.chunk, client_mesh(args.devices)), args.rounds_per_call, args.peak_size
    programs = {
        "round": compiled_round(work, variant, perf, length),
        "central": compiled_central(work, variant, length),
        "peak": matmul_peak(size, variant.precision),
    }
    if variant != Variant():
        programs["plain"] = compiled_round(work, Variant(), perf, length)
    if work.name.startswith("long_tailed"):
        programs["equal"] = compiled_round(equal_twin(work), variant, perf, length)
    seconds = dict(zip(programs, turns(list(programs.values()), args.calls).T, strict=True))
    share = 1.0 if variant.keep is None else flop_share(work, variant)
    result: dict[str, Any] = {
        "round": {
            "compile_s": programs["round"].compile_s,
            **speed(work, seconds["round"], seconds["peak"], size, share),
            "temporary_bytes": programs["round"].program.memory_analysis().temp_size_in_bytes,
        }
    }
    for name in programs.keys() - {"round", "peak"}:
        result[name] = {"compile_s": programs[name].compile_s, **spread(seconds[name])}
        result[f"round_over_{name}"] = float(np.median(seconds["round"] / seconds[name]))
    if variant.keep is not None:
        result["flops_over_plain"] = share
    if work.steps is None:
        chunk = work.chunk if args.chunk is None else args.chunk
        result["padding"] = {"share_of_batches": padding(work)}
        result["padding"]["steps_executed_over_needed"] = padding_waste(work.client_steps, work.cohort, chunk)
    return result


def flop_share(work: Workload, variant: Variant) -> float:
    """FLOPs of the clients' forward passes, relative to dense ones; the tiers are equally large."""
    assert variant.keep is not None and work.model.groups is not None
    shape = work.data.x.shape[1:]
    counts = [work.model.groups.counts(float(np.float32(variant.keep) * np.float32(r))) for r in variant.tiers]
    if variant.execution == "masked":
        return 1.0
    return float(np.mean([model_flops(work.model, shape, c) for c in counts]) / model_flops(work.model, shape))


def padding(work: Workload) -> float:
    """Share of the examples in all clients' batches that are padding: a client's last batch is rarely full."""
    sizes = work.data.sizes
    return float(1 - sizes.sum() / (np.ceil(sizes / work.batch) * work.batch).sum())


def label(variant: Variant) -> str:
    """What tells the file of a variant from others."""
    privacy = "" if variant.privacy == "none" else f"_{variant.privacy}"
    tiers = "_tiers" if len(variant.tiers) > 1 else ""
    privacy += "" if variant.secure == "none" else f"_secure_{variant.secure}"
    privacy += "" if variant.precision == "float32" else f"_{variant.precision}"
    return privacy + ("" if variant.keep is None else f"_keep{variant.keep:g}_{variant.execution}{tiers}")


def lines(result: dict[str, Any], work: Workload) -> list[str]:
    """The result in words."""
    r = result["round"]
    text = [
        f"{result['workload']}: {work.cohort} clients, {work.steps_per_round} steps of {work.batch} examples a round, "
        f"chunk {result['settings']['chunk']}, {result['precision']}",
        f"  round    compile {r['compile_s']:.1f} s, steady {r['steady_s_per_round']:.4f} s "
        f"({r['fastest_s_per_round']:.4f} to {r['slowest_s_per_round']:.4f})",
        f"           {r['examples_per_s']:,.0f} examples/s, {r['flop_per_s'] / 1e9:.4g} GFLOP/s, "
        f"{100 * r['share_of_matmul_peak']:.3g} % of a matrix product's {r['matmul_peak_flop_per_s'] / 1e9:.4g}",
    ]
    for name in ("central", "plain", "equal"):
        if name in result:
            took = f"compile {result[name]['compile_s']:.1f} s, steady {result[name]['steady_s_per_round']:.4f} s"
            text.append(f"  {name:8s} {took}; a round costs {result[f'round_over_{name}']:.2f}x")
    if "flops_over_plain" in result:
        text.append(f"  {result['flops_over_plain']:.3f} of the dense round's FLOPs")
    if "padding" in result:
        share, steps = result["padding"].values()
        text.append(f"  {100 * share:.1f} % of the examples in batches are padding; {steps:.2f} times the steps needed")
    return text


def parsed() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=sorted(WORKLOADS), default="cohort_cnn")
    parser.add_argument("--clients", type=int, help="population (default: the workload's)")
    parser.add_argument("--cohort", type=int, help="clients a round (default: the workload's)")
    parser.add_argument("--chunk", type=int, help="clients per vmapped batch; 0 all, 1 one by one (default: chosen)")
    parser.add_argument("--devices", type=int, default=1, help="devices to spread the clients over")
    parser.add_argument("--privacy", choices=PRIVACY, default="none", help="who clips and noises")
    parser.add_argument(
        "--secure", choices=SECURE, default="none", help="words, and what makes the pads of a secure sum"
    )
    parser.add_argument("--precision", choices=get_args(Precision), default="float32", help="client.precision")
    parser.add_argument("--keep", type=float, help="keep rate of dropout of neurons (default: no dropout)")
    parser.add_argument("--dropout-exec", choices=("masked", "compact"), default="masked")
    parser.add_argument(
        "--tiers", type=float, nargs="+", default=[1.0], help="keep rates of classes, relative to --keep"
    )
    parser.add_argument("--tile", type=int, nargs=2, metavar=("H", "W"), help="of all convolutions; 1 1 is patches")
    parser.add_argument("--rounds-per-call", type=int, default=1)
    parser.add_argument("--calls", type=int, default=5, help="timed calls, after one that warms up")
    parser.add_argument("--peak-size", type=int, default=peak_size(), help="rows of the product that tells the peak")
    add_flags(parser)
    return parser.parse_args()


def main() -> None:
    """Parses the flags, measures, prints, and writes a JSON file where --out is given."""
    args, load = parsed(), os.getloadavg()
    sizes = {name: value for name in ("clients", "cohort") if (value := getattr(args, name)) is not None}
    work = WORKLOADS[args.workload](**sizes)
    chunk = work.chunk if args.chunk is None else args.chunk
    variant = Variant(args.privacy, args.keep, args.dropout_exec, tuple(args.tiers), args.secure, args.precision)
    numbers = {"clients": work.data.population, "cohort": work.cohort, "chunk": chunk, "devices": args.devices}
    numbers |= {"rounds_per_call": args.rounds_per_call, **variant._asdict(), "tiers": args.tiers}
    del numbers["precision"]  # stands beside the settings, which older files have without it
    if args.secure == "none":  # as in files from before there were words
        del numbers["secure"]
    name = f"{args.workload}{label(variant)}" + ("" if args.chunk is None else f"_chunk{args.chunk}")
    if args.tile:
        numbers, name = numbers | {"tile": args.tile}, name + "_tile{}x{}".format(*args.tile)
    with convolutions_by(tuple(args.tile)) if args.tile else nullcontext():
        measured = measure(work, variant, args)
    told = {"workload": args.workload, "precision": args.precision, "settings": numbers}
    result = finished("round", told | measured, load)
    deliver(result, name, args, lines(result, work))


if __name__ == "__main__":
    main()
