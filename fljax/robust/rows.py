"""What robust rules are made of: rows, the stages before a rule, and their binding into an aggregator.

A rule sees the payloads of a round as *rows* with a mask of those that count. Absent clients, empty slots and payloads
that are not finite are masked: they are never a zero among the values. All shapes are static, so that one program
serves any number of living clients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fljax.core.transform import Aggregator, Claim
from fljax.core.types import Array, Ctx, Hparams, Key, PyTree

NORM_LIMIT = 1e12
"""A payload whose norm exceeds this counts as not finite: squares of differences must not overflow in float32."""


class Rows(NamedTuple):
    """What a rule aggregates: the clients' payloads, or averages of them that were made before.

    tree: leaves [m, ...], zero where not alive. alive: [m] bool. made: [m, C], how each row is made of the payloads.
    """

    tree: PyTree
    alive: Array
    made: Array

    @property
    def living(self) -> Array:
        """() int32: the rows that count."""
        return jnp.sum(self.alive)


class Verdict(NamedTuple):
    """What a rule decides. total: a tree like one payload. weights: [m], how much each row counts (1/n each in a plain
    mean), or None for a rule that weighs coordinates one by one. info: {name: () value} to observe."""

    total: PyTree
    weights: Array | None = None
    info: dict[str, Array] | None = None


Before = Callable[[Key, Ctx, Rows], Rows]
"""A stage before the rule, such as mixing with neighbours; they compose from left to right."""
Rule = Callable[[Key, Ctx, Rows, PyTree], tuple[Verdict, PyTree]]
"""(key, ctx, rows, state) -> (verdict, state)."""


def number(ctx: Ctx, name: str, given: Any) -> Any:
    """A number of a rule: the given one, or the traced ``hparams.extra["robust_<name>"]`` where None was given."""
    return ctx.hparams.extra[f"robust_{name}"] if given is None else given


def at_most_half(count: Array, f: Any) -> Array:
    """f as int32, but at most (n - 1) / 2: with fewer living clients than a rule was set up for it still answers."""
    return jnp.clip(jnp.asarray(f).astype(jnp.int32), 0, jnp.maximum(count - 1, 0) // 2)


def bind(
    name: str,
    rule: Rule,
    before: Sequence[Before] = (),
    init: Callable[[PyTree, Hparams], PyTree] | None = None,
    own: Callable | None = None,
) -> Aggregator:
    """A rule, and the stages before it, as an aggregator that returns a mean.

    Args:
      name: for messages. rule: what it does with rows. before: stages before it, from left to right.
      init: (params, hparams) -> state of the rule; None for none.
      own: see ``Aggregator``; the rule then finds the server's own payload in ``state`` as a pair (state, own payload).

    Guarantees: without any living client the total is zero and the state stays.
    """

    def reduce(key, ctx, collected, alive, state):
        payloads, given = (collected, state) if own is None else (collected[0], (state, collected[1]))
        norms = jax.vmap(squared_norm)(payloads)
        alive = alive & (norms <= NORM_LIMIT**2)
        tree = jax.tree.map(lambda x: jnp.where(along(alive, x), x, jnp.zeros_like(x)), payloads)
        rows = Rows(tree, alive, jnp.diag(alive.astype(jnp.float32)))
        keys = jax.random.split(key, len(before) + 1)
        for i, stage in enumerate(before):
            rows = stage(keys[i], ctx, rows)
        verdict, new = rule(keys[-1], ctx, rows, given)
        some = jnp.any(alive)
        total = jax.tree.map(lambda x: jnp.where(some, x, jnp.zeros_like(x)), verdict.total)
        new = jax.tree.map(lambda a, b: jnp.where(some, a, b), new, state)
        info = dict(verdict.info or {})
        if verdict.weights is not None:
            part = jnp.sum(verdict.weights[:, None] * rows.made, axis=0)
            info["share"] = jnp.sum(alive) * part
        return total, new, info

    def claim(hparams):
        del hparams
        return Claim(
            reason=f"how far one client can move the result of the robust rule {name!r} has no stated bound; use "
            "local noise, or the plain sum"
        )

    start = (lambda params, hparams: ()) if init is None else init
    return Aggregator(name, "concat", "mean", start, reduce, claim, own)


# ---- arithmetic on rows ---------------------------------------------------------------------------------------------


def along(mask: Array, like: Array) -> Array:
    """A vector [m] in the rank of an array [m, ...], so that both broadcast."""
    return mask.reshape(mask.shape + (1,) * (like.ndim - 1))


def squared_norm(tree: PyTree) -> Array:
    """() float32: sum of squares of one payload."""
    return sum((jnp.sum(jnp.square(x)) for x in jax.tree.leaves(tree)), jnp.float32(0.0))


def combine(weights: Array, tree: PyTree) -> PyTree:
    """Weighted sums of rows: weights [..., m] and leaves [m, ...] -> leaves [..., ...], in full float32."""
    return jax.tree.map(lambda x: jnp.tensordot(weights, x, axes=1, precision="highest"), tree)


def plain_weights(alive: Array) -> Array:
    """[m] float32: 1/n for the rows that count, 0 for the others."""
    return alive / jnp.maximum(jnp.sum(alive), 1).astype(jnp.float32)


def gram(tree: PyTree) -> Array:
    """[m, m] inner products of all pairs of rows."""

    def one(x: Array) -> Array:
        flat = x.reshape(x.shape[0], -1)
        return jnp.matmul(flat, flat.T, precision="highest")

    return sum((one(x) for x in jax.tree.leaves(tree)), jnp.float32(0.0))


def inner(tree: PyTree, one: PyTree) -> Array:
    """[m] inner products of the rows with one payload."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(one), strict=True)
    products = [jnp.matmul(x.reshape(x.shape[0], -1), y.reshape(-1), precision="highest") for x, y in pairs]
    return sum(products, jnp.float32(0.0))


