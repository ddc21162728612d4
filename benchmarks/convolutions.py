"""Ways to compute a convolution, forward and backward, for the shapes of the models here.

    python -m benchmarks.convolutions --out benchmarks/results
    python -m benchmarks.convolutions --tiny

For each shape the ways take turns: patches and tiles of ``fljax.models.convolution`` (2x1: two outputs together along
the height, patches along the width), products of shifted inputs, and the backend's own convolution. Every call runs
several steps in a loop, as a client does, each with the gradients by inputs and kernel; once with one client, once with
four clients as one batch, each with a kernel of its own, where the backend's convolution becomes a grouped one.
``chosen`` is what ``tile_of`` picks; ``error`` is the largest error of outputs and gradients, relative to the largest
entry and against float64.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.programs import matmul_peak, peak_size, timed
from benchmarks.report import add_flags, deliver, finished
from fljax.models.convolution import conv_matmul, convolutions_by, tile_of

NHWC = ("NHWC", "HWIO", "NHWC")
TOGETHER = 4
"""Clients in a batch, in the second measurement."""
SLOW = 20.0
"""A way that takes so many times as long as patches is not called again."""


class Shape(NamedTuple):
    """A layer: images [batch, size, size, inputs], kernel [window, window, inputs, outputs]."""

    name: str
    batch: int
    size: int
    inputs: int
    outputs: int
    window: int = 3
    stride: int = 1
    padding: str = "VALID"

    def arrays(self, clients: int) -> tuple[jax.Array, ...]:
        """Inputs, kernels and output gradients of so many clients."""
        rng = np.random.default_rng(0)
        out = -(-self.size // self.stride) if self.padding == "SAME" else (self.size - self.window) // self.stride + 1
        kernel = rng.normal(size=(clients, self.window, self.window, self.inputs, self.outputs))
        drawn = (
            rng.normal(size=(clients, self.batch, self.size, self.size, self.inputs)),
            kernel / np.sqrt(self.window**2 * self.inputs),
            rng.normal(size=(clients, self.batch, out, out, self.outputs)),
        )
        return tuple(jnp.asarray(a, jnp.float32) for a in drawn)

    def flops(self) -> float:
        """Of the direct products of a step: forward, by inputs, by kernel."""
        _, kernel, out = self.arrays(1)
        return 6.0 * out.size * kernel.size / self.outputs


SHAPES = (
    Shape("cnn, first", 10, 28, 1, 32),
    Shape("cnn, second", 10, 26, 32, 64),
    Shape("cnn of CIFAR, first", 10, 32, 3, 32),
    Shape("leaf_cnn, second", 10, 14, 32, 64, 5, 1, "SAME"),
    Shape("resnet8, stage 1", 10, 32, 16, 16, 3, 1, "SAME"),
    Shape("resnet8, stage 3", 10, 8, 64, 64, 3, 1, "SAME"),
    Shape("resnet18, stage 1", 10, 32, 64, 64, 3, 1, "SAME"),
    Shape("resnet18, stage 2", 10, 16, 128, 128, 3, 1, "SAME"),
    Shape("resnet18, stage 3", 10, 8, 256, 256, 3, 1, "SAME"),
    Shape("resnet18, stage 4", 10, 4, 512, 512, 3, 1, "SAME"),
    Shape("resnet18, into stage 2", 10, 32, 64, 128, 3, 2, "SAME"),
)
TINY = (Shape("tiny", 2, 8, 2, 4), Shape("tiny, strided", 2, 8, 2, 4, 3, 2, "SAME"))
TILES = {"2x1": (2, 1), "4x1": (4, 1), "2x2": (2, 2), "4x2": (4, 2)}


def shifted(x: jax.Array, kernel: jax.Array, strides: Any, padding: Any) -> jax.Array:
    """A product for each place of the window, added up."""
    pads = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    x = jnp.pad(x, [(0, 0), *pads, (0, 0)])
    high, wide = ((n - k) // s + 1 for n, k, s in zip(x.shape[1:3], kernel.shape[:2], strides, strict=True))
    seen = lambda i, j: x[:, i : i + strides[0] * high : strides[0], j : j + strides[1] * wide : strides[1]]  # noqa: E731
    places = itertools.product(*map(range, kernel.shape[:2]))
    return sum(
        (seen(i, j)[:, :high, :wide].reshape(-1, x.shape[-1]) @ kernel[i, j]).reshape(len(x), high, wide, -1)
        for i, j in places
    )


def own(x: jax.Array, kernel: jax.Array, strides: Any, padding: Any) -> jax.Array:
    """The backend's convolution."""
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=NHWC)


def by_tile(tile: tuple[int, ...]) -> Callable:
    """conv_matmul by this tile."""

    def conv(x, kernel, strides, padding):
        with convolutions_by(tile):
            return conv_matmul(x, kernel, strides, padding)

    return conv


def ways(shape: Shape) -> dict[str, Callable]:
    """Name -> convolution (x, kernel, strides, padding) of all that can do a shape."""
    found = {"patches": by_tile((1, 1)), "shifted products": shifted, "the backend's": own}
    if shape.stride == 1:
        fitting = {name: tile for name, tile in TILES.items() if max(tile) + shape.window <= 7}
        found |= {name: by_tile(tile) for name, tile in fitting.items()}
    return found


