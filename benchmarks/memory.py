"""Memory of a round: it grows with the clients per chunk, not with the cohort.

    python -m benchmarks.memory --cohorts 100 1000 10000 --chunks 1 16 64 --out benchmarks/results

For every pair the round of an MLP 64-256-10 (19,210 parameters) is compiled, and the compiler's own figure for its
temporary memory is printed; then the largest cohort is run for real and the process's peak is read.
"""

from __future__ import annotations

import argparse
import os
import resource

import jax
import jax.numpy as jnp

import fljax
from benchmarks.report import add_flags, deliver, finished
from benchmarks.workloads import Variant, Workload, generated, make_round
from fljax.models import mlp


def workload(cohort: int) -> Workload:
    """A population of twice the cohort, 10 examples a client."""
    model, loss = mlp((64,), 10, hidden=(256,)), fljax.make_loss("classification")
    return Workload("memory", model, loss, generated(2 * cohort, 10, (64,), 10), cohort, 2, 10, 0.1)


def compiled(work: Workload, chunk: int):
    """The compiled private round and its arguments."""
    round_, hparams = make_round(work, Variant("central"), fljax.PerfFlags(chunk))
    key = jax.random.key(0)
    args = (jnp.int32(0), key, round_.init(key, work.model.init(key), hparams), work.data, hparams)
    return jax.jit(round_.step).lower(*args).compile(), args


def main() -> None:
    """Prints a table of temporary bytes by cohort and chunk, and writes it as JSON where --out is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohorts", type=int, nargs="+", default=[100, 1000, 10000])
    parser.add_argument("--chunks", type=int, nargs="+", default=[1, 16, 64])
    add_flags(parser)
    args, load = parser.parse_args(), os.getloadavg()
    rows, text = [], []
    for cohort in args.cohorts:
        work = workload(cohort)
        whole = 4 * cohort * work.model.num_params()
        for chunk in args.chunks:
            temporary = compiled(work, chunk)[0].memory_analysis().temp_size_in_bytes
            rows.append({"cohort": cohort, "chunk": chunk, "temporary_bytes": temporary, "cohort_bytes": whole})
            text.append(
                f"cohort {cohort:6d}  chunk {chunk:4d}  {temporary / 1e6:8.2f} MB  "
                f"(cohort x parameters: {whole / 1e6:.0f} MB)"
            )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    program, inputs = compiled(workload(args.cohorts[-1]), args.chunks[-1])
    _, info = jax.block_until_ready(program(*inputs))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ran = {"cohort": int(info.participants), "peak_growth_bytes": (after - before) * 1024}
    text.append(f"ran {ran['cohort']} clients; the process grew by {ran['peak_growth_bytes'] / 1e6:.1f} MB")
    result = {"settings": {"cohorts": args.cohorts, "chunks": args.chunks}, "rows": rows, "ran": ran}
    deliver(finished("memory", result, load), "memory", args, text)


if __name__ == "__main__":
    main()
