"""Positions under local differential privacy: a client says of every neuron whether it keeps it, and lies at random."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fljax.core.check import positive
from fljax.core.types import Array, Ctx, Hparams, Key, OwnSelection, Params, Selection, SubModel


class Report(NamedTuple):
    """What ONE client remembers. inner: of its choice. told: {group: [n]} the mask that it reported last."""

    inner: Any
    told: dict[str, Array]


def largest_change(neurons: dict[str, Array]) -> Array:
    """() float32: in how many bits two masks with so many kept neurons may differ at most, ``2 sum min(k, n - k)``."""
    kept = [(jnp.sum(m), m.shape[0]) for m in neurons.values()]
    return sum((2.0 * jnp.minimum(k, n - k) for k, n in kept), jnp.float32(0.0))


def lie_rate(epsilon: Array, change: Array) -> Array:
    """() probability of a lie about one neuron, ``1 / (1 + e^(epsilon / change))``, rounded towards more lies."""
    return jax.nn.sigmoid(-epsilon / jnp.maximum(change, 1.0)) * (1.0 + 1e-6)


def reported_positions(sub: SubModel, epsilon: float) -> SubModel:
    """Clients choose as in ``sub``, report their mask by randomised response, and train and send what they told.

    Every bit is flipped with probability ``1 / (1 + e^(epsilon / D))``, where D is the number of bits in which the
    masks of two data sets may differ at most (both keep k of the n neurons of a layer): the whole report is
    epsilon-differentially private, whoever sees it. A choice is reported once and kept until the next one, which costs
    again; the dense rounds of a warm-up report nothing.

    Args:
      sub: whose clients choose by their own data, such as ``exact_dropout``.
      epsilon: of one report.

    Raises:
      FljaxError: epsilon not positive.

    Source: Warner, "Randomized response", JASA 1965; positions in this way: Niu et al., "Secure federated submodel
    learning", arXiv 1911.02254.
    """
    positive(positions_epsilon=epsilon)
    own = sub.own
    assert own is not None, "the masks are those of the server"

    def init(params: Params) -> Report:
        return Report(own.init(params), {g: jnp.ones(n) for g, n in sub.groups.sizes})

    def choose(key: Key, ctx: Ctx, params: Params, state: Report, shard: Any, shared: Selection):
        chosen, inner = own.choose(key, ctx, params, state.inner, shard, shared)
        true = sub.masks(ctx, chosen)
        lies = lie_rate(jnp.float32(epsilon), largest_change(true))
        renewed, told = inner.epoch != state.inner.epoch, {}
        for i, (g, mask) in enumerate(true.items()):
            lie = jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, 7), i), mask.shape) < lies
            told[g] = jnp.where(renewed, jnp.where(lie, 1.0 - mask, mask), state.told[g])
        return Selection(chosen.ranks, told=told), Report(inner, told)

    def learn(ctx: Ctx, state: Report, sent: Any) -> Report:
        return state._replace(inner=own.learn(ctx, state.inner, sent))

    def masks(ctx: Ctx, chosen: Selection) -> dict[str, Array]:
        return sub.masks(ctx, chosen) if chosen.told is None else chosen.told

    def spends(hparams: Hparams) -> dict[str, float]:
        # A client that drops out after its report has told it without remembering it: every turn may then cost.
        every = 1.0 if float(hparams.availability) < 1 else float(hparams.refresh_rounds)
        return {
            "positions_epsilon": float(epsilon),
            "positions_warmup": float(hparams.warmup_rounds),
            "positions_every": every,
        }

    return sub._replace(source="reported", own=OwnSelection(init, choose, learn), masks=masks, spends=spends)
