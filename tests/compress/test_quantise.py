"""Quantisation: unbiased levels, signs as published, and true bounds on how far the norm can grow."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from uploads import KEY, LEAVES, SHAPES, P, context, flat, send, states, support, unflat, update

from fljax.compress.quantise import (
    largest_growth,
    quantise,
    sign_quantise,
    signs,
    stochastic_levels,
    top_level,
)
from fljax.core.check import FljaxError
from fljax.core.transform import Wire, chain
from fljax.core.types import Hparams
from fljax.privacy.clip import clip

FOUR, SIGN, SPARSE = quantise(4, LEAVES), sign_quantise(LEAVES), sign_quantise(LEAVES, sparse=True)  # compiled once
BITS = (2, 3, 4, 8, 16)


@pytest.mark.parametrize("bits", BITS)
def test_levels_by_hand(bits):
    """The rounding of every value from the same uniform numbers, in NumPy."""
    x = np.asarray(update()["kernel"])
    key = jax.random.fold_in(KEY, bits)
    levels, step = jax.jit(stochastic_levels, static_argnums=2)(key, jnp.asarray(x), bits)
    s = top_level(bits)
    assert s == {2: 1, 3: 3, 4: 7, 8: 127, 16: 32767}[bits]
    height = (np.abs(x) / np.abs(x).max() * np.float32(s)).astype(np.float64)
    up = np.asarray(jax.random.uniform(key, x.shape)) < height - np.floor(height)
    np.testing.assert_array_equal(levels, np.sign(x) * (np.floor(height) + up))
    np.testing.assert_allclose(step, np.abs(x).max() / s, rtol=1e-6)
    assert np.abs(levels).max() == s


@pytest.mark.parametrize("bits", [2, 8])
def test_quantisation_is_unbiased_and_stays_within_one_step(bits):
    """Means of 4000 draws within Hoeffding's bound: false alarm 1e-8 for all coordinates together."""
    draws, u = 4000, update()
    stage = quantise(bits, LEAVES)
    sent = jax.jit(jax.vmap(lambda key: send(stage, u, key=key)[0]))(jax.random.split(KEY, draws))
    slack = math.sqrt(math.log(2 * P / 1e-8) / (2 * draws))
    for name, x in u.items():
        x, got = np.asarray(x, np.float64), np.asarray(sent[name], np.float64)
        step = np.abs(x).max() / top_level(bits)
        assert np.all(np.abs(got - x) < step * (1 + 1e-5))
        assert np.all(np.abs(got.mean(0) - x) < slack * step)
        assert np.abs(got[0] - x).max() > 4 * slack * step, "one draw alone would fail"


def test_arrays_are_rounded_independently_each_at_its_own_scale():
    x = jnp.asarray(np.random.default_rng(0).uniform(0, 1, 2000), jnp.float32).at[0].set(1.0)
    stage = quantise(2, 2)
    both = {"a": x, "b": 100 * x}
    server, own = stage.init(both, Hparams())
    sent = stage.encode(KEY, context(), {"update": both}, server, own)[0]["update"]
    a, b = np.asarray(sent["a"]), np.asarray(sent["b"]) / 100
    assert set(np.unique(a)) == {0.0, 1.0} == set(np.unique(b))
    left = [r - np.asarray(x) for r in (a, b)]
    assert abs(np.corrcoef(left)[0, 1]) < 5.5 / np.sqrt(2000)  # false alarm 4e-8


def test_zeros_stay_zero_and_small_arrays_are_sent_as_zeros():
    u = update()
    u["kernel"] = jnp.where(jnp.arange(99).reshape(9, 11) % 3 == 0, u["kernel"], 0.0)
    u["scale"] = jnp.full_like(u["scale"], 1e-40)  # subnormal
    u["bias"] = jnp.zeros_like(u["bias"])
    sent, _ = send(FOUR, u)
    assert not np.any(np.asarray(sent["kernel"])[np.asarray(u["kernel"]) == 0])
    assert not np.any(sent["scale"]) and not np.any(sent["bias"]) and np.any(sent["kernel"])


