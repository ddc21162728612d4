"""Masks by a private vote: the server picks neurons by the exponential mechanism, and tells nothing but its picks.

The reference for other private selections. With noise from a Gumbel distribution on every sum of votes, the order of
the k highest is that of k choices without replacement, each proportional to exp(score / scale) (Durfee and Rogers,
"Practical differentially private top-k selection with pay-what-you-get composition", NeurIPS 2019). Releasing all sums
with Gaussian noise (``sources.paid_dropout``) has less noise at the same cost as soon as three neurons are chosen.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from fljax.core.types import Array, Ctx, Hparams, Key, Params, PyTree, SubModel
from fljax.dropout.information import INFORMATION, Learner, unit_scores
from fljax.dropout.ranked import Scores, ranked_submodel
from fljax.dropout.select import is_refresh, rank
from fljax.dropout.sources import some_examples


def gumbel_picks(key: Key, votes: Array, scale: Array, count: Array) -> Array:
    """The ``count`` highest of votes [n] + scale Gumbel(0, 1): [n] float32, ``count`` for the first pick down to 1 for
    the last, and 0 for all others, of which nothing is told.

    Args:
      key: consumed. scale: () beta > 0. count: () k, may be traced.
    """
    noise, tie = jax.random.split(key)
    place = rank(votes + scale * jax.random.gumbel(noise, votes.shape), tie)
    return jnp.maximum(count - place, 0.0).astype(jnp.float32)


def gumbel_dropout(learner: Learner, forward: str = "submodel", kind: str = "gate") -> SubModel:
    """The ranking by private choices among the clients' votes, in the round before masks are due.

    A vote is one client's scores, of norm at most 1 with every layer's alike: no entry exceeds 1/sqrt(L) for L layers,
    and none is negative. With ``scale = 1 / (sqrt(L) eta)`` the log-likelihood ratios of one choice span at most eta
    where a client is added or removed, since its votes only raise sums. All k choices of one refresh cost
    ``rho = k eta^2 / 8`` in zero-concentrated DP, which ``hparams.choice_rho`` sets; nothing is amplified by sampling.

    Args:
      kind: of the information, a key of ``information.INFORMATION``.

    The server has to be trusted with the sums. Neurons that were not picked are in random order.
    """
    groups = learner.groups

    def query(key: Key, ctx: Ctx, params: Params, shard: Any) -> Scores:
        def asked() -> Scores:
            batch = some_examples(key, shard)
            return unit_scores(INFORMATION[kind](learner, params, batch.x, batch.y, batch.mask))

        return jax.lax.cond(is_refresh(ctx.round + 1, ctx.hparams), asked, lambda: _zeros(groups))

    def release(key: Key, ctx: Ctx, votes: Scores) -> Scores:
        counts = {g: jnp.clip(jnp.round(ctx.hparams.keep_rate * n), least[g], n) for g, n in groups.sizes}
        scale = jnp.sqrt(sum(counts.values()) / (8.0 * ctx.hparams.choice_rho * len(counts)))
        keys = {g: jax.random.fold_in(key, i) for i, g in enumerate(counts)}
        picks = {g: gumbel_picks(keys[g], votes[g], scale, counts[g]) for g in counts}
        due = is_refresh(ctx.round + 1, ctx.hparams)
        return {g: jnp.where(due, p, 0.0) for g, p in picks.items()}

    def learn(ctx: Ctx, learnt: Scores, released: PyTree, std: PyTree) -> Scores:
        del std
        due = is_refresh(ctx.round + 1, ctx.hparams)
        return {g: jnp.where(due, released["query"][g], old) for g, old in learnt.items()}

    def spends(hparams: Hparams) -> dict[str, float]:
        picks = sum(groups.counts(float(hparams.keep_rate)).values())
        return {
            "choice_range": math.sqrt(8.0 * float(hparams.choice_rho) / picks),
            "choice_picks": float(picks),
            "choice_warmup": float(hparams.warmup_rounds),
            "choice_every": float(hparams.refresh_rounds),
        }

    least = {} if groups is None else dict(groups.min_keep)
    return ranked_submodel(
        groups,
        forward,
        start=lambda params: _zeros(groups),
        score=lambda ctx, learnt, params: learnt,
        learn=learn,
        source="votes",
        query=query,
        release=release,
        spends=spends,
    )


def _zeros(groups: Any) -> Scores:
    return {g: jnp.zeros(n) for g, n in groups.sizes}
