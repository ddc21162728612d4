"""What a trial of a sweep costs: many trials in one compiled program, next to one trial alone.

    python -m benchmarks.trials
    python -m benchmarks.trials --grid w3 --rounds 5 --json

``--grid trials`` (the default) vmaps --trials trials of a workload that differ in clip, noise and seed. ``--grid w3``
is a privacy-utility grid of 300 cells: noise for epsilon 0.5, 1, 2, 4, 8 x clip 0.1, 0.2, 0.4, 0.8 x keep rate 1, 0.75,
0.5 x 5 seeds, in batches of --trials trials by one program. Noise is given by multiplier, so that no calibration is
timed. A single run and the batches take turns; ``per_trial_over_single`` is below 1 where a sweep is cheaper than its
trials one by one. At last the whole grid runs once: ``all_trials_s``.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fljax
from benchmarks.programs import Measured, scan_rounds, spread, timed, turns
from benchmarks.report import add_flags, deliver, finished
from benchmarks.workloads import WORKLOADS, Variant, Workload, make_round
from fljax.core import tree
from fljax.core.types import Hparams

NOISE = (2.9, 1.6, 0.93, 0.6, 0.42)  # about epsilon 0.5 to 8 of a few hundred rounds at a sampling rate of 5 %
CLIPS, KEEPS, SEEDS = (0.1, 0.2, 0.4, 0.8), (1.0, 0.75, 0.5), 5


def cells(grid: str, trials: int) -> list[dict[str, float]]:
    """Clip, noise, keep rate and seed of every trial."""
    if grid == "w3":
        points = itertools.product(NOISE, CLIPS, KEEPS, range(SEEDS))
        return [{"noise": z, "clip": c, "keep": k, "seed": s} for z, c, k, s in points]
    return [{"noise": 0.5 + 0.05 * i, "clip": CLIPS[i % 4], "keep": 1.0, "seed": i} for i in range(trials)]


def compiled(work: Workload, batches: list[list[dict[str, float]]], rounds: int, dropout: bool) -> Measured:
    """One program for batches of trials: each call trains the next batch, the seconds are those of one round of it.

    A batch of a single trial has no trial axis.
    """
    round_, base = make_round(work, Variant("central", 1.0 if dropout else None), fljax.PerfFlags())
    step, init = scan_rounds(round_.step, rounds), lambda k, h: round_.init(k, work.model.init(k), h)
    if len(batches[0]) > 1:
        step, init = jax.vmap(step, in_axes=(None, 0, 0, None, 0)), jax.vmap(init)
    inputs = [prepared(base, batch) for batch in batches]
    init, first = jax.jit(init), jnp.int32(0)
    state = init(*inputs[0])
    start = time.perf_counter()
    program = jax.jit(step, donate_argnums=2).lower(first, inputs[0][0], state, work.data, inputs[0][1]).compile()
    compile_s, turn = time.perf_counter() - start, itertools.cycle(inputs)

    def call() -> float:
        keys, hparams = next(turn)
        state = jax.block_until_ready(init(keys, hparams))
        return timed(program, first, keys, state, work.data, hparams)[0] / rounds

    return Measured(program, compile_s, call)


def prepared(base: Hparams, batch: list[dict[str, float]]) -> tuple[Any, Hparams]:
    """Keys and numbers of a batch of trials, with a trial axis where there are several."""
    keys = [jax.random.key(int(cell["seed"])) for cell in batch]
    numbers = [numbered(base, cell) for cell in batch]
    return (keys[0], numbers[0]) if len(batch) == 1 else (jnp.stack(keys), tree.stack(numbers))


def numbered(base: Hparams, cell: dict[str, float]) -> Hparams:
    """The traced numbers of one trial."""
    plain = {name: value for name, value in vars(base).items() if name != "extra"}
    plain |= {"clip": cell["clip"], "noise_multiplier": cell["noise"], "keep_rate": cell["keep"]}
    return Hparams(**plain).arrays()


def measure(work: Workload, args: argparse.Namespace) -> dict[str, Any]:
    """The single run and all batches of the sweep, in turn."""
    points, dropout = cells(args.grid, args.trials), args.grid == "w3"
    batches = [points[i : i + args.trials] for i in range(0, len(points), args.trials)]
    batches[-1] = (batches[-1] * args.trials)[: args.trials]  # filled up, as a sweep does
    single = compiled(work, [points[:1]], args.rounds, dropout)
    sweep = compiled(work, batches, args.rounds, dropout)
    seconds = turns([single, sweep], args.calls)
    per_trial = seconds[:, 1] / len(batches[0])
    begin = time.perf_counter()
    for _ in batches:
        sweep.call()
    whole = time.perf_counter() - begin
    return {
        "single": {"compile_s": single.compile_s, **spread(seconds[:, 0])},
        "sweep": {
            "compile_s": sweep.compile_s,
            "programs": 1,
            "trials": len(points),
            "trials_per_batch": len(batches[0]),
            **{f"per_trial_{name}": value for name, value in spread(per_trial).items()},
            "examples_per_s": float(work.examples_per_round / np.median(per_trial)),
            "all_trials_s": whole,
            "all_trials_and_compile_s": whole + sweep.compile_s,
        },
        "per_trial_over_single": float(np.median(per_trial / seconds[:, 0])),
    }


def main() -> None:
    """Parses the flags, measures, prints, and writes a JSON file where --out is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=sorted(WORKLOADS), default="tiny_mlp")
    parser.add_argument("--grid", choices=("trials", "w3"), default="trials")
    parser.add_argument("--trials", type=int, default=32, help="trials in one program")
    parser.add_argument("--clients", type=int, help="population (default: the workload's)")
    parser.add_argument("--cohort", type=int, help="clients a round (default: the workload's)")
    parser.add_argument("--rounds", type=int, default=10, help="rounds of a call")
    parser.add_argument("--calls", type=int, default=5, help="timed calls, after one that warms up")
    add_flags(parser)
    args, load = parser.parse_args(), os.getloadavg()
    sizes = {name: value for name in ("clients", "cohort") if (value := getattr(args, name)) is not None}
    work = WORKLOADS[args.workload](**sizes)
    numbers = {"grid": args.grid, "trials": args.trials, "rounds": args.rounds, **sizes}
    result = {"workload": args.workload, "settings": numbers, **measure(work, args)}
    s = result["sweep"]
    text = [
        f"{args.workload}: {s['trials']} trials, {s['trials_per_batch']} in one program, {args.rounds} rounds a call",
        f"  single run  compile {result['single']['compile_s']:.1f} s, "
        f"round {1e3 * result['single']['steady_s_per_round']:.3f} ms",
        f"  sweep       compile {s['compile_s']:.1f} s, round of one trial "
        f"{1e3 * s['per_trial_steady_s_per_round']:.3f} ms; {result['per_trial_over_single']:.2f}x a single run",
        f"  all trials  {s['all_trials_s']:.2f} s, with compilation {s['all_trials_and_compile_s']:.2f} s",
    ]
    name = f"trials_{args.workload}" + ("_w3" if args.grid == "w3" else "")
    deliver(finished("trials", result, load), name, args, text)


if __name__ == "__main__":
    main()
