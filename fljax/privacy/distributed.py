"""Distributed user-level DP: every client rounds its update to integers and adds a share of the noise itself.

A secure sum hides everything but the total modulo 2^bits. No single party has to be trusted with the noise; what has to
be trusted is that the server sees the sum alone and that ``min_survivors`` clients follow the protocol.

    client:  clipped update -> rotate -> / (integer_step S) -> round to integers -> + share of noise -> modulo 2^bits
    server:  sum modulo 2^bits -> * (integer_step S) -> rotate back -> released update

Sources: Kairouz, Liu, Steinke, arXiv 2102.06387 (discrete Gaussian); Agarwal, Kairouz, Liu, arXiv 2110.04995 (Skellam).
"""

from __future__ import annotations

import math
import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fljax.core import tree
from fljax.core.check import FljaxError, in_range, one_of, positive
from fljax.core.keys import stream
from fljax.core.transform import Claim, Noise, UpdateTransform, Wire, total_bound
from fljax.core.types import Array, Ctx, Hparams, Key, Payload, PyTree
from fljax.privacy.integer_rdp import INTEGER
from fljax.privacy.integers import (
    LARGEST_STD,
    conditional_round,
    discrete_gaussian,
    padded_size,
    rotate,
    rounded_bound,
    skellam,
    unrotate,
    wrap,
)

OVERFLOW = 1e-9
"""Probability per round that a sum leaves the range of its bits, at most. It makes values wrong, never epsilon."""


def distributed_noise(
    kind: str, size: int, sampler, min_survivors: int | None = None, bits: int = 16
) -> UpdateTransform:
    """Integer noise in shares, the last stage of ``chain(expected_average(), clip(), distributed_noise(...))``.

    With S the bound of the chain, ``unit = 1 / hparams.integer_step`` and z = ``hparams.noise_multiplier``, a client
    sends, modulo 2^bits,

        round(unit / S * rotate(update)) + noise of standard deviation z unit / sqrt(n)

    where the rounding is repeated until its L2 norm is at most ``rounded_bound(unit, d)``, and n = min_survivors. The
    sum of n shares has standard deviation z S after decoding; clients beyond n add more noise, which epsilon does not
    count.

    Args:
      kind: ``discrete_gaussian`` | ``skellam``: the law of one share.
      size: P, the number of parameters that clients send; d is the next power of two.
      sampler: who takes part: cohorts of a fixed size.
      min_survivors: n, clients that answer at the least; default all of them. With fewer the round is aborted: the
        released update is exactly zero. Who answers must not depend on the data.
      bits: of one value on the wire, 2 to 31 (static).

    Guarantees:
      One client moves the sum of the integers by at most ``rounded_bound(unit, d)`` in L2 norm, whatever it holds.
      A client whose update is not finite sends its share of the noise all the same. With a public ``ctx.support`` the
      released update is zero outside of it.

    Info: ``std`` declared for the released sum, ``aborted`` (1 where the round was).

    Raises:
      FljaxError: here for a sampler without a fixed cohort or numbers out of range; when it is traced for a payload
        that is not one update of ``size`` numbers. Too few bits are a reason in the claim, which names enough of them.
    """
    cohort = _check(kind, sampler, min_survivors, bits)
    it = _Shares(kind, size, padded_size(size), cohort, min_survivors or cohort, bits)
    return UpdateTransform(
        "noise", it.init, it.encode, it.decode, noise=it.noise, claim=it.claim, wire=it.wire, always=True
    )


class _Shares(NamedTuple):
    """The static numbers of the stage; its methods are the stage's functions. least: n, padded: d."""

    kind: str
    size: int
    padded: int
    cohort: int
    least: int
    bits: int

    def init(self, params, hparams):
        """The server keeps the shapes of the leaves, as arrays that hold no numbers: [0, ...]."""
        del hparams
        return jax.tree.map(lambda p: jnp.zeros((0, *p.shape), jnp.float32), params), ()

    def encode(self, key, ctx, payload: Payload, shapes, client_state):
        del shapes
        unit = 1.0 / ctx.hparams.integer_step
        flat = jnp.concatenate([jnp.ravel(x) for x in _only_update(payload, self.size)])
        spread = rotate(_rotation(ctx), flat) / _step(ctx)
        whole = conditional_round(jax.random.fold_in(key, 0), spread, rounded_bound(unit, self.padded))
        std = ctx.hparams.noise_multiplier * unit / self.least**0.5
        share = _draw(self.kind, jax.random.fold_in(key, 1), self.padded, std)
        return {"update": wrap(whole + share, self.bits)}, client_state, {}

    def decode(self, key, ctx, total, alive, shapes):
        del key
        enough = jnp.sum(alive) >= self.least
        flat = unrotate(_rotation(ctx), wrap(total["update"], self.bits) * _step(ctx))
        released = _unflatten(shapes, jnp.where(enough, flat, 0.0))
        if ctx.support is not None:
            released = jax.tree.map(jnp.multiply, released, ctx.support)
        info = {"std": self.std(ctx), "aborted": 1.0 - enough.astype(jnp.float32)}
        return {"update": released}, shapes, info

    def std(self, ctx: Ctx) -> Array:
        """Of the noise on the sum, where as many clients answer as are expected to. Rounding is not counted."""
        answering = jnp.clip(self.cohort * ctx.hparams.availability, self.least, self.cohort)
        return ctx.hparams.noise_multiplier * total_bound(ctx.bounds or {}) * jnp.sqrt(answering / self.least)

    def noise(self, ctx, state, std):
        del state
        return jnp.sqrt(std**2 + self.std(ctx) ** 2)

    def wire(self, ctx, wires):
        del ctx
        return {**wires, "update": Wire(jnp.int32(self.padded), jnp.int32(self.bits), jnp.int32(0))}

    def claim(self, hparams: Hparams) -> Claim:
        positive(integer_step=hparams.integer_step)
        unit, z = 1.0 / float(hparams.integer_step), float(hparams.noise_multiplier)
        l2 = rounded_bound(unit, self.padded)
        l1 = l2 * min(self.padded**0.5, l2)  # of integers: |x| <= x^2
        detail = {"dimension": self.padded, "l2": l2, "l1": l1, "unit": unit, "shares": self.least}
        noise = Noise(self.kind, z, "distributed", tuple((name, float(value)) for name, value in detail.items()))
        return Claim(noise, self._misfit(z, unit))

    def _misfit(self, z: float, unit: float) -> str | None:
        """Why the integers do not fit, with the remedy, or None where they do."""
        if z * unit / self.least**0.5 > LARGEST_STD:
            return f"one share of the noise exceeds {LARGEST_STD:g} integer steps; use a larger integer_step"
        largest = largest_sum(self.kind, z, unit, self.padded, self.cohort, self.least)
        enough = 1 + math.ceil(math.log2(largest + 1))  # the range is -2^(bits-1) .. 2^(bits-1) - 1
        if enough <= self.bits:
            return None
        remedy = f"set bits = {enough}" if enough <= 31 else "use a larger integer_step"
        return f"the sum of {self.cohort} clients reaches {largest:.3g} integer steps; {remedy}"


