"""The workloads, on generated data: speed does not depend on what the pictures show."""

from __future__ import annotations

import dataclasses
from statistics import NormalDist
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fljax
from fljax import recipes
from fljax.core.transform import UpdateTransform, chain
from fljax.core.types import Hparams, Round
from fljax.data.federated import FederatedData
from fljax.dropout.fisher import fisher_dropout
from fljax.models import Loss, Model, char_lstm, cnn, mlp, model_flops, resnet, transformer
from fljax.models.precision import Precision, compute_in
from fljax.privacy.distributed import distributed_noise
from fljax.privacy.local import local_gaussian
from fljax.secure.fixedpoint import fixed_point, smallest_bits
from fljax.secure.graph import choose_graph
from fljax.secure.masks import Lanes, double_mask
from fljax.server.clients import Compact, Tiers, divide_among_tiers
from fljax.server.execute import auto_chunk
from fljax.server.sampler import Sampler


class Workload(NamedTuple):
    """What is trained. steps: SGD steps of one client in one round, None for one epoch; batch: examples a step."""

    name: str
    model: Model
    loss: Loss
    data: FederatedData
    cohort: int
    steps: int | None
    batch: int
    lr: float

    @property
    def examples_per_round(self) -> float:
        """Examples that are trained on in one round; their mean over cohorts where clients differ in size."""
        return self.cohort * (self.data.sizes.mean() if self.steps is None else self.steps * self.batch)

    @property
    def steps_per_round(self) -> int:
        """SGD steps of all clients of one round; their mean over cohorts where clients differ in size."""
        return round(self.cohort * self.client_steps.mean())

    @property
    def client_steps(self) -> np.ndarray:
        """[N] SGD steps of each client of the population in one round."""
        sizes = self.data.sizes
        return np.ceil(sizes / self.batch) if self.steps is None else np.full(len(sizes), self.steps)

    @property
    def chunk(self) -> int:
        """Clients per vmapped batch, as fljax chooses them for an experiment."""
        return auto_chunk(self.model.num_params(), self.cohort, self.client_steps)

    @property
    def flops_per_round(self) -> float:
        """Operations of the matrix products and convolutions of one round: three forward passes an example."""
        x = self.data.x
        return 3.0 * model_flops(self.model, x.shape[1:], input_dtype=x.dtype) * self.examples_per_round


def generated(clients: int, examples: int, shape: tuple[int, ...], classes: int) -> FederatedData:
    """Clients of one size; pictures are standard normal, labels uniform."""
    return ragged(np.full(clients, examples), shape, classes)


def ragged(sizes: np.ndarray, shape: tuple[int, ...], classes: int) -> FederatedData:
    """Clients of these sizes."""
    rng, total = np.random.default_rng(0), int(sizes.sum())
    x = rng.standard_normal((total, *shape), np.float32)
    y = rng.integers(classes, size=total)
    return FederatedData.from_indices(x, y, (np.arange(total), np.concatenate([[0], np.cumsum(sizes)])))


def cohort_cnn(clients: int = 1000, cohort: int = 50) -> Workload:
    """1,000 clients x 50 images 28x28x1; conv3x3x32 - conv3x3x64 - pool - dense128 - dense10; batch 10, 1 epoch."""
    model, loss = cnn((28, 28, 1), 10), fljax.make_loss("classification")
    return Workload("cohort_cnn", model, loss, generated(clients, 50, (28, 28, 1), 10), cohort, 5, 10, 0.1)


def tiny_mlp(clients: int = 100, cohort: int = 20) -> Workload:
    """100 clients x 100 examples; MLP 64-64-10; 10 steps of batch 10."""
    model, loss = mlp((64,), 10, hidden=(64,)), fljax.make_loss("classification")
    return Workload("tiny_mlp", model, loss, generated(clients, 100, (64,), 10), cohort, 10, 10, 0.1)


def emnist_natural(clients: int = 340, cohort: int = 10) -> Workload:
    """Clients as in federated EMNIST-62: 198 examples each in the mean and 418 at most; the CNN with 62 outputs, batch
    20, 1 epoch. The true population is 3,400; a tenth of it is as fast and fits small machines."""
    model, loss = cnn((28, 28, 1), 62), fljax.make_loss("classification")
    return Workload(
        "emnist_natural", model, loss, ragged(emnist_sizes(clients), (28, 28, 1), 62), cohort, None, 20, 0.1
    )


def emnist_sizes(clients: int) -> np.ndarray:
    """Sizes with the published mean (198) and maximum (418): a beta law between 10 and 418, at its quantiles."""
    draws = np.sort(np.random.default_rng(0).beta(2.5, 2.925, size=200_000))
    sizes = np.round(10 + 408 * draws[np.linspace(0, len(draws) - 1, clients).astype(int)]).astype(int)
    sizes[-1] = 418
    return np.random.default_rng(1).permutation(sizes)


