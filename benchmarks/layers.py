"""Pools, norms and embeddings whose weights differ from client to client, and convolutions of large batches.

    python -m benchmarks.layers --out benchmarks/results
    python -m benchmarks.layers --tiny

Layers: ours in turn with other ways to compute the same (XLA's window reduction, flax's norm, one-hot vectors times the
table). Every call runs several steps in a loop, as a client does, each forward and with all gradients, for so many
clients as one batch.

Large batches: a convolution, forward and with both gradients, of all images at once and in blocks (``MOST`` of
``fljax.models.convolution``), with the temporary bytes of the compiled programs.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen
from jax import lax

from benchmarks.convolutions import Shape, outcome
from benchmarks.programs import Measured, timed, turns
from benchmarks.report import add_flags, deliver, finished
from fljax.models.convolution import MOST, conv_matmul
from fljax.models.functional import EPSILON, embed, group_norm, one_hot_rows
from fljax.models.layers import max_pool_2x2

GROUP = 8
"""Channels of a norm group, as in ``resnet``."""
TOGETHER, WAYS = (1, 8, 32), ("at once", "in blocks")


class Layer(NamedTuple):
    """What is compared, for one client.

    given: shapes of what is differentiated by, a tree. tokens: shape of ids, none of them differentiated by, and how
    many there are; or None. ways: name -> function of both, ours first.
    """

    name: str
    given: Any
    tokens: tuple[tuple[int, ...], int] | None
    ways: dict[str, Callable]


def grouped(p: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """Group normalisation by its formula, on an axis of groups and one of their channels."""
    groups = x.reshape(x.shape[0], -1, x.shape[-1] // GROUP, GROUP)
    centred = groups - groups.mean((1, 3), keepdims=True)
    scaled = centred * lax.rsqrt(jnp.square(centred).mean((1, 3), keepdims=True) + EPSILON)
    return scaled.reshape(x.shape) * p["scale"].reshape(1, 1, 1, -1) + p["bias"].reshape(1, 1, 1, -1)


def flax_norm(p: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """flax's."""
    return linen.GroupNorm(num_groups=None, group_size=GROUP, epsilon=EPSILON).apply({"params": p}, x)


def pool(images: int, size: int, channels: int) -> Layer:
    """A pool of 2x2."""
    ways = {"ours": max_pool_2x2, "window reduction": lambda x: linen.max_pool(x, (2, 2), (2, 2))}
    return Layer(f"pool, {size}x{size}x{channels}", ((images, size, size, channels),), None, ways)


def norm(images: int, size: int, channels: int) -> Layer:
    """A group norm."""
    weights = {"scale": (channels,), "bias": (channels,)}
    ways = {"ours": lambda p, x: group_norm(p, x, GROUP), "flax": flax_norm, "grouped axes": grouped}
    return Layer(f"group norm, {size}x{size}x{channels}", (weights, (images, size, size, channels)), None, ways)


def embedding(sequences: int, length: int, ids: int, width: int) -> Layer:
    """A table of ids."""
    ways = {"ours": embed, "one-hot product": lambda p, tokens: one_hot_rows(p["table"], tokens)}
    name = f"embedding, {ids} ids, width {width}"
    return Layer(name, ({"table": (ids, width)},), ((sequences, length), ids), ways)


LAYERS = (
    pool(10, 24, 64),
    norm(10, 32, 16),
    norm(10, 32, 64),
    norm(10, 8, 256),
    embedding(10, 80, 98, 8),
    embedding(10, 80, 98, 64),
    embedding(10, 80, 1000, 64),
)
LARGE = (
    Shape("few channels", 100, 32, 8, 8, 3, 1, "SAME"),
    Shape("window of 7, stride 2", 64, 64, 3, 64, 7, 2, "SAME"),
    Shape("stride 2", 64, 32, 64, 128, 3, 2, "SAME"),
    Shape("by tiles", 64, 32, 64, 64, 3, 1, "SAME"),
    Shape("cnn, second", 1024, 26, 32, 64),
)
TINY = (pool(2, 4, 2), norm(2, 4, 8), embedding(2, 3, 5, 2)), (Shape("tiny", 400, 16, 8, 8, 3, 1, "SAME"),)


