"""Sparsification: exactly k values, the right ones, for a traced share; uniform random positions; true bounds."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from uploads import KEY, P, best, context, flat, send, states, support, unflat, update

from fljax.compress.sparsify import kept_count, largest, position_bits, rand_k, top_k
from fljax.core.transform import Wire, chain
from fljax.core.types import Hparams
from fljax.privacy.clip import clip

TOP, SHARED, OWN, PLAIN = top_k(), rand_k(), rand_k(shared=False), rand_k(rescale=False)  # each compiled once
RATES = (0.001, 0.01, 0.1, 0.33, 0.5, 0.9, 1.0)


def expected_k(rate, n) -> int:
    """round, half to even, at least 1 and at most n."""
    return min(max(int(np.round(np.float32(rate) * np.float32(n))), 1), n)


# ---- choosing -------------------------------------------------------------------------------------------------------

CASES = {
    "distinct": np.random.default_rng(0).permutation(40),
    "many ties": np.random.default_rng(1).integers(0, 3, 40),
    "all equal": np.full(40, 7),
    "all zero": np.zeros(40),
    "extreme": np.array([2**31 - 1, 0, 1, 2**31 - 1, 2**30] * 8),
}


@pytest.mark.parametrize("case", CASES)
def test_exactly_k_of_the_largest_for_every_traced_k(case):
    scores = CASES[case].astype(np.int64)
    counts = np.arange(len(scores) + 1)
    got = jax.jit(jax.vmap(largest, (None, 0)))(jnp.asarray(scores, jnp.int32), jnp.asarray(counts, jnp.int32))
    np.testing.assert_array_equal(got, [best(scores, k) for k in counts])
    np.testing.assert_array_equal(got.sum(1), counts)


def test_count_of_kept_values():
    for n in (0, 1, 2, 10, 136, 1000, 99_991):
        for rate in RATES:
            assert int(kept_count(jnp.float32(rate), n)) == (expected_k(rate, n) if n else 0), (rate, n)


def test_bits_of_positions_are_the_shorter_of_bitmap_and_list():
    for n in (1, 2, 3, 4, 5, 63, 64, 65, 1000, 2**20, 2**20 + 1):
        for k in {0, 1, n // 7, n // 2, n - 1, n}:
            index = math.ceil(math.log2(n))
            assert int(position_bits(n, jnp.int32(k))) == (min(n, k * index) if k < n else 0), (n, k)


# ---- top k ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", RATES)
def test_top_k_is_one_choice_over_all_arrays(rate):
    u = update()
    kept = best(flat(u), expected_k(rate, P))
    np.testing.assert_array_equal(flat(send(TOP, u, rate=rate)[0]), np.where(kept, flat(u), 0.0))


def test_of_equal_values_the_first_are_sent():
    for rate in RATES:
        sent = flat(send(TOP, unflat(np.full(P, -2.5)), rate=rate)[0])
        k = expected_k(rate, P)
        assert np.all(sent[:k] == -2.5) and np.all(sent[k:] == 0)


def test_a_sweep_over_the_share_is_one_program():
    u, rates = update(), jnp.asarray(RATES)
    sent = jax.jit(jax.vmap(lambda rate: send(TOP, u, rate=rate)[0]))(rates)
    counts = sum((np.asarray(x) != 0).reshape(len(RATES), -1).sum(1) for x in jax.tree.leaves(sent))
    np.testing.assert_array_equal(counts, [expected_k(rate, P) for rate in RATES])


@pytest.mark.parametrize("rate", RATES)
def test_top_k_counts_on_the_support_and_never_leaves_it(rate):
    u, mask = update(1), support(1)
    on = flat(mask) == 1
    kept = best(flat(u), expected_k(rate, int(on.sum())), on)
    np.testing.assert_array_equal(flat(send(TOP, u, rate=rate, mask=mask)[0]), np.where(kept, flat(u), 0.0))


@pytest.mark.parametrize("stage", [TOP, SHARED, OWN], ids=["top", "shared", "own"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_what_is_not_finite_is_sent_as_zeros(stage, bad):
    """3e38 is finite, and its norm is not."""
    u = update()
    u["kernel"] = u["kernel"].at[2, 3].set(bad)
    assert not np.any(flat(send(stage, u, rate=0.5)[0]))


def test_top_k_keeps_the_bound():
    assert float(top_k().bound(context(0.1), (), {"update": jnp.float32(0.3)})["update"]) == np.float32(0.3)
    for seed in range(20):
        u = update(seed)
        norms = [np.linalg.norm(flat(send(TOP, u, rate=rate)[0])) for rate in (0.01, 0.5, 1.0)]
        assert norms[0] < norms[1] < norms[2] == np.linalg.norm(flat(u))


# ---- random positions -----------------------------------------------------------------------------------------------


def positions(stage, key=KEY, round_key=KEY, rate=0.25, mask=None, u=None):
    u = unflat(np.ones(P)) if u is None else u
    return flat(send(stage, u, rate=rate, mask=mask, round_key=round_key, key=key)[0]) != 0


@pytest.mark.parametrize("shared", [True, False])
def test_who_shares_random_positions(shared):
    stage = SHARED if shared else OWN
    a, b = (positions(stage, jax.random.key(i)) for i in (0, 1))
    assert a.sum() == b.sum() == expected_k(0.25, P)
    assert np.array_equal(a, b) == shared
    later = positions(stage, jax.random.key(0), jax.random.key(9))
    assert np.array_equal(a, later) != shared
    other_data = positions(stage, jax.random.key(0), u=update(4))
    np.testing.assert_array_equal(a, other_data)


@pytest.mark.parametrize("masked", [False, True])
def test_random_positions_are_uniform_and_rescaling_removes_the_bias(masked):
    """Inclusion frequencies within Hoeffding's bound for 4000 draws: false alarm 1e-8 for all coordinates together."""
    draws, mask, u = 4000, support() if masked else None, update()
    on = flat(mask) == 1 if masked else np.ones(P, bool)
    n = int(on.sum())
    k = expected_k(0.25, n)
    keys = jax.random.split(KEY, draws)
    sent = jax.jit(jax.vmap(lambda key: send(OWN, u, rate=0.25, mask=mask, key=key)[0]))(keys)
    sent = np.concatenate([np.asarray(x, np.float64).reshape(draws, -1) for x in jax.tree.leaves(sent)], axis=1)
    np.testing.assert_array_equal((sent != 0).sum(1), k)
    slack = math.sqrt(math.log(2 * n / 1e-8) / (2 * draws))
    frequency = (sent != 0).mean(0)
    assert np.all(np.abs(frequency[on] - k / n) < slack) and not np.any(frequency[~on])
    assert slack < 0.2 * k / n + 0.01, "a test that allows everything shows nothing"
    factor = min(n / k, P / expected_k(0.25, P))
    np.testing.assert_allclose(sent.sum(0) / draws, factor * frequency * flat(u), rtol=1e-5)
    assert abs(factor * k / n - 1) < (0.02 if masked else 1e-12)