def _check(kind: str, sampler, min_survivors: int | None, bits: int) -> int:
    """The cohort; raises FljaxError in one line for a combination that cannot work."""
    one_of(INTEGER, kind=kind)
    if sampler.name not in ("fixed_size", "full", "cyclic"):
        raise FljaxError(
            f"Expected sampler={sampler.name!r} to draw cohorts of a fixed size for distributed noise, whose shares "
            "are cut for them. Use fixed_size, full or cyclic."
        )
    cohort = sampler.capacity
    in_range(1, cohort, min_survivors=min_survivors or cohort, remedy=f"The cohort has {cohort} clients.")
    in_range(2, 31, bits=bits)
    return cohort


def _only_update(payload: Payload, size: int) -> list[Array]:
    """The leaves of the update, the only part that integers can carry."""
    others = sorted(set(payload) - {"update"})
    if others:
        raise FljaxError(
            f"Expected payload part {others[0]!r} to be 'update' alone for distributed noise. Use a local "
            "algorithm that sends nothing else, behind a public denominator."
        )
    found = tree.num_elements(payload["update"])
    if found != size:
        raise FljaxError(f"Expected size={size!r} to be {found}, the number of parameters that clients send.")
    return jax.tree.leaves(payload["update"])


def _step(ctx: Ctx) -> Array:
    """What one integer is worth: integer_step S."""
    return ctx.hparams.integer_step * total_bound(ctx.bounds or {})


def _rotation(ctx: Ctx) -> Key:
    """The public key of the rotation, the same for all clients of a round and for the server."""
    return jax.random.fold_in(stream(ctx.round_key, "encode"), zlib.crc32(b"rotation"))


def _draw(kind: str, key: Key, count: int, std: Array) -> Array:
    """One client's share of the noise, int32 [count]."""
    if kind == "skellam":
        return skellam(key, (count,), jnp.square(std))
    return discrete_gaussian(key, (count,), std)


def _unflatten(shapes: PyTree, flat: Array) -> PyTree:
    """Cuts a vector into leaves; shapes: leaves [0, ...] of which only the shape counts."""
    leaves, structure = jax.tree.flatten(shapes)
    parts, start = [], 0
    for leaf in leaves:
        count = math.prod(leaf.shape[1:])
        parts.append(flat[start : start + count].reshape(leaf.shape[1:]))
        start += count
    return jax.tree.unflatten(structure, parts)


# ---- do the bits suffice? --------------------------------------------------------------------------------------------


def largest_sum(kind: str, z: float, unit: float, dimension: int, cohort: int, least: int) -> float:
    """A bound that all coordinates of the sum keep, but for a probability of ``OVERFLOW``.

    With ``t = log(4 d / OVERFLOW)``: random signs make a coordinate of the rotated sum sub-Gaussian, at most
    ``cohort unit sqrt(2 t / d)`` (or ``cohort unit``, which is certain); rounding adds less than 1 per client; the
    noise of variance ``v = (z unit)^2 cohort / least`` stays below ``sqrt(2 v t)``, for Skellam below
    ``t/3 + sqrt(t^2/9 + 2 v t)`` (Bernstein).

    Updates must not be chosen with the signs of the round in mind; otherwise the values may wrap, not the privacy fail.
    """
    t = math.log(4 * dimension / OVERFLOW)
    signal = cohort * unit * min(1.0, math.sqrt(2 * t / dimension))
    variance = (z * unit) ** 2 * cohort / least
    heavy = t / 3 if kind == "skellam" else 0.0
    return signal + cohort + heavy + math.sqrt(heavy**2 + 2 * variance * t)
