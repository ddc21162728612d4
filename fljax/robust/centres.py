"""Rules that search for a centre: geometric median (RFA) and centred clipping.

Every step of both is an affine combination of the payloads and of the starting point. So the steps run on coefficients
and on one matrix of inner products: any number of them costs what one costs.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from fljax.core.check import FljaxError, non_negative, one_of, positive
from fljax.core.transform import Aggregator
from fljax.core.types import Array, PyTree
from fljax.robust.rows import (
    Before,
    Rows,
    Verdict,
    bind,
    combine,
    gram,
    inner,
    middle_row,
    number,
    plain_weights,
    relative_to,
    squared_norm,
)


def geometric_median(
    steps: int = 64, nu: float = 1e-6, start: str = "mean", before: Sequence[Before] = ()
) -> Aggregator:
    """The point with the least sum of distances to the payloads, by smoothed Weiszfeld steps (RFA).

    ``v <- sum_i w_i x_i / sum_i w_i`` with ``w_i = 1 / max(nu, ||v - x_i||)``. Pillutla, Kakade, Harchaoui, "Robust
    aggregation for federated learning", IEEE TSP 2022. It withstands fewer than half of the clients.

    Args:
      steps: 64 is as good as converged; ByzFL takes 3, epfml 8.
      nu: smoothing; ByzFL takes 0.1.
      start: ``mean`` of the payloads, or ``zero`` (ByzFL). before: stages before the rule.
    """
    positive(steps=steps, nu=nu)
    one_of(["mean", "zero"], start=start)

    def rule(key, ctx, rows, state):
        del key, ctx
        zero = jax.tree.map(lambda x: jnp.zeros_like(x[0]), rows.tree)
        products = _products(rows, zero)
        begin = jnp.append(plain_weights(rows.alive), 0.0) if start == "mean" else _last(rows)

        def step(_, c):
            weights = jnp.append(rows.alive / jnp.maximum(nu, _distances(products, c)[:-1]), 0.0)
            return weights / jnp.maximum(jnp.sum(weights), 1e-30)

        weights = jax.lax.fori_loop(0, steps, step, begin)[:-1]
        return Verdict(combine(weights, rows.tree), weights), state

    return bind("geometric_median", rule, before)


def centred_clipping(tau: float | None = None, steps: int = 3, before: Sequence[Before] = ()) -> Aggregator:
    """Moves the centre of the last round by what the payloads differ from it, each difference clipped to tau.

    ``v <- v + (1/n) sum_i (x_i - v) min(1, tau / ||x_i - v||)``, some steps a round; v is kept from round to round and
    begins at zero. Karimireddy, He, Jaggi, "Learning from history for Byzantine robust optimization", ICML 2021. With
    clients' momentum beta the fitting tau grows by 1 / (1 - beta).

    Args:
      tau: radius; None reads ``hparams.extra["robust_tau"]``. steps: a round. before: stages before the rule.
    """
    positive(steps=steps)
    if tau is not None:
        non_negative(tau=tau)

    def init(params, hparams):
        del hparams
        return {"update": jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)}

    def rule(key, ctx, rows, state):
        del key
        only_updates("centred_clipping", rows.tree)
        products, n = _products(rows, state), jnp.maximum(rows.living, 1).astype(jnp.float32)
        radius = number(ctx, "tau", tau)

        def step(_, c):
            scale = jnp.minimum(1.0, radius / jnp.maximum(_distances(products, c)[:-1], 1e-30))
            scale = jnp.append(jnp.where(rows.alive, scale, 0.0), 0.0) / n
            return c + scale - jnp.sum(scale) * c

        c = jax.lax.fori_loop(0, steps, step, _last(rows))
        moved = combine(c[:-1], rows.tree)
        centre = jax.tree.map(lambda v, m: c[-1] * v + m, state, moved)
        # A client that was not clipped counts as it would have in a plain mean, up to the share of the centre.
        weights = c[:-1] / jnp.maximum(1.0 - c[-1], 1e-30)
        return Verdict(centre, weights), centre

    return bind("centred_clipping", rule, before, init)


def only_updates(name: str, payload: PyTree) -> None:
    """Raises FljaxError unless the update is the only part of the payload: the rule keeps a state of its shape."""
    if set(payload) != {"update"}:
        parts = ", ".join(sorted(payload))
        raise FljaxError(f"Expected robust rule {name!r} to get payload={parts} with the update alone. Use fedavg.")


def _products(rows: Rows, point: PyTree) -> Array:
    """[m + 1, m + 1] inner products of the rows and of one more point, all relative to a middle row."""
    middle = middle_row(rows)
    moved = relative_to(rows.tree, middle)
    away = jax.tree.map(lambda p, x: p - jnp.take(x, middle, axis=0), point, rows.tree)
    side = inner(moved, away)
    top = jnp.concatenate([gram(moved), side[:, None]], axis=1)
    return jnp.concatenate([top, jnp.append(side, squared_norm(away))[None]], axis=0)


def _last(rows: Rows) -> Array:
    """Coefficients of the additional point."""
    return jnp.zeros(rows.alive.shape[0] + 1).at[-1].set(1.0)


def _distances(products: Array, c: Array) -> Array:
    """[m + 1] distances of all points to the affine combination c of them."""
    side = jnp.matmul(products, c, precision="highest")
    squared = jnp.diag(products) - 2.0 * side + jnp.sum(c * side)
    return jnp.sqrt(jnp.maximum(squared, 0.0))
