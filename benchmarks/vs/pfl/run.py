"""FedAvg in pfl-research.

setting: ``processes`` (more than one: started by torchrun, gloo or nccl between them), ``threads`` of each, ``layout``
of the images. Users' data are tensors on the device and their batches are kept, as in its own benchmarks; users are
drawn by its sampler that minimises reuse; nothing is evaluated after the warm-up.
"""

from __future__ import annotations

import os
import time
from itertools import pairwise

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByUser
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNTrainHyperParams
from pfl.hyperparam.base import NNEvalHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel

from benchmarks.vs import problem as problems
from benchmarks.vs import torch_model


class Clock(TrainingProcessCallback):
    """Notes when each central iteration ends."""

    def __init__(self, device: str) -> None:
        self.ends: list[float] = []
        self.device = device

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())
        return False, Metrics()


def main() -> None:
    """Runs all rounds; the first process writes the result."""
    args = problems.arguments()
    torch.set_num_threads(args.setting.get("threads", 1))
    problem = problems.load(args.problem)
    net = torch_model.make(problem.model, problem.params, args.setting, args.device)
    net.metrics = lambda x, y, eval=False: {}
    model = PyTorchModel(net, torch.optim.SGD, torch.optim.SGD(net.parameters(), lr=1.0))

    clients, size = problem.y.shape
    x = torch_model.images(problem.x, args.setting, args.device).split(size)
    y = torch.from_numpy(problem.y).to(args.device)
    users = [Dataset((x[k], y[k]), user_id=str(k)) for k in range(clients)]
    data = FederatedDataset(lambda k: users[k], get_user_sampler("minimize_reuse", list(range(clients))))
    backend = SimulatedBackend(data, data, postprocessors=[WeightByUser()])

    rounds, clock = args.warmup + args.rounds, Clock(args.device)
    algorithm = NNAlgorithmParams(
        rounds, evaluation_frequency=2**30, train_cohort_size=problem.cohort, val_cohort_size=0
    )
    train = NNTrainHyperParams(
        local_batch_size=problem.batch, local_num_epochs=1, local_learning_rate=problem.lr, local_max_grad_norm=None
    )
    FederatedAveraging().run(
        algorithm, backend, model, train, NNEvalHyperParams(None), [clock], send_metrics_to_platform=False
    )
    if os.environ.get("RANK", "0") == "0":
        ends = clock.ends[args.warmup - 1 :]
        seconds = [b - a for a, b in pairwise(ends)]
        final = torch_model.from_torch(problem.model, net.state_dict(), problem.params)
        problems.finish(args.out, seconds, final, ["pfl", "torch", "numpy"])
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        os._exit(0)  # an orderly end aborts now and then, when gloo's threads lose their peer


if __name__ == "__main__":
    main()