@pytest.mark.parametrize("stage", [FOUR, SIGN], ids=["levels", "signs"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_what_is_not_finite_is_sent_as_zeros(stage, bad):
    u = update()
    u["kernel"] = u["kernel"].at[2, 3].set(bad)
    assert not np.any(flat(send(stage, u)[0]))


# ---- bounds ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "bits"), [(1, 4), (2, 2), (3, 3), (4, 3), (5, 4), (4, 4)])
def test_growth_is_the_worst_case_of_all_roundings(size, bits):
    """Brute force: one value at level s, every other anywhere on a grid within the levels, each rounded up."""
    s = top_level(bits)
    grid = [level + f for level in range(s) for f in (1e-9, 0.4, 0.999)]
    worst = 1.0
    for others in itertools.combinations_with_replacement(grid, size - 1):
        x = np.array([s, *others])
        worst = max(worst, np.linalg.norm(np.ceil(x)) / np.linalg.norm(x))
    np.testing.assert_allclose(largest_growth(size, bits), worst, rtol=1e-6)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_bound_of_quantisation_is_true_and_attained(bits):
    """The worst update lies in the largest array, just above a level; with luck all of it is rounded up."""
    stage = quantise(bits, LEAVES)
    server, _ = states(stage)
    bound = float(stage.bound(context(), server, {"update": jnp.float32(1.0)})["update"])
    size = max(int(np.prod(s)) for s in SHAPES.values())
    assert bound == np.float32(largest_growth(size, bits)) > 1.02
    s = top_level(bits)
    ratios = [(s**2 + (size - 1) * (low + 1) ** 2) / (s**2 + (size - 1) * low**2) for low in range(s)]
    kernel = np.full(size, int(np.argmax(ratios)) + 0.5)
    kernel[0] = s
    u = unflat(np.concatenate([np.zeros(7), kernel, np.zeros(30)]))
    keys = jax.random.split(KEY, 200)
    sent = jax.jit(jax.vmap(lambda key: send(stage, u, key=key)[0]))(keys)["kernel"].reshape(200, -1)
    norms = np.linalg.norm(np.asarray(sent, np.float64), axis=1)
    lifted = np.linalg.norm(np.ceil(kernel)) / np.linalg.norm(np.ceil(kernel) - np.r_[0, np.ones(size - 1)])
    np.testing.assert_allclose(lifted, bound, rtol=1e-6)  # from just above the level to the next one
    assert norms.max() <= np.linalg.norm(kernel) * bound * (1 + 1e-6)
    assert norms.max() > np.linalg.norm(kernel), "a test in which no norm grows shows nothing"


def test_a_clip_to_the_right_keeps_its_bound_and_one_to_the_left_is_widened():
    ctx = context()._replace(hparams=Hparams(clip=0.3))
    unbounded = {"update": jnp.float32(np.inf)}
    widened = largest_growth(99, 4)
    for stages, grown in (([clip(), quantise(4, LEAVES)], widened), ([quantise(4, LEAVES), clip()], 1.0)):
        both = chain(*stages)
        bound = both.bound(ctx, states(both)[0], unbounded)
        np.testing.assert_allclose(float(bound["payload"]), 0.3 * grown, rtol=1e-6)


# ---- signs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
def test_signs_by_hand(masked, sparse):
    u, mask = update(2), support(2) if masked else None
    u["kernel"] = u["kernel"].at[:3].set(0.0)
    sent, _ = send(SPARSE if sparse else SIGN, u, mask=mask)
    for name, x in u.items():
        x = np.asarray(x, np.float64)
        on = np.asarray(mask[name]) == 1 if masked else np.ones(x.shape, bool)
        on = on & (x != 0) if sparse else on
        expected = np.where(on, np.where(x < 0, -1, 1) * np.abs(x[on]).mean(), 0.0)
        np.testing.assert_allclose(sent[name], expected, rtol=1e-6)


def test_signs_never_raise_the_norm():
    """By Cauchy and Schwarz; equal magnitudes attain it."""
    stage = SIGN
    assert float(stage.bound(context(), (), {"update": jnp.float32(0.3)})["update"]) == np.float32(0.3)
    ratios = [np.linalg.norm(flat(send(stage, update(i))[0])) / np.linalg.norm(flat(update(i))) for i in range(20)]
    assert max(ratios) < 1.0
    even = unflat(np.where(np.arange(P) % 2, 0.25, -0.25))
    np.testing.assert_array_equal(flat(send(stage, even)[0]), flat(even))


def test_nothing_sent_has_scale_zero():
    sign, scale = signs(jnp.ones(4), jnp.zeros(4, bool))
    assert float(scale) == 0.0 and not np.any(sign)


# ---- contract -------------------------------------------------------------------------------------------------------


def test_wires():
    wires = {"update": Wire(jnp.int32(50), jnp.int32(32), jnp.int32(5)), "weight": Wire(1, 32, 0)}
    for stage, bits in ((quantise(4, LEAVES), 4), (sign_quantise(LEAVES), 1)):
        got = stage.wire(context(), wires)
        assert [int(x) for x in got["update"]] == [50, bits, 5 + 32 * 3] and got["weight"] == wires["weight"]


def test_what_does_not_fit_is_refused_in_one_line():
    for make in (lambda: quantise(1, 3), lambda: quantise(17, 3), lambda: quantise(4, 0), lambda: sign_quantise(0)):
        with pytest.raises(FljaxError, match=r"^Expected [^\n]*$"):
            make()
    for stage in (quantise(4, 2), sign_quantise(2)):
        with pytest.raises(FljaxError, match="leaves=2 to be the number of arrays of the update, 3"):
            states(stage)
