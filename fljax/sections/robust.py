"""Sections of malicious clients: the rule that withstands them, and the simulated attack."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fljax.sections.base import Section, Traced

Before = Literal["norm_bound", "adaptive_norm_bound", "nearest_neighbour_mixing", "bucketing"]

TAKES_F = (
    "trimmed_mean",
    "mean_around_median",
    "krum",
    "multi_krum",
    "bulyan",
    "divide_and_conquer",
    "adaptive_norm_bound",
    "nearest_neighbour_mixing",
)
"""Rules and stages that have to be told how many clients may be malicious."""


class RobustConfig(Section):
    """How the server aggregates where clients may be malicious."""

    rule: Literal[
        "none",
        "mean",
        "median",
        "trimmed_mean",
        "mean_around_median",
        "sign_majority",
        "krum",
        "multi_krum",
        "bulyan",
        "geometric_median",
        "centred_clipping",
        "divide_and_conquer",
        "flame",
        "fltrust",
        "foolsgold",
    ] = "none"
    """what the server makes of the updates: their sum, which is all that it sees (none), or a rule that sees every
    update (or every group's): see docs/robust.md"""
    f: Annotated[int | None, Traced("robust_f")] = Field(None, ge=0)
    """clients (rows, behind buckets or groups) that may be malicious (default: the attack's share of them, rounded up,
    or a fifth of them without an attack)"""
    before: tuple[Before, ...] = ()
    """stages before the rule, from left to right"""
    groups: int = Field(1, ge=1)
    """clients of a secure sum: the rule sees the mean of each group of so many, and nothing of its members (1: none)"""
    bucket: int = Field(2, ge=1)
    """before = ["bucketing"]: clients of a bucket"""
    bound: Annotated[float, Traced("robust_bound")] = Field(1.0, gt=0)
    """before = ["norm_bound"]: longest norm of an update"""
    neighbors: Literal["paper", "byzfl"] = "paper"
    """krum, multi_krum, bulyan: the n - f - 2 nearest others count, or n - f - 1 (ByzFL, FLPoison)"""
    power: Literal[1, 2, 4] = 2
    """krum, multi_krum, bulyan: power of the distances in the score (the paper: 2)"""
    chosen: int | None = Field(None, ge=1)
    """multi_krum: updates that are averaged (default: n - f)"""
    steps: int | None = Field(None, ge=1)
    """geometric_median, centred_clipping: steps a round (default: 64 and 3)"""
    nu: float = Field(1e-6, gt=0)
    """geometric_median: smoothing"""
    start: Literal["mean", "zero"] = "mean"
    """geometric_median: where it starts"""
    tau: Annotated[float, Traced("robust_tau")] = Field(1.0, gt=0)
    """centred_clipping: radius around the centre"""
    step: Annotated[float, Traced("robust_step")] = Field(0.001, gt=0)
    """sign_majority: how far every coordinate moves"""
    noise: Annotated[float, Traced("robust_noise")] = Field(0.0, ge=0)
    """flame: std of the noise relative to the median norm; it carries no privacy claim"""
    dimensions: int = Field(10_000, ge=1)
    """divide_and_conquer: coordinates of an iteration"""
    iterations: int = Field(5, ge=1)
    """divide_and_conquer: iterations"""
    remove: float = Field(1.0, gt=0)
    """divide_and_conquer: updates that an iteration removes, relative to f"""
    root_examples: int = Field(100, ge=1)
    """fltrust: examples that the server holds itself, of clients that never train (data.unseen_clients)"""

    @property
    def needs_f(self) -> bool:
        """Whether the rule or a stage before it has to be told f."""
        return any(part in TAKES_F for part in (self.rule, *self.before))

    @model_validator(mode="after")
    def _has_a_rule(self) -> RobustConfig:
        if self.rule == "none" and (self.before or self.groups > 1 or self.f is not None):
            raise ValueError(
                'rule = "none" is a plain sum, of which the server sees nothing else: no f, before or groups; set '
                'rule = "mean", "median" or another rule, with groups under secure aggregation'
            )
        if self.rule == "foolsgold" and (self.before or self.groups > 1):
            raise ValueError('rule = "foolsgold" has to know who sent what; leave out before and groups')
        if len(set(self.before)) < len(self.before):
            raise ValueError(f"before={list(self.before)} names a stage twice; name it once")
        return self


STRENGTH = {
    "label_flip": 1.0,
    "backdoor": 1.0,
    "sign_flip": 1.0,
    "gaussian": 1.0,
    "free_rider": 0.0,
    "ipm": 0.5,
    "alie": 1.5,
    "min_max": 1.0,
    "min_sum": 1.0,
    "mimic": 1.0,
}
"""Strength of an attack that is not given one."""


class AttackConfig(Section):
    """Malicious clients, simulated."""

    kind: Literal[
        "none",
        "label_flip",
        "backdoor",
        "sign_flip",
        "gaussian",
        "free_rider",
        "ipm",
        "alie",
        "min_max",
        "min_sum",
        "mimic",
    ] = "none"
    """what malicious clients do: poison their data (label_flip, backdoor), send something else (sign_flip, gaussian,
    free_rider), or send what hides among the honest updates, which they know (ipm, alie, min_max, min_sum, mimic)"""
    fraction: Annotated[float, Traced("attack_fraction")] = Field(0.2, ge=0, lt=1)
    """share of all clients that are malicious, the same ones in every round"""
    strength: Annotated[float | None, Traced("attack_strength")] = Field(None, ge=0, allow_inf_nan=False)
    """label_flip, backdoor: factor on the update (n / server.lr replaces the model); sign_flip, ipm: factor on the
    flipped update; gaussian, free_rider: std; alie: standard deviations; min_max, min_sum: factor on the largest step
    that hides (default: 1; ipm 0.5, alie 1.5, free_rider 0)"""
    start: Annotated[int, Traced("attack_start")] = Field(0, ge=0)
    """first round of the attack, counted from 0"""
    source: int | None = Field(None, ge=0)
    """label_flip: class whose labels become the target (default: all)"""
    target: int | None = Field(None, ge=0)
    """class that poisoned examples are labelled as (label_flip: default y becomes K - 1 - y; backdoor: default 0)"""
    pattern: Literal["corner", "distributed", "blend"] = "corner"
    """backdoor: a square in the corner, four bars of which each malicious client stamps one, or a faint checkerboard"""
    size: int = Field(2, ge=1)
    """backdoor: pixels of the pattern"""
    share: Annotated[float, Traced("attack_share")] = Field(0.5, ge=0, le=1)
    """backdoor: share of a malicious client's examples that are stamped"""
    of: Literal["own", "mean"] = "own"
    """sign_flip: of the client's own update, or of the honest mean (ByzFL)"""
    z: Literal["given", "most"] = "given"
    """alie: strength is the number of deviations, or a factor on the largest that hides"""
    sign: Literal["minus", "plus"] = "minus"
    """alie: towards smaller values (the paper), or larger ones (ByzFL, FLPoison)"""
    ddof: Literal[0, 1] = 1
    """alie: degrees of freedom of the standard deviation (FLPoison: 0)"""
    direction: Literal["std", "unit", "sign"] = "std"
    """min_max, min_sum: where to, minus the deviations, the mean's direction or its signs"""
    choice: Literal["first", "farthest"] = "first"
    """mimic: whom to repeat, the honest client with the least id, or the one farthest out"""
    optimised: tuple[float, ...] = ()
    """ipm, alie, sign_flip, gaussian: factors on the strength, of which the one that harms the actual rule most is used
    in every round"""

    @property
    def strength_of_kind(self) -> float:
        """The strength, or that of the kind where none was given."""
        return STRENGTH.get(self.kind, 1.0) if self.strength is None else self.strength

    @model_validator(mode="after")
    def _belongs_to_its_kind(self) -> AttackConfig:
        if self.source is not None and (self.kind != "label_flip" or self.target is None):
            raise ValueError('source needs kind = "label_flip" and a target')
        if self.target is not None and self.kind not in ("label_flip", "backdoor"):
            raise ValueError('target needs kind = "label_flip" or "backdoor"; leave it out')
        if self.optimised and self.kind not in ("ipm", "alie", "sign_flip", "gaussian"):
            raise ValueError('optimised needs kind = "ipm", "alie", "sign_flip" or "gaussian"')
        if self.optimised and min(self.optimised) < 0:
            raise ValueError(f"optimised={list(self.optimised)} must hold factors >= 0")
        return self
