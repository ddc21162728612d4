"""Integer noise against exact probabilities, rotation against the matrix, rounding against its expectation.

Seeds are fixed; the false-alarm rates say how often another seed would fail.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.linalg import hadamard as matrix
from scipy.special import gammaln, ive

from fljax.privacy import integers

KEY = jax.random.key(3)
COUNT = 1_000_000
FALSE_ALARM = 1e-7


@cache
def draws(kind: str, scale: float) -> np.ndarray:
    """float64 [COUNT]; one compiled program for each kind, since the scale is traced."""
    return np.asarray(sampler(kind)(KEY, jnp.float32(scale)), np.float64)


@cache
def sampler(kind: str):
    return jax.jit(lambda key, scale: getattr(integers, kind)(key, (COUNT,), scale))


def gaussian_pmf(x, sigma):
    """exp(-x^2 / (2 sigma^2)), normalised over all integers that matter."""
    everywhere = np.arange(-int(40 * sigma) - 40, int(40 * sigma) + 41)
    return np.exp(-(x**2) / (2 * sigma**2)) / np.exp(-(everywhere**2) / (2 * sigma**2)).sum()


def skellam_pmf(x, variance):
    return ive(np.abs(x), variance)  # exp(-mu) I_x(mu)


def poisson_pmf(x, rate):
    return np.where(x >= 0, np.exp(x * np.log(rate) - rate - gammaln(np.maximum(x, 0) + 1)), 0.0)


PMF = {"discrete_gaussian": gaussian_pmf, "skellam": skellam_pmf, "poisson": poisson_pmf}


def p_value(sample, pmf) -> float:
    """G-test of a sample of integers: cells of at least 10 expected counts, everything else in two tails."""
    values = np.arange(sample.min() - 5, sample.max() + 6)
    expected = pmf(values) * sample.size
    common = np.flatnonzero(expected >= 10)
    low, high = common[0], common[-1]
    counts = np.bincount((sample - values[0]).astype(int), minlength=values.size)[low : high + 1]
    below, above = np.sum(sample < values[low]), np.sum(sample > values[high])
    counts = np.concatenate([[below + above], counts])
    expected = np.concatenate([[sample.size - expected[low : high + 1].sum()], expected[low : high + 1]])
    kept = expected > 1e-3  # the joined tails may be all but empty
    assert counts[~kept].sum() == 0
    seen = counts[kept]
    statistic = 2 * np.sum(seen * np.log(np.maximum(seen, 1) / expected[kept]))
    return float(stats.chi2.sf(statistic, kept.sum() - 1))


SCALES = [
    ("discrete_gaussian", 0.5),
    ("discrete_gaussian", 3.0),
    ("discrete_gaussian", 100.0),
    ("skellam", 0.3),
    ("skellam", 9.0),
    ("skellam", 1000.0),
    ("poisson", 0.7),
    ("poisson", 9.99),
    ("poisson", 10.0),
    ("poisson", 13.6),
    ("poisson", 500.25),
]


@pytest.mark.parametrize(("kind", "scale"), SCALES)
def test_samplers_follow_their_law_and_the_test_has_power(kind, scale):
    """False alarm 1e-7. A scale that is 20 % off is rejected."""
    sample, pmf = draws(kind, scale), PMF[kind]
    assert p_value(sample, lambda x: pmf(x, scale)) > FALSE_ALARM
    assert p_value(sample, lambda x: pmf(x, 0.8 * scale)) < FALSE_ALARM
    assert p_value(sample, lambda x: pmf(x, 1.2 * scale)) < FALSE_ALARM


@pytest.mark.parametrize(
    ("kind", "scale", "variance"),
    [
        ("poisson", 5e5, 5e5),
        ("poisson", 2e6, 2e6),
        ("poisson", 1e8, 1e8),
        ("skellam", 1e10, 1e10),
        ("discrete_gaussian", 1e5, 1e10),
    ],
)
def test_mean_and_variance_where_the_sampler_of_jax_is_wrong(kind, scale, variance):
    """Within 5 standard errors, 0.7 % of the variance at a million draws: false alarm 6e-7 each.

    jax.random.poisson has 0.96 and 0.904 times the variance at 5e5 and 2e6.
    """
    x = draws(kind, scale) - (scale if kind == "poisson" else 0.0)
    assert abs(np.mean(x)) < 5 * np.sqrt(variance / COUNT)
    assert abs(np.var(x) / variance - 1) < 5 * np.sqrt(2 / COUNT)
    normal = stats.kstest(x / np.sqrt(variance), "norm").statistic  # steps of one integer are below 2e-3
    assert normal < 2.7 / np.sqrt(COUNT) + 1 / np.sqrt(variance)


@pytest.mark.parametrize("kind", ["discrete_gaussian", "skellam"])
def test_noise_has_whole_tails(kind):
    """Among a million draws 32 are expected beyond 4 sigma on either side; fewer than 4 or over 127: 1e-8."""
    sigma = 300.0
    x = draws(kind, sigma if kind == "discrete_gaussian" else sigma**2)
    beyond = stats.norm.sf(4) * x.size
    assert 0.1 * beyond < np.sum(x > 4 * sigma) < 4 * beyond
    assert 0.1 * beyond < np.sum(x < -4 * sigma) < 4 * beyond
    assert len(np.unique(x)) > 2000


@pytest.mark.parametrize("kind", ["discrete_gaussian", "skellam", "poisson"])
def test_no_scale_is_no_noise(kind):
    assert not draws(kind, 0.0).any()


@pytest.mark.parametrize("kind", ["discrete_gaussian", "skellam"])
def test_draws_are_independent_of_each_other_and_of_other_keys(kind):
    """|correlation| < 5.5 / sqrt(n): false alarm 4e-8. Batches of the sampler are a quarter of the vector each."""
    x = draws(kind, 9.0)
    y = np.asarray(sampler(kind)(jax.random.fold_in(KEY, 1), jnp.float32(9.0)), np.float64)
    limit = 5.5 / np.sqrt(COUNT)
    assert abs(np.corrcoef(x, y)[0, 1]) < limit
    for lag in (1, 4096, COUNT // 4):
        assert abs(np.corrcoef(x[lag:], x[:-lag])[0, 1]) < limit * 1.2
    assert len(x) == COUNT and np.count_nonzero(x[-100:]) > 50  # filled to the end


def test_samplers_run_under_vmap_with_scales_of_their_own():
    """A sweep: each member has its own variance, within 5.5 standard errors; small and large rates side by side."""
    variances = np.array([4.0, 36.0, 3600.0])
    draw = jax.jit(jax.vmap(lambda k, v: integers.skellam(k, (20_000,), v)))
    x = np.asarray(draw(jax.random.split(KEY, 3), jnp.asarray(variances, jnp.float32)), np.float64)
    errors = np.sqrt((2 + 1 / variances) / 20_000)  # kurtosis 3 + 1 / mu
    assert np.all(np.abs(x.var(axis=1) / variances - 1) < 5.5 * errors)
    assert abs(np.corrcoef(x[1], x[2])[0, 1]) < 5.5 / np.sqrt(20_000)


# ---- rotation --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 64, 128, 2048])
def test_the_transform_is_that_of_the_matrix(size):
    x = np.random.default_rng(size).normal(size=size)
    expected = matrix(size) @ x
    np.testing.assert_allclose(integers.hadamard(jnp.asarray(x, jnp.float32)), expected, atol=2e-5 * size**0.5)


@pytest.mark.parametrize("size", [1, 3, 100, 1000, 70_000])
def test_rotation_is_an_isometry_with_an_inverse(size):
    x = np.random.default_rng(size).normal(size=size).astype(np.float32)
    turned = integers.rotate(KEY, jnp.asarray(x))
    assert turned.shape == (integers.padded_size(size),) and turned.dtype == jnp.float32
    np.testing.assert_allclose(np.linalg.norm(np.asarray(turned, np.float64)), np.linalg.norm(x), rtol=2e-6)
    back = integers.unrotate(KEY, turned)
    np.testing.assert_allclose(back[:size], x, atol=1e-5)
    np.testing.assert_allclose(back[size:], 0, atol=1e-5)


def test_rotation_spreads_what_is_concentrated_and_hangs_on_the_key():
    """One coordinate becomes d equal ones; a constant vector, which H alone would concentrate, is spread as well."""
    one = integers.rotate(KEY, jnp.zeros(4096).at[7].set(64.0))
    np.testing.assert_allclose(np.abs(one), 1.0, rtol=1e-6)
    constant = integers.rotate(KEY, jnp.ones(4096))
    assert np.abs(constant).max() < np.sqrt(2 * np.log(2 * 4096 / 1e-9))  # fails for one key in 1e9
    assert not np.allclose(constant, integers.rotate(jax.random.fold_in(KEY, 1), jnp.ones(4096)))


@pytest.mark.parametrize(("size", "padded"), [(1, 1), (2, 2), (3, 4), (1024, 1024), (1025, 2048)])
def test_padding(size, padded):
    assert integers.padded_size(size) == padded


# ---- rounding and wrap-around ----------------------------------------------------------------------------------------


def test_the_rounded_bound_is_the_published_number():
    """L = 10, d = 100, beta = e^-1/2; and it never exceeds L + sqrt(d)."""
    np.testing.assert_allclose(integers.rounded_bound(10.0, 100), 11.832159566, rtol=1e-10)
    for norm in (1e-3, 1.0, 50.0, 1e4):
        for d in (1, 2, 7, 1024, 2**20):
            assert integers.rounded_bound(norm, d) < norm + d**0.5


@cache
def rounded(times: int = 40_000):
    """A vector and many independent roundings of it, within the bound."""
    x = np.array([0.0, 0.25, -0.25, 1.5, -7.9, 3.0, 12.01, -0.999], np.float32)
    bound = integers.rounded_bound(float(np.linalg.norm(x)), x.size)
    draw = jax.jit(jax.vmap(lambda k: integers.conditional_round(k, jnp.asarray(x), jnp.float32(bound))))
    return x.astype(np.float64), bound, np.asarray(draw(jax.random.split(KEY, times)), np.float64)


def test_rounding_keeps_the_bound_and_hits_neighbours_only():
    x, bound, found = rounded()
    assert np.all((found >= np.floor(x)) & (found <= np.ceil(x)))
    assert np.linalg.norm(found, axis=1).max() <= bound


def test_rounding_follows_its_conditional_law():
    """Every outcome by brute force: product of Bernoullis, restricted to the bound. G-test at 1e-7."""
    x, bound, found = rounded()
    fractions = x - np.floor(x)
    bits = (np.arange(2**x.size)[:, None] >> np.arange(x.size)) & 1
    odds = np.prod(np.where(bits, fractions, 1 - fractions), axis=1)
    odds *= np.linalg.norm(np.floor(x) + bits, axis=1) <= bound
    code = ((found - np.floor(x)) @ (2 ** np.arange(x.size))).astype(int)
    expected = odds / odds.sum() * len(found)
    counts = np.bincount(code, minlength=odds.size)
    assert not counts[odds == 0].any()
    cells = expected >= 5
    seen, wanted = np.append(counts[cells], counts[~cells].sum()), np.append(expected[cells], expected[~cells].sum())
    assert stats.chisquare(seen, wanted).pvalue > FALSE_ALARM


def test_rounding_alone_is_unbiased():
    """Without a binding bound, within 5.5 standard errors of at most 1/2 each: false alarm 4e-7 for eight means."""
    x = rounded()[0]
    free = jax.jit(jax.vmap(lambda k: integers.conditional_round(k, jnp.asarray(x, jnp.float32), jnp.float32(1e6))))
    found = np.asarray(free(jax.random.split(KEY, 40_000)), np.float64)
    assert np.abs(found.mean(axis=0) - np.float32(x)).max() < 5.5 * 0.5 / np.sqrt(40_000)
    assert np.all(found[:, [0, 5]] == [0.0, 3.0])


@pytest.mark.parametrize(
    ("x", "bound", "expected"),
    [
        ([0.9, 0.9, 0.9], 0.5, [0, 0, 0]),  # no rounding but zero fits
        ([1.9, -2.9, 0.2], 2.3, [1, -2, 0]),  # towards zero fits, nearly nothing else does
        ([5.0, 0.0, 0.0], 4.0, [0, 0, 0]),  # nothing fits
        ([np.nan, 1.0, 0.0], 10.0, [0, 0, 0]),
        ([np.inf, 1.0, 0.0], 10.0, [0, 0, 0]),
    ],
)
def test_rounding_keeps_the_bound_whatever_it_is_given(x, bound, expected):
    found = integers.conditional_round(KEY, jnp.asarray(x, jnp.float32), jnp.float32(bound))
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("bits", [2, 8, 16, 31, 32])
def test_wrap_is_the_centred_residue_and_commutes_with_sums(bits):
    rng = np.random.default_rng(bits)
    x = rng.integers(-(2**31), 2**31, (5, 2000))
    half = 2 ** (bits - 1)
    residue = (x + half) % 2**bits - half
    found = integers.wrap(jnp.asarray(x, jnp.int32), bits)
    np.testing.assert_array_equal(found, residue)
    total = integers.wrap(jnp.sum(found, axis=0), bits)
    np.testing.assert_array_equal(total, (x.sum(axis=0) + half) % 2**bits - half)
