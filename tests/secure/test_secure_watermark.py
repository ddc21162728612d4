"""What survives averaging and what does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fljax.core.check import FljaxError
from fljax.secure.fixedpoint import encode, signed, smallest_bits, top_word
from fljax.secure.watermark import add_plane, bit_error_rate, detect_mark, embed_mark, plane_bits, split_plane

KEY = jax.random.key(2)


@pytest.mark.parametrize(("cohort", "most", "bits"), [(1, 1, 1), (7, 1, 3), (8, 1, 4), (10, 3, 5), (1000, 255, 18)])
def test_planes_hold_every_sum(cohort, most, bits):
    assert plane_bits(cohort, most) == bits and cohort * most < 2**bits


def test_a_bit_plane_and_the_values_above_it_are_summed_exactly():
    """Ten clients with extreme values and payloads, against sums in NumPy."""
    rng, cohort, plane = np.random.default_rng(0), 10, plane_bits(10, 15)
    values = rng.integers(-127, 128, (cohort, 200)).astype(np.int32)
    values[:, 0], values[:, 1] = 127, -127
    payload = rng.integers(0, 16, (cohort, 200))
    payload[:, :2] = 15
    bits = smallest_bits(8, cohort) + plane
    total = jnp.sum(add_plane(jnp.asarray(values), jnp.asarray(payload), plane), axis=0)
    got, told = split_plane(total & jnp.uint32(2**bits - 1), plane, bits)
    np.testing.assert_array_equal(got, values.sum(0))
    np.testing.assert_array_equal(told, payload.sum(0))
    with pytest.raises(FljaxError, match=r"Expected bits=8 in 9 \.\. 32"):
        split_plane(total, plane, plane)


def test_the_lowest_bits_of_floats_and_of_words_do_not_survive():
    """Payloads of one client in the lowest bit, of the mean of ten floats and of the sum of ten words: coins. 20,000
    bits, 6 standard deviations (false alarm 2e-9); in the upload itself it is there."""
    rng = np.random.default_rng(1)
    floats, secret = rng.normal(size=(10, 20_000)).astype(np.float32), rng.integers(0, 2, 20_000)
    floats[0] = ((floats[0].view(np.uint32) & ~np.uint32(1)) | secret.astype(np.uint32)).view(np.float32)
    assert ((floats[0].view(np.uint32) & 1) == secret).all()
    wrong = ((floats.mean(0, dtype=np.float32).view(np.uint32) & 1) != secret).mean()
    assert abs(wrong - 0.5) < 6 * 0.5 / 20_000**0.5
    words = np.array(encode(KEY, jnp.asarray(floats), jnp.float32(4 / top_word(16)), top_word(16)))
    words[0] = (words[0] & ~np.uint32(1)) | secret.astype(np.uint32)
    wrong = ((words.sum(0, dtype=np.uint32) & 1) != secret).mean()
    assert abs(wrong - 0.5) < 6 * 0.5 / 20_000**0.5 and signed(jnp.uint32(1), 2) == 1


@pytest.mark.parametrize(("alpha", "published"), [(0.05, 0.240), (0.10, 0.079), (0.15, 0.017)])
def test_the_error_law_has_its_published_values(alpha, published):
    """L / n = 200."""
    assert bit_error_rate(alpha, 2000, 10) == pytest.approx(published, abs=5e-4)


def test_the_error_law_of_a_spread_mark():
    """Marks of one client in five, read from the mean: errors against Q(alpha sqrt(L / n)). 4,000 bits for each
    amplitude, 6 standard deviations (false alarm 1e-8 in all, seeded)."""
    cohort, bits, length, tries = 5, 500, 100, 8

    def errors(key, alpha):
        first, second, third = jax.random.split(key, 3)
        updates = jax.random.normal(first, (cohort, bits * length))
        sent = jax.random.bernoulli(second, 0.5, (bits,)).astype(jnp.int32)
        marked = updates.at[0].set(embed_mark(third, updates[0], sent, alpha))
        got, _ = detect_mark(third, jnp.mean(marked, axis=0), bits)
        return jnp.sum(got != sent), jnp.mean(marked[0] ** 2)

    many = jax.jit(lambda alpha: jax.lax.map(lambda key: errors(key, alpha), jax.random.split(KEY, tries)))
    for alpha in (0.1, 0.2, 0.4):
        wrong, size = many(jnp.float32(alpha))
        expected = bit_error_rate(alpha, length, cohort)
        assert abs(float(jnp.mean(wrong)) / bits - expected) < 6 * (expected / (tries * bits)) ** 0.5
        assert float(jnp.mean(size)) == pytest.approx(1 + alpha**2, rel=1e-2)


def test_without_the_key_a_mark_is_noise():
    """Scores of a strong mark: far from 0 with the key, standard normal without (6 standard deviations)."""
    sent = jnp.arange(64) % 2

    @jax.jit
    def read(key):
        marked = embed_mark(KEY, jax.random.normal(KEY, (64_000,)), sent, 0.5)
        return detect_mark(key, marked, 64)

    (got, scores), (other, noise) = read(KEY), read(jax.random.key(3))
    assert (got == sent).all() and np.abs(scores).min() > 6
    assert np.abs(noise).max() < 6 and abs(float(jnp.mean((other == sent).astype(jnp.float32))) - 0.5) < 6 * 0.0625
    with pytest.raises(FljaxError, match="Expected 5 bits to fit into 4 values"):
        detect_mark(KEY, jnp.zeros(4), 5)
