"""The sections of an experiment: one frozen model each. What is traced is marked here and nowhere else."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


class Traced(NamedTuple):
    """Marks a field as traced, and names the number of ``Hparams`` that it becomes."""

    name: str


class Section(BaseModel):
    """Frozen, and without unknown keys; the texts under the fields are their help."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


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
    options: dict[str, float | int | str | bool] = {}
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


PURE = ("local_laplace", "local_duchi", "local_krr", "local_privunit")
"""Mechanisms with a pure epsilon for each upload, which ``upload_epsilon`` gives."""


class PrivacyConfig(Section):
    """What is clipped and noised, given as noise or as a target epsilon."""

    mechanism: Literal[
        "none",
        "central_gaussian",
        "central_tree",
        "central_banded",
        "local_gaussian",
        "local_laplace",
        "local_duchi",
        "local_krr",
        "local_privunit",
        "distributed_discrete_gaussian",
        "distributed_skellam",
        "record_gaussian",
    ] = "none"
    """who adds which noise: the server to the sum (central), every client to its upload (local), every client a share
    that a secure sum adds up (distributed), or every client to its training steps, per example (record)"""
    epsilon: float | None = Field(None, gt=0)
    """target epsilon, from which the noise is calibrated (inf: no noise)"""
    noise_multiplier: Annotated[float | None, Traced("noise_multiplier")] = Field(None, ge=0, allow_inf_nan=False)
    """noise std / sensitivity, instead of a target epsilon"""
    upload_epsilon: Annotated[float | None, Traced("upload_epsilon")] = Field(None, gt=0, allow_inf_nan=False)
    """local_laplace, local_duchi, local_krr, local_privunit: epsilon of one upload, instead of a target for all"""
    budget: float | None = Field(None, gt=0, allow_inf_nan=False)
    """with noise_multiplier: stop before the round that would spend more than this epsilon"""
    clip: Annotated[float, Traced("clip")] = Field(math.inf, gt=0)
    """L2 norm to which a client's update is clipped (inf: not clipped); where adaptive clipping starts"""
    clipping: Literal["flat", "per_layer", "adaptive"] = "flat"
    """one norm over all layers; one per layer with the same joint bound; or a norm that follows a private quantile"""
    clip_quantile: Annotated[float, Traced("clip_quantile")] = Field(0.5, gt=0, lt=1)
    """quantile of the clients' norms that adaptive clipping aims at"""
    clip_rate: Annotated[float, Traced("clip_rate")] = Field(0.2, ge=0)
    """learning rate of adaptive clipping"""
    clip_bit_noise: Annotated[float, Traced("clip_bit_noise")] = Field(0.0, ge=0, allow_inf_nan=False)
    """noise std on adaptive clipping's count (0: a twentieth of the expected cohort)"""
    delta: float | None = Field(None, gt=0, lt=1)
    """delta (default: N^-1.1, which is said)"""
    bands: int = Field(1, ge=1)
    """central_banded: bands of the strategy; a client comes again after at least so many rounds, and cyclic_poisson
    divides the clients into so many groups, which take turns"""
    bits: int = Field(16, ge=2, le=31)
    """distributed: bits of one value; sums wrap around at 2^bits"""
    integer_step: Annotated[float, Traced("integer_step")] = Field(1e-3, gt=0, le=1)
    """distributed: size of one integer step, relative to the clip"""
    min_survivors: int | None = Field(None, ge=1)
    """distributed: clients that answer at the least (default: the cohort); with fewer the round is aborted"""
    levels: int = Field(2, ge=2)
    """local_krr: levels to which a value is rounded before it is randomised"""
    noise_scale: Annotated[float, Traced("noise_scale")] = Field(1.0, gt=0, le=1)
    """central_gaussian: C/C' where the cohort of C stands for one of C'; epsilon is then that of N C'/C clients"""

    @model_validator(mode="after")
    def _consistent(self) -> PrivacyConfig:
        if self.epsilon is not None and self.noise_multiplier is not None:
            raise ValueError("epsilon and noise_multiplier exclude each other: one determines the other")
        if self.upload_epsilon is not None and self.mechanism not in PURE:
            raise ValueError(f"upload_epsilon needs a mechanism with a pure epsilon: {', '.join(PURE)}")
        if self.upload_epsilon is not None and (self.epsilon or self.noise_multiplier) is not None:
            raise ValueError("upload_epsilon excludes epsilon and noise_multiplier: one determines the others")
        if self.mechanism in PURE and self.noise_multiplier is not None:
            raise ValueError(f'mechanism = "{self.mechanism}" takes upload_epsilon or epsilon, not noise_multiplier')
        if self.noise_scale != 1 and self.mechanism != "central_gaussian":
            raise ValueError('noise_scale needs mechanism = "central_gaussian"')
        if self.clipping != "flat" and not self.mechanism.startswith(("central", "none")):
            raise ValueError('clipping needs a central mechanism; set clipping = "flat"')
        if self.clipping == "adaptive" and self.mechanism not in ("central_gaussian", "none"):
            raise ValueError('clipping = "adaptive" needs mechanism = "central_gaussian"')
        if self.budget is not None and not self.noise_multiplier:
            raise ValueError("budget needs noise_multiplier > 0: a target epsilon is met by calibrated noise instead")
        noisy = (self.epsilon or math.inf) < math.inf or (self.noise_multiplier or self.upload_epsilon or 0) > 0
        if self.mechanism == "none" and (noisy or self.clip < math.inf):
            raise ValueError('mechanism = "none" has no clip and no noise; set mechanism = "central_gaussian"')
        if self.mechanism.startswith("distributed") and self.clip == math.inf:
            raise ValueError("distributed mechanisms need clip: the size of one integer step is relative to it")
        if noisy and self.clip == math.inf:
            raise ValueError("noise needs a finite clip, to which it is scaled; set clip")
        return self


