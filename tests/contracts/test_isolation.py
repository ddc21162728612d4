"""No client feels the data of another: bit by bit, for every local algorithm and in whole rounds."""

import jax
import jax.numpy as jnp
import numpy as np
import private_rounds as tiny
import pytest
from parts import DATA, KEY, LOCAL_UPDATES, PARAMS, N, T, one_client

from fljax import recipes
from fljax.client.batches import plan_steps
from fljax.data.federated import FederatedData

VICTIM, OTHERS = 1, [k for k in range(N) if k != 1]
NOTHING = (np.zeros((0, tiny.FEATURES)), np.zeros(0, int))


def neighbours():
    """Data sets in which one client holds noise, NaN, or nothing."""
    pairs = tiny.clients()
    x, y = pairs[VICTIM]
    return [
        tiny.pack(tiny.swap(pairs, VICTIM, *d)) for d in ((1e4 * x[::-1], y), (np.full_like(x, np.nan), y), NOTHING)
    ]


def assert_only_the_victim_changed(a, b):
    """Trees with leaves [N, ...]: all rows but the victim's are equal bit by bit, and the victim's are not."""
    rows = lambda tree, which: jax.tree.map(lambda x: x[which], tree)  # noqa: E731
    assert tiny.same_bits(rows(a, OTHERS), rows(b, OTHERS))
    assert not tiny.same_bits(rows(a, VICTIM), rows(b, VICTIM))


@pytest.mark.parametrize("name", LOCAL_UPDATES)
def test_no_client_feels_the_data_of_another(name):
    """Payload, state and info of all others are equal bit by bit, whatever one client holds."""
    run, *_ = one_client(LOCAL_UPDATES[name]())
    ids = jnp.arange(N)
    keys = jax.random.split(KEY, N)
    everybody = jax.jit(lambda data: jax.vmap(run, (0, 0, None))(keys, ids, data))
    honest = jax.device_get(everybody(DATA))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(honest))
    for data in neighbours():
        other = jax.device_get(everybody(data))
        assert_only_the_victim_changed(honest, other)


@pytest.mark.parametrize("kind", ["dp_fedavg", "fisher/submodel"])
def test_no_client_feels_the_data_of_another_in_a_round(kind):
    """What the others send is equal bit by bit, found by id: slots are ordered by the amount of data."""
    h = tiny.Hparams(**{**vars(tiny.HPARAMS), "sampling_rate": 1.0}).arrays()

    def sent(data):
        t = jax.device_get(tiny.replay(kind)(jnp.int32(3), KEY, tiny.later_state(kind), data, h))
        assert sorted(t.cohort.ids) == list(range(N)) and t.alive.all()
        return jax.tree.map(lambda x: x[np.argsort(t.cohort.ids)], t.payloads)

    honest = sent(DATA)
    for data in neighbours():
        other = sent(data)
        assert_only_the_victim_changed(honest, other)


def test_without_a_clip_too_a_client_that_is_not_finite_counts_as_nothing():
    """FedAvg on a client with NaN, and on the same client without data: the same sum, the same state of the others."""
    round = recipes.fedavg(T, tiny.sampler())
    h = tiny.Hparams(**{**vars(tiny.HPARAMS), "sampling_rate": 1.0}).arrays()
    state, step = round.init(KEY, PARAMS, h), jax.jit(round.step)
    _, poisoned, removed = neighbours()
    (bad, seen), (good, _) = (step(jnp.int32(3), KEY, state, data, h) for data in (poisoned, removed))
    np.testing.assert_allclose(tiny.flat(bad.params), tiny.flat(good.params), rtol=1e-5)
    assert (int(seen.answered), int(seen.participants)) == (N, N - 1)
    assert all(np.isfinite(v) for v in seen.client.values())


def test_the_order_of_a_clients_examples_does_not_depend_on_the_sizes_of_others():
    """The largest and the smallest client are static shapes; what they are must not reshuffle anybody else."""
    pairs = tiny.clients()
    small = FederatedData.from_clients(pairs)
    large = FederatedData.from_clients([*pairs, (np.ones((40, tiny.FEATURES)), np.zeros(40, int)), NOTHING])
    assert (small.max_size, small.min_size) != (large.max_size, large.min_size)
    for steps in ({"epochs": 3, "steps": None}, {"epochs": None, "steps": 5}):
        for client, size in ((1, 6), (3, 4)):
            a, b = (plan_steps(KEY, d.take(client, client), batch_size=2, **steps) for d in (small, large))
            assert int(a.steps) == int(b.steps)
            for step in range(int(a.steps)):
                (p, valid), (q, also) = a.batch(jnp.int32(step)), b.batch(jnp.int32(step))
                np.testing.assert_array_equal(valid, also)
                np.testing.assert_array_equal(p[valid], q[valid])
                assert np.all(np.asarray(p)[np.asarray(valid)] < size)
