"""Baselines that choose neurons without looking at the data: at random, in a fixed order, rolling, by magnitude."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fljax.core.tree import path_name
from fljax.core.types import Array, Ctx, Params, SubModel
from fljax.dropout.ranked import Scores, ranked_submodel


def random_dropout(groups: Any, forward: str = "submodel") -> SubModel:
    """Federated Dropout with a mask shared by the clients of a round: a random ranking, redrawn at refresh rounds.

    Reference: Caldas, Konečný, McMahan, Talwalkar, "Expanding the reach of federated learning by reducing client
    resource requirements", 2018. The control of every informed choice at the same keep rate; with
    ``hparams.refresh_rounds`` 0 it is the fixed random mask.
    """

    def score(ctx: Ctx, learnt: Any, params: Any) -> Scores:
        del ctx, learnt, params
        return {g: jnp.zeros(n) for g, n in groups.sizes}

    return ranked_submodel(groups, forward, score=score, source="random")


def ordered_dropout(groups: Any, forward: str = "submodel") -> SubModel:
    """The first neurons of every layer, in the model's own order: HeteroFL's and FjORD's nested sub-models.

    References: Diao, Ding, Tarokh, "HeteroFL", ICLR 2021; Horváth et al., "FjORD", NeurIPS 2021.
    """

    def score(ctx: Ctx, learnt: Any, params: Any) -> Scores:
        del ctx, learnt, params
        return {g: -jnp.arange(n, dtype=jnp.float32) for g, n in groups.sizes}

    return ranked_submodel(groups, forward, score=score, source="ordered")


def rescale(groups: Any) -> Callable[[Ctx, Params], Params]:
    """HeteroFL's scaler: (ctx, params) -> parameters whose hidden neurons are ``1 / share`` times as active.

    The pre-activation is divided by the share of the layer's neurons that the sub-model keeps, the keep rate rounded to
    whole neurons and never below the layer's least, by dividing the incoming weights and the bias; ReLU passes the
    factor on. It makes up for the neurons that are missing in a sub-model.
    """
    owner = {path: leaf.owner for path, leaf in groups.leaves if leaf.owner is not None}
    least = dict(groups.min_keep)

    def scale(ctx: Ctx, params: Params) -> Params:
        kept = {g: jnp.clip(jnp.round(ctx.keep_rate * n), least[g], n) / n for g, n in groups.sizes}

        def one(path: tuple, x: Array) -> Array:
            group = owner.get(path_name(path))
            return x if group is None else x / kept[group]

        return jax.tree_util.tree_map_with_path(one, params)

    return scale


def rolling_dropout(groups: Any, forward: str = "submodel") -> SubModel:
    """A window of consecutive neurons that moves on by one at every refresh, around the end of the layer.

    Reference: Alam, Liu, Yan, Zhang, "FedRolex: model-heterogeneous federated learning with rolling sub-model
    extraction", NeurIPS 2022.
    """

    def score(ctx: Ctx, learnt: Any, params: Any) -> Scores:
        del learnt, params
        h = ctx.hparams
        turn = jnp.maximum(ctx.round - h.warmup_rounds, 0) // jnp.maximum(h.refresh_rounds, 1)
        return {g: -((jnp.arange(n) - turn) % n).astype(jnp.float32) for g, n in groups.sizes}

    return ranked_submodel(groups, forward, score=score, source="ordered")


def magnitude_dropout(groups: Any, forward: str = "submodel") -> SubModel:
    """The neurons with the largest weights in the released model: sum of squares of incoming weights and bias.

    Reference: the magnitude criterion of Han, Pool, Tran, Dally, NeurIPS 2015, per neuron, on the shared model. It is
    post-processing of what was released.
    """

    def score(ctx: Ctx, learnt: Any, params: Any) -> Scores:
        del ctx, learnt
        return groups.scores(jax.tree.map(jnp.square, params))

    return ranked_submodel(groups, forward, score=score, source="released")
