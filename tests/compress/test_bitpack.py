"""Words of every width through bytes, by an independent writer of bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fljax.compress.bitpack import pack_bits, packed_bytes, unpack_bits
from fljax.core.check import FljaxError


def test_every_width_survives_and_is_what_numpy_writes():
    """All 32 widths in one program; little-endian bits by np.packbits."""
    words = np.random.default_rng(0).integers(0, 2**32, 37, np.uint32)

    @jax.jit
    def through(words):
        packed = {k: pack_bits(words, k) for k in range(1, 33)}
        return packed, {k: unpack_bits(p, 37, k) for k, p in packed.items()}

    packed, back = jax.device_get(through(jnp.asarray(words)))
    for k in range(1, 33):
        low = words & np.uint32(2**k - 1)
        bits = np.unpackbits(low.view(np.uint8).reshape(37, 4), axis=1, bitorder="little")[:, :k]
        np.testing.assert_array_equal(packed[k], np.packbits(bits.ravel(), bitorder="little"))
        assert len(packed[k]) == packed_bytes(37, k) == -(-37 * k // 8)
        np.testing.assert_array_equal(back[k], low)


def test_uploads_of_a_batch_and_bad_widths():
    words = jnp.arange(6, dtype=jnp.uint32).reshape(2, 3)
    assert jax.vmap(lambda w: unpack_bits(pack_bits(w, 11), 3, 11))(words).tolist() == words.tolist()
    for width in (0, 33):
        with pytest.raises(FljaxError, match=rf"Expected bits={width} in \[1, 32\]"):
            pack_bits(words[0], width)
