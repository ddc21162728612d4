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

    positions: Literal["dense", "public", "union", "consensus", "seeded", "ldp"] = "dense"
    """whose words travel under dropout: all (dense); those a client keeps, told in clear (public) or by randomised
    response (ldp); those that some client keeps, learnt from counts (union); those of one mask that all have, from a
    sum of scores or what was released (consensus) or drawn at random (seeded)"""
    min_contributors: int | None = Field(None, ge=1)
    """where clients send different words: coordinates of fewer clients are not sent (default 2; 1 leaves none out)"""
    positions_epsilon: float | None = Field(None, gt=0, allow_inf_nan=False)
    """positions = "ldp": epsilon of one report of a client's mask; counted with the run's"""

    @property
    def contributors(self) -> int:
        """min_contributors, where clients send different words."""
        return 2 if self.min_contributors is None else self.min_contributors

    @model_validator(mode="after")
    def _agrees_on_positions(self) -> SecureConfig:
        if self.positions != "dense" and self.masking in ("none", "shared_key", "flashe"):
            raise ValueError(
                f'positions = "{self.positions}" leaves words out, pads too; set masking = "double_mask", "pairwise", '
                '"otp" or "clear"'
            )
        if self.min_contributors is not None and self.positions not in ("public", "ldp", "seeded"):
            raise ValueError('min_contributors needs positions = "public", "ldp" or "seeded"; leave it out')
        if (self.positions == "ldp") != (self.positions_epsilon is not None):
            raise ValueError('positions = "ldp" and positions_epsilon, what one report may cost, go together')
        return self

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


SHARED = {"consensus": ("fisher", "magnitude", "public", "paid"), "seeded": ("random", "ordered", "rolling")}
"""Sources of masks by mode of positions, the same mask for all clients."""


def own_words(experiment: Any) -> bool:
    """Do the clients of an experiment send words of different neurons, each its own?"""
    positions, d = experiment.secure.positions, experiment.dropout
    return positions in ("public", "ldp") or (
        positions == "seeded" and (d.source == "random_per_client" or d.tiers != (1.0,))
    )


def unfit_positions(experiment: Any) -> str | None:
    """Why secure.positions do not go with the rest of an experiment, with the remedy, or None."""
    secure, privacy, d = experiment.secure, experiment.privacy, experiment.dropout
    if d.source == "self_released":
        return 'dropout.source = "self_released" needs single uploads, which [secure] hides; set masking = "none"'
    mode = f'secure.positions = "{secure.positions}"'
    if secure.positions == "dense":
        return None
    fits = SHARED.get(secure.positions, ("exact",)) + (("random_per_client",) if secure.positions == "seeded" else ())
    if d.source not in fits:
        return f'{mode} needs dropout.source = {" or ".join(fits)}; positions = "dense" goes with all'
    if d.support == "dense" or privacy.mechanism.startswith("distributed"):
        return f'{mode} leaves words out, and noise on all values needs all of them; set positions = "dense"'
    if secure.mode == "protocol":
        return f'{mode} is simulated in the round; set secure.mode = "masked"'
    if experiment.he.kind != "none" or (experiment.channel.kind != "none"):
        return f"{mode} is counted as words of a secure sum alone; leave out [he] and [channel]"
    if experiment.client.algorithm == "scaffold" or experiment.robust.rule != "none":
        return f"{mode} is for updates that are summed; leave out scaffold and robust.rule"
    if secure.positions == "consensus" and d.tiers != (1.0,):
        return f"{mode} has one mask for all clients; leave out dropout.tiers"
    if secure.min_contributors is not None and not own_words(experiment):
        return "secure.min_contributors is for clients that send different words; leave it out"
    if secure.positions != "ldp":
        return None
    if privacy.mechanism != "none" and not privacy.mechanism.startswith("local"):
        return f'{mode} is for a server that is not trusted; set positions = "dense", or a local mechanism'
    if d.tiers_redrawn:
        return f"{mode} reports a mask once, which dropout.tiers_redrawn would change; leave it out"
    return None


def unfit_for_words(experiment: Any) -> str | None:
    """Why the words of [secure] do not go with the rest of an experiment, with the remedy, or None."""
    secure, privacy, dropout = experiment.secure, experiment.privacy, experiment.dropout
    if secure.masking == "none":
        return None
    if experiment.perf.dropout == "compact":
        return 'perf.dropout = "compact" sends small uploads, secure.masking whole ones; set perf.dropout = "masked"'
    if dropout.source == "gumbel":
        return 'dropout.source = "gumbel" asks for votes as well; set secure.masking = "none", or source = "paid"'
    if (problem := unfit_positions(experiment)) is not None:
        return problem
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
