"""Data that stay on the host give what resident data give."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fljax.audit import audit
from fljax.core import memory
from fljax.core.check import FljaxError
from fljax.data import FederatedData
from fljax.data.partition import Partition
from fljax.data.streamed import StreamedData
from fljax.sim.build import build
from fljax.sim.feed import make_feed
from fljax.sim.hosts import in_shares
from fljax.sim.mesh import client_mesh
from fljax.sim.run import run
from tests.sim import small_run

RNG = np.random.default_rng(0)
SIZES = np.array([3, 0, 5, 1, 2])
SPLIT = Partition(RNG.permutation(14)[:11], np.concatenate([[0], np.cumsum(SIZES)]))
X, Y = RNG.normal(size=(14, 2)).astype(np.float32), RNG.integers(0, 9, 14)


@pytest.fixture(scope="module")
def both():
    return FederatedData.from_indices(X, Y, SPLIT), StreamedData.from_indices(X, Y, SPLIT)


def test_a_window_holds_the_examples_of_its_cohorts_and_of_nobody_else(both):
    whole, streamed = both
    ids = np.array([[4, 2, 5], [1, 5, 5], [0, 3, 2]])
    window = streamed.window(40, ids)
    assert window.x.shape == (3, 5 + 3 + 2, 2)  # the three largest clients
    for r in range(3):
        data = window.at(jnp.int32(40 + r))
        for client in range(7):
            ours, theirs = data.take(0, jnp.int32(client)), whole.take(0, jnp.int32(client))
            assert int(data.size_of(jnp.int32(client))) == int(whole.size_of(jnp.int32(client)))
            assert int(ours.size) == (int(theirs.size) if client in ids[r] else 0)
            every = jnp.arange(5)
            for a, b in zip(ours.batch(every, every < 9), theirs.batch(every, every < 9), strict=True):
                np.testing.assert_array_equal(a, b if client in ids[r] else jnp.zeros_like(b))


def test_devices_hold_shares_of_a_window_and_nobody_reads_what_he_does_not_hold(both):
    mesh, asked = client_mesh(2), []

    def make(shape, values):
        def counted(part):
            asked.append(part)
            return values(part)

        return in_shares(shape, counted, mesh)

    streamed, ids = both[1], np.array([[4, 2], [1, 5], [0, 3]])  # the two largest clients have 5 + 3 examples
    whole, shared = streamed.window(7, ids), streamed.window(7, ids, make, shares=2)
    assert whole.x.shape == shared.x.shape == (3, 8, 2)
    np.testing.assert_array_equal(whole.x, shared.x)
    np.testing.assert_array_equal(whole.y, shared.y)
    assert [part.data.shape for part in shared.x.addressable_shards] == [(3, 4, 2)] * 2
    assert [part[1] for part in asked] == [slice(0, 4), slice(4, 8)] * 2
    assert streamed.window(7, ids, shares=3).x.shape == (3, 9, 2)


def test_sizes_and_labels_are_those_of_resident_data(both):
    whole, streamed = both
    for name in ("population", "max_size", "min_size"):
        assert getattr(whole, name) == getattr(streamed, name)
    np.testing.assert_array_equal(whole.sizes, streamed.sizes)
    np.testing.assert_array_equal(whole.y, streamed.y)
    assert (streamed.x.shape, streamed.x.dtype) == (whole.x.shape, whole.x.dtype)


def test_bytes_are_pixels():
    x = RNG.integers(0, 256, (14, 2)).astype(np.uint8)
    window = StreamedData.from_indices(x, Y, SPLIT).window(0, np.array([[2]]))
    np.testing.assert_array_equal(window.x[0], (x[SPLIT.order[3:8]] / np.float32(255)).astype(np.float32))


@pytest.mark.parametrize("devices", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_run_from_the_host_is_the_same_run(devices):
    """Seven rounds in calls of three, Poisson cohorts with empty slots, ragged clients, shuffled batches."""
    plain = {"perf.devices": devices}
    outcomes = [run(small_run.experiment(**plain, **{"data.streamed": s}), quiet=True) for s in (False, True)]
    a, b = (o.params for o in outcomes)
    jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, rtol=1e-6, atol=1e-7), a, b)
    for name, values in outcomes[0].history.items():  # the programs differ: last bits of sums may
        np.testing.assert_allclose(values, outcomes[1].history[name], rtol=1e-6)


def test_the_next_call_is_gathered_ahead_and_nothing_twice(monkeypatch):
    experiment = small_run.experiment(**{"data.streamed": True})

    program = build(experiment)
    asked, window = [], StreamedData.window
    monkeypatch.setattr(
        StreamedData, "window", lambda self, t, ids, *to: asked.append((t, len(ids))) or window(self, t, ids, *to)
    )
    numbers = experiment.hparams().arrays()
    feed = make_feed(program.dataset.train, program.sampler, jax.random.key(0), numbers, 7, 3)
    for begin, left in ((0, 3), (1, 2), (3, 3), (5, 1), (6, 3)):  # calls may be shorter than they were compiled for
        data = feed.now(begin)
        assert int(data.first) == begin // 3 * 3 and feed.room(begin) == left
        feed.ahead(begin)
        assert feed.now(begin) is data
    assert asked == [(0, 3), (3, 3), (6, 3)]  # three blocks, and none after the last round


def test_blocks_that_do_not_fit_are_refused_with_a_length_that_does(monkeypatch):
    """A block has the examples of the largest cohort, here of all clients."""
    experiment = small_run.experiment(**{"data.streamed": True})
    program, numbers = build(experiment), experiment.hparams().arrays()
    data = program.dataset.train
    make = partial(make_feed, data, program.sampler, jax.random.key(0), numbers, 1000)
    each = 3 * 4 * 4 * int(data.sizes.sum())  # three blocks of four float32 for every example
    monkeypatch.setattr(memory, "free", lambda: int(5.5 * each / memory.SHARE))
    make(5)
    with pytest.raises(FljaxError, match=r"streamed examples of 6 rounds to fit .* Use perf.rounds_per_call=5\."):
        make(6)
    monkeypatch.setattr(memory, "free", lambda: each // 2)
    with pytest.raises(FljaxError, match=r"Use a smaller cohort or data.examples_per_client\."):
        make(1)


def test_sweeps_and_audits_refuse_streamed_data():
    streamed = {"data.streamed": True}
    with pytest.raises(FljaxError, match="streamed is for single runs"):
        small_run.experiment(**streamed, sweep={"grid": {"client.lr": [0.1, 0.2]}})
    with pytest.raises(FljaxError, match=r"data.streamed=true to be false in an audit"):
        audit(small_run.experiment(**streamed), canaries=50)
