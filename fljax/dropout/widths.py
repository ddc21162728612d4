"""Ordered dropout while a client trains: every local step trains a prefix of random width of every layer.

Reference: Horváth, Laskaridis, Almeida, Leontiadis, Venieris, Lane, "FjORD: fair and accurate federated learning under
heterogeneous targets with ordered dropout", NeurIPS 2021.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fljax.core import tree
from fljax.core.check import FljaxError, in_range
from fljax.core.keys import stream
from fljax.core.types import Array, Ctx, Key, Params
from fljax.dropout.information import Learner
from fljax.dropout.select import best

Objective = Callable[[Key, Ctx, Params, Any], Array]
"""(key of the step, ctx of the client, params, batch) -> () loss."""


def random_widths(learner: Learner, widths: Sequence[float], distill: bool = False) -> Objective:
    """FjORD's loss of one step: that of a prefix whose width is drawn uniformly from those that the client can carry.

    With p the drawn width, P the client's own (``ctx.keep_rate``; all in the warm-up) and a = ``hparams.distill``::

        L = CE(f_p(x), y)                                                             without distillation
        L = CE(f_P(x), y) + (1 - a) CE(f_p(x), y) + a KL(f_P(x) || f_p(x))            with it

    where no gradient flows through f_P(x) in the last term. At a = 1 that is the loss of the authors' code.

    Args:
      learner: a classifier and its neuron groups.
      widths: shares of the neurons of every layer, in (0, 1]; those above P are not drawn, and P itself is where all
        others are above it.
      distill: with the terms of the widest sub-model; twice the work.

    Raises:
      FljaxError: no width, one out of range, or a model without groups.
    """
    groups = learner.groups
    if groups is None:
        raise FljaxError("Expected groups=None to be the neuron groups of the model. Use a model that declares them.")
    if not widths:
        raise FljaxError("Expected widths=() to hold a share in (0, 1]. FjORD's are 0.2, 0.4, 0.6, 0.8, 1.")
    for width in widths:
        in_range(0, 1, closed="right", width=width, remedy="It is a share of the neurons.")
    grid, least = jnp.asarray(sorted(widths), jnp.float32), dict(groups.min_keep)

    def drawn(key: Key, ctx: Ctx) -> tuple[Array, Array]:
        """(the width of this step, the client's own)."""
        own = jnp.where(ctx.round < ctx.hparams.warmup_rounds, 1.0, ctx.keep_rate)
        fits = grid <= own * (1 + 1e-6)
        place = jax.random.randint(stream(key, "masks"), (), 0, jnp.maximum(jnp.sum(fits), 1))
        return jnp.where(jnp.any(fits), grid[place], own), own

    def prefix(params: Params, width: Array) -> Params:
        kept = {g: best(jnp.arange(n), width, least[g], n) for g, n in groups.sizes}
        return tree.keep(params, groups.masks(params, kept))

    def objective(key: Key, ctx: Ctx, params: Params, batch: Any) -> Array:
        width, own = drawn(key, ctx)

        def mean(losses: Array) -> Array:
            return jnp.sum(losses * batch.mask) / jnp.maximum(jnp.sum(batch.mask), 1.0)

        part = learner.apply(prefix(params, width), batch.x, key)
        alone = learner.loss.per_example(part, batch.y)
        if not distill:
            return mean(alone)
        whole = learner.apply(prefix(params, own), batch.x, key)
        target = jax.nn.log_softmax(jax.lax.stop_gradient(whole))
        apart = jnp.sum(jnp.exp(target) * (target - jax.nn.log_softmax(part)), axis=-1)
        a = ctx.hparams.distill
        return mean(learner.loss.per_example(whole, batch.y) + (1.0 - a) * alone + a * apart)

    return objective
