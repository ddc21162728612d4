"""The section of keyed encoding and secure sums, and what goes with it."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from fljax.sections.base import Section, Traced

WORDS = ("value_range", "leave_before_keys", "leave_after_upload")
"""Traced numbers that live in ``Hparams.extra``."""
PAIRED = ("pairwise", "double_mask")
"""Masks whose pads are those of pairs of clients, and whose sum needs a threshold of them."""


class SecureConfig(Section):
    """How uploads are written as words, and what hides them from the server."""

    masking: Literal["none", "clear", "shared_key", "otp", "flashe", "pairwise", "double_mask"] = "none"
    """none: floats; clear: words modulo 2^k in clear; one key for all clients (shared_key, INSECURE, a demonstration);
    one for each, held by a trusted party (otp); one that clients share against the server (flashe); pads of pairs
    (pairwise); pads of pairs and a self mask, which is SecAgg and SecAgg+ (double_mask)"""
    mode: Literal["ideal", "masked", "protocol"] = "ideal"
    """make no pads, make them, or run the protocol on the host with real keys, for up to 32 clients and double_mask
    (extra `secure`): the results are equal bit by bit"""
    value_bits: int = Field(16, ge=2, le=24)
    """bits of one value with its sign, rounded at random"""
    value_range: Annotated[float | None, Traced("value_range")] = Field(None, gt=0, allow_inf_nan=False)
    """values are clipped to plus or minus this (default: privacy.clip)"""
    bits: int | None = Field(None, ge=2, le=32)
    """bits k of a word (default: the smallest for which no sum overflows)"""
    overflow: Literal["raise", "count"] = "raise"
    """refuse fewer bits than sums need, or run and count the values that come out wrong"""
    prf: Literal["threefry", "counter"] = "threefry"
    """what makes pads: a reduced block cipher, or a hash that is faster and hides nothing; both for simulation"""
    corrupt: float = Field(0.05, ge=0, lt=1)
    """share of the clients that may work with the server; degree and threshold follow from it"""
    dropout: float = Field(0.05, ge=0, lt=1)
    """share of the clients that may drop out; degree and threshold follow from it"""
    adversary: Literal["curious", "semi_malicious"] = "curious"
    """a server that follows the protocol, or one that lies about who dropped out"""
    degree: int | None = Field(None, ge=1)
    """neighbours with which a client shares keys (default: by corrupt, dropout and adversary)"""
    threshold: int | None = Field(None, ge=1)
    """neighbours that have to be there at the end (default: by the same); else the round is aborted"""
    leave_before_keys: Annotated[float, Traced("leave_before_keys")] = Field(0.0, ge=0, le=1)
    """of the clients that do not answer: the share that leaves before keys are shared, and not after"""
    leave_after_upload: Annotated[float, Traced("leave_after_upload")] = Field(0.0, ge=0, le=1)
    """of the clients that upload: the share that is gone when the sum is unmasked"""

    @model_validator(mode="after")
    def _has_masks(self) -> SecureConfig:
        if self.masking in ("none", "clear") and self.mode == "masked":
            raise ValueError('mode = "masked" needs masking, such as "double_mask"')
        if self.mode == "protocol" and (self.masking != "double_mask" or self.degree is not None):
            raise ValueError('mode = "protocol" needs masking = "double_mask" on all pairs; leave out degree')
        if self.mode == "protocol" and self.overflow == "count":
            raise ValueError('mode = "protocol" does not know which words overflow; set overflow = "raise"')
        if self.masking not in PAIRED and (self.degree is not None or self.threshold is not None):
            raise ValueError('degree and threshold need masking = "double_mask" or "pairwise"; leave them out')
        if self.overflow == "count" and self.bits is None:
            raise ValueError('overflow = "count" needs bits: by default sums do not overflow')
        return self


def unfit_for_words(experiment: Any) -> str | None:
    """Why the words of [secure] do not go with the rest of an experiment, with the remedy, or None."""
    secure, privacy, dropout = experiment.secure, experiment.privacy, experiment.dropout
    if secure.masking == "none":
        return None
    if experiment.perf.dropout == "compact":
        return 'perf.dropout = "compact" sends small uploads, secure.masking whole ones; set perf.dropout = "masked"'
    if dropout.source in ("gumbel", "paid"):
        return f'dropout.source = "{dropout.source}" asks clients for scores as well; set secure.masking = "none"'
    if privacy.mechanism.startswith("distributed"):
        if secure.bits is not None or secure.value_range is not None:
            return "distributed mechanisms have privacy.bits; leave out secure.bits and secure.value_range"
        if secure.masking == "shared_key":
            return 'distributed mechanisms need a secure sum, which a shared key is not; set masking = "double_mask"'
    elif secure.value_range is None:
        if privacy.clip == math.inf:
            return "secure.masking needs secure.value_range, to which values are clipped"
        if privacy.mechanism.startswith("local") or privacy.clipping == "adaptive":
            return (
                "secure.value_range is needed: values may exceed privacy.clip under local noise and adaptive clipping"
            )
    lost = 1 - experiment.sampler.availability
    if secure.masking in PAIRED and secure.threshold is None and lost > secure.dropout + 1e-9:
        return (
            f"secure.dropout={secure.dropout:g} expects fewer clients to drop out than sampler.availability="
            f"{experiment.sampler.availability:g} loses; set secure.dropout = {min(0.95, round(1.3 * lost, 3)):g}"
        )
    return None
