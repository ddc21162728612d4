"""Words from keys: published vectors, and what a pad has to look like."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import threefry_2x32 as jax_threefry
from scipy import stats

from fljax.core.check import FljaxError
from fljax.secure.prf import LABELS, PRFS, Pads, add_pads, stream_of_words, threefry_2x32, words_of

KEY = jnp.array([0x13198A2E, 0x03707344], jnp.uint32)


def test_threefry_has_the_published_words():
    """Known answers of Random123 1.09, `threefry2x32 20`: (counter, key, result)."""
    published = [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
    ]
    for count, key, result in published:
        low, high = (jnp.array([c], jnp.uint32) for c in count)
        x, y = threefry_2x32(jnp.array(key, jnp.uint32), low, high)
        assert (int(x[0]), int(y[0])) == result


def test_threefry_is_that_of_jax_and_does_not_depend_on_the_length():
    count = jnp.arange(50, dtype=jnp.uint32)
    ours = threefry_2x32(KEY, count, count + 50)
    np.testing.assert_array_equal(jnp.concatenate(ours), jax_threefry(KEY, jnp.arange(100, dtype=jnp.uint32)))
    assert stream_of_words(PRFS["threefry"], KEY, 7).shape == (7,)


@pytest.mark.parametrize("prf", PRFS)
def test_words_are_uniform_and_change_with_every_bit_of_the_key(prf):
    """Bytes by chi squared (false alarm 1e-7 each, seeded), bits of a key by how many bits of a word they flip."""
    words, n = jax.jit(lambda key, n: stream_of_words(words_of(prf), key, n), static_argnums=1), 1 << 18
    got = np.asarray(words(KEY, n))
    limit = stats.chi2.ppf(1 - 1e-7, 255)
    for shift in (0, 8, 16, 24):
        counts = np.bincount((got >> shift) & 255, minlength=256)
        assert np.sum((counts - n / 256) ** 2 / (n / 256)) < limit
    pairs = np.bincount((got[:-1] & 15) << 4 | (got[1:] & 15), minlength=256)  # a word and the next
    assert np.sum((pairs - (n - 1) / 256) ** 2 / ((n - 1) / 256)) < limit
    for half in range(2):
        for bit in range(32):
            other = words(KEY.at[half].set(KEY[half] ^ np.uint32(1 << bit)), 4096)
            flipped = np.bitwise_count(got[:4096] ^ np.asarray(other)).mean()
            assert abs(flipped - 16) < 0.3, (half, bit)  # 6.8 standard deviations if flips were fair coins


@pytest.mark.parametrize("prf", PRFS)
def test_no_two_streams_are_equal_or_shifted_copies(prf):
    """Windows of four words: no window of any of 200 streams, neighbouring keys among them, comes twice."""
    keys = jnp.array([[k % 20, k // 20] for k in range(200)], jnp.uint32)
    got = np.asarray(jax.vmap(lambda key: stream_of_words(words_of(prf), key, 512))(keys))
    windows = np.lib.stride_tricks.sliding_window_view(got, 4, axis=1).reshape(-1, 4)
    assert len(np.unique(windows, axis=0)) == len(windows)


def test_pads_are_added_with_their_signs():
    """Against one pad after the other in NumPy, modulo 2^32; those behind the count are not made."""
    key, ids, signs = jax.random.key(3), jnp.array([5, 9, 5, 2, 2]), jnp.array([1, 0, -1, 1, -1])
    make = PRFS["threefry"]

    def added(pads):
        return add_pads(jnp.zeros(11, jnp.uint32), make, key, pads)

    def pad(i):
        return np.asarray(stream_of_words(make, jax.random.key_data(jax.random.fold_in(key, i)), 11))

    np.testing.assert_array_equal(added(Pads(ids, signs)), np.zeros(11))
    compact = Pads(ids, signs).compact()
    assert int(compact.count) == 4 and 9 not in np.asarray(compact.ids[:4])
    np.testing.assert_array_equal(added(compact), np.zeros(11))
    np.testing.assert_array_equal(added(Pads(ids, signs, jnp.int32(1))), pad(5))
    np.testing.assert_array_equal(added(Pads(ids, signs, jnp.int32(4))), pad(2))
    three = Pads(jnp.array([5, 9, 2]), jnp.array([-1, 1, -1]))
    np.testing.assert_array_equal(added(three), pad(9) - pad(5) - pad(2))


def test_both_are_labelled_and_others_are_refused():
    assert set(LABELS) == set(PRFS) and all("simulation" in text for text in LABELS.values())
    with pytest.raises(FljaxError, match="Expected prf='aes' to be one of threefry, counter"):
        words_of("aes")
