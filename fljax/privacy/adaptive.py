"""Clipping that finds its own norm: a geometric update towards a quantile of the clients' norms, itself private.

Reference: Andrew, Thakkar, McMahan, Ramaswamy, "Differentially private learning with adaptive clipping", NeurIPS 2021.
"""

from __future__ import annotations

import jax.numpy as jnp

from fljax.core.transform import UpdateTransform, no_claim, total_bound
from fljax.core.types import Array, Ctx, Payload
from fljax.privacy.clip import APART, clip_tree

BIT = "clip_bit"


def bit_noise(ctx: Ctx) -> Array:
    """Std sigma_b on the sum of the bits: ``hparams.clip_bit_noise``, or E|cohort| / 20 where that is 0."""
    given = ctx.hparams.clip_bit_noise
    return jnp.where(given > 0, given, ctx.expected / 20.0)


def bit_share(ctx: Ctx) -> dict[str, Array]:
    """Share of the privacy budget that the bits take: ``f = (z / (2 sigma_b))^2``; the update gets 1 - f.

    The bit is centred, b - 1/2, so that one client moves its sum by 1/2: with standard deviation sigma_b it is a
    Gaussian of multiplier 2 sigma_b. Both together have multiplier z if the update's is
    ``z_u = (z^-2 - (2 sigma_b)^-2)^(-1/2)``, which needs z < 2 sigma_b.
    """
    return {BIT: jnp.square(ctx.hparams.noise_multiplier / (2.0 * bit_noise(ctx)))}


def adaptive_clip() -> UpdateTransform:
    """Clips to a norm C_t that the server moves to the quantile ``hparams.clip_quantile`` of the clients' norms.

    Each client adds one centred bit to its payload: was its norm at most C_t? With the noisy fraction b~ of such
    clients, ``C_{t+1} = C_t exp(-clip_rate (b~ - clip_quantile))``, starting at ``hparams.clip``. The bits travel
    through the sum and its noise like everything else; the noise of round t is scaled to C_t, never to C_{t+1}.
    Use it with ``central_gaussian(bit_share)``, which divides the budget.

    Info: ``norm``, ``fraction`` of clipped clients (oracle's view), and on the server the released ``bound`` C_t.
    """

    def init(params, hparams):
        del params
        return jnp.asarray(hparams.clip, jnp.float32), ()

    def encode(key, ctx, payload: Payload, clip: Array, client_state):
        del key, ctx
        parts = {name: part for name, part in payload.items() if name not in APART}
        parts, size, clipped = clip_tree(parts, clip)
        bit = jnp.where(jnp.isfinite(size), 0.5 - clipped.astype(jnp.float32), 0.0)
        return {**payload, **parts, BIT: bit}, client_state, {"norm": size, "fraction": clipped.astype(jnp.float32)}

    def decode(key, ctx, total, alive, clip: Array):
        del key, alive
        below = total[BIT] / ctx.expected + 0.5
        moved = clip * jnp.exp(-ctx.hparams.clip_rate * (below - ctx.hparams.clip_quantile))
        return {name: part for name, part in total.items() if name != BIT}, moved, {"bound": clip}

    def bound(ctx, clip: Array, bounds):
        del ctx
        weight = {name: b for name, b in bounds.items() if name in APART}
        parts = {name: b for name, b in bounds.items() if name not in APART}
        return {"payload": jnp.minimum(clip, total_bound(parts)), BIT: jnp.float32(0.5), **weight}

    return UpdateTransform("clip", init, encode, decode, bound, claim=no_claim)
