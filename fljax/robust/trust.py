"""Rules that weigh clients by trust: FLTrust (the server's own data) and FoolsGold (who repeats whom)."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from fljax.core.check import one_of, positive
from fljax.core.transform import Aggregator
from fljax.core.types import Array, Broadcast, LocalUpdate
from fljax.data.federated import FederatedData
from fljax.robust.centres import only_updates
from fljax.robust.rows import Before, Verdict, bind, combine, gram, inner, squared_norm

TINY = 1e-30


def fltrust(local: LocalUpdate, root: FederatedData, before: Sequence[Before] = ()) -> Aggregator:
    """The mean of the payloads, each scaled to the norm of the server's own and weighed by its cosine to it.

    ``sum_i t_i (||g_0|| / ||g_i||) g_i / sum_i t_i`` with ``t_i = max(0, cos(g_i, g_0))``; g_0 is what the clients'
    algorithm makes of a small root data set that the server holds. Cao, Fang, Liu, Gong, "FLTrust: Byzantine-robust
    federated learning via trust bootstrapping", NDSS 2021. It needs no majority of honest clients, but clean root data
    like theirs. Where nobody is trusted the total is zero.

    Args:
      local: the clients' algorithm, which the server runs too. root: the server's data, as those of client 0.
      before: stages before the rule.
    """

    def own(key, ctx, broadcast: Broadcast):
        _, state = local.init(key, broadcast.params, ctx.hparams)
        payload, _, _ = local.run(key, ctx, broadcast, state, root.take(jnp.int32(0), jnp.int32(0)))
        return {name: part for name, part in payload.items() if name != "weight"}

    def rule(key, ctx, rows, given):
        del key, ctx
        state, guide = given
        length = jnp.sqrt(squared_norm(guide))
        norms = jnp.sqrt(jax.vmap(squared_norm)(rows.tree))
        cosine = inner(rows.tree, guide) / jnp.maximum(norms * length, TINY)
        trust = jnp.where(rows.alive, jnp.maximum(cosine, 0.0), 0.0)
        weights = trust / jnp.maximum(jnp.sum(trust), TINY)
        return Verdict(combine(weights * length / jnp.maximum(norms, TINY), rows.tree), weights), state

    return bind("fltrust", rule, before, own=own)


def foolsgold(population: int, divide: str = "weights") -> Aggregator:
    """Weighs clients down whose updates, added up over all rounds, point where another client's do.

    Fung, Yoon, Beschastnikh, "The limitations of federated learning in sybil settings", RAID 2020, with its pardoning
    of honest clients and its logit (confidence 1). It is made for sybils that share a goal, and rejects honest clients
    of equal data. No stage may come before it: it has to know who sent what.

    Args:
      population: N; what each client sent so far is kept, N times the size of the model.
      divide: ``weights`` (a weighted mean) or ``clients`` (the weighted sum divided by the number of clients; the
        paper adds the weighted sum).
    """
    positive(population=population)
    one_of(["weights", "clients"], divide=divide)

    def init(params, hparams):
        del hparams
        return {"update": jax.tree.map(lambda p: jnp.zeros((population, *p.shape), jnp.float32), params)}

    def rule(key, ctx, rows, state):
        del key
        only_updates("foolsgold", rows.tree)
        where = jnp.where(rows.alive, ctx.id, population)
        history = jax.tree.map(lambda h, x: h.at[where].add(x, mode="drop"), state, rows.tree)
        sent = jax.tree.map(lambda h: jnp.take(h, where, axis=0, mode="clip"), history)
        weights = jnp.where(rows.alive, foolsgold_weights(gram(sent), rows.alive), 0.0)
        total = jnp.sum(weights) if divide == "weights" else rows.living
        share = weights / jnp.maximum(jnp.sum(weights), TINY)
        return Verdict(combine(weights / jnp.maximum(total, TINY), rows.tree), share), history

    return bind("foolsgold", rule, (), init)


def foolsgold_weights(products: Array, alive: Array) -> Array:
    """Weights in [0, 1] from the inner products [m, m] of what clients sent over all rounds: [m]."""
    norms = jnp.sqrt(jnp.maximum(jnp.diag(products), 0.0))
    others = alive[:, None] & alive[None, :] & ~jnp.eye(alive.shape[0], dtype=bool)
    similar = jnp.where(others, products / jnp.maximum(norms[:, None] * norms[None, :], TINY), 0.0)
    most = jnp.max(similar, axis=1) + 1e-5
    pardon = most[:, None] < most[None, :]
    similar = jnp.where(pardon & others, similar * most[:, None] / most[None, :], similar)
    weights = jnp.where(alive, jnp.clip(1.0 - jnp.max(similar, axis=1), 0.0, 1.0), 0.0)
    weights = weights / jnp.maximum(jnp.max(weights), TINY)
    weights = jnp.where(weights == 1.0, 0.99, weights)
    return jnp.clip(jnp.log(weights / (1.0 - weights) + 1e-5) + 0.5, 0.0, 1.0)
