"""FedAvg in Flower's simulation engine (Ray).

setting: ``threads`` of a client (Ray runs as many clients at once as there are cores for), ``layout`` of the images.
"""

from __future__ import annotations

import functools
import os
import time
from itertools import pairwise

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from benchmarks.vs import problem as problems
from benchmarks.vs import torch_model


@functools.lru_cache(maxsize=1)
def held(path: str, layout: str, threads: int, device: str):
    """Problem, model and data of one actor, loaded once in its life."""
    torch.set_num_threads(threads)
    problem, setting = problems.load(path), {"layout": layout}
    net = torch_model.make(problem.model, problem.params, setting, device)
    return (
        problem,
        net,
        torch_model.images(problem.x, setting, device),
        torch.from_numpy(problem.y.reshape(-1)).to(device),
    )


def make_client(where: tuple) -> ClientApp:
    """The client: loads what it receives, trains one shuffled epoch, sends its parameters back."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        from benchmarks.vs.flower import run  # the cache of the actor's own module

        problem, net, images, labels = run.held(*where)
        net.load_state_dict(message.content["arrays"].to_torch_state_dict())
        params, size = list(net.parameters()), problem.y.shape[1]
        order = int(context.node_config["partition-id"]) * size + torch.randperm(size, device=images.device)
        x, y = images[order], labels[order]
        for i in range(0, size, problem.batch):
            grads = torch.autograd.grad(net.loss(x[i : i + problem.batch], y[i : i + problem.batch]), params)
            with torch.no_grad():
                torch._foreach_add_(params, grads, alpha=-problem.lr)
        content = {"arrays": ArrayRecord(net.state_dict()), "metrics": MetricRecord({"num-examples": size})}
        return Message(content=RecordDict(content), reply_to=message)

    return app


class Timed(FedAvg):
    """FedAvg that notes when each round's average is there."""

    ends: list[float]

    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        failed = [reply for reply in replies if reply.has_error()]
        if failed:
            raise RuntimeError(failed[0].error.reason)
        result = super().aggregate_train(server_round, replies)
        self.ends.append(time.perf_counter())
        return result


def main() -> None:
    """Runs all rounds and writes the result."""
    args = problems.arguments()
    problem, threads = problems.load(args.problem), args.setting.get("threads", 1)
    net = torch_model.make(problem.model, problem.params, args.setting)
    share = problem.cohort / len(problem.x) + 1e-9  # the strategy rounds down
    strategy = Timed(fraction_train=share, fraction_evaluate=0.0, min_train_nodes=problem.cohort)
    strategy.ends, final = [], {}
    server = ServerApp()

    @server.main()
    def serve(grid: Grid, context: Context) -> None:
        rounds = args.warmup + args.rounds
        final["state"] = strategy.start(grid, ArrayRecord(net.state_dict()), num_rounds=rounds).arrays

    where = (str(args.problem.resolve()), args.setting.get("layout", ""), threads, args.device)
    gpus = 0.1 if args.device == "cuda" else 0.0
    resources = {"num_cpus": threads, "num_gpus": gpus}
    init = {"num_cpus": os.cpu_count(), "log_to_driver": False, "include_dashboard": False}
    run_simulation(
        server, make_client(where), len(problem.x), backend_config={"client_resources": resources, "init_args": init}
    )
    state = final["state"].to_torch_state_dict()
    ends = strategy.ends[args.warmup - 1 :]
    seconds = [b - a for a, b in pairwise(ends)]
    params = torch_model.from_torch(problem.model, state, problem.params)
    problems.finish(args.out, seconds, params, ["flwr", "ray", "torch", "numpy"])


if __name__ == "__main__":
    main()
