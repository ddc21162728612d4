"""From scores to masks: ranks are permutations, masks have exactly k ones and are nested, refreshes come when due."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fljax.core.types import Hparams
from fljax.dropout.select import best, explore, is_refresh, rank

N = 11
RATES = np.array([0.0, 0.05, 0.13, 0.3, 0.5, 0.77, 0.999, 1.0], np.float32)

ranked = jax.jit(lambda scores, seed: rank(scores, jax.random.key(seed)))
explored = jax.jit(lambda ranks, seed, share: explore(ranks, jax.random.key(seed), share))
masks_of = jax.jit(jax.vmap(best, (None, 0, None, None)), static_argnums=(2, 3))


def is_permutation(ranks) -> bool:
    return sorted(np.asarray(ranks).tolist()) == list(range(len(ranks)))


scores_strategy = st.lists(st.sampled_from([-2.0, -0.0, 0.0, 1e-30, 1.0, 3.0]), min_size=N, max_size=N)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(scores_strategy, st.integers(0, 2**31 - 1), st.floats(0, 1), st.integers(1, N))
def test_masks_have_exactly_k_ones_and_are_nested(scores, seed, share, least):
    """Many ties, traced keep rates under vmap, explored or not."""
    scores = jnp.asarray(scores, jnp.float32)
    plain = ranked(scores, seed)
    for ranks in (plain, explored(plain, seed, share)):
        assert is_permutation(ranks)
        masks = np.asarray(masks_of(ranks, jnp.asarray(RATES), least, N))
        assert masks.sum(1).tolist() == np.clip(np.round(RATES * N), least, N).tolist()
        assert set(np.unique(masks)) <= {0.0, 1.0} and masks.dtype == np.float32
        assert np.all(np.diff(masks, axis=0) >= 0), "a larger keep rate keeps every neuron of a smaller one"
        assert masks[0].sum() == least and masks[-1].all()


def test_the_highest_score_has_rank_0_and_is_kept_first():
    ranks = ranked(jnp.array([0.3, -1.0, 5.0, 0.0]), 0)
    np.testing.assert_array_equal(ranks, [1, 3, 0, 2])
    np.testing.assert_array_equal(best(ranks, jnp.float32(0.5), 1, 4), [1, 0, 1, 0])


def test_ties_are_broken_at_random():
    """Chi-square over 4000 draws of who is first among 8 equals: false alarm 1e-6 at 40.5 (7 degrees of freedom)."""
    first = jax.jit(jax.vmap(lambda k: jnp.argmin(rank(jnp.zeros(8), k))))(jax.random.split(jax.random.key(0), 4000))
    counts = np.bincount(first, minlength=8)
    assert ((counts - 500) ** 2 / 500).sum() < 40.5


def test_exploration_of_everyone_is_uniform_and_of_nobody_is_nothing():
    ranks = jnp.arange(8)
    keys = jax.random.split(jax.random.key(1), 4000)
    moved = np.asarray(jax.jit(jax.vmap(lambda k: explore(ranks, k, 1.0)))(keys))
    counts = np.stack([np.bincount(moved[:, i], minlength=8) for i in range(8)])
    assert ((counts - 500) ** 2 / 500).sum(1).max() < 45  # 7 degrees of freedom each: false alarm 1e-6 for all eight
    np.testing.assert_array_equal(explored(ranks, 0, 0.0), ranks)


@pytest.mark.parametrize(
    ("warmup", "every", "due"),
    [
        (0, 1, [0, 1, 2, 3, 4, 5, 6, 7]),
        (0, 3, [0, 3, 6]),
        (2, 3, [2, 5]),
        (0, 0, [0]),
        (3, 0, [3]),
        (9, 1, []),
    ],
)
def test_refresh_schedule(warmup, every, due):
    h = Hparams(warmup_rounds=warmup, refresh_rounds=every).arrays()
    got = jax.jit(jax.vmap(is_refresh, (0, None)))(jnp.arange(8), h)
    assert np.flatnonzero(got).tolist() == due
