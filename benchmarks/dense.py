"""Ways to compute the weight gradient of a dense layer, for the shapes of the models here.

    python -m benchmarks.dense --out benchmarks/results
    python -m benchmarks.dense --tiny

A step is what a client does with a layer: forward, the gradient by inputs and weights, and SGD. The gradient by the
weights is a product, or a sum of outer products (``fljax.models.product``); both take turns in loops of steps, with one
client and with batches of clients, each with weights of its own. ``chosen`` is what ``dense_product`` does.
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.programs import timed
from benchmarks.report import add_flags, deliver, finished
from fljax.models.product import MOST_ROWS, summed_product

SHAPES = tuple(itertools.product((10, 20, 32, 64), ((64, 10), (64, 64), (784, 32), (784, 200))))
TINY = ((4, (6, 3)),)
CLIENTS = (1, 8, 64)
WAYS: dict[str, Callable] = {"product": jnp.matmul, "outer products": summed_product}


def steps(multiply: Callable, clients: int, rows: int, shape: tuple[int, int], count: int) -> tuple[Any, tuple]:
    """A compiled loop of so many steps, each of which needs the one before it, and its inputs."""
    rng = np.random.default_rng(0)
    drawn = (rng.normal(size=(clients, rows, shape[0])), rng.normal(size=(clients, *shape)) / np.sqrt(shape[0]))
    x, w = (jnp.asarray(a if clients > 1 else a[0], jnp.float32) for a in drawn)

    def one(x, w):
        out, back = jax.vjp(multiply, x, w)
        by_x, by_w = back(jnp.tanh(out))
        return x - 1e-6 * by_x, w - 1e-6 * by_w

    several = jax.vmap(one) if clients > 1 else one
    loop = jax.jit(lambda x, w: lax.fori_loop(0, count, lambda _, carry: several(*carry), (x, w)))
    return loop.lower(x, w).compile(), (x, w)


def measure(clients: int, rows: int, shape: tuple[int, int], count: int, calls: int) -> dict[str, float]:
    """Name of the way -> seconds of a step of one client, the medians over turns; a first turn warms up."""
    programs = {name: steps(multiply, clients, rows, shape, count) for name, multiply in WAYS.items()}
    turns = [{name: timed(run, *inputs)[0] for name, (run, inputs) in programs.items()} for _ in range(calls + 1)]
    return {name: float(np.median([turn[name] for turn in turns[1:]])) / count / clients for name in programs}


def lines(result: dict[str, Any]) -> list[str]:
    """A line for each layer and batch size: microseconds of a product, and the other way relative to it."""
    text = []
    for entry in result["rows"]:
        cells = [
            f"{clients:>3} clients {1e6 * s['product']:7.2f} us {s['outer products'] / s['product']:5.2f}"
            for clients, s in entry["seconds"].items()
        ]
        text.append(f"{entry['rows']:3} x {entry['shape']}: {'   '.join(cells)}   chosen: {entry['chosen']}")
    return text


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="one small shape, to see that it runs")
    parser.add_argument("--steps", type=int, default=100, help="steps in a call")
    parser.add_argument("--calls", type=int, default=9, help="turns")
    add_flags(parser)
    args, load = parser.parse_args(), os.getloadavg()
    rows = [
        {
            "rows": rows,
            "shape": list(shape),
            "seconds": {str(n): measure(n, rows, shape, args.steps, args.calls) for n in CLIENTS},
            "chosen": "outer products" if rows <= MOST_ROWS and jax.default_backend() == "cpu" else "product",
        }
        for rows, shape in (TINY if args.tiny else SHAPES)
    ]
    settings = {"steps": args.steps, "calls": args.calls, "tiny": args.tiny}
    result = finished("dense", {"settings": settings, "rows": rows}, load)
    deliver(result, "dense", args, lines(result))


if __name__ == "__main__":
    main()
