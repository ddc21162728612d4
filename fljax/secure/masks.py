"""Keyed masks on words modulo 2^k, from the insecure to the secure sum: encoded by clients, taken off the sum.

"Decryption after averaging" is: subtract the pads of those who arrived from the sum, decode the words, divide. A mask
is a stage of its own, to the right of whatever makes integers: ``chain(average, fixed_point(...), double_mask(...))``,
or behind the integer noise of distributed privacy.

| stage | a client sends | who can open one upload |
|---|---|---|
| ``shared_key`` | q + K, one K for all | INSECURE: every client; differences of uploads are open to all |
| ``otp`` | q + pad(own key) | the holder of the keys |
| ``flashe`` | q + F(i) - F(i + 1), F shared by the clients | the clients, not the server |
| ``pairwise`` | q + sum of +- pad(i, j) | nobody, unless the server calls a slow client dropped |
| ``double_mask`` | q + pad(own) + sum of +- pad(i, j) | nobody (SecAgg, SecAgg+) |

All arithmetic is that of uint32, which wraps at a multiple of 2^k: pads cancel bit by bit. Hence ``mode = "ideal"``,
which makes no pads, gives the same bits as ``masked``, for every pattern of drop-outs; it is the default.

Sources: Bonawitz et al., CCS 2017; Bell et al., CCS 2020; Jiang, Wang, Liu, "FLASHE: additively symmetric homomorphic
encryption for cross-silo federated learning", 2021.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fljax.core.check import FljaxError, in_range, one_of, positive
from fljax.core.transform import UpdateTransform, Wire, no_claim, stateless
from fljax.core.types import Array, Ctx, PyTree
from fljax.secure.graph import Graph
from fljax.secure.ledger import key_traffic
from fljax.secure.positions import COUNTS, covered_words
from fljax.secure.prf import Pads, add_covered_pads, add_pads, words_of
from fljax.secure.secagg import Edges, Parties, Requests, edges, on_ring, pad_key, parties, recoverable
from fljax.secure.secagg import requests as asked_for

MODES = ("ideal", "masked")
SPARSE = ("otp", "pairwise", "double_mask")
"""Masks whose pads may be left out where a client sends no word."""


class Lanes(NamedTuple):
    """How words are masked; static. size: P, values of one client beside its weight. bits: k. prf: see
    ``fljax.secure.prf``. mode: ``ideal`` | ``masked``. groups: neuron groups where words are sent for the agreed
    positions alone (``fljax.secure.positions``), None for a word for every value."""

    size: int
    bits: int
    prf: str = "threefry"
    mode: str = "ideal"
    groups: Any = None

    def check(self) -> Lanes:
        """Raises FljaxError for numbers out of range and unknown names; returns itself."""
        positive(size=self.size)
        in_range(1, 32, bits=self.bits)
        one_of(MODES, mode=self.mode)
        words_of(self.prf)
        return self


def shared_key(lanes: Lanes) -> UpdateTransform:
    """One pad for all clients of a round. INSECURE, for demonstration: whoever holds the key reads everybody, one known
    value tells the key of its place, and differences of two uploads are open to all."""

    def own(ctx: Ctx, who: Parties) -> Pads:
        del ctx, who
        return Pads(jnp.zeros(1, jnp.int32), jnp.ones(1, jnp.int32))

    def sent(ctx: Ctx, who: Parties) -> Pads:
        del ctx
        return Pads(jnp.zeros_like(who.places), who.uploaded.astype(jnp.int32)).compact()

    return _mask("shared_key", lanes, own, sent)


def otp(lanes: Lanes) -> UpdateTransform:
    """One pad for every client and round, known to the client and a trusted holder of keys, who hands out sums of pads
    alone. Against everybody else an upload is a one-time pad."""

    def own(ctx: Ctx, who: Parties) -> Pads:
        return _of_one(who.places[ctx.slot][None], jnp.ones(1, jnp.int32))

    def sent(ctx: Ctx, who: Parties) -> Pads:
        del ctx
        return _of_one(who.places, who.uploaded.astype(jnp.int32)).compact()

    return _mask("otp", lanes, own, sent)


def flashe(lanes: Lanes) -> UpdateTransform:
    """FLASHE: ``q + F(r, i) - F(r, i + 1)`` with a key that the clients share and the server does not have.

    In the sum of clients next to each other all but the first and the last pad cancel; every gap of clients that did
    not come costs two more. A client that the server bribes opens all uploads.
    """

    def own(ctx: Ctx, who: Parties) -> Pads:
        place = who.places[ctx.slot]
        return Pads(jnp.stack([place, place + 1]), jnp.array([1, -1], jnp.int32))

    def sent(ctx: Ctx, who: Parties) -> Pads:
        del ctx
        came = jnp.pad(on_ring(who, who.uploaded).astype(jnp.int32), 1)
        return Pads(jnp.arange(came.shape[0] - 1), came[1:] - came[:-1]).compact()

    return _mask("flashe", lanes, own, sent)


def pairwise(lanes: Lanes, graph: Graph) -> UpdateTransform:
    """Pads of pairs, which cancel in the sum: ``q_i + sum_(j > i) s_ij - sum_(j < i) s_ji`` over the neighbours.

    Pads between a client that came and one that did not are taken off by the latter's keys, which t neighbours reveal;
    if that client was only slow, its upload is open. ``double_mask`` mends it.

    Args:
      graph: who shares keys, and t. Where t cannot be reached the round is aborted.
    """

    def own(ctx: Ctx, who: Parties) -> Pads:
        return _own_pairs(graph, who, who.places[ctx.slot])

    def sent(ctx: Ctx, who: Parties) -> Pads:
        del ctx
        return _revealed_pairs(edges(graph, who), asked_for(who)).compact()

    return _mask("pairwise", lanes, own, sent, graph)


def double_mask(lanes: Lanes, graph: Graph) -> UpdateTransform:
    """SecAgg (complete graph) and SecAgg+ (sparse graph): pads of pairs and a self mask, ``q_i + b_i + sum +- s_ij``.

    The self masks of those that uploaded, and the pairs of those that did not, are taken off by secrets that t
    neighbours reveal, never both of one client.

    Args:
      graph: who shares keys, and t. Where t cannot be reached the round is aborted: nothing is released and the model
        stays as it was; bytes count.
    """

    def own(ctx: Ctx, who: Parties) -> Pads:
        place = who.places[ctx.slot]
        pairs = _own_pairs(graph, who, place)
        return _join(pairs, _of_one(place[None], jnp.ones(1, jnp.int32), _self_id(graph, who, place)[None]))

    def sent(ctx: Ctx, who: Parties) -> Pads:
        del ctx
        got = asked_for(who)
        places = jnp.arange(who.places.shape[0], dtype=jnp.int32)
        own_masks = _of_one(places, got.self_masks.astype(jnp.int32), _self_id(graph, who, places))
        return _join(_revealed_pairs(edges(graph, who), got), own_masks).compact()

    return _mask("double_mask", lanes, own, sent, graph)


# ---- pads of pairs ---------------------------------------------------------------------------------------------------


def _own_pairs(graph: Graph, who: Parties, place: Array) -> Pads:
    """The pads of one client: plus where an edge begins at its place, minus where one ends there."""
    distance = jnp.arange(1, graph.reach + 1, dtype=jnp.int32)
    here = jnp.full_like(distance, place)
    out = edges(graph, who, here, distance)
    into = edges(graph, who, (here - distance) % jnp.maximum(who.size, 1), distance)
    member = (place < who.size).astype(jnp.int32)
    return _join(_of_pair(out, member * out.there), _of_pair(into, -member * into.there))


def _revealed_pairs(e: Edges, got: Requests) -> Pads:
    """What pads of pairs leave in the sum: those between one that came and one whose keys were revealed."""
    came, gone = got.self_masks.astype(jnp.int32), got.pair_keys.astype(jnp.int32)
    left = came[e.start] * gone[e.end] - gone[e.start] * came[e.end]
    return _of_pair(e, left * e.there)


def _self_id(graph: Graph, who: Parties, place: Array) -> Array:
    """The number of a self mask: behind those of all edges."""
    return who.places.shape[0] * graph.reach + place


def _of_one(places: Array, signs: Array, ids: Array | None = None) -> Pads:
    """Pads that belong to one client each; by default numbered by its place."""
    return Pads(places if ids is None else ids, signs, ends=jnp.stack([places, places], axis=-1))


def _of_pair(e: Edges, signs: Array) -> Pads:
    return Pads(e.ids.ravel(), signs.ravel(), ends=jnp.stack([e.start.ravel(), e.end.ravel()], axis=-1))


def _join(a: Pads, b: Pads) -> Pads:
    ends = None if a.ends is None or b.ends is None else jnp.concatenate([a.ends, b.ends])
    return Pads(jnp.concatenate([a.ids, b.ids]), jnp.concatenate([a.signs, b.signs]), ends=ends)


# ---- the stage -------------------------------------------------------------------------------------------------------


def _mask(
    scheme: str,
    lanes: Lanes,
    own: Callable[[Ctx, Parties], Pads],
    sent: Callable[[Ctx, Parties], Pads],
    graph: Graph | None = None,
) -> UpdateTransform:
    """A mask from two lists of pads: those of ONE client, and those that are in the sum of all who uploaded."""
    lanes, make = lanes.check(), words_of(lanes.prf)
    if lanes.groups is not None and scheme not in SPARSE:
        raise FljaxError(f"Expected masking={scheme!r} to be one of {SPARSE} where words are left out. Use these.")
    masked, others = lanes.mode == "masked", 0 if graph is None else min(graph.degree, graph.clients - 1)

    def mixed(ctx: Ctx, words: PyTree, flat: Array, pads: Pads) -> Array:
        """Words and pads; a pad lies on the words that both of its clients send."""
        if lanes.groups is None or ctx.positions is None:
            return add_pads(flat, make, pad_key(ctx), pads)
        who = parties(ctx)
        covers = covered_words(lanes.groups, ctx.positions, on_ring(who, jnp.arange(who.places.shape[0])), words)
        return add_covered_pads(flat, make, pad_key(ctx), pads, lambda one, other: _flatten(covers(one, other))[0])

    def encode(key, ctx, payload, server_state, client_state):
        del key, server_state
        flat, back = _flatten(payload)
        if masked:
            flat = mixed(ctx, payload, flat, own(ctx, parties(ctx)))
        return back(flat), client_state, {}

    def decode(key, ctx, total, alive, state):
        del key, alive
        who = parties(ctx)
        flat, back = _flatten(total)
        if masked:
            flat = mixed(ctx, total, flat, sent(ctx, who).negative())
        enough = jnp.bool_(True) if graph is None else recoverable(graph, who)
        info = {"aborted": 1.0 - enough, "members": who.size.astype(jnp.float32)}
        return back(jnp.where(enough, flat, 0)), state, info

    def wire(ctx, wires):
        del ctx
        bits, whole = jnp.int32(lanes.bits), jnp.int32(lanes.size)
        apart = sum((w.values for name, w in wires.items() if name not in ("update", "weight")), jnp.int32(0))
        words = {n: Wire(w.values, w.bits if n == COUNTS else bits, jnp.int32(0)) for n, w in wires.items()}
        keys = jnp.int32(key_traffic(scheme, others).sent)
        if lanes.groups is not None:  # words of the agreed positions, and what agreeing on them cost
            return words | {"update": Wire(wires["update"].values, bits, keys + wires["update"].extra)}
        return words | {"update": Wire(whole - apart, bits, keys)}  # a word for every value, whatever is kept

    def proceeds(ctx):
        assert graph is not None
        return recoverable(graph, parties(ctx))

    return UpdateTransform(
        "secure",
        stateless,
        encode,
        decode,
        claim=no_claim,
        wire=wire,
        always=True,
        proceeds=None if graph is None else proceeds,
    )


def _flatten(words: PyTree) -> tuple[Array, Callable[[Array], PyTree]]:
    """Integers of a payload as one vector of uint32, and the way back."""
    leaves, structure = jax.tree.flatten(words)
    flat = jnp.concatenate([jnp.ravel(x).astype(jnp.uint32) for x in leaves])

    def back(vector: Array) -> PyTree:
        parts, begin = [], 0
        for x in leaves:
            count = math.prod(x.shape)
            parts.append(vector[begin : begin + count].reshape(x.shape))
            begin += count
        return jax.tree.unflatten(structure, parts)

    return flat, back


# ---- what the server sees --------------------------------------------------------------------------------------------


class ServerView(NamedTuple):
    """All that the modelled server sees of a round; an attack may use this and nothing else.

    uploads: the parts of the payload, [C, ...] uint32 words modulo 2^k by slot, zero where nothing came.
    members, uploaded, answered: [C] bool by slot. places: [C] on the ring; the graph is public.
    asked: by place, whose secrets it asked for. total: the parts of the sum, words modulo 2^k, unmasked: the sum of the
      weights is one of them. finished: () bool; the total of an aborted round is zero.
    """

    uploads: PyTree
    members: Array
    uploaded: Array
    answered: Array
    places: Array
    asked: Requests
    total: PyTree
    finished: Array


def server_view(stage: UpdateTransform, bits: int, ctx: Ctx, payloads: PyTree) -> ServerView:
    """What the server sees where the last stage is a mask in ``masked`` mode.

    Args:
      stage: the mask. bits: k. ctx: of the round; round_key, hparams and presence are read.
      payloads: [C, ...] as sent, in the order of slots, such as ``Transcript.payloads``.
    """
    who, low = parties(ctx), jnp.uint32(2**bits - 1)
    total = jax.tree.map(lambda x: jnp.sum(x, axis=0), payloads)
    total, *_ = stage.decode(None, ctx, total, who.uploaded, ())
    finished = jnp.bool_(True) if stage.proceeds is None else stage.proceeds(ctx)

    def cut(words: Array) -> Array:
        return words.astype(jnp.uint32) & low

    uploads, total = jax.tree.map(cut, (payloads, total))
    return ServerView(uploads, who.members, who.uploaded, who.answered, who.places, asked_for(who), total, finished)
