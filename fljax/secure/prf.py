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

Words = Callable[[Array, Array], tuple[Array, Array]]
"""(key data [2] uint32, counters [m] uint32 below 2^31) -> two words for each counter, ([m], [m]) uint32."""

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


def threefry(key: Array, count: Array) -> tuple[Array, Array]:
    """Both words of Threefry's blocks."""
    return threefry_2x32(key, count, jnp.zeros_like(count))


def hashed(key: Array, count: Array) -> Array:
    """A keyed variant of the finaliser of MurmurHash3: statistical quality, no secrecy.

    The key enters three times, so that streams of two keys are no shifted copies of each other. For one key it is a
    bijection of the counter: no word comes twice.

    Args:
      key: [2] uint32. count: [m] uint32.

    Returns:
      [m] uint32.
    """
    x = count * jnp.uint32(0x9E3779B9) + key[0]
    x = (x ^ (x >> 16)) * jnp.uint32(0x21F0AAAD) + key[1]
    x = (x ^ (x >> 15)) * jnp.uint32(0x735A2D97) ^ key[0]
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    return x ^ (x >> 15)


def counter(key: Array, count: Array) -> tuple[Array, Array]:
    """Two words of ``hashed``, SIMULATION-GRADE: of the counter, and of the counter with its highest bit set."""
    return hashed(key, count), hashed(key, count | jnp.uint32(1 << 31))


PRFS: dict[str, Words] = {"threefry": threefry, "counter": counter}
"""Functions by name."""

LABELS = {
    "threefry": "Threefry-2x32-20, 64-bit keys: simulation, not cryptographic strength",
    "counter": "counter hash: simulation-grade, no secrecy at all",
}
"""What a report says of them."""


class Pads(NamedTuple):
    """Pads that are added up.

    ids: [m] int32 which. signs: [m] int32, -1, 0 or 1. count: () int32 how many of them, from the front,
      are made; None: all of them, which is faster where the function runs for a batch of clients.
    ends: [m, 2] int32 places of the two clients that share a pad, twice the same for a pad of one; None where no word
      is left out.
    """

    ids: Array
    signs: Array
    count: Array | None = None
    ends: Array | None = None

    def negative(self) -> Pads:
        """The same pads with the opposite signs."""
        return self._replace(signs=-self.signs)

    def compact(self) -> Pads:
        """The same sum with the pads that count first, and no other made."""
        order = jnp.argsort(self.signs == 0, stable=True)
        ends = None if self.ends is None else self.ends[order]
        return Pads(self.ids[order], self.signs[order], jnp.sum(self.signs != 0), ends)


def stream_of_words(words: Words, key: Array, n: int) -> Array:
    """[n] words of one key: the first ones of all counters, then the second ones. A pad is such a stream."""
    return jnp.concatenate(words(key, jax.lax.iota(jnp.uint32, -(-n // 2))))[:n]


def words_of(prf: str) -> Words:
    """The function of a name; raises FljaxError for an unknown one."""
    one_of(PRFS, prf=prf)
    return PRFS[prf]


def add_pads(vector: Array, words: Words, key: Key, pads: Pads) -> Array:
    """``vector + sum_j signs_j * stream_of_words(key of pad j)`` modulo 2^32.

    Args:
      vector: [n] uint32. words: the function. key: of the round; each pad has a key of its own, folded from it.
      pads: which, with their signs.

    Returns:
      [n] uint32. Memory O(n): pads are added up as they are made.
    """
    n, ones = vector.shape[0], jnp.uint32(0xFFFFFFFF)
    keys = jax.vmap(lambda i: jax.random.key_data(jax.random.fold_in(key, i)))(pads.ids)
    count = pads.ids.shape[0] if pads.count is None else pads.count
    flip, live = jnp.where(pads.signs < 0, ones, 0), jnp.where(pads.signs == 0, 0, ones)
    # -w = ~w + 1: the ones are added before, together. Flipping bits is cheaper than a product with a sign.
    vector = vector + jnp.sum((pads.signs < 0) & (jnp.arange(pads.ids.shape[0]) < count), dtype=jnp.uint32)
    counters = jax.lax.iota(jnp.uint32, -(-n // 2))
    even = jnp.pad(vector, (0, n % 2))

    def add(j: Array, halves: tuple[Array, Array]) -> tuple[Array, Array]:
        first, second = words(keys[j], counters)
        return halves[0] + ((first ^ flip[j]) & live[j]), halves[1] + ((second ^ flip[j]) & live[j])

    pairs = 2 if pads.count is None else 1  # two pads a pass halve the traffic of the sum; needs a static count
    return jnp.concatenate(jax.lax.fori_loop(0, count, add, tuple(jnp.split(even, 2)), unroll=pairs))[:n]


def add_covered_pads(
    vector: Array, words: Words, key: Key, pads: Pads, cover: Callable[[Array, Array], Array]
) -> Array:
    """``add_pads`` where a pad lies on some words alone. cover: (place, place) -> [n] uint32 0/1 of two clients."""
    assert pads.ends is not None, "pads whose clients are not known lie on all words"
    ends, signs = pads.ends, pads.signs.astype(jnp.uint32)
    keys = jax.vmap(lambda i: jax.random.key_data(jax.random.fold_in(key, i)))(pads.ids)

    def add(j: Array, total: Array) -> Array:
        pad = signs[j] * stream_of_words(words, keys[j], vector.shape[0])
        return total + pad * cover(ends[j, 0], ends[j, 1])

    return jax.lax.fori_loop(0, pads.ids.shape[0] if pads.count is None else pads.count, add, vector)
