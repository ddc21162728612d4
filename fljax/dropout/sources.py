"""Sources of masks that look at data: public inputs, a paid query, a client's own noisy uploads, its private data.

What each may claim under differential privacy is the table of ``privacy.validity``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fljax.core.check import one_of
from fljax.core.keys import stream
from fljax.core.types import Array, Ctx, Key, OwnSelection, Params, PyTree, Selection, SubModel
from fljax.dropout.information import INFORMATION, Learner, sample_labels, unit_scores
from fljax.dropout.ranked import Scores, ranked_submodel
from fljax.dropout.scores import neuron_scores, no_energy, observe_energy
from fljax.dropout.select import explore, is_refresh, rank

EXAMPLES = 32
"""Examples of a client that its scores are computed from, at the most."""


def public_dropout(learner: Learner, x: Array, forward: str = "submodel", kind: str = "gate") -> SubModel:
    """The ranking by true Fisher information of the released model on public inputs x [B, ...].

    Labels are drawn from the model, so that inputs are all that is needed; they may be synthetic. It costs no privacy.

    Args:
      kind: of the information, a key of ``information.INFORMATION``.
    """

    def score(ctx: Ctx, learnt: Any, params: Params) -> Scores:
        del learnt
        key = stream(ctx.round_key, "query")
        zero = {g: jnp.zeros(n) for g, n in learner.groups.sizes}
        due = is_refresh(ctx.round, ctx.hparams)

        def information() -> Scores:
            y = sample_labels(key, learner, params, x)
            return INFORMATION[kind](learner, params, x, y, jnp.ones(x.shape[0]))

        return jax.lax.cond(due, information, lambda: zero)

    return ranked_submodel(learner.groups, forward, score=score, source="public")


def paid_dropout(learner: Learner, forward: str = "submodel", kind: str = "gate") -> SubModel:
    """The ranking by a noised query: every client sends the scores of its own data, of joint norm at most 1.

    The query travels beside the update and shares the noise's budget: ``hparams.query_share`` of it. Update and query
    together are one Gaussian mechanism of multiplier ``(z_u^-2 + z_q^-2)^(-1/2)``. The server averages what it
    receives with ``hparams.mask_decay``.
    """

    def query(key: Key, ctx: Ctx, params: Params, shard: Any) -> Scores:
        del ctx
        batch = some_examples(key, shard)
        return unit_scores(INFORMATION[kind](learner, params, batch.x, batch.y, batch.mask))

    def learn(ctx: Ctx, learnt: Scores, released: PyTree, std: PyTree) -> Scores:
        del std
        decay = ctx.hparams.mask_decay
        return {g: decay * old + (1.0 - decay) * released["query"][g] for g, old in learnt.items()}

    return ranked_submodel(
        learner.groups,
        forward,
        start=lambda params: {g: jnp.zeros(n) for g, n in learner.groups.sizes},
        score=lambda ctx, learnt, params: learnt,
        learn=learn,
        source="paid",
        query=query,
    )


class OwnState(NamedTuple):
    """What ONE client remembers of its choice. ranks: {group: [n]}. epoch: () int32 refresh period of the choice, -1
    before the first. energy: of its own uploads, or () where they are not looked at."""

    ranks: dict[str, Array]
    epoch: Array
    energy: Any


def exact_dropout(
    learner: Learner,
    forward: str = "submodel",
    support: str = "mask",
    kind: str = "gate",
    positions: str = "bitmap",
) -> SubModel:
    """Every client ranks its neurons by the Fisher information of its own private data and sends their positions.

    This is the scheme of Wang, Yang, Dai (Computer Science 51(1), 2024), as far as it is known. With noise on the kept
    coordinates alone the positions are a message without noise, and no epsilon holds for the round. With ``support``
    ``dense`` all coordinates are noised, which covers any mask, and nothing is saved in noise.

    Args:
      kind: of the information, a key of ``information.INFORMATION``; the paper's is taken to be ``diagonal``.
      positions: how they are written, ``bitmap`` (one bit a neuron) or ``list`` (the index of each that is kept).
    """
    one_of(("bitmap", "list"), positions=positions)

    def score(key: Key, ctx: Ctx, params: Params, state: OwnState, shard: Any) -> Scores:
        del ctx, state
        batch = some_examples(key, shard)
        return INFORMATION[kind](learner, params, batch.x, batch.y, batch.mask)

    return _chosen_by_clients(learner.groups, forward, score, source="exact", support=support, positions=positions)


def random_per_client(groups: Any, forward: str = "submodel") -> SubModel:
    """Federated Dropout as published: every client of a round gets a random sub-model of its own.

    The server draws it, so that no positions travel. Reference: Caldas et al., 2018; with keep rates by device class
    it is FedDrop (Wen, Jeon, Huang, "Federated dropout: a simple approach for enabling federated learning on
    resource constrained devices", 2021).
    """

    def score(key: Key, ctx: Ctx, params: Params, state: OwnState, shard: Any) -> Scores:
        del key, ctx, params, state, shard
        return {g: jnp.zeros(n) for g, n in groups.sizes}

    return _chosen_by_clients(groups, forward, score, source="random")


def self_released_dropout(groups: Any, forward: str = "submodel", std: Any = None) -> SubModel:
    """Every client ranks its neurons by its own earlier uploads, which were noised before they left it (local DP).

    The server saw those uploads and computes the same masks: no positions are sent, and it costs no privacy.

    Args:
      std: (ctx) -> () std of the noise in a client's own upload.
    """

    def score(key: Key, ctx: Ctx, params: Params, state: OwnState, shard: Any) -> Scores:
        del key, ctx, params, shard
        return neuron_scores(state.energy, groups)

    def learn(ctx: Ctx, state: OwnState, sent: PyTree) -> OwnState:
        on = ctx.support if ctx.support is not None else jax.tree.map(jnp.ones_like, sent)
        tau = std(ctx)
        return state._replace(energy=observe_energy(state.energy, sent, on, tau, ctx.hparams.mask_decay))

    return _chosen_by_clients(groups, forward, score, no_energy, learn, source="self_released")


def _chosen_by_clients(
    groups: Any, forward: str, score, start=lambda params: (), learn=None, **fields: Any
) -> SubModel:
    """A sub-model whose clients choose for themselves, anew in every refresh period in which they take part."""

    def init(params: Params) -> OwnState:
        ranks = {g: jnp.arange(n, dtype=jnp.int32) for g, n in groups.sizes}
        return OwnState(ranks, jnp.int32(-1), start(params))

    def choose(key: Key, ctx: Ctx, params: Params, state: OwnState, shard: Any, shared: Selection):
        del shared
        h, since = ctx.hparams, ctx.round - ctx.hparams.warmup_rounds
        epoch = jnp.where(h.refresh_rounds > 0, since // jnp.maximum(h.refresh_rounds, 1), 0)
        renew = (since >= 0) & (epoch != state.epoch)
        scores = score(stream(key, "query"), ctx, params, state, shard)
        keys = [jax.random.split(jax.random.fold_in(key, i)) for i in range(len(groups.sizes))]
        ranks = {
            g: jnp.where(renew, explore(rank(scores[g], tie), move, h.explore), state.ranks[g])
            for (g, _), (tie, move) in zip(groups.sizes, keys, strict=True)
        }
        return Selection(ranks), state._replace(ranks=ranks, epoch=jnp.where(renew, epoch, state.epoch))

    own = OwnSelection(init, choose, learn or (lambda ctx, state, sent: state))
    nothing = {g: jnp.zeros(n) for g, n in groups.sizes} if groups is not None else {}
    return ranked_submodel(groups, forward, score=lambda ctx, learnt, params: nothing, own=own, **fields)


def some_examples(key: Key, shard: Any) -> Any:
    """At most ``EXAMPLES`` examples of a client, drawn without replacement where it has more; a Batch."""
    places = jnp.arange(shard.max_size)
    scores = jnp.where(places < shard.size, jax.random.uniform(key, (shard.max_size,)), 2.0)
    first = jnp.argsort(scores)[: min(EXAMPLES, shard.max_size)]
    return shard.batch(first, first < shard.size)