def resnet18_cifar(clients: int = 20, cohort: int = 4) -> Workload:
    """ResNet-18 with group norm, 11.2 M parameters; clients x 20 images 32x32x3, batch 10, 1 epoch."""
    model, loss = resnet((32, 32, 3), 10), fljax.make_loss("classification")
    return Workload("resnet18_cifar", model, loss, generated(clients, 20, (32, 32, 3), 10), cohort, 2, 10, 0.1)


def resnet8_cifar(clients: int = 40, cohort: int = 10) -> Workload:
    """ResNet-8 with group norm, 78,000 parameters: one block a stage of 16, 32, 64 channels; as ``resnet18_cifar``."""
    model, loss = resnet((32, 32, 3), 10, (16, 32, 64), 1), fljax.make_loss("classification")
    return Workload("resnet8_cifar", model, loss, generated(clients, 20, (32, 32, 3), 10), cohort, 2, 10, 0.1)


LETTERS, LENGTH = 98, 80


def char_lstm_text(clients: int = 40, cohort: int = 10) -> Workload:
    """The next-character LSTM of LEAF, 0.8 M parameters: 20 sequences of 80 characters a client, batch 10, 1 epoch."""
    model, loss = char_lstm((LENGTH,), LETTERS), fljax.make_loss("next_char")
    return Workload("char_lstm_text", model, loss, sequences(clients, 20), cohort, 2, 10, 0.1)


def transformer_text(clients: int = 40, cohort: int = 10) -> Workload:
    """A transformer of two layers, width 64, 0.1 M parameters; text as in ``char_lstm_text``."""
    model, loss = transformer((LENGTH,), LETTERS), fljax.make_loss("next_char")
    return Workload("transformer_text", model, loss, sequences(clients, 20), cohort, 2, 10, 0.1)


def sequences(clients: int, examples: int) -> FederatedData:
    """Clients with so many sequences of uniform characters (0 is padding); targets are the inputs one place on."""
    count = clients * examples
    drawn = np.random.default_rng(0).integers(1, LETTERS, size=(count, LENGTH + 1)).astype(np.int32)
    offsets = np.arange(clients + 1) * examples
    return FederatedData.from_indices(drawn[:, :-1], drawn[:, 1:], (np.arange(count), offsets))


def cifar_cnn(clients: int = 1000, cohort: int = 50) -> Workload:
    """The CIFAR-10 benchmark of pfl-research: clients x 50 images 32x32x3, CNN of 1.6 M parameters with drop-out
    layers, batch 10, 1 epoch."""
    model, loss = cnn((32, 32, 3), 10, dropout=True), fljax.make_loss("classification")
    return Workload("cifar_cnn", model, loss, generated(clients, 50, (32, 32, 3), 10), cohort, 5, 10, 0.1)


def long_tailed_cnn(clients: int = 50, cohort: int = 50) -> Workload:
    """The CNN of ``cohort_cnn``; all clients in every round, their sizes lognormal, the largest 100 times the least."""
    model, loss = cnn((28, 28, 1), 10), fljax.make_loss("classification")
    data = ragged(long_tailed_sizes(clients), (28, 28, 1), 10)
    return Workload("long_tailed_cnn", model, loss, data, cohort, None, 10, 0.1)


def long_tailed_mlp(clients: int = 50, cohort: int = 50) -> Workload:
    """The MLP of ``tiny_mlp``; clients as in ``long_tailed_cnn``."""
    model, loss = mlp((64,), 10, hidden=(64,)), fljax.make_loss("classification")
    return Workload(
        "long_tailed_mlp", model, loss, ragged(long_tailed_sizes(clients), (64,), 10), cohort, None, 10, 0.1
    )


