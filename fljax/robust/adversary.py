"""Which clients are malicious: a constant share of the ids, drawn by the run's key."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fljax.core.types import Adversary, Array, Hparams, Key
from fljax.robust.attacks import Forge


def malicious_ids(population: int, key: Key, hparams: Hparams, ids: Array) -> Array:
    """Whether clients are malicious: ids -> bool of their shape; an empty slot is not.

    Exactly ``round(fraction N)`` of the N ids are, fraction being the traced ``hparams.extra["attack_fraction"]``; they
    are the same in all rounds of a key, and a larger fraction adds to those of a smaller one.
    """
    place = jnp.argsort(jax.random.permutation(key, population))
    most = jnp.round(hparams.extra["attack_fraction"] * population)
    return (jnp.take(place, ids, mode="clip") < most) & (ids < population)


def make_adversary(name: str, population: int, poison: Callable | None = None, forge: Forge | None = None) -> Adversary:
    """An adversary that holds a constant share of the clients and begins in round ``hparams.extra["attack_start"]``.

    Args:
      name: of the attack. population: N.
      poison: (ctx, malicious, shard) -> shard, what its clients see of their data; None: what it is.
      forge: what they send; None: what they compute.
    """

    def members(key, hparams, t, ids):
        return malicious_ids(population, key, hparams, ids) & (t >= hparams.extra["attack_start"])

    return Adversary(name, members, poison, forge)
