"""The workloads, on generated data: speed does not depend on what the pictures show."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import numpy as np

import fljax
from fljax import recipes
from fljax.core.transform import UpdateTransform
from fljax.core.types import Hparams, Round
from fljax.data.federated import FederatedData
from fljax.dropout.fisher import fisher_dropout
from fljax.models import Loss, Model, cnn, mlp
from fljax.privacy.distributed import distributed_noise
from fljax.privacy.local import local_gaussian
from fljax.server.clients import Compact, Tiers, divide_among_tiers
from fljax.server.sampler import Sampler


class Workload(NamedTuple):
    """What is trained. steps: SGD steps of one client in one round; batch: examples a step."""

    name: str
    model: Model
    loss: Loss
    data: FederatedData
    cohort: int
    steps: int
    batch: int
    lr: float

    @property
    def examples_per_round(self) -> int:
        """Examples that are trained on in one round."""
        return self.cohort * self.steps * self.batch


def generated(clients: int, examples: int, shape: tuple[int, ...], classes: int) -> FederatedData:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(clients * examples, *shape)).astype(np.float32)
    y = rng.integers(classes, size=clients * examples)
    return FederatedData.from_indices(x, y, (np.arange(len(x)), np.arange(clients + 1) * examples))


def cohort_cnn(clients: int = 1000, cohort: int = 50) -> Workload:
    """1,000 clients x 50 images 28x28x1; conv3x3x32 - conv3x3x64 - pool - dense128 - dense10; batch 10, 1 epoch."""
    model, loss = cnn((28, 28, 1), 10), fljax.make_loss("classification")
    return Workload("cohort_cnn", model, loss, generated(clients, 50, (28, 28, 1), 10), cohort, 5, 10, 0.1)


def tiny_mlp(clients: int = 100, cohort: int = 20) -> Workload:
    """100 clients x 100 examples; MLP 64-64-10; 10 steps of batch 10."""
    model, loss = mlp((64,), 10, hidden=(64,)), fljax.make_loss("classification")
    return Workload("tiny_mlp", model, loss, generated(clients, 100, (64,), 10), cohort, 10, 10, 0.1)


WORKLOADS = {"cohort_cnn": cohort_cnn, "tiny_mlp": tiny_mlp}


PRIVACY = ("none", "central", "adaptive", "local", "discrete_gaussian", "skellam")
"""Who clips and noises: nobody, the server (fixed or adaptive clip), every client, or every client a share."""


class Variant(NamedTuple):
    """What is done beside FedAvg. privacy: one of ``PRIVACY``. keep: keep rate of dropout of neurons, None for none.
    execution: ``masked`` or ``compact``. tiers: relative keep rates of the classes of devices."""

    privacy: str = "none"
    keep: float | None = None
    execution: str = "masked"
    tiers: tuple[float, ...] = (1.0,)


def make_round(work: Workload, variant: Variant, perf: fljax.PerfFlags) -> tuple[Round, Hparams]:
    """FedAvg (unweighted) on a fixed-size cohort with what the variant adds, and its numbers."""
    training = fljax.Training(work.model, work.loss, epochs=None, steps=work.steps, batch_size=work.batch)
    sampler = fljax.fixed_size(work.data.population, work.cohort)
    private = variant.privacy != "none"
    keep = 1.0 if variant.keep is None else variant.keep
    numbers = Hparams(client_lr=work.lr, keep_rate=keep, refresh_rounds=10, integer_step=1e-2)
    if private:
        numbers = dataclasses.replace(numbers, clip=1.0, noise_multiplier=1.0)
    transform = _private(work, variant.privacy, sampler) if private else recipes.realised_average("uniform")
    parts: dict = {"transform": transform, "perf": perf}
    if variant.keep is not None:
        parts["submodel"] = fisher_dropout(work.model.groups)
        if len(variant.tiers) > 1:
            shares = (1 / len(variant.tiers),) * len(variant.tiers)
            parts["tiers"] = Tiers(variant.tiers, divide_among_tiers(work.data.population, shares))
        parts["compact"] = Compact(keep) if variant.execution == "compact" else None
    return fljax.recipes.fedavg(training, sampler, **parts), numbers.arrays()


def _private(work: Workload, privacy: str, sampler: Sampler) -> UpdateTransform:
    if privacy in ("central", "adaptive"):
        return recipes.private_average("adaptive" if privacy == "adaptive" else "flat")
    if privacy == "local":
        return recipes.private_average(noise=local_gaussian())
    size = work.model.num_params()
    return recipes.private_average(noise=distributed_noise(privacy, size, sampler, None, 24))


def central(work: Workload):
    """The same number of SGD steps of the same batch, one after another by one model: the lower bound of a round."""
    import jax.numpy as jnp

    def train(params, x, y):
        def step(params, batch):
            def mean_loss(p):
                return jnp.mean(work.loss.per_example(work.model.apply(p, batch[0]), batch[1]))

            grads = jax.grad(mean_loss)(params)
            return jax.tree.map(lambda p, g: p - work.lr * g, params, grads), None

        return jax.lax.scan(step, params, (x, y))[0]

    return train
