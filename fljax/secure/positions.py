"""Secure sums of words for some coordinates alone: where pads lie, what is left out, and who could be told apart.

Clients agree on positions before they upload (``fljax.server.positions``): ``ctx.positions``. A pad of two clients lies
on the words that both of them send, m_i and m_j, so that it cancels where both are in the sum; on a coordinate that ONE
client sends there is no pad of a pair at all, and the server reads it. Hence coordinates that fewer than
``min_contributors`` clients announce are not sent by anybody, and those that fewer uploaded are released as zero.

A client that announces positions and then drops out may leave a coordinate to one client: ``exposed`` counts those.

Sources: Ergun, Sami, Güler, "Sparsified secure aggregation for privacy-preserving federated learning", arXiv 2112.12872
(pads on shared positions); "Per-element secure aggregation against data reconstruction attacks in federated learning",
arXiv 2508.04285 (no coordinate of fewer than t contributors).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fljax.core import tree
from fljax.core.check import FljaxError
from fljax.core.transform import UpdateTransform, no_claim, stateless
from fljax.core.types import Array, Ctx, Params, Positions, PyTree
from fljax.secure.secagg import parties

COUNTS = "count"
"""The part of a payload that counts who holds what: whole numbers, in words of ``count_bits``."""


def count_bits(clients: int) -> int:
    """Bits of a number of 0 .. clients: ``ceil(log2(clients + 1))``."""
    return int(clients).bit_length()


def holders(groups: Any, params: Params, rows: dict[str, Array], who: Array) -> PyTree:
    """How many clients hold every coordinate: a tree like params, int32.

    Args:
      groups: neuron groups. rows: {group: [C, n]} 0/1 neurons of each. who: [C] bool, who counts.
    """

    def add(slot: Array, total: PyTree) -> PyTree:
        mask = groups.masks(params, {g: row[slot] for g, row in rows.items()})
        return jax.tree.map(lambda t, m: t + (who[slot] & (m > 0)).astype(jnp.int32), total, mask)

    zero = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.int32), params)
    return jax.lax.fori_loop(0, who.shape[0], add, zero)


def sent_words(groups: Any, params: Params, positions: Positions, slot: Array, other: Array | None = None) -> PyTree:
    """The words that the client of a slot sends (or that two clients send both): a tree like params of 0/1 float32."""
    rows = {g: row[slot] * (1.0 if other is None else row[other]) for g, row in positions.rows.items()}
    mask = groups.masks(params, rows)
    return mask if positions.open is None else jax.tree.map(jnp.multiply, mask, positions.open)


def covered_words(groups: Any, positions: Positions, slots: Array, payload: PyTree) -> Callable[[Array, Array], PyTree]:
    """(place, place) -> the words of a payload on which a pad of these two clients lies, uint32 0/1 like it.

    Args:
      slots: [C] int32, by place on the ring. payload: its update is sent by positions, all other parts in full.
    """

    def cover(one: Array, other: Array) -> PyTree:
        words = sent_words(groups, payload["update"], positions, slots[one], slots[other])
        whole = {name: jax.tree.map(lambda x: jnp.ones(x.shape, jnp.uint32), part) for name, part in payload.items()}
        return whole | {"update": jax.tree.map(lambda m: m.astype(jnp.uint32), words)}

    return cover


def suppress(groups: Any, least: int) -> UpdateTransform:
    """Releases no coordinate that fewer than ``least`` clients uploaded; stands between the words and their mask.

    Args:
      groups: neuron groups. least: min_contributors t; 1 suppresses nothing, and counts all the same.

    Info, of the clients that uploaded:
      ``singletons``: share of the neurons that somebody keeps which ONE client keeps.
      ``suppressed``: share of the coordinates that somebody keeps which are released as zero.
      ``exposed``: share of them of which the server can open ONE client's word: it is alone there, and sent it.

    Its claim is empty: whether suppression goes with an epsilon is ``privacy.validity.judge_positions``.

    Raises:
      FljaxError: least below 1.
    """
    if least < 1:
        raise FljaxError(f"Expected min_contributors={least!r} >= 1. Use 2, so that no word stands alone.")

    def encode(key, ctx, payload, server_state, client_state):
        del key, ctx, server_state
        return payload, client_state, {}

    def decode(key, ctx, total, alive, state):
        del key, alive
        if ctx.positions is None:
            return total, state, {}
        uploaded, rows = parties(ctx).uploaded, ctx.positions.rows
        counts = holders(groups, total["update"], rows, uploaded)
        enough = jax.tree.map(lambda n: n >= least, counts)
        shown = tree.keep(total["update"], enough)
        return total | {"update": shown}, state, _told_apart(ctx, counts, enough, rows, uploaded)

    return UpdateTransform("positions", stateless, encode, decode, claim=no_claim)


def _told_apart(ctx: Ctx, counts: PyTree, enough: PyTree, rows: dict[str, Array], uploaded: Array) -> dict[str, Array]:
    neurons = jnp.concatenate([jnp.sum(jnp.where(uploaded[:, None], row, 0.0), axis=0) for row in rows.values()])
    n = jnp.concatenate([x.ravel() for x in jax.tree.leaves(counts)])
    shown = jnp.concatenate([x.ravel() for x in jax.tree.leaves(enough)])
    positions = ctx.positions
    assert positions is not None
    sent = n > 0
    if positions.open is not None:
        sent = sent & (jnp.concatenate([x.ravel() for x in jax.tree.leaves(positions.open)]) > 0)
    return {
        "singletons": _share(neurons == 1, neurons > 0),
        "suppressed": _share((n > 0) & ~shown, n > 0),
        "exposed": _share((n == 1) & sent, n > 0),
    }


def _share(some: Array, of: Array) -> Array:
    """() float32, 0 of nothing."""
    return jnp.sum(some & of).astype(jnp.float32) / jnp.maximum(jnp.sum(of), 1)
