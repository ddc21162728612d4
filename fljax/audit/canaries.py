"""Canary clients: made-up clients that send a random direction, hidden among the real ones of a round.

A canary passes through everything that a real client passes through: sampling, mask, clip, noise, sum, server. What it
leaves in the model is what the mechanism lets through of one client in the worst case: its update is as long as the
clip allows, and points where nobody else's does.

Source: Andrew, Kairouz, Oh, Oprea, McMahan, Suriyakumar, "One-shot empirical privacy estimation for federated
learning", ICLR 2024; independent coins for each canary: Steinke, Nasr, Jagielski, NeurIPS 2023.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fljax.core import tree
from fljax.core.types import Array, Key, LocalUpdate, PyTree

ABOVE_CLIP = 1e4
"""Norm of a canary's update in units of the clip, so that it is the chain's own clip that cuts it."""


class Canaries(NamedTuple):
    """The canaries of one audit; their directions are made anew from the key whenever they are needed.

    key: of the directions. signs: [k] float32, what an independent fair coin decided for each: 1 is in and sends its
    canary c; 0 is out and never answers; -1 is out and sends -c.
    """

    key: Key
    signs: Array


def draw_canaries(key: Key, count: int, out: float) -> Canaries:
    """Tosses an independent fair coin for each of ``count`` canaries.

    Args:
      key: consumed. count: k.
      out: sign of the canaries that are out. 0 (absent) where neighbouring data sets add or remove a client: the
        released sum is the same whether such a client exists or not. -1 (the opposite update) where a client is
        replaced by another one: the two are as far apart as the mechanism has to hide, 2 S.
    """
    coins = jax.random.bernoulli(jax.random.fold_in(key, 0), 0.5, (count,))
    return Canaries(jax.random.fold_in(key, 1), jnp.where(coins, 1.0, out).astype(jnp.float32))


def canary(key: Key, index: Array, size: int) -> Array:
    """Direction of canary ``index``: [size] float32, uniform on the unit sphere.

    Its numbers are those of the parameters' leaves, one after the other.
    """
    drawn = jax.random.normal(jax.random.fold_in(key, index), (size,), jnp.float32)
    return drawn / jnp.linalg.norm(drawn)


def _shaped(flat: Array, like: PyTree) -> PyTree:
    """A vector cut into the leaves of a tree."""
    leaves, structure = jax.tree.flatten(like)
    ends = np.cumsum([x.size for x in leaves])[:-1]
    parts = [v.reshape(x.shape).astype(x.dtype) for v, x in zip(jnp.split(flat, ends), leaves, strict=True)]
    return jax.tree.unflatten(structure, parts)


def canary_update(
    local: LocalUpdate, population: int, canaries: Canaries, *, train: bool, weight: float = 1.0
) -> LocalUpdate:
    """The clients' algorithm, where clients ``population .. population + k - 1`` are canaries.

    Canary i sends ``sign_i * 1e4 S * c_i`` as its update and zeros as every other part of the payload. All else of the
    algorithm stays as it is.

    Args:
      local: the real clients' algorithm. population: N, the real clients.
      train: whether real clients train. If not, they send exact zeros and keep their state, and nothing is trained:
        what is left to see in the model are canaries and noise.
      weight: number of examples that a canary states; real clients that do not train state 1.
    """

    def run(key, ctx, broadcast, client_state, shard):
        def own():
            return local.run(key, ctx, broadcast, client_state, shard)

        if train:
            payload, state, info = own()
        else:
            zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(own))
            payload, state, info = {**zeros[0], "weight": jnp.ones_like(zeros[0]["weight"])}, client_state, zeros[2]

        guest = ctx.id >= population
        place = jnp.clip(ctx.id - population, 0, len(canaries.signs) - 1)
        clip = ctx.hparams.clip
        length = canaries.signs[place] * jnp.where(jnp.isfinite(clip), ABOVE_CLIP * clip, 1.0)
        like = payload["update"]
        sent = length * canary(canaries.key, place, tree.num_elements(like))
        mine = jax.tree.map(jnp.zeros_like, payload) | {
            "update": _shaped(sent, like),
            "weight": jnp.full_like(payload["weight"], weight),
        }
        return tree.select(guest, mine, payload), tree.select(guest, client_state, state), info

    return local._replace(run=run)


def canary_available(available: Callable, population: int, canaries: Canaries) -> Callable:
    """Who answers, without the canaries that are out by absence."""

    def answers(keys, ids, t, hparams):
        place = jnp.clip(ids - population, 0, len(canaries.signs) - 1)
        absent = (ids >= population) & (canaries.signs[place] == 0)
        return available(keys, ids, t, hparams) & ~absent

    return answers
