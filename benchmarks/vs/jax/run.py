"""FedAvg as a loop over clients in plain JAX: what a researcher writes without any simulator.

setting: ``steps``, the local steps of a client as one compiled ``scan`` or as ``calls`` of a compiled step.
All data lie on the device. Python goes from client to client and adds up their changes.
"""

from __future__ import annotations

import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.vs import problem as problems
from benchmarks.vs.jax_model import Params, mean_loss


class Clients:
    """Trains one client after another."""

    def __init__(self, problem: problems.Problem, steps: str) -> None:
        self.problem, self.steps = problem, steps
        self.x, self.y = jnp.asarray(problem.x), jnp.asarray(problem.y, jnp.int32)
        self.whole, self.step, self.batches = jax.jit(self._whole), jax.jit(self._step), jax.jit(self._batches)

    def _step(self, params: Params, batch: tuple[jax.Array, jax.Array]) -> Params:
        grads = jax.grad(partial(mean_loss, self.problem.model))(params, *batch)
        return {name: params[name] - self.problem.lr * grads[name] for name in params}

    def _batches(self, x: jax.Array, y: jax.Array, client: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The client's examples [steps, batch, ...], shuffled, and their labels."""
        order = jax.random.permutation(key, y.shape[1]).reshape(-1, self.problem.batch)
        return x[client][order], y[client][order]

    def _whole(self, params: Params, x: jax.Array, y: jax.Array, client: jax.Array, key: jax.Array) -> Params:
        batches = self._batches(x, y, client, key)
        return jax.lax.scan(lambda p, batch: (self._step(p, batch), None), params, batches)[0]

    def train(self, params: Params, client: int, key: jax.Array) -> Params:
        """The parameters after one shuffled epoch of a client."""
        if self.steps == "scan":
            return self.whole(params, self.x, self.y, client, key)
        x, y = self.batches(self.x, self.y, client, key)
        for i in range(len(x)):
            params = self.step(params, (x[i], y[i]))
        return params


@partial(jax.jit, donate_argnums=0)
def add(total: Params, new: Params, old: Params) -> Params:
    """total + (new - old)"""
    return {name: total[name] + new[name] - old[name] for name in total}


def main() -> None:
    """Runs all rounds and writes the result."""
    args = problems.arguments()
    problem = problems.load(args.problem)
    clients, rng = Clients(problem, args.setting.get("steps", "scan")), np.random.default_rng(0)
    params, key = {name: jnp.asarray(value) for name, value in problem.params.items()}, jax.random.key(0)
    average = jax.jit(lambda p, total: {name: p[name] + total[name] / problem.cohort for name in p})
    seconds = []
    for _ in range(args.warmup + args.rounds):
        begin = time.perf_counter()
        keys = jax.random.split(key, problem.cohort + 1)
        total = {name: jnp.zeros_like(value) for name, value in params.items()}
        for i, client in enumerate(rng.permutation(len(problem.x))[: problem.cohort]):
            total = add(total, clients.train(params, int(client), keys[i]), params)
        params, key = jax.block_until_ready(average(params, total)), keys[-1]
        seconds.append(time.perf_counter() - begin)
    final = {name: np.asarray(value) for name, value in params.items()}
    problems.finish(args.out, seconds[args.warmup :], final, ["jax", "jaxlib", "numpy"])


if __name__ == "__main__":
    main()
