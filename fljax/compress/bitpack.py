"""Words of k bits written one after another, inside a compiled program: what a masked upload is on the wire.

The lowest bit of the first word comes first, as in the vectors of Google's secure aggregation; k need not divide 32.
``pack`` beside it writes the messages of compressed uploads, with scales and positions, on the host.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from fljax.core.check import in_range
from fljax.core.types import Array


def packed_bytes(count: int, bits: int) -> int:
    """Bytes of so many words: ``ceil(count bits / 8)``."""
    in_range(1, 32, bits=bits)
    return -(-count * bits // 8)


def pack_bits(words: Array, bits: int) -> Array:
    """Words [n] uint32, of which the lower ``bits`` count -> uint8 [packed_bytes(n, bits)].

    Args:
      words: values modulo 2^bits; what is above is dropped. bits: 1 to 32 (static).
    """
    in_range(1, 32, bits=bits)
    place = jnp.arange(bits, dtype=jnp.uint32)
    stream = ((words[:, None] >> place[None]) & 1).astype(jnp.uint8).reshape(-1)
    length = packed_bytes(words.shape[0], bits)
    stream = jnp.pad(stream, (0, 8 * length - stream.shape[0])).reshape(length, 8)
    return jnp.sum(stream << jnp.arange(8, dtype=jnp.uint8)[None], axis=1, dtype=jnp.uint8)


def unpack_bits(packed: Array, count: int, bits: int) -> Array:
    """The inverse of ``pack_bits``: uint8 [packed_bytes(count, bits)] -> words [count] uint32 below 2^bits.

    Each word is cut from the five bytes that it touches at the most.
    """
    in_range(1, 32, bits=bits)
    first = lax.iota(jnp.uint32, count) * jnp.uint32(bits)
    byte, shift = (first >> 3).astype(jnp.int32), first & 7
    padded = jnp.pad(packed, (0, 5)).astype(jnp.uint32)
    low = sum(padded[byte + i] << jnp.uint32(8 * i) for i in range(4))
    high = jnp.where(shift > 0, padded[byte + 4] << (jnp.uint32(32) - jnp.maximum(shift, 1)), 0)
    return ((low >> shift) | high) & jnp.uint32(2**bits - 1)
