"""Words from a key: the pads of a secure sum, made again by whoever has the key.

Two functions, both for SIMULATION, neither a cipher of a deployed protocol:

- ``threefry``: Threefry-2x32 with 20 rounds, a reduced and fast relative of a block cipher with a key of 64 bits. It
  passes all known statistical tests; 64 bits are too few against an attacker. Salmon et al., "Parallel random numbers:
  as easy as 1, 2, 3", SC 2011.
- ``counter``: a hash of key and counter by multiplications and shifts, several times faster. Statistical quality alone:
  whoever sees words can compute the key.

Both are plain arithmetic on uint32, which XLA fuses with the addition of the pad: words are never stored by themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fljax.core.check import one_of
from fljax.core.types import Array, Key

Words = Callable[[Array, int], Array]
"""(key data [2] uint32, n static) -> [n] uint32."""

_TURNS = ((13, 15, 26, 6), (17, 29, 16, 24))


def threefry_2x32(key: Array, low: Array, high: Array) -> tuple[Array, Array]:
    """Threefry-2x32-20 of counters: two words for each.

    Args:
      key: [2] uint32. low, high: [m] uint32, the two halves of the counters.

    Returns:
      ([m], [m]) uint32.
    """
    first, second = key[0], key[1]
    schedule = (first, second, first ^ second ^ jnp.uint32(0x1BD11BDA))
    x, y = low + first, high + second
    for group in range(5):
        for turn in _TURNS[group % 2]:
            x = x + y
            y = ((y << jnp.uint32(turn)) | (y >> jnp.uint32(32 - turn))) ^ x
        x = x + schedule[(group + 1) % 3]
        y = y + schedule[(group + 2) % 3] + jnp.uint32(group + 1)
    return x, y


def threefry(key: Array, n: int) -> Array:
    """[n] words of Threefry: the first words of all blocks, then the second ones."""
    count = jax.lax.iota(jnp.uint32, -(-n // 2))
    return jnp.concatenate(threefry_2x32(key, count, jnp.zeros_like(count)))[:n]


def counter(key: Array, n: int) -> Array:
    """[n] words of a counter hash, SIMULATION-GRADE: a keyed variant of the finaliser of MurmurHash3.

    The key enters three times, so that streams of two keys are no shifted copies of each other. For one key it is a
    bijection of the counter: no word comes twice.
    """
    x = jax.lax.iota(jnp.uint32, n) * jnp.uint32(0x9E3779B9) + key[0]
    x = (x ^ (x >> 16)) * jnp.uint32(0x21F0AAAD) + key[1]
    x = (x ^ (x >> 15)) * jnp.uint32(0x735A2D97) ^ key[0]
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    return x ^ (x >> 15)


PRFS: dict[str, Words] = {"threefry": threefry, "counter": counter}
"""Functions by name."""

LABELS = {
    "threefry": "Threefry-2x32-20, 64-bit keys: simulation, not cryptographic strength",
    "counter": "counter hash: simulation-grade, no secrecy at all",
}
"""What a report says of them."""


class Pads(NamedTuple):
    """Pads that are added up.

    ids: [m] int32 which. signs: [m] int32, how often each is added. count: () int32 how many of them, from the front,
      are made; None: all of them, which is faster where the function runs for a batch of clients.
    ends: [m, 2] int32 places of the two clients that share a pad, twice the same for a pad of one; None where no word
      is left out.
    """

    ids: Array
    signs: Array
    count: Array | None = None
    ends: Array | None = None

    def compact(self) -> Pads:
        """The same sum with the pads that count first, and no other made."""
        order = jnp.argsort(self.signs == 0, stable=True)
        ends = None if self.ends is None else self.ends[order]
        return Pads(self.ids[order], self.signs[order], jnp.sum(self.signs != 0), ends)


def words_of(prf: str) -> Words:
    """The function of a name; raises FljaxError for an unknown one."""
    one_of(PRFS, prf=prf)
    return PRFS[prf]


def sum_of_pads(words: Words, key: Key, pads: Pads, n: int, cover: Callable | None = None) -> Array:
    """``sum_j signs_j * words(key of pad j)`` modulo 2^32; each pad has a key of its own, folded from ``key``.

    Args:
      words: the function. key: of the round. pads: which, with their signs. n: words of a pad (static).
      cover: (place, place) -> [n] uint32 0/1, on which words a pad of two clients lies; None: on all.

    Returns:
      [n] uint32. Memory O(n): pads are added up as they are made.
    """
    keys = jax.vmap(lambda i: jax.random.key_data(jax.random.fold_in(key, i)))(pads.ids)
    signs = pads.signs.astype(jnp.uint32)

    def add(j: Array, total: Array) -> Array:
        pad = signs[j] * words(keys[j], n)
        if cover is not None and pads.ends is not None:
            pad = pad * cover(pads.ends[j, 0], pads.ends[j, 1])
        return total + pad

    count = pads.ids.shape[0] if pads.count is None else pads.count
    return jax.lax.fori_loop(0, count, add, jnp.zeros(n, jnp.uint32))
