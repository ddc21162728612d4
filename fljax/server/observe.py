"""What is only observed of dropout and of classes of devices: the simulator's oracle view of a round.

Nothing here is an input of a later round. It is computed from masks of neurons, whose size does not grow with the
parameters, wherever that is possible.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fljax.core import tree
from fljax.core.check import FljaxError
from fljax.core.types import Array, Ctx, Params, PyTree, Selection, SubModel
from fljax.dropout.measure import covered_share, jaccard, pair_overlap
from fljax.dropout.select import is_refresh
from fljax.server.execute import Slots
from fljax.server.positions import PRIVATE
from fljax.server.traffic import Traffic


class Devices(NamedTuple):
    """Classes of devices whose work is counted; where keep rates differ, classes and tiers are the same.

    of: [N] class of every client. count: number of classes D. examples: (sizes) -> int32 examples that clients of so
    many examples train on in a round.
    """

    of: np.ndarray
    count: int
    examples: Callable[[Array], Array]

    def check(self, population: int, tiers: Any) -> Devices:
        """Raises FljaxError unless every client has a class, and the one of its tier; returns itself."""
        if self.of.shape != (population,) or self.of.min() < 0 or self.of.max() >= self.count:
            raise FljaxError(f"Expected one of {self.count} classes of devices for each of {population} clients.")
        if tiers is not None and not np.array_equal(tiers.of, self.of):
            raise FljaxError("Expected devices.of to be the classes of the tiers. Use one division for both.")
        return self


def count_work(
    devices: Devices,
    traffic: Traffic,
    ctx: Ctx,
    sub: SubModel | None,
    selection: Selection | None,
    slots: Slots,
    sizes: Array,
    fresh: Array,
) -> dict[str, Array]:
    """What the clients of each class did in this round, from which its time follows: {name: [D] int32}.

    Args:
      traffic: of the round. slots: the cohort. sizes: [C] examples of its clients. fresh: [C] bool (or () False), who
        chose neurons for itself in this round.

    Returns:
      ``answered``: clients that answered. ``examples``, ``most_examples``: what they trained on together, and the one
      with the most. ``up``, ``down``: bytes that one of them sends, and the most that one receives. ``scored``: clients
      that computed scores of their own data. ``kept_<group>``: neurons that one of them keeps.
    """
    place = jnp.take(jnp.asarray(devices.of, jnp.int32), slots.ids, mode="clip")
    member = _members(place, devices.count, slots.alive)
    examples = jnp.where(member, devices.examples(sizes)[None], 0)
    fresh = jnp.broadcast_to(fresh, slots.alive.shape)[None]
    chose = jnp.any(member & fresh, axis=1)
    asked = sub is not None and sub.query is not None
    if sub is not None and sub.release is not None:
        asked = is_refresh(ctx.round + 1, ctx.hparams)
    looked = fresh if sub is not None and sub.source in PRIVATE else jnp.asarray(asked)
    rates = (1.0,) if traffic.tiers is None else traffic.tiers.rates

    def each(values: Array) -> Array:
        return jnp.broadcast_to(values, (devices.count,)).astype(jnp.int32)

    work = {
        "answered": jnp.sum(member, axis=1),
        "examples": jnp.sum(examples, axis=1),
        "most_examples": jnp.max(examples, axis=1),
        "up": each(traffic.up),
        "down": jnp.where(chose, traffic.whole, each(traffic.down)),
        "scored": jnp.sum(member & looked, axis=1),
    }
    if sub is None or selection is None:
        return work
    masks = [sub.masks(ctx._replace(keep_rate=ctx.keep_rate * rate), selection) for rate in rates]
    return work | {f"kept_{g}": each(jnp.stack([jnp.sum(m[g]) for m in masks])) for g, _ in sub.groups.sizes}


def mask_metrics(
    sub: SubModel | None,
    traffic: Traffic,
    ctx: Ctx,
    state: PyTree,
    params: Params,
    selection: Selection | None,
    slots: Slots,
    neurons: dict[str, Array] | None,
) -> dict[str, Array]:
    """How the masks of a round lie: {name: () float32}; {} without dropout.

    Args:
      state: of the sub-model before the round. neurons: {group: [C, n]} masks of clients that choose for themselves, or
        None where all follow the server.

    Returns:
      ``coverage``: share of the parameters that some client trained and sent. Where all follow one ranking
      ``mask_overlap``: Jaccard overlap of the widest mask with that of the round before (dense rounds have masks of
      all neurons; 1 in round 0). Where clients choose for themselves ``pair_overlap``: the mean of the Jaccard
      overlap over pairs of clients (1 for fewer than two).
    """
    if sub is None or selection is None:
        return {}
    if neurons is not None:
        mean = pair_overlap(neurons, slots.alive)
        return {"coverage": covered_share(sub.groups, params, neurons, slots.alive), "pair_overlap": mean}
    here = slots.alive[None]
    if traffic.tiers is not None:
        here = _members(traffic.tiers.place(slots.ids), len(traffic.tiers.rates), slots.alive)
    widest = jnp.max(jnp.where(jnp.any(here, axis=1), traffic.kept, 0))  # masks are nested
    seen = {"coverage": widest / tree.num_elements(params)}
    if sub.last is None:
        return seen
    now = sub.masks(ctx, selection)
    before = sub.masks(ctx._replace(round=ctx.round - 1), sub.last(state))
    return seen | {"mask_overlap": jnp.where(ctx.round == 0, 1.0, jaccard(now, before))}


def flat_classes(work: dict[str, Array]) -> dict[str, Array]:
    """{name: [D]} -> {``class_<k>_<name>``: ()}, as a history keeps it."""
    return jax.tree.map(jnp.asarray, {f"class_{k}_{n}": v[k] for n, v in work.items() for k in range(v.shape[0])})


def _members(place: Array, count: int, alive: Array) -> Array:
    """[count, C] bool: the living clients of every class, from the classes [C] of the slots."""
    return (place[None] == jnp.arange(count)[:, None]) & alive[None]
