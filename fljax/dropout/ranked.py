"""Dropout of neurons by one shared, public ranking: the frame that every source of masks fills in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fljax.core.check import FljaxError, one_of
from fljax.core.keys import stream
from fljax.core.types import Array, Ctx, Hparams, Key, Params, PyTree, Selection, SubModel
from fljax.dropout.select import best, explore, is_refresh, rank

FORWARD = ("submodel", "upload_only")

Scores = dict[str, Array]
"""{group: [n]} of every neuron; the highest are kept first."""


class RankState(NamedTuple):
    """ranks, most: the selection of the last round. energy: what the scores are computed from (() where nothing is)."""

    ranks: dict[str, Array]
    energy: Any
    most: dict[str, Array] | None = None


def no_lesson(ctx: Ctx, learnt: Any, released: PyTree, std: PyTree) -> Any:
    """The learn of a source that looks at nothing."""
    del ctx, released, std
    return learnt


def ranked_submodel(
    groups: Any,
    forward: str,
    *,
    score: Callable[[Ctx, Any, Params], Scores],
    start: Callable[[Params], Any] = lambda params: (),
    learn: Callable[[Ctx, Any, PyTree, PyTree], Any] = no_lesson,
    floor: Callable[[Ctx, Any], Scores] | None = None,
    **fields: Any,
) -> SubModel:
    """Dropout of neurons by one shared, public ranking that is renewed at refresh rounds.

    Args:
      groups: neuron groups of the model.
      forward: ``submodel`` or ``upload_only``.
      score: (ctx, learnt, params) -> scores; ties are broken at random.
      start: (params) -> what is learnt about the neurons before round 0.
      learn: (ctx, learnt, released parts, noise std) -> learnt.
      floor: (ctx, learnt) -> scores that pure noise would have; where given, ``hparams.auto_keep`` > 0 keeps only
        neurons whose score exceeds that many times their floor (the public oracle rule), up to the keep rate.
      **fields: further fields of ``SubModel``.

    Dense rounds until ``hparams.warmup_rounds``; then exactly round(keep_rate n) neurons of every layer. With
    ``hparams.refresh_rounds`` 0 and sub-models in the forward pass, the model that is deployed is the sub-model.
    ``hparams.hysteresis`` gives neurons that are kept a bonus in units of the scores' spread, so that masks change only
    where the evidence is clear.
    """
    one_of(FORWARD, forward=forward)
    if groups is None:
        raise FljaxError("Expected groups=None to be the neuron groups of the model. Use a model that declares them.")
    least = dict(groups.min_keep)

    def init(params: Params, hparams: Hparams) -> RankState:
        del hparams
        groups.check(params)
        most = None if floor is None else {g: jnp.int32(n) for g, n in groups.sizes}
        return RankState({g: jnp.arange(n, dtype=jnp.int32) for g, n in groups.sizes}, start(params), most)

    def select(ctx: Ctx, state: RankState, params: Params) -> Selection:
        key, renew = stream(ctx.round_key, "masks"), is_refresh(ctx.round, ctx.hparams)
        h, scores = ctx.hparams, score(ctx, state.energy, params)
        ranks = {
            g: jnp.where(renew, _renewed(key, i, _sticky(scores[g], state.ranks[g], ctx, least[g]), h.explore), old)
            for i, (g, old) in enumerate(state.ranks.items())
        }
        if floor is None or state.most is None:
            return Selection(ranks)
        bar = floor(ctx, state.energy)
        above = {g: jnp.sum(scores[g] > h.auto_keep * bar[g]).astype(jnp.int32) for g in ranks}
        most = {g: jnp.where(h.auto_keep > 0, above[g], ranks[g].size) for g in ranks}
        return Selection(ranks, {g: jnp.where(renew, most[g], state.most[g]) for g in ranks})

    def kept(t: Array, hparams: Hparams, keep_rate: Array, chosen: Selection) -> dict[str, Array]:
        keep = jnp.where(t < hparams.warmup_rounds, 1.0, keep_rate)
        limit = {g: r.size for g, r in chosen.ranks.items()}
        if chosen.most is not None:
            limit = {g: jnp.where(t < hparams.warmup_rounds, n, chosen.most[g]) for g, n in limit.items()}
        return {g: best(r, keep, least[g], limit[g]) for g, r in chosen.ranks.items()}

    def masks(ctx: Ctx, chosen: Selection) -> dict[str, Array]:
        return kept(ctx.round, ctx.hparams, ctx.keep_rate, chosen)

    def observe(ctx: Ctx, state: RankState, chosen: Selection, released: PyTree, std: PyTree) -> RankState:
        return RankState(chosen.ranks, learn(ctx, state.energy, released, std), chosen.most)

    def deploy(t: Array, hparams: Hparams, state: RankState, params: Params) -> Params:
        if forward != "submodel" or fields.get("own") is not None:
            return params
        # Masks that are chosen once prune the model: the clients train without the dropped neurons for the rest of
        # the run, and what these last learnt in the warm-up would only disturb. Masks that change keep all neurons.
        chosen = Selection(state.ranks, state.most)
        mask = groups.masks(params, kept(t, hparams, hparams.keep_rate, chosen))
        final = hparams.refresh_rounds == 0
        return jax.tree.map(lambda p, m: jnp.where(final & (m == 0), jnp.zeros_like(p), p), params, mask)

    def last(state: RankState) -> Selection:
        return Selection(state.ranks, state.most)

    return SubModel(init, select, masks, observe, deploy, groups, forward, last=last, **fields)


def _renewed(key: Key, group: int, scores: Array, share: Array) -> Array:
    tie, move = jax.random.split(jax.random.fold_in(key, group))
    return explore(rank(scores, tie), move, share)


def _sticky(scores: Array, ranks: Array, ctx: Ctx, least: int) -> Array:
    """Scores with the bonus of neurons that are kept already; none at the first choice, before which all are kept."""
    bonus = ctx.hparams.hysteresis * jnp.std(scores) * (ctx.round > ctx.hparams.warmup_rounds)
    return scores + bonus * best(ranks, ctx.hparams.keep_rate, least, ranks.size)
