"""Stages before a robust rule: groups, bucketing, mixing with neighbours, bounds on norms. They compose."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fljax.core.check import positive
from fljax.core.types import Array, Key
from fljax.robust.rows import Before, Rows, along, at_most_half, combine, number, ranks, squared_distances, squared_norm


def bucketing(size: int) -> Before:
    """Means of random buckets of the clients that came; the last one may be smaller.

    Karimireddy, He, Jaggi, "Byzantine-robust learning on heterogeneous datasets via bucketing", ICLR 2022. A rule
    behind it sees less heterogeneous rows, and up to f of the n/size of them may be malicious.

    Args:
      size: clients a bucket.
    """
    positive(bucket=size)

    def stage(key, ctx, rows):
        del ctx
        return _averaged(rows, _random_buckets(key, rows.alive, size))

    return stage


def secure_groups(size: int) -> Before:
    """All that a server behind secure aggregation sees: the mean of each random group of clients.

    Every group runs its own secure sum, so that the server learns a group's sum and how many of it answered, and
    nothing of its members. One malicious client spoils its whole group: of n/size rows up to f are malicious. Large
    groups hide more and withstand less. Velicheti, Xia, Koyejo, "Secure Byzantine-robust distributed learning via
    clustering", 2021. The arithmetic is that of ``bucketing``.

    Args:
      size: clients a group; 1 hides nothing.
    """
    return bucketing(size)


def nearest_neighbour_mixing(f: int | None = None) -> Before:
    """NNM: replaces every payload by the mean of the n - f that lie closest to it, itself among them.

    Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan, "Fixing by mixing: a recipe for optimal Byzantine ML under
    heterogeneity", AISTATS 2023.

    Args:
      f: how many may be malicious; None reads ``hparams.extra["robust_f"]``.
    """

    def stage(key, ctx, rows):
        del key
        keep = rows.living - at_most_half(rows.living, number(ctx, "f", f))
        close = (ranks(squared_distances(rows)) < keep) & rows.alive[:, None] & rows.alive[None, :]
        return _averaged(rows, close)

    return stage


def norm_bound(bound: float | None = None) -> Before:
    """Scales every payload to a norm of at most the bound: ``x min(1, bound / ||x||)``, on the server.

    Sun, Kairouz, Suresh, McMahan, "Can you really backdoor federated learning?", 2019; ByzFL's Clipping.

    Args:
      bound: None reads ``hparams.extra["robust_bound"]``.
    """

    def stage(key, ctx, rows):
        del key
        return _scaled(rows, number(ctx, "bound", bound))

    return stage


def adaptive_norm_bound(f: int | None = None) -> Before:
    """ARC: scales the ``floor(2 f (n - f) / n)`` longest payloads to the norm of the longest one that is left.

    Allouah, Guerraoui, Gupta, Jellouli, Rizk, Stephan, "Adaptive gradient clipping for robust federated learning", ICLR
    2025.

    Args:
      f: how many may be malicious; None reads ``hparams.extra["robust_f"]``.
    """

    def stage(key, ctx, rows):
        del key
        n = rows.living
        most = at_most_half(n, number(ctx, "f", f))
        cut = 2 * most * (n - most) // jnp.maximum(n, 1)
        upwards = jnp.sort(jnp.where(rows.alive, _norms(rows), jnp.inf))
        return _scaled(rows, jnp.take(upwards, n - cut - 1, mode="clip"))

    return stage


def _random_buckets(key: Key, alive: Array, size: int) -> Array:
    """[buckets, m] bool: a random division of the living rows into buckets of ``size``, the last one smaller."""
    m = alive.shape[0]
    place = ranks(jnp.where(alive, jax.random.uniform(key, (m,)), 2.0))
    return (place[None, :] // size == jnp.arange(-(-m // size))[:, None]) & alive[None, :]


def _averaged(rows: Rows, member: Array) -> Rows:
    """One row for each line of member [k, m]: the mean over its members; a line without any does not count."""
    count = jnp.sum(member, axis=1)
    weights = member / jnp.maximum(count, 1)[:, None].astype(jnp.float32)
    made = jnp.matmul(weights, rows.made, precision="highest")
    return Rows(combine(weights, rows.tree), count > 0, made)


def _norms(rows: Rows) -> Array:
    return jnp.sqrt(jax.vmap(squared_norm)(rows.tree))


def _scaled(rows: Rows, bound: Array | float) -> Rows:
    """Rows of a norm of at most the bound."""
    scale = jnp.minimum(1.0, bound / jnp.maximum(_norms(rows), 1e-30))
    tree = jax.tree.map(lambda x: along(scale, x) * x, rows.tree)
    return Rows(tree, rows.alive, scale[:, None] * rows.made)
