"""Words for some coordinates alone: the same bits with and without pads, what is left out, bytes by the formulas."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import private_rounds as tiny
import pytest

from fljax.core.check import FljaxError
from fljax.core.transform import Wire, chain
from fljax.core.types import Ctx, Hparams, LocalUpdate, Positions
from fljax.dropout.sources import random_per_client
from fljax.models import mlp
from fljax.secure.fixedpoint import fixed_point
from fljax.secure.graph import choose_graph
from fljax.secure.ledger import key_traffic
from fljax.secure.masks import Lanes, double_mask, flashe, otp, pairwise
from fljax.secure.positions import count_bits, holders, sent_words, suppress
from fljax.server.average import coordinate_average, realised_average
from fljax.server.positions import Agreement
from fljax.server.round import make_round
from fljax.server.sampler import bernoulli_availability, full

C, KEY, ONE, NOBODY = 4, jax.random.key(3), jnp.float32(1), jnp.int32(-1)
MODEL = mlp((2,), 2, (3, 2))
GROUPS, PARAMS = MODEL.groups, jax.tree.map(lambda s: jnp.zeros(s.shape), MODEL.shapes())
P = sum(x.size for x in jax.tree.leaves(PARAMS))
N, DATA = tiny.POPULATION, tiny.pack(tiny.clients())
WHO = {
    "otp": lambda lanes: otp(lanes),
    "pairwise": lambda lanes: pairwise(lanes, choose_graph(C, threshold=1)),
    "double_mask": lambda lanes: double_mask(lanes, choose_graph(C, threshold=1)),
}


def context(presence, rows, key=KEY):
    h = Hparams(extra={"leave_before_keys": 0.0, "leave_after_upload": 0.0})
    return Ctx(jnp.int32(0), h, key, NOBODY, NOBODY, ONE, ONE, presence=presence, positions=rows)


def announced(rows, presence, least):
    """Rows of who is there, and the coordinates that ``least`` of them hold, as the server computes them."""
    members = presence >= 1
    rows = {g: jnp.where(members[:, None], row, 0.0) for g, row in rows.items()}
    enough = jax.tree.map(lambda n: (n >= least) * 1.0, holders(GROUPS, PARAMS, rows, members))
    return Positions(rows, enough)


def random_rows(seed):
    rng = np.random.default_rng(seed)
    return {g: rng.integers(0, 2, (C, n)).astype(np.float32) for g, n in GROUPS.sizes}


def by_hand(rows, here):
    """How many of the clients hold each coordinate, by loops over NumPy arrays: {path: counts}."""
    first, second = (rows[g] * np.asarray(here)[:, None] for g, _ in GROUPS.sizes)
    return {
        "dense_0": {"bias": first.sum(0), "kernel": np.stack([first.sum(0)] * 2)},
        "dense_1": {"bias": second.sum(0), "kernel": np.einsum("ca,cb->ab", first, second)},
        "dense_2": {"bias": np.full(2, np.sum(here)), "kernel": np.stack([second.sum(0)] * 2, 1)},
    }


@cache
def player(scheme, mode, least):
    """(rows, presence) -> (uploads [C, ...], released words), compiled once for all patterns."""
    lanes = Lanes(P, 24, "counter", mode, GROUPS)
    stage = chain(suppress(GROUPS, least), WHO[scheme](lanes))
    server, client = stage.init(PARAMS, None)

    def play(rows, presence):
        ctx = context(presence, announced(rows, presence, least))

        def send(slot):
            keys = jax.random.split(jax.random.fold_in(KEY, slot), P)
            flat = jax.vmap(lambda k: jax.random.bits(k, (), jnp.uint32))(keys)
            sent = jax.tree.map(lambda m: m.astype(jnp.uint32), sent_words(GROUPS, PARAMS, ctx.positions, slot))
            parts, at = [], 0
            for m in jax.tree.leaves(sent):
                parts.append(flat[at : at + m.size].reshape(m.shape) * m)
                at += m.size
            payload = {"update": jax.tree.unflatten(jax.tree.structure(sent), parts)}
            return stage.encode(KEY, ctx._replace(slot=slot), payload, server, client)[0], payload

        uploads, plain = jax.vmap(send)(jnp.arange(C))
        came = presence == 2

        def added(x):
            return jnp.sum(jnp.where(came.reshape(-1, *[1] * (x.ndim - 1)), x, 0), axis=0, dtype=x.dtype)

        released, _, info = stage.decode(KEY, ctx, jax.tree.map(added, uploads), came, server)
        return uploads, plain, released, info

    return jax.jit(jax.vmap(play))


PATTERNS = np.stack(np.meshgrid(*[np.arange(3)] * C, indexing="ij"), -1).reshape(-1, C)


@pytest.mark.parametrize("scheme", ["otp", pytest.param("pairwise", marks=pytest.mark.slow), "double_mask"])
def test_masked_equals_ideal_and_numpy_for_every_pattern_of_drop_outs(scheme):
    """All 81 patterns of four clients (empty, gone after keys, there), each with masks of its own."""
    some = [random_rows(k) for k in range(len(PATTERNS))]
    rows = {g: jnp.asarray(np.stack([r[g] for r in some])) for g in some[0]}
    plain, masks = player("otp", "ideal", 2), player(scheme, "masked", 2)
    ideal, masked = (play(rows, jnp.asarray(PATTERNS)) for play in (plain, masks))
    assert tiny.same_bits(ideal[2], masked[2])
    words = jax.device_get(ideal[1]["update"])
    shown = 0
    for k, presence in enumerate(PATTERNS):
        if (presence == 1).sum() == (presence > 0).sum():  # nobody uploads: the pairs' pads of nobody
            continue
        counts = by_hand(some[k], presence == 2)
        for layer, leaves in counts.items():
            for name, n in leaves.items():
                x = words[layer][name][k]
                total = np.sum(x[presence == 2], axis=0, dtype=np.uint32)
                expected = np.where(np.asarray(n) >= 2, total, 0)
                found = np.asarray(ideal[2]["update"][layer][name][k])
                np.testing.assert_array_equal(found, expected)
                shown += int((expected != 0).sum())
    assert shown > 100
    assert tiny.flat(masked[0]).astype(np.uint32).any()
    assert not tiny.same_bits(ideal[0], masked[0])


def test_one_client_alone_has_no_pad_of_a_pair():
    """With min_contributors = 1 and pairwise pads, the server reads the word of who is alone on a coordinate; where two
    are, it does not."""
    alone = {g: jnp.zeros((C, n)).at[0].set(1.0).at[1, 0].set(1.0) for g, n in GROUPS.sizes}
    rows = {g: r[None] for g, r in alone.items()}
    uploads, plain, _, info = player("pairwise", "masked", 1)(rows, jnp.full((1, C), 2))
    bias = [np.asarray(x["update"]["dense_0"]["bias"])[0, 0] for x in (uploads, plain)]
    assert (bias[0][1:] == bias[1][1:]).all() and bias[0][0] != bias[1][0]
    n = np.concatenate(
        [np.ravel(x) for x in jax.tree.leaves(by_hand({g: np.asarray(r) for g, r in alone.items()}, np.ones(C)))]
    )
    neurons = np.concatenate([np.asarray(r).sum(0) for r in alone.values()])
    np.testing.assert_allclose(info["positions_singletons"][0], (neurons == 1).mean(), rtol=1e-6)
    np.testing.assert_allclose(info["positions_exposed"][0], (n == 1).mean(), rtol=1e-6)
    assert info["positions_suppressed"][0] == 0


def test_a_client_that_drops_out_after_it_announced_exposes_another():
    """Two announce a neuron, one uploads: its word was sent and is opened, and what is released is zero."""
    rows = {g: jnp.zeros((1, C, n)).at[0, :2].set(1.0) for g, n in GROUPS.sizes}
    _, plain, released, info = player("otp", "masked", 2)(rows, jnp.asarray([[2, 1, 2, 2]]))
    assert float(info["positions_exposed"][0]) > 0.5
    kept = released["update"]["dense_0"]["kernel"][0]
    assert not np.asarray(kept).any() and np.asarray(plain["update"]["dense_0"]["kernel"])[0, 0].any()


def test_wires_are_those_of_the_formulas():
    """rho d k + H for positions in clear, k-bit words, keys of the mask beside them; a dense upload has all words."""
    kept, told = jnp.int32(9), jnp.int32(5)
    keys = key_traffic("double_mask", C - 1).sent
    wires = {
        "update": Wire(kept, jnp.int32(20), told),
        "count": Wire(jnp.int32(6), jnp.int32(count_bits(C)), jnp.int32(0)),
    }
    graph = choose_graph(C, threshold=1)
    sparse = double_mask(Lanes(P + 6, 20, groups=GROUPS), graph).wire(None, wires)
    assert [int(x) for x in sparse["update"]] == [9, 20, 5 + keys] and [int(x) for x in sparse["count"]] == [6, 3, 0]
    dense = double_mask(Lanes(P + 6, 20), graph).wire(None, wires)
    assert [int(x) for x in dense["update"]] == [P, 20, keys] and int(dense["count"].bits) == 3
    assert [count_bits(n) for n in (1, 2, 3, 4, 7, 8, 1000)] == [
        int(np.ceil(np.log2(n + 1))) for n in (1, 2, 3, 4, 7, 8, 1000)
    ]


def test_pads_of_all_words_cannot_leave_some_out():
    with pytest.raises(FljaxError, match="masking='flashe'"):
        flashe(Lanes(P, 20, groups=GROUPS))
    with pytest.raises(FljaxError, match="min_contributors=0"):
        suppress(GROUPS, 0)


def test_counts_of_cells_divide_as_counts_of_parameters_do():
    """One number for each neuron, for each pair of two layers and for the rest, against loops over NumPy arrays; an
    update that is not finite counts nobody."""
    rows, n = random_rows(5), dict(GROUPS.sizes)
    assert GROUPS.num_cells == 1 + sum(n.values()) + np.prod(list(n.values()))
    masks = [GROUPS.masks(PARAMS, {g: r[k] for g, r in rows.items()}) for k in range(C)]
    average = coordinate_average("count", groups=GROUPS)
    ctx = context(jnp.full(C, 2), None)
    weights = [3.0, 0.0, 1.0, 2.0]
    sent = [
        average.encode(KEY, ctx._replace(support=m), {"update": m, "weight": jnp.float32(w)}, (), ())[0]
        for m, w in zip(masks, weights, strict=True)
    ]
    total = jax.tree.map(lambda *xs: sum(xs), *sent)
    assert sum(x.size for x in total["count"].values()) == GROUPS.num_cells
    released, *_ = average.decode(KEY, ctx, total, None, ())
    held, came = (by_hand(rows, here) for here in (np.ones(C), np.array(weights) > 0))
    for layer, leaves in held.items():
        for name, count in leaves.items():
            expected = count / np.maximum(came[layer][name], 1)
            np.testing.assert_allclose(released["update"][layer][name], expected, rtol=1e-6)
    assert "without noise; set server.denominator = expected" in average.claim(None).reason


@cache
def words_round(mode, union=False, least=1, agreed=True):
    """Two rounds of clients that choose by what they are and send random numbers, two of eight dropping out."""
    lanes = Lanes(tiny_size(), 15, "counter", mode, tiny.model().groups if agreed else None)
    stages = [realised_average("present"), fixed_point(12, N, tiny_size())]
    stages += [suppress(tiny.model().groups, least)] if agreed else []
    round = make_round(
        sampler=full(N),
        local=noisy_local(),
        transform=chain(*stages, double_mask(lanes, choose_graph(N, threshold=1))),
        available=bernoulli_availability,
        submodel=random_per_client(tiny.model().groups)._replace(source="exact"),
        agreement=Agreement(union, least) if agreed else None,
    )
    params = tiny.model().init(KEY)

    def run(h):
        state = round.init(KEY, params, h)
        return jax.lax.scan(lambda s, t: round.step(t, KEY, s, DATA, h), state, jnp.arange(2))

    extra = {"value_range": 1.0, "leave_before_keys": 0.5, "leave_after_upload": 0.0}
    return jax.device_get(jax.jit(run)(tiny.Hparams(keep_rate=0.5, availability=0.75, extra=extra).arrays()))


def tiny_size():
    return sum(x.size for x in jax.tree.leaves(tiny.model().shapes()))


def noisy_local():
    def run(key, ctx, broadcast, own, shard):
        leaves, structure = jax.tree.flatten(broadcast.params)
        update = [0.3 * jax.random.normal(jax.random.fold_in(key, i), x.shape) for i, x in enumerate(leaves)]
        return {"update": jax.tree.unflatten(structure, update), "weight": shard.size.astype(jnp.float32)}, own, {}

    return LocalUpdate(lambda params: (params, {}), lambda *_: ((), ()), run, lambda ctx, state, total: state)


def test_a_round_counts_the_words_that_were_sent():
    """Bytes by hand: words of the kept neurons, a bit for each neuron, keys and shares, and the weight."""
    public, p = words_round("masked")
    assert np.isfinite(tiny.flat(public.params)).all()
    hidden, keys = tiny.HIDDEN, key_traffic("double_mask", N - 1).sent
    kept = (tiny.FEATURES + 1 + tiny.CLASSES) * (hidden // 2) + tiny.CLASSES
    each = -(-(15 * kept + hidden + keys) // 8) + -(-15 // 8)
    sent = 1024 * p.uplink.kib.astype(int) + p.uplink.rest
    assert (sent == each * p.answered).all() and (p.answered < N).any()


@pytest.mark.slow
def test_all_modes_have_the_same_bits_and_a_union_the_bytes_of_its_words_and_counts():
    """Dense, union and public positions without a floor give one model bit by bit, with drop-outs."""
    (dense, _), (public, p), (union, u) = (
        words_round("ideal", agreed=False),
        words_round("masked"),
        words_round("ideal", union=True),
    )
    assert tiny.same_bits(public.params, union.params) and tiny.same_bits(public.params, dense.params)
    hidden, keys = tiny.HIDDEN, key_traffic("double_mask", N - 1).sent
    everything = -(-(15 * tiny_size() + hidden * 4 + keys) // 8) + -(-15 // 8)  # the union is all of six neurons
    assert (1024 * u.uplink.kib.astype(int) + u.uplink.rest <= everything * u.answered).all()
    assert (u.uplink_values > p.uplink_values).all()
