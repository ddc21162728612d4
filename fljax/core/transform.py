"""Two-sided transforms of what clients upload, cut at the network boundary, and the aggregator between the halves.

A transform's ``encode`` runs on ONE client and its ``decode`` once on the server. ``chain(a, b, c)`` encodes left to
right and decodes right to left, so that the two halves of a concern cannot be paired wrongly::

    client:  update -> a.encode -> b.encode -> c.encode -> network
    server:  network -> sum -> c.decode -> b.decode -> a.decode -> released update
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from fljax.core.keys import per_stage
from fljax.core.types import Array, Bounds, Ctx, Hparams


class Noise(NamedTuple):
    """What a stage adds, in the words of an accountant: concrete numbers, on the host.

    kind: ``gaussian`` | ``pure`` (any randomiser with a pure epsilon) | ``discrete_gaussian`` | ``skellam`` | ``tree``
      | ``banded``.
    multiplier: z = std of the noise / largest L2 norm of what it hides; for ``pure`` 1 / (epsilon of one upload). For
      every kind more is more private, and 0 is no noise.
    trust: ``central`` (noise on the sum, by a server that sees it), ``local`` (every client noises its own upload),
      ``distributed`` (clients add shares of the noise, a secure sum hides the rest) or ``record`` (every client noises
      its own steps; the unit is one example).
    detail: further public numbers by name, those that the kind needs.
    """

    kind: str
    multiplier: float
    trust: str = "central"
    detail: tuple[tuple[str, float], ...] = ()


class Claim(NamedTuple):
    """What a stage promises to the accountant, read on the host with concrete numbers.

    noise: what the stage adds, or None if it adds none.
    reason: why no epsilon may be printed while this stage is in the round, or None.
    divides: True for a denominator, which has to be decoded after the noise.
    values_only: why an epsilon would cover the sent values alone, or None.
    masks: what masks of neurons follow from, one of ``privacy.validity.SOURCES``, or None without masks.
    """

    noise: Noise | None = None
    reason: str | None = None
    divides: bool = False
    values_only: str | None = None
    masks: str | None = None


def unknown_claim(hparams: Hparams) -> Claim:
    """The claim of a stage that says nothing: epsilon is refused until its author states a bound and a claim."""
    del hparams
    return Claim(reason="a stage states no privacy claim; give its UpdateTransform a `claim` and a true `bound`")


def no_claim(hparams: Hparams) -> Claim:
    """The claim of a stage whose effect on privacy is fully described by its bound."""
    del hparams
    return Claim()


def pass_bound(ctx: Ctx, state, bounds: Bounds) -> Bounds:
    """The bound of a stage that does not change how far one client can move the sum."""
    del ctx, state
    return bounds


def pass_noise(ctx: Ctx, state, std):
    """The noise of a stage whose decode neither adds nor scales noise."""
    del ctx, state
    return std


class Wire(NamedTuple):
    """One part of a payload as it is written down. values: () how many numbers. bits: () bits of each. extra: () bits
    beside them: positions, scales, headers."""

    values: Array
    bits: Array
    extra: Array


def pass_wire(ctx: Ctx, wires: dict[str, Wire]) -> dict[str, Wire]:
    """The wires of a stage that neither changes how many numbers are sent nor how they are written."""
    del ctx
    return wires


class UpdateTransform(NamedTuple):
    """One concern of the upload, both halves.

    name: for messages and metrics.
    init: (params, hparams) -> (server_state, client_state)
    encode: (key, ctx, payload, server_state, client_state) -> (payload, client_state, info)   ONE client
    decode: (key, ctx, total, alive, server_state) -> (total, server_state, info)              once, on the server
    bound: (ctx, server_state, bounds) -> bounds     one L2 bound per named part of the payload
    noise: (ctx, server_state, std) -> std           how decode changes the per-coordinate std of the noise
    claim: (hparams) -> Claim                        what the accountant may rely on
    wire: (ctx, wires) -> wires                      how the payload is written down, for counting bytes
    always: what encode makes of a payload of zeros is sent even where the client's own was not finite: its noise, or
      its silence, must not tell. (static)
    proceeds: (ctx) -> () bool, from ``ctx.presence``: False where the server cannot finish its half, and the round
      changes nothing but its clients; or None where it always can. (static)
    """

    name: str
    init: Callable
    encode: Callable
    decode: Callable
    bound: Callable = pass_bound
    noise: Callable = pass_noise
    claim: Callable = unknown_claim
    wire: Callable = pass_wire
    always: bool = False
    proceeds: Callable | None = None


class Aggregator(NamedTuple):
    """The only place that may see the client axis.

    collect: ``sum`` (the modelled server sees only the sum; memory O(chunk)) or ``concat`` (it sees [C, ...]).
    scale: ``sum`` or ``mean``: what reduce returns; rules that return a mean refuse a denominator stage.
    init: (params, hparams) -> state
    reduce: (key, ctx, collected, alive [C], state) -> (total, state, info)
    claim: (hparams) -> Claim
    """

    name: str
    collect: str
    scale: str
    init: Callable
    reduce: Callable
    claim: Callable = unknown_claim


def stateless(params, hparams) -> tuple[tuple, tuple]:
    """init of a transform without state on either side."""
    del params, hparams
    return (), ()


def pass_encode(key, ctx, payload, server_state, client_state):
    """encode of a stage that acts on the server only."""
    del key, ctx, server_state
    return payload, client_state, {}


def pass_decode(key, ctx, total, alive, server_state):
    """decode of a stage that acts on clients only."""
    del key, ctx, alive
    return total, server_state, {}


def chain(*stages: UpdateTransform) -> UpdateTransform:
    """Several transforms as one: encodes left to right, decodes right to left, folds bounds and noise likewise.

    States are tuples with one entry per stage; the infos of the stages are joined under their names.
    A chain of none is the identity.
    """

    def init(params, hparams):
        states = [s.init(params, hparams) for s in stages]
        return tuple(s for s, _ in states), tuple(c for _, c in states)

    def encode(key, ctx, payload, server_state, client_state):
        new, info = list(client_state), {}
        for i, (stage, k) in enumerate(zip(stages, per_stage(key, len(stages)), strict=True)):
            payload, new[i], seen = stage.encode(k, ctx, payload, server_state[i], client_state[i])
            info |= {f"{stage.name}_{name}": value for name, value in seen.items()}
        return payload, tuple(new), info

    def decode(key, ctx, total, alive, server_state):
        new, info = list(server_state), {}
        keys = per_stage(key, len(stages))
        for i in reversed(range(len(stages))):
            total, new[i], seen = stages[i].decode(keys[i], ctx, total, alive, server_state[i])
            info |= {f"{stages[i].name}_{name}": value for name, value in seen.items()}
        return total, tuple(new), info

    def bound(ctx, server_state, bounds):
        for stage, state in zip(stages, server_state, strict=True):
            bounds = stage.bound(ctx, state, bounds)
        return bounds

    def noise(ctx, server_state, std):
        for stage, state in zip(reversed(stages), reversed(server_state), strict=True):
            std = stage.noise(ctx, state, std)
        return std

    def claim(hparams):
        claims = [stage.claim(hparams) for stage in stages]
        noisy = [i for i, c in enumerate(claims) if c.noise is not None]
        if any(c.divides for c in claims[min(noisy, default=len(claims)) :]):
            claims.append(Claim(reason="the denominator is decoded before the noise; put it to the left of the noise"))
        return join_claims(claims)

    def wire(ctx, wires):
        for stage in stages:
            wires = stage.wire(ctx, wires)
        return wires

    always, needed = any(s.always for s in stages), [s.proceeds for s in stages if s.proceeds is not None]

    def proceeds(ctx):
        return jnp.all(jnp.stack([enough(ctx) for enough in needed]))

    return UpdateTransform(
        "chain", init, encode, decode, bound, noise, claim, wire, always, proceeds if needed else None
    )


def denominator_claim(hparams: Hparams) -> Claim:
    """The claim of a stage that divides the sum by a public constant."""
    del hparams
    return Claim(divides=True)


def join_claims(claims: list[Claim]) -> Claim:
    """One claim for several stages: at most one may add noise, and any reason to refuse stays."""
    noises = [c.noise for c in claims if c.noise is not None]
    reasons = [c.reason for c in claims if c.reason]
    limits = [c.values_only for c in claims if c.values_only]
    if len(noises) > 1:
        reasons.append("more than one stage adds noise; use one noise stage with the total noise multiplier")
    return Claim(
        noises[0] if noises else None,
        "; ".join(dict.fromkeys(reasons)) or None,
        values_only="; ".join(dict.fromkeys(limits)) or None,
    )


def summed() -> Aggregator:
    """The plain sum over clients. The modelled server sees nothing else; memory does not grow with the cohort."""

    def reduce(key, ctx, collected, alive, state):
        del key, ctx, alive
        return collected, state, {}

    return Aggregator("sum", "sum", "sum", lambda params, hparams: (), reduce, no_claim)


def total_bound(bounds: Bounds):
    """L2 bound of the whole payload from its parts: sqrt(sum of squares); inf if any part is unbounded."""
    return jnp.sqrt(sum(jnp.square(b) for b in bounds.values()))
