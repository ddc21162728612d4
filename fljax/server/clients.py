"""The clients of a round: what one of them does, and how all of them run under masks, tiers and compact sub-models.

*Masked* execution trains the whole model with dropped neurons at zero: the keep rate stays traced. *Compact* execution
gathers the kept neurons once a round, trains the physically small model and scatters the sum back: it costs what the
small model costs. Both give the same result up to the order of sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fljax.core import tree
from fljax.core.check import FljaxError
from fljax.core.keys import stream
from fljax.core.transform import Aggregator, UpdateTransform
from fljax.core.types import (
    Adversary,
    Array,
    Broadcast,
    Ctx,
    Key,
    LocalUpdate,
    Params,
    PyTree,
    Selection,
    SubModel,
)
from fljax.dropout.measure import kept_energy, kept_share
from fljax.server.execute import Collected, PerfFlags, Slots, auto_chunk, run_clients
from fljax.server.positions import PRIVATE, Agreed, Agreement, differs, own_ctx, words_of_client


class Tiers(NamedTuple):
    """Classes of clients with different keep rates.

    rates: keep rate of each class relative to ``hparams.keep_rate``, the largest of them 1. ``hparams.extra`` may
      replace them by traced ones, named ``tier_0``, ``tier_1``, ...; the largest stays 1.
    of: [N] class of a client.
    redrawn: every client draws a class anew in every round, from public randomness (HeteroFL's dynamic rates).
    chosen_by: ``public`` (devices, public sizes), ``private`` (a client's own data) or ``paid`` (its noised report).
    report_epsilon: what the report of a paid class costs a client.
    declared: public shares of the classes; default those of ``of``, which must then be public.
    key: of the round in which classes are redrawn; ``in_round`` sets it.
    """

    rates: tuple[Any, ...]
    of: np.ndarray
    redrawn: bool = False
    chosen_by: str = "public"
    report_epsilon: float | None = None
    declared: tuple[float, ...] | None = None
    key: Key | None = None

    def check(self, population: int) -> Tiers:
        """Raises FljaxError unless every client has a class and the largest rate is 1; returns itself."""
        if not self.rates or max(self.rates) != 1.0 or min(self.rates) <= 0.0:
            raise FljaxError(f"Expected tiers={self.rates!r} in (0, 1], the largest 1. Divide all by the largest.")
        if self.of.shape != (population,) or self.of.min() < 0 or self.of.max() >= len(self.rates):
            raise FljaxError(f"Expected one of {len(self.rates)} tiers for each of {population} clients.")
        if self.chosen_by == "private" and self.declared is None:
            raise FljaxError("Expected declared=None to be public shares: classes by private data have private shares.")
        return self

    def in_round(self, ctx: Ctx) -> Tiers:
        """The classes of one round: traced rates, and classes that are drawn anew."""
        rates = tuple(ctx.hparams.extra.get(f"tier_{k}", rate) for k, rate in enumerate(self.rates))
        return self._replace(rates=rates, key=stream(ctx.round_key, "tiers") if self.redrawn else None)

    def rate(self, ids: Array) -> Array:
        """Relative keep rates of clients: ids -> float32 of their shape."""
        return jnp.take(jnp.stack([jnp.asarray(rate, jnp.float32) for rate in self.rates]), self.place(ids))

    def place(self, ids: Array) -> Array:
        """Classes of clients: ids -> int32 of their shape; an empty slot has that of the last client."""
        if self.key is not None:
            ends = jnp.cumsum(jnp.asarray(self.shares(), jnp.float32))[:-1]
            draw = jax.vmap(lambda i: jnp.sum(jax.random.uniform(jax.random.fold_in(self.key, i)) >= ends))
            return draw(jnp.ravel(ids)).reshape(jnp.shape(ids)).astype(jnp.int32)
        return jnp.take(jnp.asarray(self.of, jnp.int32), ids, mode="clip")

    def shares(self) -> list[float]:
        """Public share of the clients in every class."""
        if self.declared is not None:
            return list(self.declared)
        return [float(np.mean(self.of == tier)) for tier in range(len(self.rates))]


def divide_among_tiers(population: int, shares: Sequence[float]) -> np.ndarray:
    """Class of every client [N] int32: their shares, evenly spread over the ids and the same in every run.

    A sequence of low discrepancy (multiples of the golden ratio), so that any stretch of ids has all classes.
    """
    place = (np.arange(population) * (np.sqrt(5) - 1) / 2) % 1.0
    return np.minimum(np.searchsorted(np.cumsum(shares), place, side="right"), len(shares) - 1).astype(np.int32)


class Compact(NamedTuple):
    """Compact execution, for which the keep rate is static. keep: ``hparams.keep_rate``. warmup: dense rounds."""

    keep: float
    warmup: int = 0


class Link(NamedTuple):
    """How messages travel, for counting bytes. overhead: bytes that encryption adds to each message, both ways. echo:
    clients get back a sum that the server cannot read, as long as an upload, in the place of the parameters."""

    overhead: int = 0
    echo: bool = False


class Parts(NamedTuple):
    """What the clients of a round are made of."""

    local: LocalUpdate
    transform: UpdateTransform
    aggregator: Aggregator
    submodel: SubModel | None
    tiers: Tiers | None
    compact: Compact | None
    perf: PerfFlags
    capacity: int
    adversary: Adversary | None = None
    agreement: Agreement | None = None
    link: Link = Link()


class Sent(NamedTuple):
    """What the server hands to the clients of a round: parameters, state of the algorithm, and whose neurons count.

    agreed: what the clients chose before the round's uploads, where positions are agreed on; else None.
    """

    params: Params
    algorithm: PyTree
    transforms: PyTree
    selection: Selection | None
    agreed: Agreed | None = None


def init_choices(parts: Parts, params: Params) -> PyTree:
    """State of ONE client that chooses neurons for itself; () where none does."""
    own = None if parts.submodel is None else parts.submodel.own
    return () if own is None else own.init(params)


def shared_masks(parts: Parts, ctx: Ctx, params: Params, selection: Selection) -> tuple[PyTree, PyTree]:
    """(support of the noise, expected share of the clients that hold a coordinate or None), both public.

    The support is the mask of the widest tier, of which the others' are parts, or None for noise on all coordinates.
    """
    sub = parts.submodel
    assert sub is not None

    def mask(rate: float) -> PyTree:
        return sub.groups.masks(params, sub.masks(ctx._replace(keep_rate=ctx.keep_rate * rate), selection))

    if sub.own is not None:
        return None, _expected_share(parts, ctx, params, selection)
    support = None if sub.support == "dense" else mask(1.0)
    if parts.tiers is None:
        return support, None
    tiers = parts.tiers.in_round(ctx)
    pairs = list(zip(tiers.rates, tiers.shares(), strict=True))
    masks = [jax.tree.map(lambda m, s=share: s * m, mask(rate)) for rate, share in pairs]
    return support, jax.tree.map(lambda *shares: sum(shares), *masks)


def kept_neurons(
    parts: Parts, ctx: Ctx, selection: Selection | None, slots: Slots, info: PyTree
) -> dict[str, Array] | None:
    """Whose neurons every client of the round keeps: {group: [C, n]} 0/1, or None without masks.

    Args:
      info: of the clients that ran, stacked; those that choose for themselves say there what they chose.
    """
    sub = parts.submodel
    if sub is None or selection is None:
        return None
    if sub.own is not None:
        return info["neurons"]
    tiers = None if parts.tiers is None else parts.tiers.in_round(ctx)
    rates = jnp.ones(slots.ids.shape) if tiers is None else tiers.rate(slots.ids)
    return jax.vmap(lambda rate: sub.masks(ctx._replace(keep_rate=ctx.keep_rate * rate), selection))(rates)


def _expected_share(parts: Parts, ctx: Ctx, params: Params, selection: Selection) -> PyTree:
    """Share of the clients that hold a coordinate if each chose its neurons at random: the product over its axes."""
    sub = parts.submodel
    assert sub is not None
    rates, shares = (1.0,), [1.0]
    if parts.tiers is not None:
        rates, shares = parts.tiers.in_round(ctx).rates, parts.tiers.shares()

    def share(rate: float) -> PyTree:
        neurons = sub.masks(ctx._replace(keep_rate=ctx.keep_rate * rate), selection)
        return sub.groups.masks(params, {g: jnp.full_like(m, jnp.mean(m)) for g, m in neurons.items()})

    pairs = zip(rates, shares, strict=True)
    return jax.tree.map(lambda *xs: sum(xs), *(jax.tree.map(lambda m, s=s: s * m, share(r)) for r, s in pairs))


def run_cohort(parts: Parts, ctx: Ctx, sent: Sent, slots: Slots, table: PyTree, data: Any, collect: str) -> Collected:
    """Runs all clients of a round.

    Args:
      ctx: of the server. sent: what clients receive. slots: the cohort, the living first. table: states [N, ...].
      data: of all clients. collect: ``sum`` or ``concat``.
    """
    if parts.compact is None:
        return _run(parts, ctx, sent, slots, table, data, collect)
    if collect != "sum":  # every payload is wanted by itself, as for a transcript
        return _run(parts, ctx, sent, slots, table, data, collect)
    if parts.compact.warmup == 0:
        return _run_compact(parts, ctx, sent, slots, table, data)
    return jax.lax.cond(
        ctx.round < parts.compact.warmup,
        lambda: _like_compact(parts, _run(parts, ctx, sent, slots, table, data, collect)),
        lambda: _run_compact(parts, ctx, sent, slots, table, data),
    )


def _run(
    parts: Parts, ctx: Ctx, sent: Sent, slots: Slots, table: PyTree, data: Any, collect: str, model: PyTree = None
) -> Collected:
    """Runs the slots. model: where the parameters are those of a sub-model, the whole model's, like which it runs:
    convolutions of few channels gain nothing from being batched over clients."""
    whole, size = model is not None, tree.num_elements(sent.params if model is None else model)
    chunk = auto_chunk(size, parts.capacity) if parts.perf.chunk is None else parts.perf.chunk

    def one(shared: PyTree, slot: Slots, own: PyTree):  # ONE client: no client axis in scope
        ctx, sent, data = shared
        return run_client(parts, ctx, sent, slot, own, data, whole)

    return run_clients(one, (ctx, sent, data), slots, table, chunk=chunk, collect=collect, mesh=parts.perf.mesh)


# ---- one client -----------------------------------------------------------------------------------------------------


def run_client(parts: Parts, ctx: Ctx, sent: Sent, slot: Slots, own: PyTree, data: Any, whole: bool = False):
    """What ONE client does in a round: choose its neurons, train, mask, encode.

    Args:
      slot: its place in the cohort. own: its (local, transform, choice) states. data: of all clients; it takes its own.
      whole: the parameters are already those of the sub-model, and nothing is masked.

    Returns:
      (payload, new states, info). A payload that is not finite becomes exactly zero; so does that of a client that is
      not alive, and its old states stay.
    """
    state, sending, choice = own
    mine = own_ctx(parts, ctx, slot)
    shard = data.take(slot.place, slot.ids)
    if parts.adversary is not None and parts.adversary.poison is not None:
        shard = parts.adversary.poison(mine, slot.malicious, shard)
    mask, new_choice, traffic = (None, choice, {}) if whole else _mask(parts, mine, sent, slot.keys, choice, shard)
    shown = mask  # the part of it that is sent
    if sent.agreed is not None:
        words = words_of_client(parts, mine, sent.params)
        shown = jax.tree.map(jnp.multiply, mask, words)
        traffic["words"] = sum(jnp.sum(w > 0, dtype=jnp.int32) for w in jax.tree.leaves(words))
    if mask is not None and (parts.submodel is None or parts.submodel.support == "mask"):
        mine = mine._replace(support=shown)
    in_forward = parts.submodel is None or parts.submodel.forward == "submodel"
    kept = None if mask is None else jax.tree.map(lambda m: m > 0, mask)  # bytes: it is read in every step
    broadcast = Broadcast(sent.params, sent.algorithm, kept if in_forward else None)

    payload, new_state, info = parts.local.run(stream(slot.keys, "local"), mine, broadcast, state, shard)
    if mask is not None and not in_forward:
        energy = kept_energy(payload["update"], mask)
        traffic = traffic | {"kept_energy": energy, "snr_gain": energy / kept_share(mask)}
    payload = payload | {"update": tree.keep(payload["update"], kept if shown is mask else shown)}
    if parts.submodel is not None and parts.submodel.query is not None:
        payload["query"] = parts.submodel.query(stream(slot.keys, "query"), mine, sent.params, shard)
    finite = jnp.isfinite(tree.squared_norm(payload))
    payload = tree.zero_unless(finite, payload)
    payload, vote = _apart(parts.submodel, payload)
    payload, new_sending, seen = parts.transform.encode(
        stream(slot.keys, "encode"), mine, payload, sent.transforms, sending
    )
    payload = payload | vote
    sound = jnp.isfinite(tree.squared_norm(payload))
    ok = slot.alive & finite & sound
    if parts.submodel is not None and parts.submodel.own is not None:
        new_choice = parts.submodel.own.learn(mine, new_choice, payload["update"])
    states = tree.select(ok, (new_state, new_sending, new_choice), own)
    if sent.agreed is not None:  # what was announced was told, whatever became of the upload
        states = (*states[:2], tree.select(slot.alive, new_choice, own[2]))
    came = slot.alive & sound if parts.transform.always else ok
    return tree.zero_unless(came, payload), states, {"ok": ok, "sent": came, **traffic, **info, **seen}


def _apart(sub: SubModel | None, payload: PyTree) -> tuple[PyTree, PyTree]:
    """(what the stages encode, a query that has a mechanism of its own and passes them by)."""
    if sub is None or sub.release is None:
        return payload, {}
    return {name: part for name, part in payload.items() if name != "query"}, {"query": payload["query"]}


def _mask(parts: Parts, mine: Ctx, sent: Sent, key: Key, choice: PyTree, shard: Any):
    """(parameter mask or None, new state of its choice, what is observed of the choice) of ONE client."""
    sub = parts.submodel
    if sub is None or sent.selection is None:
        return None, choice, {}
    if sent.agreed is not None:
        neurons, choice, fresh = jax.tree.map(lambda x: x[mine.slot], tuple(sent.agreed))
        seen = {} if sub.own is None else {"fresh": fresh, "neurons": neurons}
        return sub.groups.masks(sent.params, neurons), choice, seen
    selection, fresh = sent.selection, jnp.bool_(False)
    if sub.own is not None:
        selection, new = sub.own.choose(stream(key, "masks"), mine, sent.params, choice, shard, selection)
        # Only who looks at its own data needs the whole model to choose; the server knows all other masks.
        fresh, choice = differs(choice, new) & (sub.source in PRIVATE), new
    neurons = sub.masks(mine, selection)
    seen = {} if sub.own is None else {"fresh": fresh, "neurons": neurons}
    return sub.groups.masks(sent.params, neurons), choice, seen


# ---- compact execution ----------------------------------------------------------------------------------------------


def _run_compact(parts: Parts, ctx: Ctx, sent: Sent, slots: Slots, table: PyTree, data: Any) -> Collected:
    """One block per tier: its neurons are gathered, its clients train the small model, the sums are added."""
    sub = parts.submodel
    assert sub is not None and parts.compact is not None and sent.selection is not None
    tiers = None if parts.tiers is None else parts.tiers.in_round(ctx)
    rates = (1.0,) if parts.tiers is None else parts.tiers.rates  # static: shapes follow from them
    order = {g: jnp.argsort(ranks) for g, ranks in sent.selection.ranks.items()}
    blocks = []
    for tier, rate in enumerate(rates):
        counts = sub.groups.counts(float(np.float32(parts.compact.keep) * np.float32(rate)))
        kept = {g: jnp.sort(order[g][:count]) for g, count in counts.items()}
        members = slots if tiers is None else _only(slots, tiers.place(slots.ids) == tier)
        blocks.append(_run_block(parts, ctx, sent, members, table, data, kept, counts))
    if len(blocks) == 1:
        return blocks[0]
    payload = jax.tree.map(lambda *xs: sum(xs), *(b.payload for b in blocks))
    info = jax.tree.map(lambda *xs: jnp.concatenate(xs), *(b.info for b in blocks))
    return Collected(payload, blocks[0].states, info)


def _run_block(parts: Parts, ctx: Ctx, sent: Sent, slots: Slots, table: PyTree, data: Any, kept, counts) -> Collected:
    sub = parts.submodel
    assert sub is not None
    full = all(counts[g] == n for g, n in sub.groups.sizes)
    small = sent if full else sent._replace(params=sub.groups.extract(sent.params, kept))
    seen = _run(parts, ctx._replace(support=None), small, slots, table, data, "sum", sent.params)
    if full:
        return seen
    like = jax.tree.structure(small.params)

    def spread(part: PyTree) -> PyTree:
        if jax.tree.structure(part) != like:
            return part
        return sub.groups.insert(jax.tree.map(jnp.zeros_like, sent.params), part, kept)

    return seen._replace(payload={name: spread(part) for name, part in seen.payload.items()})


def _only(slots: Slots, chosen: Array) -> Slots:
    """The slots with the chosen living clients first; the others are not alive."""
    alive = slots.alive & chosen
    order = jnp.argsort(~alive, stable=True)
    return jax.tree.map(lambda x: x[order], slots._replace(alive=alive))


def _like_compact(parts: Parts, seen: Collected) -> Collected:
    """A dense round in the shapes of a compact one, whose infos are those of one block per tier."""
    blocks = 1 if parts.tiers is None else len(parts.tiers.rates)
    info = {n: jnp.concatenate([v] + [jnp.zeros_like(v)] * (blocks - 1)) for n, v in seen.info.items()}
    return seen._replace(info=info)


def check_compact(parts: Parts, states: PyTree) -> None:
    """Raises FljaxError unless compact execution can carry the round.

    Args:
      states: (local, transform, choice) states of ONE client. They would have to follow the changing shapes.
    """
    sub = parts.submodel
    remedy = 'Use perf.dropout = "masked".'
    if sub is None or sub.forward != "submodel" or sub.own is not None or sub.query is not None:
        raise FljaxError(f"Expected compact execution of sub-models that the server chooses. {remedy}")
    if jax.tree.leaves(states):
        raise FljaxError(f"Expected compact execution of clients that keep nothing between rounds. {remedy}")
