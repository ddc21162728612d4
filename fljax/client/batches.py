"""Which examples a client looks at in which step: shuffled epochs over ragged shards, as static-shaped index tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

from fljax.core.types import Array, Key

SCORE_BITS = 23
"""Random bits of a score: as many as a uniform float32 has."""
SHORT = 32
"""Examples up to which a shorter sort gains nothing."""


class Plan(NamedTuple):
    """The steps of one client in one round.

    order: [E, M] positions within the shard, shuffled anew in each of E epochs; the client's own positions first.
    batch_size: B (static). size: () examples of the client. steps: number of steps, an int where all clients agree.
    """

    order: Array
    batch_size: int
    size: Array
    steps: Array | int

    @property
    def full_batch(self) -> bool:
        """True if every step sees all of every client's examples, so that one gather serves all steps."""
        return self.batch_size == self.order.shape[1]

    def batch(self, step: Array | int) -> tuple[Array, Array]:
        """Positions [B] and validity [B] of a step; the last batch of an epoch may be partly valid."""
        per_epoch = steps_per_epoch(self.size, self.batch_size)
        within = (step % per_epoch) * self.batch_size + jnp.arange(self.batch_size)
        valid = within < self.size
        epoch = jnp.minimum(step // per_epoch, self.order.shape[0] - 1)
        return self.order[epoch, jnp.minimum(within, self.order.shape[1] - 1)], valid


def steps_per_epoch(size, batch_size: int):
    """ceil(size / B), at least 1 so that an empty client divides by no zero."""
    if isinstance(size, int):
        return max(1, math.ceil(size / batch_size))
    return jnp.maximum(1, -(-size // batch_size))


def plan_steps(key: Key, shard, *, epochs: int | None, steps: int | None, batch_size: int | None) -> Plan:
    """Plans local training by epochs or by steps.

    Args:
      key: for the shuffling; not used where a batch holds all of every client's examples (order is irrelevant then).
      shard: the client's data, with static ``min_size`` and ``max_size`` over all clients.
      epochs: E, each of ceil(n / B) batches; or
      steps: number of batches; a new epoch begins when one is over.
      batch_size: B, or None for all examples of the client in every step.

    An empty client takes no steps.
    """
    longest, shortest = shard.max_size, shard.min_size
    batch = longest if batch_size is None else min(batch_size, longest)
    count: Array | int
    if epochs is not None:
        rounds = epochs
        count = epochs * steps_per_epoch(longest if longest == shortest else shard.size, batch)
    else:
        assert steps is not None  # Training.check
        rounds = math.ceil(steps / steps_per_epoch(max(shortest, 1), batch))
        count = steps
    if batch == longest:
        order = jnp.arange(longest)[None]
    else:
        order = jax.vmap(lambda k: _shuffle(k, shard.size, longest))(jax.random.split(key, rounds))
    if longest != shortest:
        count = jnp.where(shard.size > 0, count, 0)
    return Plan(order, batch, shard.size, count)


def _shuffle(key: Key, size: Array, length: int) -> Array:
    """A random order of 0..size-1, followed by the other positions: sorted by uniform scores, padding last.

    All clients of a vmapped batch, of all trials, are sorted as far as the largest of them reaches, in steps of factors
    of four: in a long tail few are as long as the longest of the population.
    """
    return _shuffles(length)(key[None], jnp.asarray(size)[None])[0]


@cache
def _shuffles(length: int) -> Callable[[Key, Array], Array]:
    """(keys [K], sizes [K]) -> orders [K, length]; under vmap it stays one batch, so that its branch stays a branch."""
    reaches = [length]
    while reaches[0] > SHORT:
        reaches.insert(0, -(-reaches[0] // 4))

    def sort_to(reach: int) -> Callable[[Key, Array], Array]:
        def one(key: Key, size: Array) -> Array:
            return jnp.concatenate([_sorted(key, size, reach), jnp.arange(reach, length)])

        return jax.vmap(one)

    @custom_vmap
    def shuffles(keys: Key, sizes: Array) -> Array:
        branch = sum((jnp.max(sizes) > reach).astype(jnp.int32) for reach in reaches[:-1])
        return lax.switch(branch, [sort_to(reach) for reach in reaches], keys, sizes)

    @shuffles.def_vmap
    def _(count: int, batched: Sequence[bool], keys: Key, sizes: Array) -> tuple[Array, bool]:
        whole = [
            x if b else jnp.broadcast_to(x, (count, *x.shape)) for x, b in zip((keys, sizes), batched, strict=True)
        ]
        orders = shuffles(*(x.reshape(-1) for x in whole))
        return orders.reshape(*whole[1].shape, length), True

    return shuffles


def _sorted(key: Key, size: Array, length: int) -> Array:
    """The same order for every length from ``size`` on, as far as it reaches.

    Where score and position fit into one word, one word is sorted, three to four times faster on a CPU than pairs; the
    order is the same, since pairs with equal scores keep theirs.
    """
    places, bits = jnp.arange(length), max(length - 1, 1).bit_length()
    scores = jnp.where(places < size, jax.random.bits(key, (length,)) >> (32 - SCORE_BITS), 2**SCORE_BITS - 1)
    if SCORE_BITS + bits > 32:
        return jnp.argsort(scores)
    words = lax.sort((scores << bits) | places.astype(jnp.uint32), is_stable=False)
    return (words & (2**bits - 1)).astype(jnp.int32)
