"""What malicious clients send in place of their updates.

Attacks on the update are functions of the honest payloads of the round: the adversary knows them, how many malicious
clients there are, and where it says so the rule too. Strengths are traced numbers, so that a sweep over them is one
program. A malicious client obeys neither clip nor noise of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri

from fljax.core.check import one_of
from fljax.core.types import Array, Crowd, Ctx, Key, PyTree
from fljax.robust.rows import Rows, along, combine, inner, plain_weights, squared_distances, squared_norm
from fljax.robust.spectral import outlier_scores

Forge = Callable[[Key, Ctx, Crowd], PyTree]
"""(key, ctx, crowd) -> payloads [C, ...]; those of malicious clients are used."""


def strength(ctx: Ctx) -> Array:
    """The traced strength of the attack, ``hparams.extra["attack_strength"]``."""
    return ctx.hparams.extra["attack_strength"]


def scale_update() -> Forge:
    """Model replacement: the client's own update times the strength.

    With strength n / server learning rate one client replaces the model by its own (Bagdasaryan et al., "How to
    backdoor federated learning", AISTATS 2020). It goes with poisoned data; strength 1 changes nothing.
    """

    def forge(key, ctx, crowd):
        del key
        return jax.tree.map(lambda x: strength(ctx) * x, crowd.sent)

    return forge


def sign_flip(of: str = "own") -> Forge:
    """Sends minus the strength times an honest update.

    Args:
      of: ``own`` (what the client itself computed) or ``mean`` (of the honest clients; ByzFL).
    """
    one_of(["own", "mean"], of=of)

    def forge(key, ctx, crowd):
        del key
        base = crowd.sent if of == "own" else _for_all(crowd, honest_mean(crowd))
        return jax.tree.map(lambda x: -strength(ctx) * x, base)

    return forge


def gaussian() -> Forge:
    """Sends N(0, strength^2) on every coordinate, drawn by each malicious client for itself. (ByzFL, FLANDERS)"""

    def forge(key, ctx, crowd):
        return jax.tree.map(lambda x: strength(ctx) * x, _normal(key, crowd))

    return forge


def free_rider() -> Forge:
    """Sends nothing that it learnt: zeros, disguised by N(0, strength^2) on every coordinate; strength 0 is
    undisguised.

    Fraboni, Vidal, Lorenzi, "Free-rider attacks on model aggregation in federated learning", AISTATS 2021.
    """
    return gaussian()


def inner_product() -> Forge:
    """IPM: minus the strength times the mean of the honest updates.

    Xie, Koyejo, Gupta, "Fall of empires: breaking Byzantine-tolerant SGD by inner product manipulation", UAI 2019.
    Small strengths (0.1, 0.5) pass distance rules, large ones (100) break averages.
    """
    return sign_flip("mean")


def little_is_enough(z: str = "given", sign: str = "minus", ddof: int = 1) -> Forge:
    """ALIE: the honest mean, moved by z honest standard deviations in every coordinate.

    Baruch, Baruch, Goldberg, "A little is enough: circumventing defenses for distributed learning", NeurIPS 2019.

    Args:
      z: ``given``: the strength (ByzFL 1.5). ``most``: the strength times the largest z that hides among the honest,
        ``Phi^-1((n - m - s) / (n - m))`` with s = floor(n / 2 + 1) - m (the paper, epfml).
      sign: ``minus`` (the paper, epfml) or ``plus`` (ByzFL, FLPoison).
      ddof: 1 (ByzFL, epfml) or 0 (FLPoison) in the standard deviation.
    """
    one_of(["given", "most"], z=z)
    one_of(["minus", "plus"], sign=sign)

    def forge(key, ctx, crowd):
        del key
        size = strength(ctx)
        if z == "most":
            size = size * hidden_deviations(jnp.sum(crowd.honest), jnp.sum(crowd.malicious))
        mean, std = honest_mean(crowd), honest_std(crowd, ddof)
        size = -size if sign == "minus" else size
        return _for_all(crowd, jax.tree.map(lambda m, s: m + size * s, mean, std))

    return forge


def hidden_deviations(honest: Array, malicious: Array) -> Array:
    """ALIE's z: with it the malicious clients and s honest ones outnumber the rest, () float32; 0 where none is."""
    n = honest + malicious
    supporters = n // 2 + 1 - malicious
    share = (honest - supporters) / jnp.maximum(honest, 1)
    return jnp.maximum(ndtri(jnp.clip(share, 0.5, 1.0 - 1e-6)), 0.0)


def min_max(direction: str = "std") -> Forge:
    """The honest mean moved as far as it lies no farther from any honest update than two of those lie apart.

    ``mean + gamma p`` with the largest gamma for which ``max_i ||mean + gamma p - x_i|| <= max_ij ||x_i - x_j||``, in
    closed form (the paper searches by bisection), times the strength. Shejwalkar and Houmansadr, NDSS 2021.

    Args:
      direction: p = ``std`` (minus the standard deviation), ``unit`` (minus the mean's direction) or ``sign`` (minus
        its signs).
    """
    one_of(["std", "unit", "sign"], direction=direction)

    def forge(key, ctx, crowd):
        del key
        mean, axis = honest_mean(crowd), _direction(crowd, direction)
        rows = Rows(_honest_rows(crowd), crowd.honest, jnp.eye(crowd.honest.shape[0]))
        apart = squared_distances(rows)
        widest = jnp.max(jnp.where(jnp.isfinite(apart), apart, 0.0))
        moved = jax.tree.map(lambda m, x: m[None] - x, mean, rows.tree)
        a, b, c = jnp.maximum(squared_norm(axis), 1e-30), inner(moved, axis), jax.vmap(squared_norm)(moved)
        gamma = (-b + jnp.sqrt(jnp.maximum(b**2 + a * (widest - c), 0.0))) / a
        most = jnp.min(jnp.where(crowd.honest, gamma, jnp.inf))
        return _moved(crowd, mean, axis, strength(ctx) * jnp.where(jnp.isfinite(most), most, 0.0))

    return forge


def min_sum(direction: str = "std") -> Forge:
    """As ``min_max``, with sums of squared distances: that of the malicious update is at most the largest honest one.

    ``gamma = sqrt((max_i sum_j ||x_i - x_j||^2 - sum_j ||mean - x_j||^2) / (n ||p||^2))``, in closed form.

    Args:
      direction: see ``min_max``.
    """
    one_of(["std", "unit", "sign"], direction=direction)

    def forge(key, ctx, crowd):
        del key
        mean, axis, n = honest_mean(crowd), _direction(crowd, direction), jnp.maximum(jnp.sum(crowd.honest), 1)
        rows = Rows(_honest_rows(crowd), crowd.honest, jnp.eye(crowd.honest.shape[0]))
        apart = squared_distances(rows)
        most = jnp.max(jnp.sum(jnp.where(jnp.isfinite(apart), apart, 0.0), axis=1))
        spread = jax.vmap(squared_norm)(jax.tree.map(lambda m, x: m[None] - x, mean, rows.tree))
        room = jnp.maximum(most - jnp.sum(jnp.where(crowd.honest, spread, 0.0)), 0.0)
        gamma = jnp.sqrt(room / (n * jnp.maximum(squared_norm(axis), 1e-30)))
        return _moved(crowd, mean, axis, strength(ctx) * gamma)

    return forge


def mimic(choice: str = "first") -> Forge:
    """All malicious clients repeat one honest client, so that it counts far more than the others.

    Karimireddy, He, Jaggi, ICLR 2022. It needs heterogeneous clients.

    Args:
      choice: ``first``: the honest client with the least id (ByzFL), in full participation always the same.
        ``farthest``: the one that lies farthest out along the main axis of the honest updates (the paper learns that
        axis over the first rounds).
    """
    one_of(["first", "farthest"], choice=choice)

    def forge(key, ctx, crowd):
        del key, ctx
        score = -crowd.ids.astype(jnp.float32)
        if choice == "farthest":
            rows = [x.reshape(x.shape[0], -1) for x in jax.tree.leaves(crowd.sent)]
            score = outlier_scores(jnp.concatenate(rows, axis=1), crowd.honest)
        best = jnp.argmax(jnp.where(crowd.honest, score, -jnp.inf))
        copied = jax.tree.map(lambda x: jnp.where(jnp.any(crowd.honest), x[best], 0.0), crowd.sent)
        return _for_all(crowd, copied)

    return forge


def optimised(attack: Forge, factors: Sequence[float]) -> Forge:
    """The attack at the strength that moves the actual aggregate farthest from the honest mean.

    The adversary tries the rule of the round itself: strength times each factor. ByzFL's Opt-IPM and Opt-ALIE.

    Args:
      attack: what is scaled. factors: of the strength, tried one after the other.
    """
    tried = jnp.asarray(factors, jnp.float32)

    def forge(key, ctx, crowd):
        honest = honest_mean(crowd)

        def at(factor):
            extra = {**ctx.hparams.extra, "attack_strength": factor * strength(ctx)}
            return attack(key, ctx._replace(hparams=dataclasses.replace(ctx.hparams, extra=extra)), crowd)

        def damage(factor):
            forged = at(factor)
            sent = jax.tree.map(lambda f, o: jnp.where(along(crowd.malicious, o), f, o), forged, crowd.sent)
            return squared_norm(jax.tree.map(jnp.subtract, crowd.aggregate(sent), honest))

        return at(tried[jnp.argmax(jax.lax.map(damage, tried))])

    return forge


# ---- what the honest clients sent -----------------------------------------------------------------------------------


def honest_mean(crowd: Crowd) -> PyTree:
    """The mean of the honest payloads: a tree like one payload; zero where nobody is honest."""
    return combine(plain_weights(crowd.honest), crowd.sent)


def honest_std(crowd: Crowd, ddof: int = 1) -> PyTree:
    """Their standard deviation by coordinate, with n - ddof below the line (at least 1)."""
    mean, below = honest_mean(crowd), jnp.maximum(jnp.sum(crowd.honest) - ddof, 1)

    def one(x: Array, m: Array) -> Array:
        squares = jnp.where(along(crowd.honest, x), jnp.square(x - m[None]), 0.0)
        return jnp.sqrt(jnp.sum(squares, axis=0) / below)

    return jax.tree.map(one, crowd.sent, mean)


def _direction(crowd: Crowd, kind: str) -> PyTree:
    if kind == "std":
        return jax.tree.map(jnp.negative, honest_std(crowd, ddof=1))
    mean = honest_mean(crowd)
    if kind == "sign":
        return jax.tree.map(lambda m: -jnp.sign(m), mean)
    size = jnp.maximum(jnp.sqrt(squared_norm(mean)), 1e-30)
    return jax.tree.map(lambda m: -m / size, mean)


def _honest_rows(crowd: Crowd) -> PyTree:
    return jax.tree.map(lambda x: jnp.where(along(crowd.honest, x), x, 0.0), crowd.sent)


def _moved(crowd: Crowd, mean: PyTree, axis: PyTree, size: Array) -> PyTree:
    return _for_all(crowd, jax.tree.map(lambda m, p: m + size * p, mean, axis))


def _for_all(crowd: Crowd, one: PyTree) -> PyTree:
    """The same payload for every slot."""
    return jax.tree.map(lambda x, like: jnp.broadcast_to(x[None], like.shape), one, crowd.sent)


def _normal(key: Key, crowd: Crowd) -> PyTree:
    """Independent normals for every client, by its id."""
    leaves, structure = jax.tree.flatten(crowd.sent)

    def draw(i: int, like: Array) -> Array:
        def one(client: Array) -> Array:
            return jax.random.normal(
                jax.random.fold_in(jax.random.fold_in(key, client), i), like.shape[1:], jnp.float32
            )

        return jax.vmap(one)(crowd.ids)

    return jax.tree.unflatten(structure, [draw(i, x) for i, x in enumerate(leaves)])