def outcome(conv: Callable, shape: Shape) -> Callable:
    """(x, kernel, gradient) -> outputs and both gradients."""

    def run(x, kernel, gradient):
        strides = (shape.stride, shape.stride)
        out, back = jax.vjp(lambda x, k: conv(x, k, strides, shape.padding), x, kernel)
        return out, *back(gradient)

    return run


def steps(conv: Callable, shape: Shape, clients: int, count: int) -> Any:
    """A compiled loop of so many steps, each of which needs the one before it."""
    one = outcome(conv, shape)
    one = jax.vmap(one) if clients > 1 else one

    def loop(x, kernel, gradient):
        def body(_, carry):
            x, kernel, gradient = carry
            out, by_x, by_kernel = one(x, kernel, gradient)
            return x - 1e-9 * by_x, kernel - 1e-9 * by_kernel, gradient + 1e-9 * out

        return lax.fori_loop(0, count, body, (x, kernel, gradient))

    return jax.jit(loop)


def error(conv: Callable, shape: Shape) -> float:
    """Largest error of outputs and gradients, relative to the largest entry, against float64."""
    arrays = [a[0] for a in shape.arrays(1)]
    got = jax.jit(outcome(conv, shape))(*arrays)
    with jax.enable_x64(True):
        exact = jax.jit(outcome(by_tile((1, 1)), shape))(*(jnp.asarray(np.asarray(a), jnp.float64) for a in arrays))
        return max(float(jnp.abs(a - b).max() / jnp.abs(b).max()) for a, b in zip(got, exact, strict=True))


def measure(shape: Shape, clients: int, count: int, calls: int) -> dict[str, float]:
    """Name of the way -> seconds of a step, the medians over turns."""
    arrays = shape.arrays(clients) if clients > 1 else tuple(a[0] for a in shape.arrays(1))
    programs = {name: steps(conv, shape, clients, count).lower(*arrays).compile() for name, conv in ways(shape).items()}
    first = {name: min(timed(program, *arrays)[0] for _ in range(2)) for name, program in programs.items()}
    seconds = {name: [value] for name, value in first.items()}
    quick = [name for name in programs if first[name] < SLOW * first["patches"]]
    for _, name in itertools.product(range(calls), quick):
        seconds[name].append(timed(programs[name], *arrays)[0])
    return {name: float(np.median(values)) / count for name, values in seconds.items()}


def row(shape: Shape, count: int, calls: int) -> dict[str, Any]:
    """All ways for one shape."""
    x, kernel, _ = (a[0] for a in shape.arrays(1))
    around = shape.window - 1 if shape.padding == "SAME" else 0
    padded = jnp.pad(x, [(0, 0), (0, around), (0, around), (0, 0)])
    tile = tile_of(padded, kernel, (shape.stride,) * 2, (1, 1))
    return {
        "shape": shape._asdict(),
        "flops_per_step": shape.flops(),
        "chosen": "patches" if max(tile) == 1 else "x".join(map(str, tile)),
        "one_client_s": measure(shape, 1, count, calls),
        "batched_s": {name: value / TOGETHER for name, value in measure(shape, TOGETHER, count, calls).items()},
        "error": {name: error(conv, shape) for name, conv in ways(shape).items()},
    }


def lines(result: dict[str, Any]) -> list[str]:
    """One block per shape: microseconds of a step of one client, alone and in a batch, relative to patches."""
    text = []
    for entry in result["rows"]:
        alone, batched = entry["one_client_s"], entry["batched_s"]
        text.append(f"{entry['shape']['name']}: {entry['flops_per_step'] / 1e6:.0f} MFLOP, chosen {entry['chosen']}")
        for name in alone:
            text.append(
                f"  {name:17} {alone[name] * 1e6:9.0f} us {alone[name] / alone['patches']:6.2f}"
                f"   batched {batched[name] * 1e6:9.0f} us {batched[name] / batched['patches']:6.2f}"
                f"   error {entry['error'][name]:.1e}"
            )
    return text


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="two small shapes, to see that it runs")
    parser.add_argument("--steps", type=int, default=5, help="steps in a call")
    parser.add_argument("--calls", type=int, default=9, help="turns")
    add_flags(parser)
    args = parser.parse_args()
    load, start = os.getloadavg(), time.perf_counter()
    shapes = TINY if args.tiny else SHAPES
    rows = [row(shape, args.steps, args.calls) for shape in shapes]
    peak = matmul_peak()
    peak.call()
    result = {
        "settings": {"steps": args.steps, "calls": args.calls, "clients_batched": TOGETHER, "tiny": args.tiny},
        "rows": rows,
        "matmul_peak_flop_per_s": 2.0 * peak_size() ** 3 / min(peak.call() for _ in range(5)),
        "spent_s": time.perf_counter() - start,
    }
    result = finished("convolutions", result, load)
    deliver(result, "convolutions", args, lines(result))


if __name__ == "__main__":
    main()
