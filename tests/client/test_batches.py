"""Shuffling: every length of the sort gives the order that sorting uniform scores gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fljax.client.batches import _shuffle, plan_steps
from fljax.data.federated import Shard


def by_definition(key, size, length):
    """Sorted by uniform numbers, positions behind the client's own last and in their order."""
    return jnp.argsort(jnp.where(jnp.arange(length) < size, jax.random.uniform(key, (length,)), 2.0))


@pytest.mark.parametrize("length", [1, 2, 80, 512, 513])
def test_the_order_is_that_of_uniform_scores(length):
    sizes = jnp.asarray([0, 1, length // 9, length // 2, length])
    keys = jax.random.split(jax.random.key(3), len(sizes))
    expected = jax.jit(jax.vmap(lambda k, s: by_definition(k, s, length)))(keys, sizes)
    one_by_one = jax.jit(lambda: jax.lax.map(lambda c: _shuffle(*c, length), (keys, sizes)))()
    np.testing.assert_array_equal(one_by_one, expected)
    np.testing.assert_array_equal(jax.jit(jax.vmap(lambda k, s: _shuffle(k, s, length)))(keys, sizes), expected)


def test_trials_of_clients_stay_one_batch_with_a_branch():
    keys = jax.random.split(jax.random.key(0), (3, 4))
    sizes = jnp.asarray([300, 7, 40, 0])
    over_trials = jax.vmap(jax.vmap(lambda k, s: _shuffle(k, s, 300)), (0, None))
    expected = jax.vmap(jax.vmap(lambda k, s: by_definition(k, s, 300)), (0, None))
    np.testing.assert_array_equal(jax.jit(over_trials)(keys, sizes), jax.jit(expected)(keys, sizes))
    assert "cond[" in str(jax.make_jaxpr(over_trials)(keys, sizes))


def test_an_epoch_shows_every_example_once():
    rows = jnp.arange(70.0)[:, None]
    shard = Shard(rows, jnp.zeros(70, int), jnp.int32(10), jnp.int32(43), 60, 5)
    plan = plan_steps(jax.random.key(1), shard, epochs=2, steps=None, batch_size=8)
    assert int(plan.steps) == 2 * 6
    seen = [shard.batch(*plan.batch(i)) for i in range(12)]
    for epoch in (seen[:6], seen[6:]):
        examples = [float(x[0]) for batch in epoch for x, valid in zip(batch.x, batch.mask, strict=True) if valid]
        assert sorted(examples) == [float(i) for i in range(10, 53)]
