"""Masks that cancel: against plain sums in NumPy, for every pattern of drop-outs; and what a server may ask for."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from fljax.core.check import FljaxError
from fljax.core.transform import chain, summed
from fljax.core.types import Ctx, Hparams
from fljax.secure.graph import choose_graph, neighbours
from fljax.secure.masks import Lanes, _revealed_pairs, double_mask, flashe, otp, pairwise, server_view, shared_key
from fljax.secure.secagg import EARLY, LATE, edges, pad_key, parties, recoverable, requests

NOBODY, LENGTH = jnp.int32(-1), 5
SPARSE = choose_graph(6, degree=2, threshold=1)
MASKS = {
    "shared_key": shared_key,
    "otp": otp,
    "flashe": flashe,
    "pairwise": lambda lanes: pairwise(lanes, choose_graph(6, threshold=1)),
    "double_mask sparse": lambda lanes: double_mask(lanes, SPARSE),
}


def context(presence, key, late=0.0, early=0.0):
    h = Hparams(extra={EARLY: early, LATE: late})
    one = jnp.float32(1)
    return Ctx(jnp.int32(0), h, key, NOBODY, NOBODY, one, one, presence=jnp.asarray(presence, jnp.int32))


def words(clients, length=LENGTH, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "update": jnp.asarray(rng.integers(0, 2**32, (clients, length), np.uint32)),
        "weight": jnp.asarray(rng.integers(0, 2**32, clients, np.uint32)),
    }


def through(stage, ctx, payloads, sent):
    """(masked uploads, decoded sum of those with sent [C], info)."""
    clients = payloads["weight"].shape[0]

    def one(slot, payload):
        return stage.encode(None, ctx._replace(slot=slot), payload, (), ())[0]

    uploads = jax.vmap(one)(jnp.arange(clients), payloads)
    came = jax.tree.map(lambda x: jnp.where(sent.reshape(-1, *[1] * (x.ndim - 1)), x, 0), uploads)
    total = jax.tree.map(lambda x: jnp.sum(x, axis=0), came)
    return uploads, *stage.decode(None, ctx, total, sent, ())[::2]


@cache
def patterns(clients):
    """Every client an empty slot (or gone before keys), gone after keys, or there: [3^C, C]."""
    return np.stack(np.meshgrid(*[np.arange(3)] * clients, indexing="ij"), -1).reshape(-1, clients)


def test_masked_sums_are_plain_sums_for_every_pattern_of_drop_outs():
    """All masks, all 729 patterns of six clients (those of fewer are among them), bit by bit; an aborted sum is zero,
    and the ideal mode gives the same without pads."""
    payloads = words(6)
    masked = {name: make(Lanes(LENGTH, 32, mode="masked", prf="counter")) for name, make in MASKS.items()}
    ideal = {name: MASKS[name](Lanes(LENGTH, 32)) for name in ("otp", "double_mask sparse")}

    def one(presence, key):
        ctx = context(presence, key)
        return [{n: through(s, ctx, payloads, presence == 2)[1:] for n, s in m.items()} for m in (masked, ideal)]

    keys = jax.random.split(jax.random.key(1), 729)
    got, without = jax.device_get(jax.jit(jax.vmap(one))(jnp.asarray(patterns(6)), keys))
    came = patterns(6) == 2
    for name, (total, info) in got.items():
        aborted = info["aborted"] > 0
        for part in payloads:
            values = np.asarray(payloads[part], np.uint64).reshape(6, -1)
            expected = np.where(aborted[:, None], 0, (came @ values) % 2**32)
            np.testing.assert_array_equal(total[part].reshape(729, -1), expected, err_msg=name)
            if name in ideal:
                np.testing.assert_array_equal(total[part], without[name][0][part], err_msg=name)
        assert 0 < aborted.sum() < 500 if "sparse" in name else not aborted.any() or name == "pairwise"


def test_a_round_is_aborted_exactly_where_a_member_has_too_few_neighbours():
    """Brute force over the graph on the host, with clients that leave after their upload."""
    graphs = [choose_graph(6, degree=4, threshold=t) for t in (1, 2, 3, 4)]

    def one(presence, key):
        who = parties(context(presence, key, late=0.3))
        return who, jnp.stack([recoverable(graph, who) for graph in graphs])

    keys = jax.random.split(jax.random.key(2), 729)
    who, got = jax.device_get(jax.jit(jax.vmap(one))(jnp.asarray(patterns(6)), keys))
    assert not (who.answered & ~who.uploaded).any() and who.answered.sum() < who.uploaded.sum()
    for row in range(729):
        size = int(who.members[row].sum())
        answered = who.answered[row][np.argsort(who.places[row])]
        least = min((answered[others].sum() for others in ring(size)), default=6)
        assert got[row].tolist() == [least >= t for t in (1, 2, 3, 4)], row
    assert (got.sum(0) > 0).all() and (got.sum(0) < 729).all()


@cache
def ring(size):
    return neighbours(choose_graph(6, degree=4, threshold=1), size)


def test_masked_sums_of_a_thousand_clients():
    """Random drop-outs in every stage on a ring of degree 30 (the rule's), against the plain sum."""
    graph, payloads = choose_graph(1000), words(1000, 3)
    assert graph.degree == 30
    stage = double_mask(Lanes(3, 26, mode="masked", prf="counter"), graph)
    presence = jax.random.choice(jax.random.key(5), jnp.arange(3), (1000,), p=jnp.array([0.02, 0.04, 0.94]))
    run = jax.jit(lambda key: through(stage, context(presence, key, 0.02, 0.5), payloads, presence == 2))
    _, total, info = run(jax.random.key(0))
    came = np.asarray(presence == 2)
    assert float(info["aborted"]) == 0 and came.sum() < float(info["members"]) < 990
    np.testing.assert_array_equal(total["update"], (came @ np.asarray(payloads["update"], np.uint64)) % 2**32)


def test_the_server_takes_off_only_what_it_may_ask_for():
    """Never both secrets of one client; pads of pairs are those of one that came with a neighbour that did not. By the
    list of the pads themselves, for all patterns."""

    def look(presence, key):
        who = parties(context(presence, key))
        asked = requests(who)
        return who, asked, edges(SPARSE, who), _revealed_pairs(edges(SPARSE, who), asked)

    keys = jax.random.split(jax.random.key(3), 729)
    who, asked, e, pads = jax.device_get(jax.jit(jax.vmap(look))(jnp.asarray(patterns(6)), keys))
    members = np.take_along_axis(who.members, np.argsort(who.places, 1), 1)
    assert not (asked.self_masks & asked.pair_keys).any()
    assert ((asked.self_masks | asked.pair_keys) == members).all()
    assert (asked.self_masks.sum(1) == (patterns(6) == 2).sum(1)).all()
    taken, pair, row = pads.signs.reshape(729, 6, -1) != 0, (e.start, e.end), np.arange(729)[:, None, None]
    mine, theirs = (asked.self_masks[row, place] for place in pair)
    gone, left = (asked.pair_keys[row, place] for place in pair)
    np.testing.assert_array_equal(taken, e.there & ((mine & left) | (gone & theirs)))


def test_no_two_rounds_have_the_same_key():
    """2,000 rounds of one run, and rounds of two runs: 64-bit keys collide with probability 2e-13."""
    rounds = jax.vmap(lambda run, t: pad_key(context([2], jax.random.fold_in(jax.random.key(run), t))))
    keys = jax.random.key_data(rounds(jnp.repeat(jnp.arange(2), 1000), jnp.tile(jnp.arange(1000), 2)))
    assert len(np.unique(keys, axis=0)) == 2000


def test_every_client_has_its_own_uniform_mask():
    """Uploads of zeros: top bytes by chi squared (false alarm 1e-7 per scheme, seeded), no two alike, none as in the
    round before."""
    length, limit, names = 1 << 14, stats.chi2.ppf(1 - 1e-7, 255), ("shared_key", "otp", "double_mask sparse")
    zeros = {"update": jnp.zeros((6, length), jnp.uint32), "weight": jnp.zeros(6, jnp.uint32)}
    presence = jnp.full(6, 2)
    stages = {name: MASKS[name](Lanes(length, 32, mode="masked", prf="counter")) for name in names}

    @jax.jit
    def run(key):
        ctx = context(presence, key)
        return {name: through(stage, ctx, zeros, presence == 2)[0]["update"] for name, stage in stages.items()}

    first, second = (jax.device_get(run(jax.random.fold_in(jax.random.key(6), t))) for t in (0, 1))
    for name in names:
        now = first[name]
        counts = np.bincount((now[0] >> 24), minlength=256)
        assert np.sum((counts - length / 256) ** 2 / (length / 256)) < limit, name
        alike = [(now[i] == now[j]).mean() for i in range(6) for j in range(i)]
        assert (min(alike) == 1) if name == "shared_key" else (max(alike) < 0.01), name
        assert (now == second[name]).mean() < 0.01, name


def test_words_of_other_integers_pass_through():
    """The int32 of distributed noise comes back modulo 2^32."""
    stage = double_mask(Lanes(4, 16, "threefry", "masked"), choose_graph(3, threshold=1))
    noise = jnp.array([[-5, 7, 0, 32767]] * 3, jnp.int32)

    @jax.jit
    def run(key, x):
        ctx = context([2, 2, 2], key)
        return through(stage, ctx, {"update": x, "weight": x[:, 0]}, ctx.presence == 2)[1]

    total = run(jax.random.key(0), noise)
    assert np.asarray(total["update"]).astype(np.int32).tolist() == [-15, 21, 0, 98301]


def test_the_servers_view_is_the_words_and_the_sum():
    """Masked words below 2^k where somebody came, zeros elsewhere; the sum; and an aborted round without one."""
    lanes, graph = Lanes(LENGTH, 20, mode="masked"), choose_graph(6, threshold=3)
    stage, payloads = double_mask(lanes, graph), words(6)
    presence = jnp.array([2, 2, 2, 2, 1, 0])

    @jax.jit
    def look(key, late):
        ctx = context(presence, key, late)
        uploads, *_ = through(stage, ctx, payloads, presence == 2)
        sent = jax.tree.map(lambda x: jnp.where((presence == 2).reshape(-1, *[1] * (x.ndim - 1)), x, 0), uploads)
        return server_view(stage, 20, ctx, sent)

    view = jax.device_get(look(jax.random.key(0), 0.0))
    assert view.finished and view.uploads["update"].max() < 2**20
    assert (view.members == (np.asarray(presence) > 0)).all() and (view.answered == (np.asarray(presence) == 2)).all()
    assert not view.uploads["update"][4:].any() and view.uploads["update"][:4].all()
    clear = np.asarray(payloads["update"])
    assert (view.uploads["update"] != clear % 2**20)[:4].mean() > 0.9
    np.testing.assert_array_equal(view.total["update"], clear[:4].sum(0, dtype=np.uint64) % 2**20)
    late = jax.device_get(look(jax.random.key(0), 1.0))
    assert not late.finished and not late.total["update"].any() and not late.answered.any()


def test_bad_lanes_are_one_line():
    for lanes, message in [
        (Lanes(0, 16), "Expected size=0 > 0"),
        (Lanes(4, 33), r"Expected bits=33 in \[1, 32\]"),
        (Lanes(4, 16, mode="real"), "Expected mode='real' to be one of ideal, masked"),
        (Lanes(4, 16, "aes"), "Expected prf='aes'"),
    ]:
        with pytest.raises(FljaxError, match=message):
            otp(lanes)


# ---- why a shared key is no encryption -------------------------------------------------------------------------------


def test_a_shared_key_is_read_from_one_known_value_and_differences_are_open():
    """One round of three clients with one key: a coordinate known to be zero tells its key, differences need none."""
    stage, ctx = shared_key(Lanes(LENGTH, 32, mode="masked")), context([2, 2, 2], jax.random.key(9))
    payloads = words(3)
    payloads["update"] = payloads["update"].at[0, 2].set(0)  # a dead unit, which everybody knows
    uploads, *_ = jax.jit(lambda: through(stage, ctx, payloads, jnp.ones(3, bool)))()
    sent, clear = np.asarray(uploads["update"]), np.asarray(payloads["update"])
    key = sent[0, 2]
    assert ((sent[:, 2] - key) == clear[:, 2]).all()  # everybody's value at that place
    assert ((sent[0] - sent[1]) == (clear[0] - clear[1])).all()  # all differences, without any key
    whole = sent[0] - clear[0]  # a client knows its own values: it has the key, and reads all others
    assert ((sent - whole) == clear).all()


def test_taking_a_shared_key_off_twice_leaves_a_bias():
    """The sum minus K for each client is right; once more, as on the clients of the naive scheme, is off by K."""
    rng = np.random.default_rng(3)
    values, key = rng.normal(size=(4, 8)), rng.normal(scale=10, size=8)
    mean = (values + key).mean(0) - key
    np.testing.assert_allclose(mean, values.mean(0), atol=1e-12)
    np.testing.assert_allclose(mean - key, values.mean(0) - key, atol=1e-12)
    large = (values.astype(np.float32) + np.float32(1e8) - np.float32(1e8)).mean(0)  # and floats lose what K covers
    assert np.abs(large - values.mean(0)).max() > 0.1
    assert summed().collect == "sum" and chain(otp(Lanes(3, 8))).always
