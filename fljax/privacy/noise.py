"""Central Gaussian noise on the sum of the clients' payloads.

Reference: Dwork and Roth, "The algorithmic foundations of differential privacy", 2014; as the sum query of
McMahan et al., ICLR 2018.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fljax.core import tree
from fljax.core.transform import Claim, Noise, UpdateTransform, pass_encode, stateless
from fljax.core.types import Array, Ctx, Hparams, Key, PyTree


def add_gaussian(key: Key, like: PyTree, std: Array, support: PyTree | None = None) -> PyTree:
    """The tree plus independent N(0, std^2) on every coordinate of the support.

    Args:
      key: consumed; every leaf gets a key of its own.
      like: tree of arrays; noise is drawn and added in float32 whatever its precision (normals in bfloat16 take 128
        distinct values), and the result is float32.
      std: () standard deviation.
      support: None (all coordinates) or a tree like ``like`` of 0 and 1. It must be public.
    """
    leaves, structure = jax.tree.flatten(like)
    noisy = [
        x.astype(jnp.float32) + std * jax.random.normal(jax.random.fold_in(key, i), x.shape, jnp.float32)
        for i, x in enumerate(leaves)
    ]
    return tree.where(support, jax.tree.unflatten(structure, noisy), like)


Shares = Callable[[Ctx], dict[str, Array]]
"""(ctx) -> share of the privacy budget by bound; what is not named divides the rest evenly."""


def noise_stds(ctx: Ctx, shares: Shares | None = None) -> dict[str, Array]:
    """Standard deviation on the sum, by bound: ``z b / sqrt(f)`` for a bound b with share f of the budget, times
    ``hparams.noise_scale``, which is 1 but where the cohort stands for a larger, simulated one.

    The shares sum to 1, so that all parts together are one Gaussian mechanism of multiplier z:
    ``sum (b / std)^2 = sum f / z^2 = 1 / z^2``. One bound alone gets z b. 0 for z = 0, also where nothing is bounded;
    NaN where the named shares leave nothing for the rest, which the accountant refuses.
    """
    z, bounds = ctx.hparams.noise_multiplier, ctx.bounds or {}
    named = {name: f for name, f in (shares(ctx) if shares else {}).items() if name in bounds}
    rest = (1.0 - sum(named.values())) / max(len(bounds) - len(named), 1)
    split = {name: named.get(name, rest) for name in bounds}
    scale = ctx.hparams.noise_scale  # less than 1 where the cohort stands for a larger, simulated one
    return {name: jnp.where(z > 0, scale * z * b / jnp.sqrt(split[name]), 0.0) for name, b in bounds.items()}


def query_share(ctx: Ctx) -> dict[str, Array]:
    """Share of the budget that a query of neuron scores takes, ``hparams.query_share``; the update gets the rest."""
    return {"query": ctx.hparams.query_share}


def central_gaussian(shares: Shares | None = None) -> UpdateTransform:
    """Adds N(0, (z S)^2) to the sum on the server, z = ``hparams.noise_multiplier``, S = the bound of the whole chain.

    It asks for the bound of everything that clients send, the stages to its right included, so that the sensitivity
    is never typed twice. With a public ``ctx.support`` noise lives on the support only; the released total is zero
    elsewhere because the clients' shares are.

    Args:
      shares: how the budget is divided where the payload has several bounds, such as adaptive clipping's bits.
    """

    def std_of(ctx: Ctx, name: str) -> Array:
        stds = noise_stds(ctx, shares)
        if name in stds:
            return stds[name]
        return stds.get("payload", jnp.sqrt(sum(jnp.square(s) for s in stds.values())))

    def decode(key, ctx, total, alive, state):
        del alive
        parts = {}
        for i, name in enumerate(sorted(total)):
            support = ctx.support if name == "update" else None
            parts[name] = add_gaussian(jax.random.fold_in(key, i), total[name], std_of(ctx, name), support)
        return parts, state, {"std": std_of(ctx, "update")}

    def spread(ctx, state, std):
        del state
        return jnp.sqrt(std**2 + std_of(ctx, "update") ** 2)

    def claim(hparams: Hparams) -> Claim:
        scale = float(hparams.noise_scale)
        detail = () if scale == 1.0 else (("noise_scale", scale),)
        return Claim(Noise("gaussian", float(hparams.noise_multiplier), "central", detail))

    return UpdateTransform("noise", stateless, pass_encode, decode, noise=spread, claim=claim)
