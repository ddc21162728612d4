"""Words for some coordinates alone: the same bits with and without pads, what is left out, bytes by the formulas."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import private_rounds as tiny
import pytest

from fljax.core.transform import chain
from fljax.core.types import Ctx, Hparams, Positions
from fljax.models import mlp
from fljax.secure.graph import choose_graph
from fljax.secure.masks import Lanes, double_mask, otp, pairwise
from fljax.secure.positions import holders, sent_words, suppress

C, KEY, ONE, NOBODY = 4, jax.random.key(3), jnp.float32(1), jnp.int32(-1)
MODEL = mlp((2,), 2, (3, 2))
GROUPS, PARAMS = MODEL.groups, jax.tree.map(lambda s: jnp.zeros(s.shape), MODEL.shapes())
P = sum(x.size for x in jax.tree.leaves(PARAMS))
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


@pytest.mark.parametrize("scheme", WHO)
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