def drawn(layer: Layer, clients: int, steps: int) -> tuple[Any, ...]:
    """Given [clients, ...], ids [steps, clients, ...] or (), and output gradients; no axis of clients for one."""
    rng, lead = np.random.default_rng(0), (clients,) * (clients > 1)

    def normal(shape: Sequence[int]) -> jax.Array:
        return jnp.asarray(rng.normal(size=(*lead, *shape)), jnp.float32)

    given = jax.tree.map(normal, layer.given, is_leaf=lambda leaf: isinstance(leaf, tuple) and isinstance(leaf[0], int))
    ids: tuple = ()
    if layer.tokens is not None:
        shape, count = layer.tokens
        ids = (jnp.asarray(rng.integers(0, count, (steps, *lead, *shape)), jnp.int32),)
    one = layer.ways["ours"] if clients == 1 else jax.vmap(layer.ways["ours"])
    out = jax.eval_shape(one, *given, *(i[0] for i in ids))
    return given, ids, jnp.asarray(rng.normal(size=out.shape), jnp.float32)


def loop(function: Callable, clients: int, steps: int) -> Callable:
    """(given, ids, gradient) -> the same after so many steps, each of which needs the one before it."""

    def one(given, ids, gradient):
        out, back = jax.vjp(lambda *given: function(*given, *ids), *given)
        return out, back(gradient)

    together = jax.vmap(one) if clients > 1 else one

    def run(given, ids, gradient):
        def body(step, carry):
            given, gradient = carry
            out, by_given = together(given, tuple(i[step] for i in ids), gradient)
            return jax.tree.map(lambda a, b: a - 1e-9 * b, given, by_given), gradient + 1e-9 * out

        return lax.fori_loop(0, steps, body, (given, gradient))

    return run


def compiled(function: Callable, *arguments: Any) -> Measured:
    """A program that is called with the same arguments again and again."""
    program = jax.jit(function).lower(*arguments).compile()
    return Measured(program, 0.0, lambda: timed(program, *arguments)[0])


def measure(layer: Layer, clients: int, steps: int, calls: int) -> dict[str, float]:
    """Name of the way -> seconds of a client's step, the medians over turns."""
    arguments = drawn(layer, clients, steps)
    programs = [compiled(loop(way, clients, steps), *arguments) for way in layer.ways.values()]
    seconds = np.median(turns(programs, calls), axis=0) / clients / steps
    return dict(zip(layer.ways, map(float, seconds), strict=True))


def in_blocks(shape: Shape, calls: int) -> dict[str, Any]:
    """Seconds and temporary bytes of a convolution with its gradients, of all images at once and in blocks."""
    arrays, programs = [a[0] for a in shape.arrays(1)], {}
    for way, most in zip(WAYS, (dict.fromkeys(MOST, (2**60, 2**60)), {}), strict=True):
        with patch.dict(MOST, most):
            programs[way] = compiled(outcome(conv_matmul, shape), *arrays)
    seconds = np.median(turns(list(programs.values()), calls), axis=0)
    sizes = [one.program.memory_analysis().temp_size_in_bytes for one in programs.values()]
    rows = [{"seconds": float(s), "temporary_bytes": size} for s, size in zip(seconds, sizes, strict=True)]
    return {"shape": shape._asdict(), **dict(zip(programs, rows, strict=True))}


def lines(result: dict[str, Any]) -> list[str]:
    """A line for each layer and each large batch."""
    text = []
    for row in result["layers"]:
        for clients, ways in row["clients"].items():
            told = "  ".join(f"{name} {1e6 * value:.1f} us" for name, value in ways.items())
            text.append(f"{row['layer']:30} {clients:>2} clients: {told}")
    for row in result["large"]:
        told = (f"{way} {1e3 * row[way]['seconds']:.1f} ms, {row[way]['temporary_bytes'] / 1e6:.0f} MB" for way in WAYS)
        text.append(f"{row['shape']['name']:30} {row['shape']['batch']} images: " + "; ".join(told))
    return text


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small shapes, to see that it runs")
    parser.add_argument("--together", nargs="+", type=int, default=list(TOGETHER), help="clients at a time")
    parser.add_argument("--steps", type=int, default=5, help="steps in a call")
    parser.add_argument("--calls", type=int, default=9, help="turns, after one that warms up")
    add_flags(parser)
    args, load = parser.parse_args(), os.getloadavg()
    layers, large = TINY if args.tiny else (LAYERS, LARGE)
    timing = partial(measure, steps=args.steps, calls=args.calls)
    result = {
        "settings": {"steps": args.steps, "calls": args.calls, "tiny": args.tiny},
        "layers": [{"layer": one.name, "clients": {str(n): timing(one, n) for n in args.together}} for one in layers],
        "large": [in_blocks(shape, args.calls) for shape in large],
    }
    deliver(finished("layers", result, load), "layers", args, lines(result))


if __name__ == "__main__":
    main()
