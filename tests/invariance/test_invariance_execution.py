"""How a cohort is executed changes nothing: its order, empty slots, chunks, devices, summing or stacking."""

import exact_round
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import tiny
from exact_round import N, Way

from fljax.core.keys import per_client, stream
from fljax.core.transform import UpdateTransform, pass_decode, stateless
from fljax.core.types import Hparams
from fljax.server.execute import Slots, run_clients
from fljax.server.round import make_round
from fljax.server.sampler import full
from fljax.sim.mesh import client_mesh

WAYS = {
    "opposite order": Way(backwards=True),
    "fewer slots": Way(max_rate=exact_round.RATE),
    "one by one": Way(chunk=1),
    "chunks of three": Way(chunk=3),
    "two devices": Way(devices=2),
    "two devices, chunks of three, fewer slots": Way(devices=2, chunk=3, max_rate=exact_round.RATE),
    "stacked": Way(collect="concat"),
    "stacked, chunks of three": Way(chunk=3, collect="concat"),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_every_way_of_execution_agrees_to_the_last_bit(way):
    """Parameters, server momentum, every client's state, and all that is observed, over three rounds."""
    assert exact_round.round_of(way).law(exact_round.hparams()).population == N
    for (state, info), (plain, seen) in zip(exact_round.play(way), exact_round.play(Way()), strict=True):
        assert tiny.same_bits(state, plain)
        assert tiny.same_bits(info, seen)


@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("devices", [1, 2])
def test_chunks_without_a_living_client_are_skipped_where_nobody_remembers(chunk, devices):
    """Another loop, of traced length: the same numbers, also where everybody is in and where nobody is."""
    way = Way(chunk=chunk, devices=devices, remembers=False)
    for rate in (exact_round.RATE, 1.0, 0.0):
        numbers = exact_round.hparams(rate=rate)
        pairs = zip(exact_round.play(way, numbers), exact_round.play(Way(), numbers), strict=True)
        for (state, info), (plain, seen) in pairs:
            assert tiny.same_bits(state.params, plain.params) and tiny.same_bits(state.server, plain.server)
            assert tiny.same_bits(info, seen)


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("chunk", [0, 1, 3])
def test_a_sum_is_a_sum(chunk, devices):
    """Of ten living clients, each counted once: an average would hide a factor, since its weights have it as well."""
    ids = jnp.arange(10)
    slots = Slots(per_client(jax.random.key(0), ids), ids, ids, jnp.ones(10, bool))

    def one(base, slot, state):
        return jnp.where(slot.alive, base ** slot.ids.astype(jnp.float32), 0.0), state, {}

    collected = run_clients(one, jnp.float32(2.0), slots, (), chunk=chunk, collect="sum", mesh=client_mesh(devices))
    assert float(collected.payload) == 2**10 - 1


@pytest.mark.parametrize("count", [9, 10])
def test_devices_take_turns_so_that_each_has_its_share_of_the_largest_clients(count):
    """Slots are sorted by the data of their clients, the empty ones last; what comes back is in their order."""
    ids = jnp.arange(count)
    slots = Slots(per_client(jax.random.key(0), ids), ids, ids, ids < 7)

    def one(base, slot, state):
        return (slot.ids, jax.lax.axis_index("clients")), state, {}

    collected = run_clients(one, jnp.float32(0.0), slots, (), chunk=2, collect="concat", mesh=client_mesh(2))
    np.testing.assert_array_equal(collected.payload[0], ids)
    np.testing.assert_array_equal(collected.payload[1], ids % 2)


def test_the_exact_round_equals_a_loop():
    """What all these ways agree on: who came, what they sent, the average by examples, momentum on the server."""
    key = jax.random.key(0)
    w, speed = np.zeros(3), np.zeros(3)
    last, times = np.zeros((N, 3)), np.zeros(N)
    for t, (state, info) in enumerate(exact_round.play(Way())):
        scores = jax.random.uniform(jax.random.fold_in(stream(key, "sample"), t), (N,))
        who = [k for k in range(N) if scores[k] < exact_round.RATE]
        total, weight = np.zeros(3), 0
        for k in who:
            own = stream(jax.random.fold_in(stream(jax.random.fold_in(key, t), "client"), k), "local")
            last[k], times[k] = np.asarray(jax.random.bits(own, (3,), jnp.uint32) % 8) + k, times[k] + 1
            total, weight = total + last[k] * (1 + k % 9), weight + 1 + k % 9
        speed = 0.5 * speed + total / weight
        w = w + speed
        np.testing.assert_allclose(state.params, w, rtol=1e-6)
        np.testing.assert_array_equal(state.clients[0]["last"], last)
        np.testing.assert_array_equal(state.clients[0]["times"], times)
        assert int(info.contacted) == int(info.participants) == len(who)
        np.testing.assert_allclose(info.client["id"], np.mean(who), rtol=1e-6)
        assert (int(info.uplink_values), int(info.downlink_values)) == (3 + 1, 3)  # with the weight


@pytest.mark.parametrize("name", ["fedavg_chunk_1", "fedavg_chunk_3", "fedavg_devices"])
def test_real_training_agrees_to_rounding(name):
    """Three rounds of an MLP: at most 1e-6 of (1 + |parameter|), from the order of sums and of matrix products."""
    hparams = Hparams(client_lr=0.4, sampling_rate=0.7)
    other, plain = tiny.play(name, 3, hparams), tiny.play("fedavg", 3, hparams)
    for a, b in zip(other.states, plain.states, strict=True):
        tiny.close(a.params, oracle.exact(b.params), 1e-6)
    for a, b in zip(other.infos, plain.infos, strict=True):
        assert int(a.participants) == int(b.participants)


def test_a_clients_key_depends_on_its_id_alone():
    key = jax.random.key(3)
    there = jax.random.key_data(per_client(key, jnp.array([5, 2, 9, 2])))
    again = jax.random.key_data(per_client(key, jnp.array([2, 9, 5])))
    np.testing.assert_array_equal(there[jnp.array([0, 1, 2])], again[jnp.array([2, 0, 1])])
    np.testing.assert_array_equal(there[1], there[3])
    assert len({tuple(k) for k in np.asarray(again)}) == 3


def test_training_and_encoding_draw_from_keys_of_their_own():
    """What a client draws while it trains says nothing about what its stages draw, nor about any other client."""

    def drawn(key):
        return jax.random.key_data(key).astype(jnp.float32)

    def run(key, ctx, broadcast, own, shard):
        return {"update": drawn(key)}, own, {}

    def encode(key, ctx, payload, server_state, client_state):
        return payload | {"sent": drawn(key)}, client_state, {}

    local = exact_round.local(False)._replace(run=run, parts=("update",))
    built = make_round(sampler=full(N), local=local, transform=UpdateTransform("keys", stateless, encode, pass_decode))
    state = built.init(jax.random.key(0), jnp.zeros(2), Hparams().arrays())
    seen = jax.jit(built.transcript)(jnp.int32(0), jax.random.key(0), state, exact_round.data(), Hparams().arrays())
    keys = np.concatenate([np.asarray(seen.payloads["update"]), np.asarray(seen.payloads["sent"])])
    assert len(np.unique(keys, axis=0)) == 2 * N
