"""FedAvg in fljax. setting: ``devices`` (host devices that share the clients), ``rounds_per_call`` (of the scan)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

import fljax
from benchmarks import programs
from benchmarks.vs import problem as problems
from benchmarks.workloads import Variant, Workload, make_round
from fljax.core import tree
from fljax.data.federated import FederatedData
from fljax.models import cnn, mlp
from fljax.sim.mesh import client_mesh


def workload(problem: problems.Problem) -> Workload:
    """The problem as a workload."""
    clients, size = problem.y.shape
    shape, classes = problem.x.shape[2:], problem.params["dense_1/bias"].shape[0]
    model = cnn(shape, classes) if problem.model == "cnn" else mlp(shape, classes, problem.params["dense_0/bias"].shape)
    rows = (np.arange(clients * size), np.arange(clients + 1) * size)
    data = FederatedData.from_indices(problem.x.reshape(-1, *shape), problem.y.reshape(-1), rows)
    loss, steps = fljax.make_loss("classification"), size // problem.batch
    return Workload(problem.model, model, loss, data, problem.cohort, steps, problem.batch, problem.lr)


def nested(params: dict[str, np.ndarray]) -> dict:
    """Flat names to fljax's tree."""
    result: dict = {}
    for name, value in params.items():
        layer, leaf = name.split("/")
        result.setdefault(layer, {})[leaf] = jnp.array(value)
    return result


def main() -> None:
    """Runs all rounds and writes the result, with the peak of the machine's matrix products beside it."""
    args = problems.arguments()
    problem = problems.load(args.problem)
    length = min(args.setting.get("rounds_per_call", 1), args.rounds)
    work = workload(problem)
    round_, hparams = make_round(work, Variant(), fljax.PerfFlags(mesh=client_mesh(args.setting.get("devices", 1))))
    key = jax.random.key(0)
    state = jax.jit(lambda params: round_.init(key, params, hparams))(nested(problem.params))
    rounds = jax.jit(programs.scan_rounds(round_.step, length), donate_argnums=2)
    program = rounds.lower(jnp.int32(0), key, state, work.data, hparams).compile()
    warmup, seconds = -(-args.warmup // length), []
    for done in range(warmup + args.rounds // length):
        spent, (state, _) = programs.timed(program, jnp.int32(done * length), key, state, work.data, hparams)
        seconds.append(spent / length)
    final = {name: np.asarray(value) for name, value in tree.named_leaves(state.params).items()}
    peak = 2.0 * programs.peak_size() ** 3 / programs.matmul_peak().call()
    extra = {"matmul_peak_flop_per_s": peak, "flop_per_round": work.flops_per_round}
    problems.finish(args.out, seconds[warmup:], final, ["fljax", "jax", "jaxlib", "numpy"], extra)


if __name__ == "__main__":
    main()
