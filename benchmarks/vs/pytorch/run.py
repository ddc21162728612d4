"""FedAvg as a loop over clients in plain PyTorch: what a researcher writes without any simulator.

setting: ``processes`` that share the clients of a round, ``threads`` of each, ``layout`` of the images.
The processes live as long as the run; parameters and sums of changes lie in shared memory.
"""

from __future__ import annotations

import time

import numpy as np
import torch
import torch.multiprocessing as mp

from benchmarks.vs import problem as problems
from benchmarks.vs import torch_model


class Clients:
    """Trains clients one after another and adds up their changes."""

    def __init__(self, problem: problems.Problem, setting: dict, device: str) -> None:
        self.problem, self.device = problem, device
        self.net = torch_model.make(problem.model, problem.params, setting, device)
        self.x = torch_model.images(problem.x, setting, device)
        self.y = torch.from_numpy(problem.y.reshape(-1)).to(device)
        self.params = list(self.net.parameters())

    def train(self, ids: np.ndarray, start: list[torch.Tensor], total: list[torch.Tensor]) -> None:
        """Adds the changes of these clients to total, each beginning at start."""
        size, batch, lr = self.problem.x.shape[1], self.problem.batch, self.problem.lr
        for client in ids:
            with torch.no_grad():
                torch._foreach_copy_(self.params, start)
            order = client * size + torch.randperm(size, device=self.device)
            x, y = self.x[order], self.y[order]
            for i in range(0, size, batch):
                grads = torch.autograd.grad(self.net.loss(x[i : i + batch], y[i : i + batch]), self.params)
                with torch.no_grad():
                    torch._foreach_add_(self.params, grads, alpha=-lr)
            with torch.no_grad():
                torch._foreach_add_(total, self.params)
                torch._foreach_sub_(total, start)


def work(rank: int, args, start, totals, seconds, barrier) -> None:
    """One process: its share of the clients of every round; the first one is the server too."""
    torch.set_num_threads(args.setting.get("threads", 1))
    torch.manual_seed(rank)
    problem, processes = problems.load(args.problem), len(totals)
    clients, own = Clients(problem, args.setting, args.device), totals[rank]
    rng = np.random.default_rng(0)  # the same cohorts in every process
    for t in range(args.warmup + args.rounds):
        barrier.wait()
        begin = time.perf_counter()
        ids = rng.permutation(len(problem.x))[: problem.cohort]
        with torch.no_grad():
            torch._foreach_zero_(own)
        clients.train(ids[rank::processes], start, own)
        barrier.wait()
        if rank == 0:
            with torch.no_grad():
                for other in totals[1:]:
                    torch._foreach_add_(own, other)
                torch._foreach_add_(start, own, alpha=1 / problem.cohort)
            if args.device == "cuda":
                torch.cuda.synchronize()
            seconds[t] = time.perf_counter() - begin


def main() -> None:
    """Runs all rounds and writes the result."""
    args = problems.arguments()
    problem, processes = problems.load(args.problem), args.setting.get("processes", 1)
    net = torch_model.make(problem.model, problem.params, args.setting, args.device)
    start = [p.detach() for p in net.parameters()]
    totals = [[torch.zeros_like(p) for p in start] for _ in range(processes)]
    seconds = torch.zeros(args.warmup + args.rounds, dtype=torch.float64)
    barrier = mp.get_context("spawn").Barrier(processes)
    if processes == 1:
        work(0, args, start, totals, seconds, barrier)
    else:
        for tensor in [*start, seconds, *(t for total in totals for t in total)]:
            tensor.share_memory_()
        mp.spawn(work, (args, start, totals, seconds, barrier), nprocs=processes)
    final = torch_model.from_torch(problem.model, net.state_dict(), problem.params)
    problems.finish(args.out, seconds[args.warmup :].tolist(), final, ["torch", "numpy"])


if __name__ == "__main__":
    main()