def long_tailed_sizes(clients: int, least: int = 5, ratio: float = 100.0, batch: int = 10) -> np.ndarray:
    """The quantiles of a lognormal law, stretched so that the largest is ``ratio`` times the least.

    One client in the middle is a little larger than that, so that the mean is a whole number of batches.
    """
    normal = np.array([NormalDist().inv_cdf((k + 0.5) / clients) for k in range(clients)])
    shape = (normal - normal[0]) / (normal[-1] - normal[0])
    sizes = np.round(least * ratio**shape).astype(int)
    sizes[clients // 2] += -sizes.sum() % (clients * batch)
    return np.random.default_rng(0).permutation(sizes)


def equal_twin(work: Workload) -> Workload:
    """The workload with the same examples, dealt out evenly: what a ragged cohort is compared with."""
    sizes = work.data.sizes
    data = ragged(np.full(len(sizes), round(sizes.mean())), work.data.x.shape[1:], 10)
    return work._replace(name=f"{work.name}, equal clients", data=data)


WORKLOADS = {
    "cohort_cnn": cohort_cnn,
    "tiny_mlp": tiny_mlp,
    "emnist_natural": emnist_natural,
    "resnet18_cifar": resnet18_cifar,
    "resnet8_cifar": resnet8_cifar,
    "char_lstm_text": char_lstm_text,
    "transformer_text": transformer_text,
    "cifar_cnn": cifar_cnn,
    "long_tailed_cnn": long_tailed_cnn,
    "long_tailed_mlp": long_tailed_mlp,
}


PRIVACY = ("none", "central", "adaptive", "local", "discrete_gaussian", "skellam")
"""Who clips and noises: nobody, the server (fixed or adaptive clip), every client, or every client a share."""


SECURE = ("none", "clear", "ideal", "threefry", "counter")
"""How uploads are written: as floats; as words in clear; under a secure sum without its pads, or with pads by one of
two functions (not beside privacy)."""


class Variant(NamedTuple):
    """What is done beside FedAvg. privacy: one of ``PRIVACY``. keep: keep rate of dropout of neurons, None for none.
    execution: ``masked`` or ``compact``. tiers: relative keep rates of the classes of devices. secure: one of
    ``SECURE``. precision: in which clients compute; parameters, clip and noise stay in float32."""

    privacy: str = "none"
    keep: float | None = None
    execution: str = "masked"
    tiers: tuple[float, ...] = (1.0,)
    secure: str = "none"
    precision: Precision = "float32"


def make_round(work: Workload, variant: Variant, perf: fljax.PerfFlags) -> tuple[Round, Hparams]:
    """FedAvg (unweighted) on a fixed-size cohort with what the variant adds, and its numbers."""
    perf = perf._replace(chunk=work.chunk) if perf.chunk is None else perf
    epochs = 1 if work.steps is None else None
    model = compute_in(work.model, variant.precision)
    training = fljax.Training(model, work.loss, epochs=epochs, steps=work.steps, batch_size=work.batch)
    sampler = fljax.fixed_size(work.data.population, work.cohort)
    private = variant.privacy != "none"
    keep = 1.0 if variant.keep is None else variant.keep
    numbers = Hparams(client_lr=work.lr, keep_rate=keep, refresh_rounds=10, integer_step=1e-2)
    if private:
        numbers = dataclasses.replace(numbers, clip=1.0, noise_multiplier=1.0)
    transform = _private(work, variant.privacy, sampler) if private else recipes.realised_average("uniform")
    if variant.secure != "none":
        numbers, transform = dataclasses.replace(numbers, extra={"value_range": 1.0}), _secure(work, variant.secure)
    parts: dict = {"transform": transform, "perf": perf}
    if variant.keep is not None:
        parts["submodel"] = fisher_dropout(work.model.groups)
        if len(variant.tiers) > 1:
            shares = (1 / len(variant.tiers),) * len(variant.tiers)
            parts["tiers"] = Tiers(variant.tiers, divide_among_tiers(work.data.population, shares))
        parts["compact"] = Compact(keep) if variant.execution == "compact" else None
    return fljax.recipes.fedavg(training, sampler, **parts), numbers.arrays()


def _secure(work: Workload, kind: str) -> UpdateTransform:
    """Words of 16-bit values, and SecAgg+ for a cohort of which one client in twenty may be corrupt or drop out."""
    size = work.model.num_params()
    stages = [recipes.realised_average("present"), fixed_point(16, work.cohort, size)]
    if kind != "clear":
        prf, mode = ("threefry", "ideal") if kind == "ideal" else (kind, "masked")
        lanes = Lanes(size, smallest_bits(16, work.cohort), prf, mode)
        stages.append(double_mask(lanes, choose_graph(work.cohort)))
    return chain(*stages)


def _private(work: Workload, privacy: str, sampler: Sampler) -> UpdateTransform:
    if privacy in ("central", "adaptive"):
        return recipes.private_average("adaptive" if privacy == "adaptive" else "flat")
    if privacy == "local":
        return recipes.private_average(noise=local_gaussian())
    size = work.model.num_params()
    return recipes.private_average(noise=distributed_noise(privacy, size, sampler, None, 24))


def central(work: Workload, precision: Precision = "float32"):
    """The same number of SGD steps of the same batch, one after another by one model: the lower bound of a round."""
    model = compute_in(work.model, precision)

    def train(params, x, y):
        def step(params, batch):
            def mean_loss(p):
                return jnp.mean(work.loss.per_example(model.apply(p, batch[0]), batch[1]))

            grads = jax.grad(mean_loss)(params)
            return jax.tree.map(lambda p, g: p - work.lr * g, params, grads), None

        return jax.lax.scan(step, params, (x, y))[0]

    return train
