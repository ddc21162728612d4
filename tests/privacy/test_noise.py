"""Noise: the right standard deviation on every coordinate of the support, in float32, and never the same twice.

Seeds are fixed; the false-alarm rates say how often another seed would fail.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtr

from fljax.core.transform import Noise, chain
from fljax.core.types import Ctx, Hparams
from fljax.privacy.clip import clip
from fljax.privacy.noise import add_gaussian, central_gaussian
from fljax.server.average import expected_average

S, Z, EXPECTED = 0.3, 1.7, 12.5
STD = Z * S / EXPECTED
SHAPES = {"bias": (6000,), "kernel": (80, 100), "scale": (25, 16, 20)}
KEY = jax.random.key(11)


def zeros(dtype=jnp.float32):
    return {name: jnp.zeros(shape, dtype) for name, shape in SHAPES.items()}


def release(key, total, support=None, *, s=S, z=Z, expected=EXPECTED):
    """The server half of private_average, as a round calls it."""
    stages = chain(expected_average(), clip(), central_gaussian())
    h = Hparams(clip=s, noise_multiplier=z)
    nobody = jnp.int32(-1)
    ctx = Ctx(jnp.int32(0), h, key, nobody, nobody, jnp.float32(expected), h.keep_rate, support)
    states, _ = stages.init({}, h)
    parts = {name: jnp.float32(np.inf) for name in [*total, "weight"]}
    ctx = ctx._replace(bounds=stages.bound(ctx, states, parts))
    return stages.decode(key, ctx, total, None, states)[0], stages.noise(ctx, states, jnp.float32(0.0))


release_jit = jax.jit(release)


def assert_uncorrelated(a, b, strict=5.5):
    """|correlation| < 5.5 / sqrt(n): false alarm 4e-8."""
    a, b = np.ravel(a), np.ravel(b)
    n = min(len(a), len(b))
    assert abs(np.corrcoef(a[:n], b[:n])[0, 1]) < strict / np.sqrt(n)


def kolmogorov(sample, std) -> float:
    """sqrt(n) times the Kolmogorov-Smirnov distance to N(0, std^2)."""
    ordered = np.sort(np.asarray(sample, np.float64).ravel())
    n, cdf = len(ordered), ndtr(ordered / std)
    return np.sqrt(n) * max((np.arange(1, n + 1) / n - cdf).max(), (cdf - np.arange(n) / n).max())


CRITICAL = 2.7  # 2 exp(-2 * 2.7^2): false alarm 1e-6


@pytest.fixture(scope="module")
def released():
    """One release of a zero total: pure noise."""
    total, std = release_jit(KEY, {"update": zeros()})
    return total["update"], float(std)


@pytest.mark.parametrize("leaf", SHAPES)
def test_std_of_every_leaf_is_z_s_over_the_expected_cohort(released, leaf):
    """Within 5 standard errors: false alarm 6e-7. None of S, z and the cohort is 1, so that none can be forgotten."""
    noise = np.asarray(released[0][leaf], np.float64)
    assert abs(noise.std() / STD - 1) < 5 / np.sqrt(2 * noise.size)
    assert abs(noise.mean()) < 5 * STD / np.sqrt(noise.size)


def test_the_std_that_is_declared_is_the_std_that_is_added(released):
    np.testing.assert_allclose(released[1], STD, rtol=1e-6)


def test_distribution_is_normal_and_the_test_has_power(released):
    """Kolmogorov-Smirnov at a false-alarm rate of 1e-6; a standard deviation that is 20 % off is rejected."""
    noise = np.concatenate([np.ravel(x) for x in released[0].values()])
    assert kolmogorov(noise, STD) < CRITICAL
    assert kolmogorov(noise, 1.2 * STD) > CRITICAL and kolmogorov(noise, 0.8 * STD) > CRITICAL


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_noise_is_drawn_and_added_in_float32(dtype):
    """Normals in bfloat16 take 128 values and end at 2.9 sigma. No tail over 4 sigma in 400,000: probability 1e-11."""
    noise = np.asarray(add_gaussian(KEY, {"w": jnp.zeros((400_000,), dtype)}, jnp.float32(2.0))["w"])
    assert noise.dtype == np.float32
    assert len(np.unique(noise)) > 10_000
    assert noise.max() > 8.0 and noise.min() < -8.0


def test_leaves_of_integers_are_noised_too():
    """Whatever the type of a leaf: its release is float32 and as noisy as any other."""
    noise = np.asarray(add_gaussian(KEY, {"count": jnp.zeros(10_000, jnp.int32)}, jnp.float32(0.4))["count"])
    assert noise.dtype == np.float32
    assert abs(noise.std() / 0.4 - 1) < 5 / np.sqrt(2 * noise.size)  # false alarm 6e-7


def test_leaves_parts_rounds_and_runs_are_independent():
    parts = {"update": zeros(), "control": zeros()}
    a, b = (release_jit(key, parts)[0] for key in (KEY, jax.random.fold_in(KEY, 1)))
    leaves = [x for part in a.values() for x in part.values()]
    for i, x in enumerate(leaves):
        for y in leaves[:i]:
            assert_uncorrelated(x, y)
    for name in parts:
        for leaf in SHAPES:
            assert_uncorrelated(a[name][leaf], b[name][leaf])
            lag = np.ravel(a[name][leaf])
            assert_uncorrelated(lag[1:], lag[:-1])


def test_members_of_a_sweep_are_independent_and_scaled_each_by_its_own_numbers():
    total = {"update": {"w": jnp.zeros(20_000)}}
    s, z = jnp.array([0.5, 2.0, 2.0]), jnp.array([2.0, 0.5, 3.0])
    keys = jax.random.split(KEY, 3)
    noise = jax.jit(jax.vmap(lambda k, s, z: release(k, total, s=s, z=z)[0]))(keys, s, z)["update"]["w"]
    for i in range(3):
        expected = float(s[i] * z[i]) / EXPECTED
        assert abs(np.std(noise[i]) / expected - 1) < 5 / np.sqrt(2 * 20_000)
        assert_uncorrelated(noise[i], noise[i - 1])


def test_noise_lives_on_the_support_and_nowhere_else():
    support = {name: jnp.asarray(np.arange(np.prod(s)).reshape(s) % 3 == 0, jnp.float32) for name, s in SHAPES.items()}
    noise, _ = release_jit(KEY, {"update": zeros()}, support)
    for name, mask in support.items():
        on, values = np.asarray(mask) == 1, np.asarray(noise["update"][name])
        assert np.all(values[~on] == 0.0) and np.all(values[on] != 0.0)
        assert abs(values[on].std() / STD - 1) < 5 / np.sqrt(2 * on.sum())


def test_the_support_is_that_of_the_update_alone():
    """Other parts (control variates) have no mask of their own: every coordinate of them is noised."""
    support = jax.tree.map(jnp.zeros_like, zeros())
    noise, _ = release_jit(KEY, {"update": zeros(), "control": zeros()}, support)
    assert all(np.all(np.asarray(x) == 0) for x in noise["update"].values())
    assert all(np.all(np.asarray(x) != 0) for x in noise["control"].values())


def test_without_noise_and_clip_the_sum_is_only_divided():
    total = {"update": {"w": jnp.arange(5.0)}}
    got, std = release_jit(KEY, total, s=np.inf, z=0.0)
    np.testing.assert_array_equal(got["update"]["w"], np.arange(5, dtype=np.float32) / np.float32(EXPECTED))
    assert float(std) == 0.0


def test_noise_is_added_to_the_sum_and_hides_no_signal():
    total = {"update": zeros() | {"bias": jnp.full(SHAPES["bias"], 100.0)}}
    noisy, plain = release_jit(KEY, total)[0]["update"], release_jit(KEY, {"update": zeros()})[0]["update"]
    np.testing.assert_allclose(noisy["bias"] - plain["bias"], 100.0 / EXPECTED, rtol=1e-4)
    np.testing.assert_array_equal(noisy["kernel"], plain["kernel"])


def test_the_claim_is_the_multiplier():
    claim = central_gaussian().claim(Hparams(noise_multiplier=1.25))
    assert (claim.noise, claim.reason) == (Noise("gaussian", 1.25), None)
