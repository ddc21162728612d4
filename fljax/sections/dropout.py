"""Sections of fewer neurons and fewer bytes: dropout, devices, compression."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from fljax.sections.base import Section, Traced


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
        "gumbel",
        "self_released",
        "exact",
    ] = "none"
    """what neurons are chosen by: energy of the released updates (fisher), nothing (random for all, random for each
    client, ordered, rolling), the size of the released weights, Fisher information on public inputs, a noised query,
    private picks among the clients' votes (gumbel), a client's own noised uploads, or a client's private data (exact:
    no epsilon but with support = "dense")"""
    information: Literal["gate", "diagonal"] = "gate"
    """public, paid, gumbel, exact: Fisher information of a gate on the neuron, or summed over its weights and bias"""
    support: Literal["mask", "dense"] = "mask"
    """source = "exact": noise on the kept coordinates, or on all of them"""
    query_share: Annotated[float, Traced("query_share")] = Field(0.1, gt=0, lt=1)
    """source = "paid": share of the privacy budget that the query takes"""
    choice_rho: Annotated[float, Traced("choice_rho")] = Field(0.01, gt=0, allow_inf_nan=False)
    """source = "gumbel": what one choice of the masks costs, in zero-concentrated DP"""
    positions: Literal["bitmap", "list"] = "bitmap"
    """source = "exact": how a client writes down whose neurons it kept, a bit for each or the index of each kept one"""
    public_examples: int = Field(64, ge=1)
    """source = "public": inputs of clients that never train (data.unseen_clients), else uniform random ones"""
    keep_rate: Annotated[float, Traced("keep_rate")] = Field(1.0, gt=0, le=1)
    """share of each layer's neurons that clients train and send"""
    support_keep: Annotated[float, Traced("support_keep")] = Field(1.0, gt=0, le=1)
    """cap on every client's share: the noise of a server lives on the widest mask"""
    widths: tuple[float, ...] = ()
    """source = "ordered": shares of the neurons of which every local step draws one, up to the client's own (FjORD)"""
    distill: Annotated[float | None, Traced("distill")] = Field(None, ge=0, le=1)
    """with widths: weight with which narrow sub-models learn from the widest; none: they do not"""
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
    tiers_redrawn: bool = False
    """every client draws its class anew in every round, as HeteroFL's dynamic rates"""
    tiers_by: Literal["devices", "size", "labels"] = "devices"
    """what a client's class follows from: its device, how many examples it has, or how many labels (the exponential of
    their entropy)"""
    tier_bounds: tuple[float, ...] = ()
    """tiers_by = "size" or "labels": where the second class begins, the third, ...: public numbers, rising"""
    tier_data: Literal["private", "public"] = "private"
    """whether what tiers_by looks at is public"""
    report_epsilon: float | None = Field(None, gt=0, allow_inf_nan=False)
    """epsilon of a client's report of its class, made once by randomised response; counted with the run's"""

    @property
    def widest(self) -> float:
        """Share of the neurons of the widest class."""
        return min(self.keep_rate, self.support_keep)

    def relative_tiers(self) -> tuple[float, ...]:
        """Keep rates of the classes relative to the widest, under the cap."""
        assert not isinstance(self.tiers, str)
        if self.support_keep >= self.keep_rate:
            return self.tiers
        return tuple(min(self.keep_rate * tier, self.support_keep) / self.widest for tier in self.tiers)

    @model_validator(mode="after")
    def _belongs_to_its_source(self) -> DropoutConfig:
        if self.information != "gate" and self.source not in ("public", "paid", "gumbel", "exact"):
            raise ValueError('information is for source = "public", "paid", "gumbel" or "exact"; leave it out')
        if self.positions != "bitmap" and (self.source != "exact" or self.support == "dense"):
            raise ValueError(
                'positions are sent with source = "exact" and support = "mask" alone: the server computes all other '
                "masks, and nobody receives them; leave it out"
            )
        if self.source == "gumbel" and self.warmup_rounds == 0 and self.refresh_rounds == 0:
            raise ValueError('source = "gumbel" asks for votes in the round before a choice; set warmup_rounds >= 1')
        if self.widths and (self.source != "ordered" or min(self.widths) <= 0 or max(self.widths) > 1):
            raise ValueError(f'widths={self.widths} must lie in (0, 1], with source = "ordered"')
        if self.distill is not None and not self.widths:
            raise ValueError("distill needs widths, whose narrow sub-models learn from the widest")
        return self

    @model_validator(mode="after")
    def _classes_of_clients(self) -> DropoutConfig:
        if self.tiers_redrawn and (self.tiers == (1.0,) or self.tiers_by != "devices"):
            raise ValueError("tiers_redrawn needs tiers to draw from, and no tiers_by")
        if self.tiers_by == "devices":
            if self.tier_bounds or self.tier_data == "public" or self.report_epsilon is not None:
                raise ValueError('tier_bounds, tier_data and report_epsilon need tiers_by = "size" or "labels"')
            return self
        if isinstance(self.tiers, str) or len(self.tier_bounds) != len(self.tiers) - 1 or len(self.tiers) < 2:
            raise ValueError(f'tiers_by = "{self.tiers_by}" needs tiers, and tier_bounds between each two of them')
        if list(self.tier_bounds) != sorted(set(self.tier_bounds)):
            raise ValueError(f"tier_bounds={self.tier_bounds} must rise")
        if self.report_epsilon is not None and self.tier_data == "public":
            raise ValueError("report_epsilon pays for private data; leave it out where tier_data is public")
        return self

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
