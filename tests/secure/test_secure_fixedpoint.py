"""Words and their sums: unbiased, exact where they must be, and never too few bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fljax.core.check import FljaxError
from fljax.core.transform import chain
from fljax.core.types import Ctx, Hparams
from fljax.secure.fixedpoint import (
    Codec,
    decode,
    encode,
    fixed_point,
    signed,
    smallest_bits,
    smallest_modulus,
    top_word,
)
from fljax.server.average import realised_average

KEY = jax.random.key(4)
NOBODY = jnp.int32(-1)


def context(value_range=2.0, key=KEY):
    h = Hparams(extra={"value_range": value_range}).arrays()
    return Ctx(jnp.int32(0), h, key, NOBODY, NOBODY, jnp.float32(3), jnp.float32(1))


# ---- do the bits suffice? --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cohort", "value_bits", "bits"),
    [(100, 8, 15), (1000, 8, 18), (10_000, 8, 22), (100, 16, 23), (1000, 16, 26), (10_000, 16, 30)],
)
def test_the_smallest_bits_and_the_sum_at_the_edge(cohort, value_bits, bits):
    """Published table. Saturated clients: the sum decodes with k bits; with k - 1 it has another sign."""
    assert smallest_bits(value_bits, cohort) == bits
    total = jnp.uint32((cohort * top_word(value_bits)) % 2**32)
    assert int(signed(total, bits)) == cohort * top_word(value_bits)
    assert int(signed(jnp.uint32(0) - total, bits)) == -cohort * top_word(value_bits)
    assert int(signed(total, bits - 1)) < 0
    with pytest.raises(FljaxError, match=rf"Expected bits={bits - 1} >= {bits}: .* Set bits = {bits}."):
        smallest_bits(value_bits, cohort, bits=bits - 1)


@pytest.mark.parametrize(
    ("value_bits", "cohort", "weight", "bits"),
    [
        # Fed-BioMed, issue 1210: 13 bits a value, weights by samples
        (13, 7, 60_000, 32),
        (13, 10, 60_000, 33),
        (13, 15, 30_000, 32),
        (13, 3, 2**17, 32),
        # Flower's default: 2^22 levels in words of 32 bits, up to 1024 clients
        (22, 1024, 1, 32),
        (22, 1025, 1, 33),
        # integer weights up to 256: 34 bits
        (16, 1000, 256, 34),
    ],
)
def test_known_systems(value_bits, cohort, weight, bits):
    """Cases that failed, or were only warned of, in other frameworks: here they are refused with the number."""
    if bits <= 32:
        assert smallest_bits(value_bits, cohort, weight) == bits
        return
    with pytest.raises(FljaxError, match=rf"fit into words of 32 bits: .* need {bits}\. Use fewer value_bits"):
        smallest_bits(value_bits, cohort, weight)


def test_fedmls_example_cannot_hold_one_client():
    """Prime 1997 and 10 bits of precision: one value of 1 is 1024, and its range is wider than the field."""
    assert smallest_modulus(1024, cohort=1) == 2049 > 1997


def test_noise_counts_and_weights_are_whole():
    assert smallest_modulus(7, 3, 2, noise_tail=4.2) == 2 * 3 * 2 * 7 + 2 * 5 + 1
    assert smallest_bits(8, 100, noise_tail=2**14) == 16  # 15 without
    with pytest.raises(FljaxError, match=r"Expected weight=1.5 to be a whole number"):
        smallest_bits(8, 100, 1.5)


# ---- words -----------------------------------------------------------------------------------------------------------


def test_encoding_is_unbiased_and_clips():
    """2^15 roundings of each of 7 values: |mean - value| below 6 standard errors (false alarm 1e-8, seeded)."""
    x, n, top, unit = jnp.array([-3.0, -1.0, -0.31, 0.0, 0.004, 0.31, 3.0]), 1 << 15, 7, 2.0 / 7
    words = encode(KEY, jnp.broadcast_to(x, (n, 7)), jnp.float32(unit), top)
    got = np.asarray(decode(words, jnp.float32(unit), 4), np.float64)
    clipped = np.clip(np.asarray(x, np.float64), -2, 2)
    assert np.abs(got - clipped).max() < unit * (1 + 1e-6)
    assert np.abs(got.mean(0) - clipped).max() < 6 * unit / 2 / n**0.5
    assert (got[:, [0, 3, 6]] == [-2.0, 0.0, 2.0]).all()


def test_encoding_is_closed_to_what_is_not_finite():
    x = jnp.array([jnp.nan, jnp.inf, -jnp.inf])
    words = encode(KEY, x, jnp.float32(0.5), 3)
    assert np.asarray(signed(words, 8)).tolist() == [0, 3, -3]


@pytest.mark.parametrize("bits", [2, 15, 31, 32])
def test_signs_come_from_the_highest_bit(bits):
    values = np.array([0, 1, 2 ** (bits - 1) - 1, -(2 ** (bits - 1)), -1], np.int64)
    words = jnp.asarray((values % 2**bits).astype(np.uint32))
    assert np.asarray(signed(words, bits)).tolist() == values.tolist()
    if bits < 32:  # what is above the bits does not count
        assert np.asarray(signed(words | jnp.uint32(2**bits), bits)).tolist() == values.tolist()


def test_weighted_sums_by_numpy():
    """Three clients with 40, 7 and 0 examples: sums of words give back the weighted mean to a few units, the weights
    exactly."""
    rng = np.random.default_rng(0)
    weights, updates = np.array([40.0, 7.0, 0.0]), rng.normal(scale=0.7, size=(3, 50))
    stage = chain(realised_average("examples"), fixed_point(16, 3, 50, largest_weight=40.0))
    ctx, _, state = context(), None, ((), ())
    total = {"update": jnp.zeros(50, jnp.uint32), "weight": jnp.uint32(0)}
    write = jax.jit(lambda key, payload: stage.encode(key, ctx, payload, state, state)[0])
    for i in range(3):
        payload = {"update": jnp.asarray(updates[i], jnp.float32), "weight": jnp.float32(weights[i])}
        words = write(jax.random.key(i), payload)
        assert {str(x.dtype) for x in jax.tree.leaves(words)} == {"uint32"}
        total = jax.tree.map(jnp.add, total, words)
    assert int(total["weight"]) == 47
    got, _, info = stage.decode(KEY, ctx, total, jnp.ones(3, bool), state)
    expected = (weights[:, None] * updates).sum(0) / 47
    unit = Codec(16, 18, 40.0).unit("update", jnp.float32(2.0))
    assert np.abs(np.asarray(got["update"]) - expected).max() < 2 * float(unit) / 47 + 1e-6
    assert float(info["fixed_point_overflow"]) == 0


def test_overflow_is_counted_and_saturation_told():
    """Five clients at the edge of 4-bit values: sums of 35 wrap in 6 bits, and nowhere else."""
    stage = fixed_point(4, 5, 3, bits=6, overflow="count")
    ctx, state = context(1.0), ()
    payload = {"update": jnp.array([1.0, -5.0, 0.0])}
    words, _, info = stage.encode(KEY, ctx, payload, state, ())
    assert float(info["saturated"]) == pytest.approx(1 / 3)
    total = jax.tree.map(lambda x: x * jnp.uint32(5), words)
    got, _, seen = stage.decode(KEY, ctx, total, jnp.ones(5, bool), state)
    assert float(seen["overflow"]) == 2
    np.testing.assert_allclose(got["update"], [(35 - 64) / 7, (64 - 35) / 7, 0], rtol=1e-6)


def test_the_bound_grows_by_what_rounding_can_add():
    """No rounding moves a vector out of the bound: 300 tries at norm S, against sqrt(P) units."""
    size, unit = 64, 1.0 / top_word(4)
    stage, ctx = fixed_point(4, 2, size), context(1.0)
    rng = np.random.default_rng(1)
    x = rng.normal(size=(300, size))
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    words = encode(KEY, jnp.asarray(x, jnp.float32), jnp.float32(unit), top_word(4))
    norms = np.linalg.norm(np.asarray(signed(words, 32), np.float64) * unit, axis=1)
    bound = float(stage.bound(ctx, (), {"payload": jnp.float32(1.0)})["payload"])
    assert 1.0 < norms.max() < bound == pytest.approx(1 + 8 * unit)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"value_bits": 1}, r"Expected value_bits=1 in \[2, 24\]"),
        ({"bits": 9}, "Expected bits=9 >= 10"),
        ({"overflow": "wrap"}, "Expected overflow='wrap' to be one of raise, count"),
        ({"cohort": 2**30}, "fit into words of 32 bits"),
        ({"largest_weight": 0.0}, "Expected largest_weight=0.0 > 0"),
    ],
)
def test_bad_numbers_are_one_line(arguments, message):
    with pytest.raises(FljaxError, match=message) as error:
        fixed_point(**{"value_bits": 8, "cohort": 4, "size": 5, **arguments})
    assert "\n" not in str(error.value)


def test_a_range_is_needed_and_the_size_is_checked():
    with pytest.raises(FljaxError, match=r"Set secure\.value_range"):
        fixed_point(8, 4, 5).claim(Hparams(extra={"value_range": float("inf")}))
    with pytest.raises(FljaxError, match="Expected size=5 to be 6, the number of values"):
        fixed_point(8, 4, 5).encode(KEY, context(), {"update": jnp.zeros(6)}, (), ())
