"""Robust rules on the updates of a cohort: seconds, processor seconds and memory of each.

    python -m benchmarks.robust --clients 50 --parameters 1200000

Updates are random numbers with something in common, in five leaves of unequal size, and all of them live. A fifth
may be malicious. Memory is what the compiler plans beside the updates themselves.
"""

from __future__ import annotations

import argparse
import os
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.report import add_flags, deliver, finished
from fljax import robust
from fljax.core.transform import Aggregator
from fljax.core.types import Ctx, Hparams


def rules(f: int) -> dict[str, Aggregator]:
    """The rules by name, and pairs with a stage before them."""
    mixed = [robust.nearest_neighbour_mixing(f)]
    return {
        "mean": robust.mean(),
        "median": robust.median(),
        "trimmed_mean": robust.trimmed_mean(f),
        "mean_around_median": robust.mean_around_median(f),
        "sign_majority": robust.sign_majority(0.001),
        "krum": robust.krum(f),
        "multi_krum": robust.multi_krum(f),
        "bulyan": robust.bulyan(f),
        "geometric_median": robust.geometric_median(),
        "centred_clipping": robust.centred_clipping(1.0),
        "divide_and_conquer": robust.divide_and_conquer(f),
        "flame": robust.flame(0.0),
        "foolsgold": robust.foolsgold(2),
        "nnm+trimmed_mean": robust.trimmed_mean(f, mixed),
        "nnm+krum": robust.krum(f, before=mixed),
        "groups+median": robust.median([robust.secure_groups(5)]),
    }


def updates(clients: int, parameters: int) -> dict:
    """{"update": five leaves [C, ...]}: N(0, 1) plus a common N(0, 1)."""
    shares = np.array([0.8, 0.15, 0.04, 0.009, 0.001])
    sizes = np.maximum((shares * parameters).astype(int), 1)
    keys = jax.random.split(jax.random.key(0), 2 * len(sizes))

    def leaf(i: int, size: int):
        return jax.random.normal(keys[2 * i], (clients, size)) + jax.random.normal(keys[2 * i + 1], (1, size))

    return {"update": {f"leaf_{i}": leaf(i, int(n)) for i, n in enumerate(sizes)}}


def measure(rule: Aggregator, payload: dict, calls: int) -> dict[str, float]:
    """Seconds to compile and to run, the median and the fastest of the calls, and bytes beside the updates."""
    clients = jax.tree.leaves(payload)[0].shape[0]
    one, key = jnp.float32(1.0), jax.random.key(1)
    ids = jnp.arange(clients)
    ctx = Ctx(jnp.int32(0), Hparams().arrays(), key, ids % 2, ids, one, one)
    state = rule.init(jax.tree.map(lambda x: x[0], payload["update"]), Hparams())
    args = (key, ctx, payload, jnp.ones(clients, bool), state)
    begin = time.perf_counter()
    call = jax.jit(rule.reduce).lower(*args).compile()
    compile_s, seconds, busy = time.perf_counter() - begin, [], []
    jax.block_until_ready(call(*args))
    for _ in range(calls):
        begin, used = time.perf_counter(), time.process_time()
        jax.block_until_ready(call(*args))
        seconds.append(time.perf_counter() - begin)
        busy.append(time.process_time() - used)
    memory = call.memory_analysis()
    return {
        "compile_s": compile_s,
        "steady_s": float(np.median(seconds)),
        "fastest_s": min(seconds),
        "process_s": float(np.median(busy)),
        "temporary_bytes": int(memory.temp_size_in_bytes) if memory is not None else -1,
    }


def main() -> None:
    """Measures every rule, prints a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--parameters", type=int, default=1_200_000)
    parser.add_argument("--calls", type=int, default=5)
    parser.add_argument("--rules", nargs="*", help="names; default all")
    add_flags(parser)
    args, load = parser.parse_args(), os.getloadavg()
    payload, f = updates(args.clients, args.parameters), args.clients // 5
    rows = {
        name: measure(rule, payload, args.calls) for name, rule in rules(f).items() if name in (args.rules or [name])
    }
    settings = {"clients": args.clients, "parameters": args.parameters, "f": f}
    size = sum(x.nbytes for x in jax.tree.leaves(payload))
    result = finished("robust", {"settings": settings, "update_bytes": size, "rules": rows}, load)
    lines = [f"{name:20s} " + "  ".join(f"{k} {v:.4g}" for k, v in row.items()) for name, row in rows.items()]
    deliver(result, "robust", args, lines)


if __name__ == "__main__":
    main()
