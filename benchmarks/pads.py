"""Pads of secure sums: words a second, of a function alone and of the stage that uses it.

    python -m benchmarks.pads --out benchmarks/results

For both functions of ``fljax.secure.prf`` two programs in turn: the function alone (its words are added up and nothing
else is done), and the masked encoding of one client of a secure sum with all its pads. The share is what the stage
reaches of the function's rate. Besides wall-clock seconds the seconds of the processor are taken, which other work on
the machine disturbs less.
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

from benchmarks.report import add_flags, deliver, finished
from fljax.core.types import Ctx, Hparams
from fljax.secure.graph import choose_graph
from fljax.secure.masks import Lanes, double_mask
from fljax.secure.prf import PRFS


def alone(prf: str, count: int, size: int) -> tuple[Callable[[], Any], int]:
    """A call that makes ``count`` streams of ``size`` words and adds them up, and its number of words."""
    words, keys = PRFS[prf], jax.random.bits(jax.random.key(0), (count, 2), jnp.uint32)

    @jax.jit
    def run(keys):
        counters = jax.lax.iota(jnp.uint32, size // 2)

        def add(i, total):
            return jax.tree.map(jnp.add, total, words(keys[i], counters))

        return jax.lax.fori_loop(0, count, add, (jnp.zeros_like(counters), jnp.zeros_like(counters)))

    return lambda: run(keys), count * size


def stage(prf: str, clients: int, size: int) -> tuple[Callable[[], Any], int]:
    """A call that masks the words of one client, and its number of words: a pad of its own, and one a neighbour."""
    graph = choose_graph(clients)
    mask = double_mask(Lanes(size, 23, prf, "masked"), graph)
    one = jnp.float32(1)

    @jax.jit
    def run(key, payload):
        presence = jnp.full(clients, 2)
        ctx = Ctx(jnp.int32(0), Hparams(), key, jnp.int32(0), jnp.int32(3), one, one, presence=presence)
        return mask.encode(key, ctx, payload, (), ())[0]

    payload = {"update": jnp.zeros(size, jnp.uint32)}
    return lambda: run(jax.random.key(1), payload), (graph.degree + 1) * size


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Millions of words a second, wall-clock and of the processor, by turns; medians."""
    result: dict[str, Any] = {}
    for prf in PRFS:
        degree = choose_graph(args.clients).degree
        programs = {"alone": alone(prf, degree + 1, args.size), "stage": stage(prf, args.clients, args.size)}
        spent: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
        for turn in range(args.calls + 1):
            for name, (call, _) in programs.items():
                wall, cpu = time.perf_counter(), time.process_time()
                jax.block_until_ready(call())
                if turn:  # the first one compiles
                    spent[name].append((time.perf_counter() - wall, time.process_time() - cpu))
        seconds = {name: np.median(taken, axis=0) for name, taken in spent.items()}
        rates = {name: programs[name][1] / 1e6 / seconds[name] for name in programs}
        result[prf] = {
            name: {"million_words_per_s": float(rate[0]), "million_words_per_cpu_s": float(rate[1])}
            for name, rate in rates.items()
        }
        share = np.median(
            np.divide(*(np.array(spent[name]) / programs[name][1] for name in ("alone", "stage"))), axis=0
        )
        result[prf]["stage_over_alone"] = {"wall": float(share[0]), "cpu": float(share[1])}
    return result


def main() -> None:
    """Parses the flags, measures, prints, and writes a JSON file where --out is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=100, help="clients of the secure sum; the degree follows")
    parser.add_argument("--size", type=int, default=1_000_000, help="words of one upload")
    parser.add_argument("--calls", type=int, default=9, help="timed calls, after one that compiles")
    add_flags(parser)
    args, load = parser.parse_args(), os.getloadavg()
    settings = {"clients": args.clients, "size": args.size, "degree": choose_graph(args.clients).degree}
    result = finished("pads", {"settings": settings, **measure(args)}, load)
    lines = [f"one client of {args.clients}, {settings['degree']} neighbours, {args.size:,} words"]
    for prf in PRFS:
        r, share = result[prf], result[prf]["stage_over_alone"]
        rates = [r[name]["million_words_per_s"] for name in ("alone", "stage")]
        lines.append(
            f"  {prf:8s} alone {rates[0]:,.0f}, in the stage {rates[1]:,.0f} million words/s: "
            f"{100 * share['wall']:.0f} % ({100 * share['cpu']:.0f} % by seconds of the processor)"
        )
    deliver(result, "pads", args, lines)


if __name__ == "__main__":
    main()
