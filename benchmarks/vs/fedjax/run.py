"""FedAvg in FedJAX. setting: ``backend`` jit or pmap, ``devices`` (of pmap).

Its average is weighted by examples, which are equally many here.
"""

from __future__ import annotations

import time

import fedjax
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.vs import problem as problems
from benchmarks.vs.jax_model import mean_loss


def main() -> None:
    """Runs all rounds and writes the result."""
    args = problems.arguments()
    problem = problems.load(args.problem)

    def loss(params, batch, rng):
        return mean_loss(problem.model, params, batch["x"], batch["y"])

    labels = problem.y.astype(np.int32)
    clients = {str(k).encode(): {"x": problem.x[k], "y": labels[k]} for k in range(len(labels))}
    data = fedjax.InMemoryFederatedData(clients)
    sampler = fedjax.client_samplers.UniformGetClientSampler(data, problem.cohort, seed=0)
    batches = fedjax.ShuffleRepeatBatchHParams(batch_size=problem.batch, num_epochs=1, drop_remainder=False)
    with fedjax.for_each_client_backend(args.setting.get("backend", "jit")):
        algorithm = fedjax.algorithms.fed_avg.federated_averaging(
            jax.grad(loss), fedjax.optimizers.sgd(problem.lr), fedjax.optimizers.sgd(1.0), batches
        )
        state, seconds = algorithm.init({k: jnp.asarray(v) for k, v in problem.params.items()}), []
        for _ in range(args.warmup + args.rounds):
            begin = time.perf_counter()
            state, _ = algorithm.apply(state, sampler.sample())
            jax.block_until_ready(state.params)
            seconds.append(time.perf_counter() - begin)
    final = {name: np.asarray(value) for name, value in state.params.items()}
    problems.finish(args.out, seconds[args.warmup :], final, ["fedjax", "jax", "jaxlib", "numpy"])


if __name__ == "__main__":
    main()
