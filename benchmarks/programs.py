"""Compiled programs that a benchmark calls again and again, and what their seconds say."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fljax
from benchmarks.workloads import Variant, Workload, central, make_round
from fljax.models.precision import Precision


class Measured(NamedTuple):
    """A compiled program, its compile seconds, and a call that runs it once and returns the seconds of one round."""

    program: Any
    compile_s: float
    call: Callable[[], float]


def timed(function: Any, *args: Any) -> tuple[float, Any]:
    """Seconds until the result is there, and the result."""
    start = time.perf_counter()
    result = jax.block_until_ready(function(*args))
    return time.perf_counter() - start, result


def scan_rounds(step: Callable, rounds: int) -> Callable:
    """(t0, key, state, data, hparams) -> (state, participants [rounds]) over several rounds."""

    def run(t0, key, state, data, hparams):
        def body(state, t):
            state, info = step(t, key, state, data, hparams)
            return state, info.participants

        return jax.lax.scan(body, state, t0 + jnp.arange(rounds))

    return run


def compiled_round(work: Workload, variant: Variant, perf: fljax.PerfFlags, rounds_per_call: int = 1) -> Measured:
    """The federated round; every call continues where the last one stopped."""
    round_, hparams = make_round(work, variant, perf)
    key = jax.random.key(0)
    held = {"state": jax.jit(lambda k: round_.init(k, work.model.init(k), hparams))(key), "done": 0}
    start = time.perf_counter()
    run = jax.jit(scan_rounds(round_.step, rounds_per_call), donate_argnums=2)
    program = run.lower(jnp.int32(0), key, held["state"], work.data, hparams).compile()
    compile_s = time.perf_counter() - start

    def call() -> float:
        spent, (held["state"], _) = timed(program, jnp.int32(held["done"]), key, held["state"], work.data, hparams)
        held["done"] += rounds_per_call
        return spent / rounds_per_call

    return Measured(program, compile_s, call)


def compiled_central(work: Workload, variant: Variant, rounds_per_call: int = 1) -> Measured:
    """The same number of SGD steps as a round, without federation, of the same (perhaps physically small) model."""
    steps = work.steps_per_round
    rows = np.arange(steps * work.batch).reshape(steps, work.batch) % work.data.x.shape[0]
    x, y = work.data.x[rows], work.data.y[rows]
    params = work.model.init(jax.random.key(0))
    if variant.execution == "compact" and variant.keep is not None and work.model.groups is not None:
        counts = work.model.groups.counts(variant.keep)
        params = work.model.groups.extract(params, {group: np.arange(n) for group, n in counts.items()})
    train = central(work, variant.precision)

    def rounds(params, x, y):
        return jax.lax.fori_loop(0, rounds_per_call, lambda _, p: train(p, x, y), params)

    start = time.perf_counter()
    program = jax.jit(rounds).lower(params, x, y).compile()
    compile_s = time.perf_counter() - start
    return Measured(program, compile_s, lambda: timed(program, params, x, y)[0] / rounds_per_call)


def matmul_peak(size: int | None = None, precision: Precision = "float32") -> Measured:
    """A product of two square matrices, large enough to keep the matrix units busy: the seconds of one call.

    size: rows and columns; default 2,048 on a CPU and 8,192 elsewhere. precision: their dtype; how float32 is
    multiplied is JAX's default, as in a model (TF32 on NVIDIA's GPUs).
    """
    size = peak_size() if size is None else size
    matrix = jnp.ones((size, size), precision) / size
    start = time.perf_counter()
    program = jax.jit(jnp.dot).lower(matrix, matrix).compile()
    compile_s = time.perf_counter() - start
    return Measured(program, compile_s, lambda: min(timed(program, matrix, matrix)[0] for _ in range(3)))


def peak_size() -> int:
    """Rows of the matrices of ``matmul_peak``."""
    return 2048 if jax.default_backend() == "cpu" else 8192


def turns(programs: Sequence[Measured], calls: int) -> np.ndarray:
    """Seconds [calls, programs]: all programs in turn, so that whatever else the machine does hits all of them.

    One turn before those warms up.
    """
    return np.array([[program.call() for program in programs] for _ in range(calls + 1)])[1:]


def spread(seconds: np.ndarray) -> dict[str, float]:
    """Median, fastest, slowest, and the distance between the quartiles relative to the median."""
    low, median, high = np.percentile(seconds, (25, 50, 75))
    return {
        "steady_s_per_round": float(median),
        "fastest_s_per_round": float(seconds.min()),
        "slowest_s_per_round": float(seconds.max()),
        "quartile_spread": float((high - low) / median),
    }


def speed(
    work: Workload, seconds: np.ndarray, peak_seconds: np.ndarray, size: int, share: float = 1.0
) -> dict[str, Any]:
    """What a round achieves: ``spread`` with examples and floating-point operations per second, and their peak.

    Args:
      seconds, peak_seconds: [calls] of a round, and of the product of ``matmul_peak`` in the same turns.
      size: rows of that product.
      share: of the dense model's operations that are done.

    The share of the peak is the median over turns of the ratio within a turn.
    """
    flops, peak = share * work.flops_per_round, 2.0 * size**3 / peak_seconds
    return {
        **spread(seconds),
        "examples_per_s": float(work.examples_per_round / np.median(seconds)),
        "flop_per_round": flops,
        "flop_per_s": float(flops / np.median(seconds)),
        "matmul_peak_flop_per_s": float(np.median(peak)),
        "share_of_matmul_peak": float(np.median(flops / seconds / peak)),
    }
