"""Compact execution: the physically small model gives what the masked one gives, for one keep rate and for tiers.

And masks of ones change no bit: a private run with keep rate 1 is DP-FedAvg.
"""

import jax
import jax.numpy as jnp
import numpy as np
import private_rounds as tiny
import pytest

from fljax import recipes
from fljax.client.scaffold import scaffold_update
from fljax.core.check import FljaxError
from fljax.dropout.fisher import fisher_dropout
from fljax.server.clients import Compact, Tiers, divide_among_tiers
from fljax.server.execute import PerfFlags

KEY, DATA = jax.random.key(3), tiny.pack(tiny.clients())
TIERS = Tiers((0.5, 1.0, 0.34), np.arange(tiny.POPULATION) % 3)


def rounds(compact, tiers=None, chunk=None, count=3, **numbers):
    """Runs a few rounds from a state with a history: (states, infos) of a masked or compact round."""
    h = tiny.Hparams(**{**vars(tiny.HPARAMS), **numbers}).arrays()
    made = recipes.fisher_dropout(
        tiny.training(), tiny.sampler(), tiers=tiers, compact=compact, perf=PerfFlags(chunk=chunk)
    )
    state, infos = tiny.later_state("fisher/submodel"), []
    step = jax.jit(made.step)
    for t in range(count):
        state, info = step(jnp.int32(t), KEY, state, DATA, h)
        infos.append(info)
    return state, infos


def close(a, b):
    np.testing.assert_allclose(tiny.flat(a.params), tiny.flat(b.params), rtol=1e-5, atol=1e-6)
    assert tiny.same_bits(a.submodel.ranks, b.submodel.ranks)


@pytest.mark.parametrize(("tiers", "chunk"), [(None, None), (TIERS, 1)])
def test_compact_equals_masked(tiers, chunk):
    """With a dense first round, so that both branches run; bytes, participants and rankings are equal too."""
    numbers = {"keep_rate": 0.5, "warmup_rounds": 1, "explore": 0.0}
    masked, seen = rounds(None, tiers, **numbers)
    compact, infos = rounds(Compact(0.5, 1), tiers, chunk, **numbers)
    close(compact, masked)
    for a, b in zip(infos, seen, strict=True):
        assert tiny.same_bits((a.uplink, a.downlink, a.participants), (b.uplink, b.downlink, b.participants))
        np.testing.assert_allclose(a.client["loss"], b.client["loss"], rtol=1e-5)


def test_every_tier_keeps_its_share_and_the_bytes_are_theirs():
    """Bytes by hand: an MLP with n of 6 hidden neurons has 4 n + n + 3 n + 3 parameters."""
    h = tiny.Hparams(**{**vars(tiny.HPARAMS), "keep_rate": 1.0, "refresh_rounds": 0, "sampling_rate": 1.0}).arrays()
    made = recipes.fisher_dropout(tiny.training(), tiny.sampler(), tiers=TIERS)
    seen = jax.jit(made.transcript)(jnp.int32(1), KEY, tiny.later_state("fisher/submodel"), DATA, h)
    kernel = np.asarray(seen.payloads["update"]["dense_0"]["kernel"])
    ids, alive = np.asarray(seen.cohort.ids), np.asarray(seen.alive)
    neurons = [round(rate * 6) for rate in TIERS.rates]
    ranks = np.asarray(tiny.later_state("fisher/submodel").submodel.ranks["dense_0"])
    for tier, n in enumerate(neurons):
        assert not np.any(kernel[ids % 3 == tier][:, :, ranks >= n])
        assert np.any(kernel[ids % 3 == tier][:, :, ranks < n])
    info = jax.jit(made.step)(jnp.int32(1), KEY, tiny.later_state("fisher/submodel"), DATA, h)[1]
    sent = sum(4 * (8 * neurons[i % 3] + 3) for i in ids[alive])
    assert int(info.uplink.kib * 1024 + info.uplink.rest) == int(info.downlink.kib * 1024 + info.downlink.rest) == sent


def test_masks_of_ones_change_no_bit():
    """Keep rate 1 without exploration is DP-FedAvg, bit for bit: cohorts, noise, parameters."""
    numbers = tiny.Hparams(**{**vars(tiny.HPARAMS), "keep_rate": 1.0, "explore": 0.0}).arrays()
    plain, dropped = tiny.start("dp_fedavg"), tiny.start("fisher/submodel")
    for t in range(3):
        plain, _ = tiny.step("dp_fedavg")(jnp.int32(t), KEY, plain, DATA, numbers)
        dropped, _ = tiny.step("fisher/submodel")(jnp.int32(t), KEY, dropped, DATA, numbers)
    assert tiny.same_bits(plain.params, dropped.params)


def test_what_nobody_trained_rests():
    """Off the mask neither parameters nor momentum move, however much momentum there is."""
    h = tiny.Hparams(**{**vars(tiny.HPARAMS), "server_momentum": 0.9, "keep_rate": 0.5, "refresh_rounds": 0}).arrays()
    step, state = jax.jit(tiny.make("fisher/submodel").step), tiny.later_state("fisher/submodel")
    state = state._replace(server=jax.tree.map(lambda x: jnp.ones_like(x), state.server))
    new, _ = step(jnp.int32(1), KEY, state, DATA, h)
    off = np.asarray(state.submodel.ranks["dense_0"]) >= 3
    pairs = zip(jax.tree.leaves(state.server), jax.tree.leaves(new.server), strict=True)
    for before, after in [*pairs, *zip(jax.tree.leaves(state.params), jax.tree.leaves(new.params), strict=True)]:
        if before.shape == (tiny.FEATURES, tiny.HIDDEN):
            np.testing.assert_array_equal(before[:, off], after[:, off])
            assert np.all(np.asarray(before)[:, ~off] != np.asarray(after)[:, ~off])


def test_tiers_are_spread_evenly():
    of = divide_among_tiers(100, (0.5, 0.3, 0.2))
    np.testing.assert_allclose(np.bincount(of) / 100, (0.5, 0.3, 0.2), atol=0.021)
    assert all(set(of[i : i + 8].tolist()) == {0, 1, 2} for i in range(92))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"tiers": Tiers((0.5, 0.25), np.zeros(8, int))}, "largest 1"),
        ({"tiers": Tiers((1.0, 0.5), np.zeros(5, int))}, "2 tiers for each of 8"),
        ({"compact": Compact(0.5), "forward": "upload_only"}, 'perf.dropout = "masked"'),
    ],
)
def test_what_cannot_be_is_refused(parts, message):
    with pytest.raises(FljaxError, match=message):
        made = recipes.fisher_dropout(tiny.training(), tiny.sampler(), **parts)
        made.init(KEY, tiny.model().init(KEY), tiny.HPARAMS.arrays())


def test_compact_execution_refuses_clients_with_a_memory():
    made = recipes.make_round(
        sampler=tiny.sampler(),
        local=scaffold_update(tiny.training(), tiny.POPULATION),
        transform=recipes.private_average(),
        submodel=fisher_dropout(tiny.model().groups),
        compact=Compact(0.5),
    )
    with pytest.raises(FljaxError, match="keep nothing between rounds"):
        made.init(KEY, tiny.model().init(KEY), tiny.HPARAMS.arrays())