def test_without_rescaling_values_are_sent_as_they_are():
    u = update()
    sent = flat(send(PLAIN, u, rate=0.3)[0])
    np.testing.assert_array_equal(sent[sent != 0], flat(u)[sent != 0])


def test_the_server_keeps_shared_positions_alone():
    """What the noise added elsewhere goes; the positions are public."""
    stage, ctx = SHARED, context(0.25)
    noise = update(7)
    got, _, _ = stage.decode(KEY, ctx, {"update": noise, "control": noise}, None, states(stage)[0])
    chosen = positions(stage)
    np.testing.assert_array_equal(flat(got["update"]), np.where(chosen, flat(noise), 0.0))
    np.testing.assert_array_equal(flat(got["control"]), flat(noise))
    got, _, _ = OWN.decode(KEY, ctx, {"update": noise}, None, states(OWN)[0])
    np.testing.assert_array_equal(flat(got["update"]), flat(noise))


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.26, 0.5])
@pytest.mark.parametrize("masked", [False, True])
def test_bound_of_rescaled_positions_is_true_and_attained(rate, masked):
    """The worst update has all its norm on one kept coordinate."""
    stage = SHARED
    bounds = {"update": jnp.float32(0.3), "weight": jnp.float32(2.0)}
    bound = stage.bound(context(rate), states(stage)[0], bounds)
    assert float(bound["weight"]) == 2.0
    for seed in range(10):
        mask = support(seed, 0.1 * (seed + 1)) if masked else None
        chosen = positions(stage, rate=rate, mask=mask)
        worst = np.zeros(P)
        worst[np.flatnonzero(chosen)[0]] = 0.3
        moved = np.linalg.norm(flat(send(stage, unflat(worst), rate=rate, mask=mask)[0]))
        assert moved <= float(bound["update"]) * (1 + 1e-6)
        if not masked:
            np.testing.assert_allclose(moved, 0.3 * P / expected_k(rate, P), rtol=1e-6)
            assert moved >= float(bound["update"]) * (1 - 1e-6)


def test_to_the_right_of_a_clip_the_joint_bound_grows_and_to_its_left_it_does_not():
    ctx = context(0.25)._replace(hparams=Hparams(clip=0.3, compress_rate=0.25))
    unbounded = {"update": jnp.float32(np.inf)}
    for stages, grown in (([clip(), rand_k()], P / expected_k(0.25, P)), ([rand_k(), clip()], 1.0)):
        both = chain(*stages)
        bound = both.bound(ctx, states(both)[0], unbounded)
        np.testing.assert_allclose(float(bound["payload"]), 0.3 * grown, rtol=1e-6)


def test_wires():
    wires = {"update": Wire(jnp.int32(P), jnp.int32(32), jnp.int32(5)), "weight": Wire(1, 32, 0)}
    for rate in RATES:
        k = expected_k(rate, P)
        extra = {
            top_k: min(P, k * 8) if k < P else 0,
            rand_k: 0,
            lambda: rand_k(shared=False): 64 if k < P else 0,
        }
        for make, bits in extra.items():
            got = make().wire(context(jnp.float32(rate)), wires)
            assert [int(x) for x in got["update"]] == [k, 32, 5 + bits] and got["weight"] == wires["weight"]
