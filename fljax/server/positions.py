"""Before a round's uploads: whose words travel, agreed on by the parties of a secure sum.

Clients choose their neurons first, once; what they announce is public to the parties of the round (``ctx.positions``).
A union is learnt through a secure sum of its own, of counts: nobody's own choice is told.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fljax.core import tree
from fljax.core.keys import stream
from fljax.core.types import Array, Ctx, Params, Positions, PyTree, Selection
from fljax.secure.positions import count_bits, holders, sent_words
from fljax.secure.secagg import parties
from fljax.server.execute import PerfFlags, Slots, auto_chunk, run_clients

PRIVATE = ("exact", "reported")
"""Sources of masks that look at a client's own data, so that only the client can tell its positions."""


class Agreement(NamedTuple):
    """How it is agreed on whose words travel; static.

    union: all clients send the words of every neuron that one of them keeps; else each sends its own.
    least: min_contributors t; coordinates that fewer clients announce are sent by nobody.
    """

    union: bool = False
    least: int = 1


class Agreed(NamedTuple):
    """What the clients of a round chose, by slot.

    neurons: {group: [C, n]} 0/1 that each trains. choice: its new state [C, ...]. fresh: [C] bool, who chose anew.
    """

    neurons: dict[str, Array]
    choice: PyTree
    fresh: Array


def agree(parts: Any, ctx: Ctx, params: Params, selection: Selection, slots: Slots, table: PyTree, data: Any):
    """Lets the clients choose, and agrees on the words.

    Args:
      parts: of the round. ctx: of the server. params: shared. selection: the server's. slots: the cohort.
      table: states [N, ...] of the clients' choices. data: of all clients.

    Returns:
      (ctx with ``positions``, Agreed). Rows of clients that did not share keys are zero.
    """
    sub, wanted = parts.submodel, parts.agreement
    perf: PerfFlags = parts.perf
    chunk = auto_chunk(tree.num_elements(params), parts.capacity) if perf.chunk is None else perf.chunk

    def one(shared: PyTree, slot: Slots, choice: PyTree):  # ONE client
        ctx, params, selection, data = shared
        mine = own_ctx(parts, ctx, slot)
        fresh = jnp.bool_(False)
        if sub.own is not None:
            shard, key = data.take(slot.place, slot.ids), stream(slot.keys, "masks")
            selection, new = sub.own.choose(key, mine, params, choice, shard, selection)
            fresh, choice = differs(choice, new) & (sub.source in PRIVATE), new
        return sub.masks(mine, selection), choice, {"fresh": fresh}

    shared = (ctx, params, selection, data)
    seen = run_clients(one, shared, slots, table, chunk=chunk, collect="concat", mesh=perf.mesh)
    members = parties(ctx).members
    rows = {g: jnp.where(members[:, None], m, 0.0) for g, m in seen.payload.items()}
    if wanted.union:
        rows = {g: jnp.where(members[:, None], jnp.max(m, axis=0)[None], 0.0) for g, m in rows.items()}
    enough = None
    if wanted.least > 1:
        counts = holders(sub.groups, params, rows, members)
        enough = jax.tree.map(lambda n: (n >= wanted.least).astype(jnp.float32), counts)
    return ctx._replace(positions=Positions(rows, enough)), Agreed(seen.payload, seen.states, seen.info["fresh"])


def own_ctx(parts: Any, ctx: Ctx, slot: Slots) -> Ctx:
    """What ONE client knows: its id, its place in the cohort, its keep rate."""
    mine = ctx._replace(id=slot.ids, slot=slot.place)
    if parts.tiers is None:
        return mine
    return mine._replace(keep_rate=ctx.keep_rate * parts.tiers.in_round(ctx).rate(slot.ids))


def differs(old: PyTree, new: PyTree) -> Array:
    """Did any part of a state change?"""
    pairs = zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True)
    return jnp.any(jnp.stack([jnp.any(a != b) for a, b in pairs]))


def words_of_client(parts: Any, ctx: Ctx, params: Params) -> PyTree:
    """The words that ONE client sends, a tree like params of 0/1."""
    assert ctx.positions is not None
    return sent_words(parts.submodel.groups, params, ctx.positions, ctx.slot)


def told_bits(parts: Any, listed: Array) -> Array:
    """() int32 bits that one client sends so that the words can be agreed on.

    Args:
      listed: bits of its positions in clear. A union takes a count of every neuron instead; masks that the server
        computes itself take nothing.
    """
    sub = parts.submodel
    if parts.agreement.union:
        return jnp.int32(sum(n for _, n in sub.groups.sizes) * count_bits(parts.capacity))
    return listed if sub.source in PRIVATE else jnp.int32(0)