def squared_distances(rows: Rows) -> Array:
    """[m, m] squared distances between rows, inf from and to rows that do not count, 0 from a row to itself.

    They come from inner products, which costs one matrix product. Differences are taken to a row in the middle of the
    others first: otherwise what all rows have in common, or one huge row, would eat the digits.
    """
    g, _ = centred_gram(rows)
    square = jnp.diag(g)
    d = jnp.maximum(square[:, None] + square[None, :] - 2.0 * g, 0.0)
    d = jnp.where(jnp.eye(d.shape[0], dtype=bool), 0.0, 0.5 * (d + d.T))
    both = rows.alive[:, None] & rows.alive[None, :]
    return jnp.where(both, d, jnp.inf)


def centred_gram(rows: Rows) -> tuple[Array, Array]:
    """([m, m] inner products of the rows' differences to a middle row, () index of that row)."""
    middle = middle_row(rows)
    return gram(relative_to(rows.tree, middle)), middle


def middle_row(rows: Rows) -> Array:
    """() index of the living row with the least median distance to the others, by rough arithmetic."""
    g = gram(rows.tree)
    square = jnp.diag(g)
    rough = jnp.where(rows.alive[None, :], square[:, None] + square[None, :] - 2.0 * g, jnp.inf)
    half = jnp.take(jnp.sort(rough, axis=1), rows.living // 2, axis=1, mode="clip")
    return jnp.argmin(jnp.where(rows.alive, half, jnp.inf))


def relative_to(tree: PyTree, index: Array) -> PyTree:
    """Rows minus one of them."""
    return jax.tree.map(lambda x: x - jnp.take(x, index, axis=0)[None], tree)


def ranks(values: Array) -> Array:
    """Rank of every entry along the last axis, 0 for the least; ties by place."""
    return jnp.argsort(jnp.argsort(values, axis=-1, stable=True), axis=-1)
