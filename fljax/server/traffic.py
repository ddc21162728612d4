"""What a round weighs on the wire: values and bytes, counted as the transforms write them down."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fljax.core import tree
from fljax.core.transform import Wire
from fljax.core.types import Array, Ctx, Params, PyTree, Selection, SubModel
from fljax.server.clients import Parts, Tiers


class Bytes(NamedTuple):
    """A number of bytes, exact where an int32 would overflow: ``1024 kib + rest``, both () int32."""

    kib: Array
    rest: Array


class Traffic(NamedTuple):
    """What one client of each class sends and receives. up, down: [tiers] int32 bytes; whole: () int32 bytes of a full
    download. up_values, down_values: () int32 numbers of the widest class. kept: [tiers] int32 parameters in the mask.
    """

    tiers: Tiers | None
    up: Array
    down: Array
    whole: Array
    up_values: Array
    down_values: Array
    kept: Array

    def uplink(self, ids: Array, who: Array) -> Bytes:
        """Bytes that the clients ids [C] for which who [C] is True send together."""
        return self._total(self.up, ids, who)

    def downlink(self, ids: Array, who: Array, fresh: Array) -> Bytes:
        """Bytes that they receive together; where fresh [C] is True a client gets the whole model to choose from."""
        part, whole = self._total(self.down, ids, who & ~fresh), self._total(self._each_whole(), ids, who & fresh)
        return Bytes(part.kib + whole.kib, part.rest + whole.rest)

    def _each_whole(self) -> Array:
        return jnp.broadcast_to(self.whole, self.down.shape)

    def _total(self, each: Array, ids: Array, who: Array) -> Bytes:
        mine = each[0] if self.tiers is None else each[self.tiers.place(ids)]
        return Bytes(jnp.sum(jnp.where(who, mine // 1024, 0)), jnp.sum(jnp.where(who, mine % 1024, 0)))


def count_traffic(
    parts: Parts, ctx: Ctx, selection: Selection | None, params: Params, algorithm: PyTree, payload: PyTree
) -> Traffic:
    """Counts what one client of each class sends and receives in this round.

    Args:
      ctx: of the server. selection: whose neurons count. params: shared. algorithm: its state travels whole.
      payload: as it was collected; its shapes are counted, not its values.
    """
    sub, size = parts.submodel, jnp.int32(tree.num_elements(params))
    rates = (1.0,) if parts.tiers is None else parts.tiers.rates
    state = tree.num_elements(algorithm)
    copies = parts.capacity if parts.aggregator.collect == "concat" else 1
    kept = [size] * len(rates)
    if sub is not None and selection is not None:
        contexts = [ctx._replace(keep_rate=ctx.keep_rate * rate) for rate in rates]
        kept = [kept_values(sub, params, sub.masks(c, selection)) for c in contexts]
    sent = [_written(parts, payload, k, params, copies) for k in kept]
    in_forward = sub is not None and sub.forward == "submodel"
    down = [(k if in_forward else size) + state for k in kept]
    widest = rates.index(max(rates))
    return Traffic(
        tiers=parts.tiers,
        up=jnp.stack([wire_bytes(parts.transform.wire(ctx, wires)) for wires in sent]),
        down=4 * jnp.stack(down),
        whole=4 * (size + state),
        up_values=sum((wire.values for wire in sent[widest].values()), jnp.int32(0)),
        down_values=down[widest],
        kept=jnp.stack(kept),
    )


def wire_bytes(wires: dict[str, Wire]) -> Array:
    """() int32 bytes of a message, every part rounded up to whole bytes."""
    return sum((-(-(w.values * w.bits + w.extra) // 8) for w in wires.values()), jnp.int32(0))


def kept_values(sub: SubModel, params: Params, neurons: dict[str, Array]) -> Array:
    """() int32: parameters that masks of neurons keep, from their numbers alone."""
    sizes, leaves = dict(sub.groups.sizes), dict(sub.groups.leaves)
    counts = {g: jnp.sum(m).astype(jnp.int32) for g, m in neurons.items()}
    total = jnp.int32(0)
    for path, x in tree.named_leaves(params).items():
        kept = jnp.int32(1)
        for i, n in enumerate(x.shape):
            axis = leaves[path].axes[i] if path in leaves else None
            kept *= n if axis is None else n // sizes[axis.group] * counts[axis.group]
        total += kept
    return total


def _written(parts: Parts, payload: PyTree, kept: Array, params: Params, copies: int) -> dict[str, Wire]:
    """The parts of one client's message before the transforms write them: 32 bits a value.

    Positions are sent only where the server could not compute the mask itself: a bitmap of the neurons.
    """
    sub, like = parts.submodel, jax.tree.structure(params)
    dense = sub is None or (sub.support == "dense" and parts.transform.always)  # noise on all: all of it is sent
    private = sub is not None and sub.own is not None and sub.source == "exact" and not dense
    positions = sum(n for _, n in sub.groups.sizes) if sub is not None and private else 0

    def wire(name: str, part: PyTree) -> Wire:
        values = jnp.int32(tree.num_elements(part) // copies)
        masked = name != "weight" and not dense and jax.tree.structure(part) == like
        return Wire(kept if masked else values, jnp.int32(32), jnp.int32(positions if name == "update" else 0))

    return {name: wire(name, part) for name, part in payload.items()}
