"""A whole training run, as the papers time it: 1,500 rounds of the CIFAR-10 benchmark of pfl-research.

    python -m benchmarks.long_run
    python -m benchmarks.long_run --rounds 20 --clients 100 --test 1000 --json

50 of 1,000 clients a round, each with 50 images 32x32x3, 5 steps of 10, a CNN with 1.6 M parameters and drop-out
layers; every ten rounds the loss on 10,000 test images. The images are generated: the run is timed, not its accuracy.
Reported: compile seconds, seconds of the run without them, both together, client steps per second, and the peak of
device memory; after every call of --rounds-per-call rounds also what is known by then.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fljax
from benchmarks.programs import spread
from benchmarks.report import add_flags, deliver, finished, so_far
from benchmarks.workloads import WORKLOADS, Variant, Workload, make_round


def run_of(work: Workload, step: Callable, rounds: int, every: int, test: tuple[jax.Array, jax.Array]) -> Callable:
    """(t0, key, state, data, hparams) -> (state, test loss [rounds], NaN in rounds without evaluation)."""

    def loss(params: Any) -> jax.Array:
        def batch(xy):
            return work.loss.per_example(work.model.apply(params, xy[0]), xy[1])

        return jnp.mean(jax.lax.map(batch, test))

    def run(t0, key, state, data, hparams):
        def body(state, t):
            state, _ = step(t, key, state, data, hparams)
            seen = jax.lax.cond((t + 1) % every == 0, loss, lambda _: jnp.float32(jnp.nan), state.params)
            return state, seen

        return jax.lax.scan(body, state, t0 + jnp.arange(rounds))

    return run


def test_images(work: Workload, count: int) -> tuple[jax.Array, jax.Array]:
    """Generated test images [batches, B, ...] and labels, at most 1,000 in a batch."""
    rng, batch = np.random.default_rng(1), min(count, 1000)
    x = rng.standard_normal((count // batch, batch, *work.data.x.shape[1:]), np.float32)
    return jnp.asarray(x), jnp.asarray(rng.integers(10, size=x.shape[:2]), jnp.int32)


def measure(work: Workload, args: argparse.Namespace, tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Compiles and runs everything once. tell: is given what is known by then after every call but the last."""
    round_, hparams = make_round(work, Variant(args.privacy), fljax.PerfFlags())
    run = run_of(work, round_.step, args.rounds_per_call, args.every, test_images(work, args.test))
    key = jax.random.key(0)
    state = jax.jit(lambda k: round_.init(k, work.model.init(k), hparams))(key)
    start = time.perf_counter()
    program = jax.jit(run, donate_argnums=2).lower(jnp.int32(0), key, state, work.data, hparams).compile()
    compile_s, calls, losses = time.perf_counter() - start, [], []
    for done in range(0, args.rounds, args.rounds_per_call):
        begin = time.perf_counter()
        state, seen = program(jnp.int32(done), key, state, work.data, hparams)
        losses.append(np.asarray(seen))
        calls.append(time.perf_counter() - begin)
        evaluations = int(np.isfinite(np.concatenate(losses)).sum())
        found = summary(work, compile_s, calls, args.rounds_per_call) | {"evaluations": evaluations}
        if found["rounds"] < args.rounds:
            tell(found)
    return found


def summary(work: Workload, compile_s: float, calls: list[float], rounds_per_call: int) -> dict[str, Any]:
    """What is known after these calls. calls: seconds of each."""
    total, rounds = sum(calls), len(calls) * rounds_per_call
    memory = jax.devices()[0].memory_stats() or {}
    return {
        "compile_s": compile_s,
        "rounds": rounds,
        "run_s": total,
        "run_and_compile_s": total + compile_s,
        **spread(np.array(calls) / rounds_per_call),
        "examples_per_s": work.examples_per_round * rounds / total,
        "client_steps_per_s": work.steps_per_round * rounds / total,
        "flop_per_s": work.flops_per_round * rounds / total,
        "peak_device_bytes": memory.get("peak_bytes_in_use"),
    }


def main() -> None:
    """Parses the flags, measures, prints, and writes a JSON file where --out is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=sorted(WORKLOADS), default="cifar_cnn")
    parser.add_argument("--clients", type=int, help="population (default: the workload's)")
    parser.add_argument("--cohort", type=int, help="clients a round (default: the workload's)")
    parser.add_argument("--rounds", type=int, default=1500)
    parser.add_argument("--rounds-per-call", type=int, default=100)
    parser.add_argument("--privacy", choices=("none", "central"), default="none")
    parser.add_argument("--every", type=int, default=10, help="rounds between evaluations")
    parser.add_argument("--test", type=int, default=10_000, help="test images")
    add_flags(parser)
    args, load = parser.parse_args(), os.getloadavg()
    args.rounds_per_call = min(args.rounds_per_call, args.rounds)
    sizes = {name: value for name in ("clients", "cohort") if (value := getattr(args, name)) is not None}
    work = WORKLOADS[args.workload](**sizes)
    names = ("rounds", "rounds_per_call", "privacy", "every", "test")
    told = {"workload": args.workload, "settings": {n: getattr(args, n) for n in names} | sizes}

    def tell(run: dict[str, Any]) -> None:
        line = f"{run['rounds']} of {args.rounds} rounds, {run['steady_s_per_round']:.4f} s a round"
        so_far(finished("long_run", told | {"run": run}, load), args, line)

    run = measure(work, args, tell)
    text = [
        f"{args.workload}: {run['rounds']} rounds in {run['run_s']:.1f} s, {run['evaluations']} evaluations; "
        f"compile {run['compile_s']:.1f} s",
        f"  {run['examples_per_s']:,.0f} examples/s, {run['client_steps_per_s']:,.0f} client steps/s, "
        f"{run['flop_per_s'] / 1e9:,.1f} GFLOP/s",
    ]
    deliver(finished("long_run", told | {"run": run}, load), f"long_run_{args.workload}", args, text)


if __name__ == "__main__":
    main()
