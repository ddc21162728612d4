"""From the sum to the average: whose share counts how much, and which denominator the server may use.

The denominator is the first stage of a chain, so that it is decoded last, after the noise. A denominator is a public
constant wherever privacy is claimed: dividing by who really came would release how many that were.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fljax.core.check import one_of, positive
from fljax.core.transform import Claim, UpdateTransform, denominator_claim, stateless


def expected_average() -> UpdateTransform:
    """Every client counts alike; the sum is divided by the public expected cohort size ``ctx.expected``.

    ``released = sum_k u_k / E|cohort|``: unbiased under Poisson sampling, and no function of who came.
    """

    def encode(key, ctx, payload, server_state, client_state):
        del key, ctx, server_state
        return {name: part for name, part in payload.items() if name != "weight"}, client_state, {}

    def decode(key, ctx, total, alive, state):
        del key, alive
        return jax.tree.map(lambda x: x / ctx.expected, total), state, {}

    def bound(ctx, state, bounds):
        del ctx, state
        return {name: b for name, b in bounds.items() if name != "weight"}

    def noise(ctx, state, std):
        del state
        return std / ctx.expected

    average = UpdateTransform("average", stateless, encode, decode, bound, noise, denominator_claim)
    return average._replace(denominator="expected")


def realised_average(weights: str = "examples") -> UpdateTransform:
    """The weighted mean over the clients that answered: ``sum_k w_k u_k / sum_k w_k`` (classical FedAvg).

    Args:
      weights: ``examples`` (w_k = number of examples of client k), ``uniform`` (w_k = 1), or ``present`` (w_k = 1 for
        a client with examples, else 0: under a mask a client whose update is not finite sends zeros, its weight too).

    The weights travel in the payload. An empty cohort releases zeros. Not for private training: the denominator is a
    function of who came, and a claim of epsilon is refused.
    """
    one_of(["examples", "uniform", "present"], weights=weights)

    def encode(key, ctx, payload, server_state, client_state):
        del key, ctx, server_state
        weight = payload["weight"]
        if weights != "examples":
            weight = jnp.ones_like(weight) if weights == "uniform" else (weight > 0).astype(jnp.float32)
        parts = {n: jax.tree.map(lambda x: x * weight, p) for n, p in payload.items() if n != "weight"}
        return {**parts, "weight": weight}, client_state, {}

    def decode(key, ctx, total, alive, state):
        del key, ctx, alive
        weight = total["weight"]
        share = jnp.where(weight > 0, 1.0 / jnp.where(weight > 0, weight, 1.0), 0.0)
        return {n: jax.tree.map(lambda x: x * share, p) for n, p in total.items() if n != "weight"}, state, {}

    def bound(ctx, state, bounds):
        del ctx, state
        return {name: jnp.full_like(b, jnp.inf) for name, b in bounds.items()}

    def claim(hparams):
        del hparams
        return Claim(reason="the average is divided by the realised weights, which depend on who came")

    return UpdateTransform("average", stateless, encode, decode, bound, claim=claim, denominator="realised")


def bounded_average(cap: float, total_weight: float, population: int) -> UpdateTransform:
    """Weights by examples, for private training: ``w_k = min(n_k / cap, 1)``, divided by their public expected sum.

    ``released = sum_k w_k u_k / (E|cohort| / N * total_weight)``. As no weight exceeds 1, the bound of what was clipped
    before stays; put this stage to the right of the clip. McMahan et al., ICLR 2018, the fixed-denominator estimator.

    Args:
      cap: number of examples from which on a client counts fully; a public constant.
      total_weight: W = sum of w_k over the whole population; a public constant too, not computed from the data.
      population: N.
    """
    positive(weight_cap=cap, total_weight=total_weight)

    def encode(key, ctx, payload, server_state, client_state):
        del key, ctx, server_state
        weight = jnp.minimum(payload["weight"] / cap, 1.0)
        return {n: jax.tree.map(lambda x: x * weight, p) for n, p in payload.items() if n != "weight"}, client_state, {}

    def expected_weight(ctx):
        return ctx.expected / population * total_weight

    def decode(key, ctx, total, alive, state):
        del key, alive
        return jax.tree.map(lambda x: x / expected_weight(ctx), total), state, {}

    def bound(ctx, state, bounds):
        del ctx, state
        return {name: b for name, b in bounds.items() if name != "weight"}

    def noise(ctx, state, std):
        del state
        return std / expected_weight(ctx)

    average = UpdateTransform("average", stateless, encode, decode, bound, noise, denominator_claim)
    return average._replace(denominator="weights")


def coordinate_average(kind: str, least: float = 1.0, groups: Any = None) -> UpdateTransform:
    """Every coordinate divided by how many clients hold it, where clients keep different neurons.

    With r = E|cohort|, pi_j the public share of clients that keep coordinate j and n_j how many of them came:

    | kind | denominator | noise of the clients themselves, relative to that of dense uploads divided by r |
    |---|---|---|
    | count | ``max(n_j, 1)`` (HeteroFL, FedRolex) | at least 1/p for a share p of kept values: masks make it worse |
    | floored | ``max(r pi_j, least)`` | between count and the plain average |
    | inverse | ``r pi_j`` (unbiased) | 1/p |

    The plain average (``expected_average``) divides all by r and has p: only there, or with one mask for all clients,
    do masks lower the noise.

    Args:
      kind: ``count`` (a function of who came: no epsilon by a server's noise), ``floored`` or ``inverse`` (public).
      least: floor of ``floored``, in clients.
      groups: neuron groups, where the counts are part of a secure sum: one for each set of neurons that parameters
        belong to, and of the clients with examples alone (one whose update is not finite sends zeros).
    """
    one_of(["count", "floored", "inverse"], denominator=kind)
    positive(least=least)

    def holders(ctx, like):
        share = ctx.inclusion if ctx.inclusion is not None else ctx.support
        if share is None:
            share = jax.tree.map(jnp.ones_like, like)
        expected = jax.tree.map(lambda s: ctx.expected * s, share)
        return expected if kind == "inverse" else jax.tree.map(lambda n: jnp.maximum(n, least), expected)

    def encode(key, ctx, payload, server_state, client_state):
        del key, server_state
        parts = {name: part for name, part in payload.items() if name != "weight"}
        if kind == "count":
            held = jax.tree.map(jnp.ones_like, parts["update"]) if ctx.support is None else ctx.support
            if groups is not None:
                here = (payload["weight"] > 0).astype(jnp.float32)
                held = {name: cell * here for name, cell in groups.cells(held).items()}
            parts["count"] = held
        return parts, client_state, {}

    def decode(key, ctx, total, alive, state):
        del key, alive
        if kind == "count":
            counts = total["count"] if groups is None else groups.spread_cells(total["update"], total["count"])
            counts = jax.tree.map(lambda n: jnp.maximum(n, 1.0), counts)
        else:
            counts = holders(ctx, total["update"])
        update = jax.tree.map(lambda x, n: x / jnp.where(n > 0, n, 1.0), total["update"], counts)
        others = {name: part for name, part in total.items() if name not in ("update", "count")}
        return {**jax.tree.map(lambda x: x / ctx.expected, others), "update": update}, state, {}

    def bound(ctx, state, bounds):
        del ctx, state
        return {name: b for name, b in bounds.items() if name != "weight"}

    def noise(ctx, state, std):
        del state
        if ctx.inclusion is None and ctx.support is None:
            return std / ctx.expected
        like = ctx.inclusion if ctx.inclusion is not None else ctx.support
        return jax.tree.map(lambda n: std / jnp.where(n > 0, n, 1.0), holders(ctx, like))

    def claim(hparams):
        del hparams
        counted = (
            "every coordinate is divided by the number of clients that came and kept it, which is released without "
            "noise; set server.denominator = expected"
        )
        return Claim(reason=counted if kind == "count" else None, divides=True)

    def wire(ctx, wires):
        if kind != "count" or groups is not None:  # a secure sum carries them
            return wires
        return wires | {"count": wires["count"]._replace(values=jnp.int32(0))}

    return UpdateTransform("average", stateless, encode, decode, bound, noise, claim, wire, denominator=kind)
