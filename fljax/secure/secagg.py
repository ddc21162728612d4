"""The protocol of a secure sum, in its stages: who shares keys, who uploads, who answers, what may be asked of whom.

    1  keys     clients agree on keys with their neighbours and hand out shares of their two secrets; who leaves before
                takes no part at all
    2  upload   masked words; who leaves before has pads in the words of its neighbours, which have to be taken off
    3  unmask   the server asks the neighbours for shares: of the SELF mask of who uploaded, of the PAIR key of who did
                not, and never both of one client, which would open its upload

The round is aborted unless every client that shared keys has at least t neighbours in stage 3. Only the arithmetic is
simulated, not the sharing: ``requests`` says which secrets the modelled server learns, and every pad that it takes off
is made from one of them.

Sources: Bonawitz et al., CCS 2017 (SecAgg); Bell et al., CCS 2020 (SecAgg+).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fljax.core.keys import stream
from fljax.core.types import Array, Ctx, Key
from fljax.secure.graph import Graph, edge_is_there, ring_places

SILENT, ANSWERING = 1, 2
"""Values of ``Ctx.presence``; 0 is an empty slot."""
EARLY, LATE = "leave_before_keys", "leave_after_upload"
"""Names in ``Hparams.extra``: the share of the clients without upload that have not shared keys either, and of the ones
with an upload that do not answer when it is unmasked."""


class Parties(NamedTuple):
    """Who gets how far in a round, [C] by slot: each is a part of the one before.

    members: shared keys. uploaded: sent masked words. answered: were there to unmask. places: [C] int32 on the ring.
    size: () int32 number of members.
    """

    members: Array
    uploaded: Array
    answered: Array
    places: Array
    size: Array


def parties(ctx: Ctx) -> Parties:
    """Who gets how far: from who answers, and from the shares of those who leave early and late."""
    assert ctx.presence is not None, "a secure sum runs inside a round, which knows who answers"
    early, late = (ctx.hparams.extra.get(name, 0.0) for name in (EARLY, LATE))
    first, second = (jax.random.uniform(_key(ctx, i), ctx.presence.shape) for i in (0, 1))
    uploaded = ctx.presence == ANSWERING
    members = uploaded | ((ctx.presence == SILENT) & (first >= early))
    places = ring_places(_key(ctx, 2), members)
    return Parties(members, uploaded, uploaded & (second >= late), places, jnp.sum(members, dtype=jnp.int32))


def pad_key(ctx: Ctx) -> Key:
    """The key from which all pads of a round are made: another one in every round."""
    return _key(ctx, 3)


def _key(ctx: Ctx, purpose: int) -> Key:
    return jax.random.fold_in(stream(ctx.round_key, "secure"), purpose)


def on_ring(who: Parties, flags: Array) -> Array:
    """Flags [C] by slot -> [C] by place on the ring."""
    return jnp.zeros_like(flags).at[who.places].set(flags)


class Requests(NamedTuple):
    """Whose secrets the server gets, [C] bool by place on the ring. self_masks: b_i, of those that uploaded. pair_keys:
    s_ij with all neighbours, of those that did not. No client is in both."""

    self_masks: Array
    pair_keys: Array


def requests(who: Parties) -> Requests:
    """What the server asks for in stage 3."""
    members, uploaded = on_ring(who, who.members), on_ring(who, who.uploaded)
    return Requests(uploaded, members & ~uploaded)


class Edges(NamedTuple):
    """Pairs that may share a pad. start, end: places. there: bool, are they neighbours? ids: which pad, the same for
    both of them."""

    start: Array
    end: Array
    there: Array
    ids: Array


def edges(graph: Graph, who: Parties, start: Array | None = None, distance: Array | None = None) -> Edges:
    """The edges of a round's graph from places to those ``distance`` further on; default all of them, each once.

    Args:
      start, distance: int32 of one shape; default [C, reach].
    """
    if start is None or distance is None:
        start, distance = jnp.indices((who.places.shape[0], graph.reach), dtype=jnp.int32)
        distance = distance + 1
    end = (start + distance) % jnp.maximum(who.size, 1)
    there = edge_is_there(start, distance, who.size, graph.degree)
    return Edges(start, end, there, start * graph.reach + distance - 1)


def recoverable(graph: Graph, who: Parties) -> Array:
    """() bool: does every member have at least t neighbours that answer?"""
    answered = on_ring(who, who.answered).astype(jnp.int32)
    e = edges(graph, who)
    there = e.there.astype(jnp.int32)
    count = jnp.sum(there * answered[e.end], axis=1)
    count = count.at[e.end.ravel()].add((there * answered[e.start]).ravel())
    least = jnp.asarray(graph.thresholds, jnp.int32)[who.size]
    return jnp.all((count >= least) | ~on_ring(who, who.members))