class DropoutConfig(Section):
    """Which neurons the clients train and send."""

    source: Literal[
        "none",
        "fisher",
        "random",
        "random_per_client",
        "ordered",
        "rolling",
        "magnitude",
        "public",
        "paid",
        "self_released",
        "exact",
    ] = "none"
    """what neurons are chosen by: energy of the released updates (fisher), nothing (random for all, random for each
    client, ordered, rolling), the size of the released weights, Fisher information on public inputs, a noised query, a
    client's own noised uploads, or a client's private data (exact: no epsilon but with support = "dense")"""
    support: Literal["mask", "dense"] = "mask"
    """source = "exact": noise on the kept coordinates, or on all of them"""
    query_share: Annotated[float, Traced("query_share")] = Field(0.1, gt=0, lt=1)
    """source = "paid": share of the privacy budget that the query takes"""
    public_examples: int = Field(64, ge=1)
    """source = "public": inputs of clients that never train (data.unseen_clients), else uniform random ones"""
    keep_rate: Annotated[float, Traced("keep_rate")] = Field(1.0, gt=0, le=1)
    """share of each layer's neurons that clients train and send"""
    forward: Literal["submodel", "upload_only"] = "submodel"
    """train the kept neurons only, or train all and send the kept"""
    explore: Annotated[float, Traced("explore")] = Field(0.0, ge=0, le=1)
    """share of neurons that get a random rank when masks are chosen"""
    decay: Annotated[float, Traced("mask_decay")] = Field(0.9, ge=0, lt=1)
    """decay of the moving average of the scores"""
    warmup_rounds: Annotated[int, Traced("warmup_rounds")] = Field(0, ge=0)
    """dense rounds before the first mask"""
    refresh_rounds: Annotated[int, Traced("refresh_rounds")] = Field(0, ge=0)
    """rounds between two choices (0: choose once, after the warm-up)"""
    hysteresis: Annotated[float, Traced("hysteresis")] = Field(0.0, ge=0)
    """bonus of neurons that are kept already, in standard deviations of the scores"""
    auto_keep: Annotated[float, Traced("auto_keep")] = Field(0.0, ge=0)
    """source = "fisher": keep only neurons with more than this many times the energy of the noise (0: by rate alone)"""
    rescale: bool = False
    """make kept neurons 1/keep_rate times as active while a client trains, as HeteroFL does"""
    tiers: tuple[float, ...] | Literal["resources"] = (1.0,)
    """keep rates of classes of devices, relative to keep_rate; the largest is 1; "resources": so that the classes of
    devices finish together"""
    tier_shares: tuple[float, ...] | None = None
    """share of the clients in every class (default: equal shares)"""

    @model_validator(mode="after")
    def _has_source(self) -> DropoutConfig:
        if self.source == "none" and (self.keep_rate < 1 or self.tiers != (1.0,)):
            raise ValueError('keep_rate < 1 or tiers needs a source, such as "fisher" or "random"')
        if isinstance(self.tiers, str):
            if self.tier_shares is not None:
                raise ValueError('tiers = "resources" takes the shares of the devices; set devices.shares')
        elif not self.tiers or max(self.tiers) != 1.0 or min(self.tiers) <= 0:
            raise ValueError(f"tiers={self.tiers} must lie in (0, 1], the largest at 1; divide all by the largest")
        shares = self.tier_shares
        if shares is not None and (len(shares) != len(self.tiers) or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6):
            raise ValueError(f"tier_shares={shares} must be {len(self.tiers)} positive shares that sum to 1")
        if self.support == "dense" and self.source != "exact":
            raise ValueError('support = "dense" is for source = "exact"; other masks are public or paid for')
        if self.auto_keep > 0 and self.source != "fisher":
            raise ValueError('auto_keep needs source = "fisher", whose scores are energies')
        return self


