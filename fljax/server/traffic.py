"""What a round weighs on the wire: values and bytes, counted as the transforms write them down."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fljax.core import tree
from fljax.core.transform import Wire
from fljax.core.types import Array, Ctx, Params, PyTree, Selection, SubModel
from fljax.dropout.select import is_refresh
from fljax.server.clients import Parts, Tiers
from fljax.server.execute import Collected, Slots
from fljax.server.positions import PRIVATE, told_bits


class Bytes(NamedTuple):
    """A number of bytes, exact where an int32 would overflow: ``1024 kib + rest``, both () int32."""

    kib: Array
    rest: Array


class Traffic(NamedTuple):
    """What one client of each class sends and receives. up, down: [tiers] int32 bytes; whole: () int32 bytes of a full
    download. up_values, down_values: () int32 numbers of the widest class. kept: [tiers] int32 parameters in the mask.
    each: [C] int32 bytes of the client of every slot, where they are no matter of classes; or None.
    """

    tiers: Tiers | None
    up: Array
    down: Array
    whole: Array
    up_values: Array
    down_values: Array
    kept: Array
    each: Array | None = None

    def uplink(self, ids: Array, who: Array) -> Bytes:
        """Bytes that the clients ids [C] for which who [C] is True send together."""
        if self.each is not None:
            return _bytes(self.each, who)
        return self._total(self.up, ids, who)

    def downlink(self, ids: Array, who: Array, fresh: Array) -> Bytes:
        """Bytes that they receive together; where fresh [C] is True a client gets the whole model to choose from."""
        part, whole = self._total(self.down, ids, who & ~fresh), self._total(self._each_whole(), ids, who & fresh)
        return Bytes(part.kib + whole.kib, part.rest + whole.rest)

    def _each_whole(self) -> Array:
        return jnp.broadcast_to(self.whole, self.down.shape)

    def _total(self, each: Array, ids: Array, who: Array) -> Bytes:
        return _bytes(each[0] if self.tiers is None else each[self.tiers.place(ids)], who)


def _bytes(mine: Array, who: Array) -> Bytes:
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
    tiers = None if parts.tiers is None else parts.tiers.in_round(ctx)
    rates = (1.0,) if tiers is None else tiers.rates
    state = tree.num_elements(algorithm)
    copies = parts.capacity if parts.aggregator.collect == "concat" else 1
    kept, listed = [size] * len(rates), [jnp.int32(0)] * len(rates)
    if sub is not None and selection is not None:
        masks = [sub.masks(ctx._replace(keep_rate=ctx.keep_rate * rate), selection) for rate in rates]
        kept, listed = [kept_values(sub, params, m) for m in masks], [position_bits(sub, m) for m in masks]
    sent = [_written(parts, ctx, payload, k, bits, params, copies) for k, bits in zip(kept, listed, strict=True)]
    in_forward = sub is not None and sub.forward == "submodel"
    down = [(k if in_forward else size) + state for k in kept]
    sealed = parts.link.overhead
    up = jnp.stack([wire_bytes(parts.transform.wire(ctx, wires)) for wires in sent])
    back = up + 4 * state if parts.link.echo else 4 * jnp.stack(down)
    return Traffic(
        tiers=tiers,
        up=sealed + up,
        down=sealed + back,
        whole=sealed + 4 * (size + state),
        up_values=_most([sum((w.values for w in wires.values()), jnp.int32(0)) for wires in sent]),
        down_values=_most(down),
        kept=jnp.stack(kept),
    )


def count_agreed(traffic: Traffic, parts: Parts, ctx: Ctx, seen: Collected, slots: Slots, params: Params) -> Traffic:
    """The traffic with what every client of a round really sent: its words, and what agreeing on them took.

    Args:
      traffic: of the classes. ctx: of the server, with positions. seen: of the clients. slots: the cohort.
    """
    sub, words = parts.submodel, seen.info["words"]
    assert sub is not None and ctx.positions is not None
    copies = parts.capacity if parts.aggregator.collect == "concat" else 1

    def one(kept: Array, neurons: dict[str, Array]) -> tuple[Array, Array]:
        told = told_bits(parts, position_bits(sub, neurons))
        wires = _written(parts, ctx, seen.payload, kept, told, params, copies)
        sent = sum((w.values for w in wires.values()), jnp.int32(0))
        return wire_bytes(parts.transform.wire(ctx, wires)) + parts.link.overhead, sent

    own = seen.info.get("neurons")
    each, values = jax.vmap(one)(words, ctx.positions.rows if own is None else own)
    count = traffic.up.shape[0]
    place = jnp.zeros_like(slots.ids) if traffic.tiers is None else traffic.tiers.place(slots.ids)
    most = jnp.zeros(count, each.dtype).at[place].max(jnp.where(slots.alive, each, 0))
    return traffic._replace(each=each, up=most, up_values=jnp.max(jnp.where(slots.alive, values, 0)))


def _most(values: list[Array]) -> Array:
    """That of the widest class: masks are nested."""
    return jnp.max(jnp.stack(values))


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


def position_bits(sub: SubModel, neurons: dict[str, Array]) -> Array:
    """() int32 bits in which a client says whose neurons it kept: one bit a neuron, or the index of each kept one."""
    if sub.positions == "bitmap":
        return jnp.int32(sum(n for _, n in sub.groups.sizes))
    bits = [jnp.sum(neurons[g]).astype(jnp.int32) * (n - 1).bit_length() for g, n in sub.groups.sizes]
    return sum(bits, jnp.int32(0))


def _written(
    parts: Parts, ctx: Ctx, payload: PyTree, kept: Array, listed: Array, params: Params, copies: int
) -> dict[str, Wire]:
    """The parts of one client's message before the transforms write them: 32 bits a value.

    Positions, ``listed`` bits, are sent only where the server could not compute the mask itself; a query that has its
    own mechanism only when it is due.
    """
    sub, like = parts.submodel, jax.tree.structure(params)
    dense = sub is None or (sub.support == "dense" and parts.transform.always)  # noise on all: all of it is sent
    private = sub is not None and sub.own is not None and sub.source in PRIVATE and not dense
    positions = listed if private or parts.agreement is not None else jnp.int32(0)

    def wire(name: str, part: PyTree) -> Wire:
        values = jnp.int32(tree.num_elements(part) // copies)
        if name == "query" and sub is not None and sub.release is not None:
            values = jnp.where(is_refresh(ctx.round + 1, ctx.hparams), values, 0)
        masked = name != "weight" and not dense and jax.tree.structure(part) == like
        return Wire(kept if masked else values, jnp.int32(32), positions if name == "update" else jnp.int32(0))

    return {name: wire(name, part) for name, part in payload.items()}
