"""Sections of what is learnt, by whom and how: data, model, client, server, sampler."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fljax.sections.base import Section, Traced


class DataConfig(Section):
    """Which data, and how they are divided among clients."""

    name: str = "digits"
    """data set; `fljax list` shows all"""
    dir: str | None = None
    """folder with the original files (default: the environment variable FLJAX_DATA)"""
    clients: int | None = Field(None, ge=1)
    """number of clients to divide the training data among (not for natural clients)"""
    partition: Literal["iid", "dirichlet", "shards", "quantity_skew", "feature_shift", "natural"] | None = None
    """how the training data is divided (default: natural clients where the data has them, else iid)"""
    alpha: float = Field(0.5, gt=0)
    """concentration of the Dirichlet partition"""
    shards_per_client: int = Field(2, ge=1)
    """label shards a client gets under partition = "shards" """
    skew: float = Field(1.0, ge=0)
    """spread of the client sizes under partition = "quantity_skew" """
    shift: float = Field(0.5, ge=0)
    """size of the feature shift under partition = "feature_shift" """
    noise: float = Field(0.0, ge=0)
    """feature noise under partition = "feature_shift" """
    examples_per_client: int | None = Field(None, ge=1)
    """keep at most so many examples of each client"""
    streamed: bool = False
    """the training examples stay on the host (in memory-mapped files for `npy`), and those of each cohort travel"""
    seed: int = Field(0, ge=0)
    """seed of the partition; training seeds never change it"""
    unseen_clients: int = Field(0, ge=0)
    """clients that never train and serve as held-back evaluation"""
    client_test_fraction: float = Field(0.0, ge=0, lt=1)
    """share of each client's own examples held out for per-client evaluation"""
    options: dict[str, float | int | str | bool] = Field({})
    """arguments of the data set's loader"""


class ModelConfig(Section):
    """What is trained; fields that a model does not have are left out."""

    name: str = "mlp"
    """model; `fljax list` shows all"""
    hidden: tuple[int, ...] | int | None = None
    """hidden units of the dense layers"""
    channels: tuple[int, ...] | None = None
    """channels of the convolutions"""
    dropout: bool | None = None
    """drop-out layers while training, where the model has them"""
    embedding: int | None = Field(None, ge=1)
    """dimensions of the embedding"""
    width: int | None = Field(None, ge=1)
    """width of a transformer's residual stream"""
    heads: int | None = Field(None, ge=1)
    """attention heads"""
    layers: int | None = Field(None, ge=1)
    """layers of a transformer"""
    blocks: int | None = Field(None, ge=1)
    """residual blocks of each stage"""
    group_size: int | None = Field(None, ge=1)
    """channels of a norm group"""


class ClientConfig(Section):
    """How one client trains."""

    algorithm: Literal["fedavg", "fedsgd", "fedprox", "scaffold", "ditto"] = "fedavg"
    """local algorithm"""
    optimizer: Literal["sgd", "adam", "adamw", "adagrad", "rmsprop"] = "sgd"
    """local optimiser, reset every round"""
    lr: Annotated[float, Traced("client_lr")] = Field(0.1, gt=0, allow_inf_nan=False)
    """local learning rate"""
    lr_decay: Annotated[float, Traced("client_lr_decay")] = Field(1.0, gt=0, le=1)
    """factor on the local learning rate per round"""
    momentum: float = Field(0.0, ge=0, lt=1)
    """momentum of local SGD"""
    weight_decay: float = Field(0.0, ge=0)
    """weight decay of the local optimiser"""
    epochs: int | None = Field(None, ge=1)
    """local epochs a round (this or steps)"""
    steps: int | None = Field(None, ge=1)
    """local steps a round (this or epochs; neither: one epoch)"""
    batch_size: int | None = Field(None, ge=1)
    """examples a step (default: all of the client's)"""
    proximal: Annotated[float, Traced("proximal")] = Field(0.0, ge=0)
    """weight mu of the proximal term of fedprox and ditto"""
    precision: Literal["float32", "bfloat16"] = "float32"
    """format of the products in local training; parameters, clip and noise stay in float32"""
    present_classes: bool = False
    """hold the logits of classes that a client has no example of at 0 while it trains"""
    shared: tuple[str, ...] | None = None
    """parameter paths that are shared (default: all); the others stay private with each client"""

    @model_validator(mode="after")
    def _one_length(self) -> ClientConfig:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("epochs and steps exclude each other; leave one of them out")
        if self.shared is not None and self.algorithm != "fedavg":
            raise ValueError(f'shared works with algorithm = "fedavg", not "{self.algorithm}"; leave one of them out')
        return self


class ServerConfig(Section):
    """How the server averages and steps."""

    optimizer: Literal["sgd", "adam", "yogi", "adagrad"] = "sgd"
    """server optimiser"""
    lr: Annotated[float, Traced("server_lr")] = Field(1.0, gt=0, allow_inf_nan=False)
    """server learning rate"""
    lr_decay: Annotated[float, Traced("server_lr_decay")] = Field(1.0, gt=0, le=1)
    """factor on the server learning rate per round"""
    lr_warmup: Annotated[float, Traced("lr_warmup")] = Field(0.0, ge=0)
    """rounds of linear warm-up of both learning rates"""
    momentum: Annotated[float, Traced("server_momentum")] = Field(0.0, ge=0, lt=1)
    """momentum of SGD, first-moment decay of Adam and Yogi"""
    weights: Literal["uniform", "examples"] = "uniform"
    """whose update counts how much"""
    denominator: Literal["expected", "realised", "count", "floored", "inverse"] = "expected"
    """divide by the public expected cohort, or by the weights that arrived (not for private training); where clients
    keep different neurons, each coordinate by the clients that came and hold it (count: not under a server's noise), by
    their expected number but at least least_holders (floored), or by their expected number (inverse)"""
    least_holders: float = Field(1.0, gt=0)
    """denominator = "floored": divide by so many clients at least"""
    weight_cap: float | None = Field(None, gt=0)
    """examples from which on a client counts fully: private weights are min(n / weight_cap, 1)"""
    total_weight: float | None = Field(None, gt=0)
    """sum of the private weights over all clients: a public constant, not computed from the data"""

    @model_validator(mode="after")
    def _public_weights(self) -> ServerConfig:
        public = self.weights == "examples" and self.denominator == "expected"
        if public != (self.weight_cap is not None and self.total_weight is not None):
            raise ValueError(
                'weights = "examples" with denominator = "expected" needs weight_cap and total_weight, and they need it'
            )
        return self


class SamplerConfig(Section):
    """Who takes part in a round."""

    kind: Literal["poisson", "fixed_size", "full", "cyclic", "cyclic_poisson"] = "poisson"
    """how a round's clients are drawn"""
    rate: Annotated[float, Traced("sampling_rate")] = Field(0.1, gt=0, le=1)
    """q, the probability of taking part in a round (poisson), or in the own group's rounds (cyclic_poisson)"""
    cohort: int | None = Field(None, ge=1)
    """clients a round (fixed_size, cyclic)"""
    availability: Annotated[float, Traced("availability")] = Field(1.0, gt=0, le=1)
    """probability that a sampled client answers"""

    @model_validator(mode="after")
    def _needs_cohort(self) -> SamplerConfig:
        if self.kind in ("fixed_size", "cyclic") and self.cohort is None:
            raise ValueError(f'kind = "{self.kind}" needs cohort, the number of clients a round')
        return self