def _listed(value: Any) -> Any:
    """One number stands for a list of one."""
    return (value,) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


_Numbers = Annotated[tuple[Annotated[float, Field(gt=0)], ...], BeforeValidator(_listed)]


class DevicesConfig(Section):
    """Classes of devices, for which the time of a round is simulated; where they are not given it is not."""

    uplink: _Numbers = ()
    """Mbit/s at which a client of each class sends"""
    downlink: _Numbers = ()
    """Mbit/s at which a client of each class receives"""
    compute: _Numbers = ()
    """GFLOP/s at which a client of each class trains"""
    shares: _Numbers | None = None
    """share of the clients in every class (default: dropout.tier_shares, else equal shares)"""

    @model_validator(mode="after")
    def _one_number_a_class(self) -> DevicesConfig:
        count = len(self.uplink)
        if len(self.downlink) != count or len(self.compute) != count:
            raise ValueError("uplink, downlink and compute need one number for each class of devices; give all three")
        if self.shares is not None and (len(self.shares) != count or abs(sum(self.shares) - 1) > 1e-6):
            raise ValueError(f"shares={self.shares} must be {count} shares that sum to 1, one for each class")
        return self


class CompressConfig(Section):
    """How clients shorten what they send."""

    sparsify: Literal["none", "topk", "randk"] = "none"
    """values a client sends: all; those of largest magnitude; or those at random positions, the same for all clients
    of a round, rescaled unless there is error_feedback"""
    keep: Annotated[float, Traced("compress_rate")] = Field(1.0, gt=0, le=1)
    """share of the values that are sent"""
    error_feedback: bool = False
    """a client adds what was not sent to its next update"""
    quantise: Literal["none", "stochastic", "sign"] = "none"
    """how a value is written: as a float; as one of 2^bits - 1 levels, rounded at random; or as its sign"""
    bits: int = Field(8, ge=2, le=16)
    """bits of a value under quantise = "stochastic" """

    @property
    def on(self) -> bool:
        """True if anything is compressed."""
        return (self.sparsify, self.quantise) != ("none", "none")

    @property
    def with_masks(self) -> bool:
        """True if it goes with dropout of neurons."""
        return not self.error_feedback and self.sparsify == "none" and self.quantise != "sign"

    @model_validator(mode="after")
    def _has_a_method(self) -> CompressConfig:
        if self.sparsify == "none" and self.keep < 1:
            raise ValueError('keep < 1 needs sparsify, "topk" or "randk"')
        if self.error_feedback and not self.on:
            raise ValueError("error_feedback needs sparsify or quantise: nothing is lost without them")
        return self


class SweepConfig(Section):
    """The trials of a sweep: every combination of the grid, for every seed."""

    seeds: int | tuple[int, ...] = 1
    """number of seeds (0, 1, ...) or their list"""
    grid: dict[str, tuple[float | int | str | bool, ...]] = {}
    """axes by dotted field name; every combination is a trial"""
    zip: dict[str, tuple[float | int | str | bool, ...]] = {}
    """fields that change together, as one more axis: lists of equal length"""


class PerfConfig(Section):
    """Speed, and nothing but speed: no field here may change a result."""

    chunk: int | None = Field(None, ge=0)
    """clients per vmapped batch: 1 one by one, 0 the whole cohort (default: chosen by backend and model size)"""
    devices: int = Field(1, ge=1)
    """devices over which the clients of a round are spread"""
    rounds_per_call: int = Field(25, ge=1)
    """rounds per compiled call; progress and checkpoints happen in between"""
    trials_per_batch: int = Field(50, ge=1)
    """trials per vmapped batch of a sweep"""
    dropout: Literal["masked", "compact"] = "masked"
    """masked: the whole model with dropped neurons at zero, keep rates are traced; compact: physically small models,
    one program for every keep rate"""
