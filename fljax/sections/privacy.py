"""The section of clipping and noise."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from fljax.sections.base import Section, Traced

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
