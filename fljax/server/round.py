"""One round of federated learning: the only place where sampling, dropout, training, privacy and the server meet.

``make_round`` binds the parts; the composed ``step`` reads like the algorithm in a paper and is one pure function of
(t, key, state, data, hparams), to be jitted, scanned over rounds and vmapped over trials.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fljax.client.sgd import schedule
from fljax.core import tree
from fljax.core.check import FljaxError
from fljax.core.keys import per_client, stream
from fljax.core.transform import Aggregator, Claim, UpdateTransform, summed, total_bound
from fljax.core.types import (
    Adversary,
    Array,
    Broadcast,
    Cohort,
    Ctx,
    Hparams,
    Key,
    LocalUpdate,
    Params,
    PyTree,
    Round,
    Selection,
    SubModel,
)
from fljax.server.adversary import forge, who_was_caught
from fljax.server.claims import round_claim, unbounded
from fljax.server.clients import (
    Compact,
    Link,
    Parts,
    Sent,
    Tiers,
    check_compact,
    init_choices,
    kept_neurons,
    run_cohort,
    shared_masks,
)
from fljax.server.execute import Collected, PerfFlags, Slots
from fljax.server.observe import Devices, count_work, mask_metrics
from fljax.server.positions import Agreed, Agreement, agree
from fljax.server.sampler import Sampler
from fljax.server.state import RoundInfo, RoundState, Transcript
from fljax.server.traffic import count_agreed, count_traffic


def make_round(
    *,
    sampler: Sampler,
    local: LocalUpdate,
    transform: UpdateTransform,
    server: Callable[[Array, Array], optax.GradientTransformation] = lambda lr, momentum: optax.sgd(lr, momentum),
    aggregator: Aggregator | None = None,
    available: Callable | None = None,
    submodel: SubModel | None = None,
    tiers: Tiers | None = None,
    compact: Compact | None = None,
    devices: Devices | None = None,
    adversary: Adversary | None = None,
    agreement: Agreement | None = None,
    perf: PerfFlags | None = None,
    link: Link | None = None,
) -> Round:
    """Builds one synchronous round from its parts.

    Args:
      sampler: who takes part.
      local: what one client computes.
      transform: chain of two-sided stages, the denominator first.
      server: (learning rate, momentum) -> optax optimiser; it is given minus the released update as its gradient.
      aggregator: how payloads meet; default the plain sum.
      available: (keys [C], ids [C], t, hparams) -> bool [C]; default everybody answers.
      submodel: dropout of neurons; default none.
      tiers: classes of devices with different keep rates; default one for all.
      compact: train physically small sub-models, for a static keep rate; default masks on the whole model.
      devices: classes of devices whose work is counted, for a simulated time; it changes nothing else.
      adversary: simulated malicious clients; default nobody is malicious.
      agreement: how it is agreed on whose words travel, under a secure sum of words for the kept neurons alone;
        default an upload is whole, or follows the masks.
      perf: flags for speed alone.
      link: how messages travel, for counting bytes; default as they are.

    Returns:
      A Round of pure functions; see ``fljax.core.types.Round``.

    Raises:
      FljaxError: parts that contradict each other, such as a rule that returns a mean under a denominator stage.
    """
    if aggregator is not None and aggregator.scale == "mean" and transform.denominator != "expected":
        found = transform.denominator or "none"
        raise FljaxError(
            f"Expected aggregator={aggregator.name!r}, which returns a mean, to come with the denominator 'expected', "
            f"found {found!r}. Use expected_average()."
        )
    if tiers is not None:
        if submodel is None:
            raise FljaxError(f"Expected tiers={tiers.rates!r} to come with dropout of neurons. Leave them out.")
        tiers.check(sampler.population)
    if devices is not None:
        devices.check(sampler.population, tiers)
    flags = perf or PerfFlags()
    meet, sent, slots = aggregator or summed(), link or Link(), sampler.capacity
    parts = Parts(local, transform, meet, submodel, tiers, compact, flags, slots, adversary, agreement, sent)
    return _Bound(sampler, parts, server, available, devices).functions()


class _Bound(NamedTuple):
    """The parts of a round, bound together."""

    sampler: Sampler
    parts: Parts
    server: Callable
    available: Callable | None
    devices: Devices | None

    @property
    def local(self) -> LocalUpdate:
        return self.parts.local

    @property
    def transform(self) -> UpdateTransform:
        return self.parts.transform

    @property
    def aggregator(self) -> Aggregator:
        return self.parts.aggregator

    @property
    def submodel(self) -> SubModel | None:
        return self.parts.submodel

    def functions(self) -> Round:
        return Round(self.init, self.step, self.transcript, self.sampler.law, self.claims, self.deployed)

    # --- state -------------------------------------------------------------------------------------------------

    def init(self, key: Key, params: Params, hparams: Hparams) -> RoundState:
        """State before round 0. params: all parameters of the model; private ones go to the clients.

        Every leaf is an array of its own, so that the state may be donated to a compiled call.
        """
        shared, _ = self.local.split(params)
        algorithm, own = self.local.init(stream(key, "private"), params, hparams)
        states, client_states = self.transform.init(shared, hparams)
        count, each = self.sampler.population, (own, client_states, init_choices(self.parts, shared))
        if self.parts.compact is not None:
            check_compact(self.parts, each)
        table = jax.tree.map(lambda x: jnp.repeat(x[None], count, axis=0), each)
        state = RoundState(
            params=shared,
            server=self.server(jnp.float32(0.0), hparams.server_momentum).init(shared),
            algorithm=algorithm,
            transforms=states,
            aggregator=self.aggregator.init(shared, hparams),
            submodel=() if self.submodel is None else self.submodel.init(shared, hparams),
            clients=table,
        )
        return jax.tree.map(jnp.copy, state)  # stages may start two states from one array

    # --- the round ---------------------------------------------------------------------------------------------

    def step(
        self, t: Array, key: Key, state: RoundState, data, hparams: Hparams, given: PyTree = None
    ) -> tuple[RoundState, RoundInfo]:
        """One round: sample, train, aggregate, decode, update. given: the sum of the payloads, where a host made it."""
        round_key = jax.random.fold_in(key, t)
        cohort, slots = self._cohort(key, round_key, t, data, hparams)
        ctx = self._ctx(t, round_key, state, hparams, slots)
        ctx, selection = self._select(ctx, state)
        ctx, agreed = self._agree(ctx, state, selection, slots, data)

        seen = self._clients(ctx, state, selection, slots, data, self.aggregator.collect, agreed)
        seen = seen if given is None else seen._replace(payload=given)
        released, transforms, aggregated, server_info = self._release(ctx, state, seen, slots)

        params, server = self._optimise(ctx, state, released["update"])
        written = jnp.where(slots.alive, slots.ids, self.sampler.population)
        new = RoundState(
            params=params,
            server=server,
            algorithm=self.local.absorb(ctx, state.algorithm, released),
            transforms=transforms,
            aggregator=aggregated,
            submodel=self._observe(ctx, state, selection, released),
            clients=tree.put_rows(state.clients, written, seen.states),
        )
        new = self._unless_aborted(ctx, new, state)
        info = self._info(ctx, cohort, slots, seen, selection, released["update"], state, data)
        return new, info._replace(server=info.server | server_info)

    def transcript(self, t: Array, key: Key, state: RoundState, data, hparams: Hparams) -> Transcript:
        """The same round by stacking instead of summing: the seam for replay on neighbouring data sets."""
        round_key = jax.random.fold_in(key, t)
        _, slots = self._cohort(key, round_key, t, data, hparams)
        cohort = Cohort(slots.ids, slots.ids < self.sampler.population)
        ctx, selection = self._select(self._ctx(t, round_key, state, hparams, slots), state)
        ctx, agreed = self._agree(ctx, state, selection, slots, data)
        seen = self._clients(ctx, state, selection, slots, data, "concat", agreed)
        total = _summed(seen.payload)
        collected = seen._replace(payload=total) if self.aggregator.collect == "sum" else seen
        released, *_ = self._release(ctx, state, collected, slots)
        public = {
            "bound": total_bound(ctx.bounds or {}),
            "noise_std": self.transform.noise(ctx, state.transforms, jnp.float32(0.0)),
            "support": ctx.support,
            "expected": ctx.expected,
        }
        neurons = kept_neurons(self.parts, ctx, selection, slots, seen.info)
        return Transcript(cohort, slots.alive, seen.payload, total, public, released, neurons)

    def deployed(self, t: Array, state: RoundState, hparams: Hparams) -> Params:
        """The shared model to use after round t: all of it, or the sub-model where no other will ever be trained."""
        if self.submodel is None:
            return state.params
        return self.submodel.deploy(t, hparams, state.submodel, state.params)

    # --- its parts ---------------------------------------------------------------------------------------------

    def _cohort(self, key: Key, round_key: Key, t: Array, data, hparams: Hparams) -> tuple[Cohort, Slots]:
        """Who is in and answers; the living first, the ones with the most data first among them."""
        cohort = self.sampler.sample(stream(key, "sample"), t, hparams)
        alive = cohort.real
        if self.available is not None:
            keys = per_client(stream(round_key, "available"), cohort.ids)
            alive = alive & self.available(keys, cohort.ids, t, hparams)
        sizes = jnp.where(alive, 1 + data.size_of(cohort.ids), 0)
        order = jnp.argsort(-sizes, stable=True)
        ids = cohort.ids[order]
        keys = per_client(stream(round_key, "client"), ids)
        slots = Slots(keys, ids, jnp.arange(ids.shape[0]), alive[order])
        if self.parts.adversary is None:
            return cohort, slots
        return cohort, slots._replace(malicious=self.parts.adversary.members(stream(key, "adversary"), hparams, t, ids))

    def _ctx(self, t: Array, round_key: Key, state: RoundState, hparams: Hparams, slots: Slots) -> Ctx:
        nobody = jnp.int32(-1)
        expected = jnp.asarray(self.sampler.expected(hparams), jnp.float32)
        presence = (slots.ids < self.sampler.population).astype(jnp.int32) + slots.alive
        ctx = Ctx(t, hparams, round_key, nobody, nobody, expected, hparams.keep_rate, presence=presence)
        return ctx._replace(bounds=self.transform.bound(ctx, state.transforms, unbounded(self.parts)))

    def _select(self, ctx: Ctx, state: RoundState) -> tuple[Ctx, Selection | None]:
        """Whose neurons come first in this round, and the public support of the noise."""
        if self.submodel is None:
            return ctx, None
        selection = self.submodel.select(ctx, state.submodel, state.params)
        support, inclusion = shared_masks(self.parts, ctx, state.params, selection)
        return ctx._replace(support=support, inclusion=inclusion), selection

    def _agree(self, ctx: Ctx, state: RoundState, selection, slots: Slots, data) -> tuple[Ctx, Agreed | None]:
        """Whose words travel, where that is agreed on before the uploads."""
        if self.parts.agreement is None:
            return ctx, None
        return agree(self.parts, ctx, state.params, selection, slots, state.clients[2], data)

    def _clients(
        self, ctx: Ctx, state: RoundState, selection, slots: Slots, data, collect: str, agreed: Agreed | None = None
    ) -> Collected:
        """Runs the clients; a forging adversary has to see what all of them send, whatever the server sees of it."""
        sent = Sent(state.params, state.algorithm, state.transforms, selection, agreed)
        adversary = self.parts.adversary
        if adversary is None or adversary.forge is None:
            return run_cohort(self.parts, ctx, sent, slots, state.clients, data, collect)
        seen = run_cohort(self.parts, ctx, sent, slots, state.clients, data, "concat")
        key = stream(ctx.round_key, "adversary")
        seen = forge(adversary, key, ctx, seen, slots, self.aggregator, state.aggregator)
        return seen if collect == "concat" else seen._replace(payload=_summed(seen.payload))

    def _aggregate(self, ctx: Ctx, state: RoundState, seen: Collected, slots: Slots):
        """The only cross-client operation: (total, state, what is observed)."""
        key, collected, rule = stream(ctx.round_key, "aggregate"), seen.payload, self.aggregator
        if rule.collect == "sum":
            return rule.reduce(key, ctx, collected, slots.alive, state.aggregator)
        sent = seen.info["sent"]
        if rule.own is not None:
            collected = (collected, rule.own(key, ctx, Broadcast(state.params, state.algorithm, ctx.support)))
        total, new, info = rule.reduce(key, ctx._replace(id=slots.ids), collected, sent, state.aggregator)
        if rule.scale == "mean":
            total = jax.tree.map(lambda x: x * ctx.expected, total)
        caught = who_was_caught(info.get("share"), slots, sent)
        return total, new, {**{name: v for name, v in info.items() if name != "share"}, **caught}

    def _release(self, ctx: Ctx, state: RoundState, seen: Collected, slots: Slots):
        """Aggregates and decodes. What comes out is what the server publishes."""
        total, aggregated, info = self._aggregate(ctx, state, seen, slots)
        key, sub, chosen = stream(ctx.round_key, "decode"), self.submodel, {}
        if sub is not None and sub.release is not None:  # a mechanism of its own, in the place of the chain's noise
            chosen = {"query": sub.release(stream(ctx.round_key, "query"), ctx, total["query"])}
            total = {name: part for name, part in total.items() if name != "query"}
        released, transforms, told = self.transform.decode(key, ctx, total, slots.alive, state.transforms)
        return {**released, **chosen}, transforms, aggregated, {**info, **told}

    def _optimise(self, ctx: Ctx, state: RoundState, update: PyTree) -> tuple[PyTree, PyTree]:
        """The server's step. Momentum rests where the mask is 0: what nobody trained neither moves nor decays."""
        h = ctx.hparams
        rate = schedule(h.server_lr, h.server_lr_decay, h.lr_warmup, ctx.round)
        gradient = jax.tree.map(jnp.negative, update)
        step, new = self.server(rate, h.server_momentum).update(gradient, state.server, state.params)
        params = optax.apply_updates(state.params, step)
        if ctx.support is None:
            return params, new
        like = jax.tree.structure(state.params)

        def rest(after: PyTree, before: PyTree) -> PyTree:
            if jax.tree.structure(after) != like:
                return after
            return tree.where(ctx.support, after, before)

        new = jax.tree.map(rest, new, state.server, is_leaf=lambda x: jax.tree.structure(x) == like)
        return tree.where(ctx.support, params, state.params), new

    def _unless_aborted(self, ctx: Ctx, new: RoundState, old: RoundState) -> RoundState:
        """The new state; where a secure sum could not be finished, all but the clients' states stays as it was."""
        if self.transform.proceeds is None:
            return new
        kept = tree.select(self.transform.proceeds(ctx), new._replace(clients=()), old._replace(clients=()))
        return kept._replace(clients=new.clients)

    def _observe(self, ctx: Ctx, state: RoundState, selection: Selection | None, released: PyTree) -> PyTree:
        if self.submodel is None:
            return state.submodel
        std = self.transform.noise(ctx, state.transforms, jnp.float32(0.0))
        return self.submodel.observe(ctx, state.submodel, selection, released, std)

    def _info(self, ctx: Ctx, cohort: Cohort, slots: Slots, seen: Collected, selection, update, state, data):
        ok, sub, fresh = seen.info["ok"], self.submodel, seen.info.get("fresh", jnp.bool_(False))
        means = {n: _mean(v, ok) for n, v in seen.info.items() if n not in ("ok", "sent", "fresh", "neurons", "words")}
        traffic = count_traffic(self.parts, ctx, selection, state.params, state.algorithm, seen.payload)
        if self.parts.agreement is not None:
            traffic = count_agreed(traffic, self.parts, ctx, seen, slots, state.params)
        neurons = seen.info.get("neurons")
        masks = mask_metrics(sub, traffic, ctx, state.submodel, state.params, selection, slots, neurons)
        work = {}
        if self.devices is not None:
            sizes = data.size_of(slots.ids)
            work = count_work(self.devices, traffic, ctx, sub, selection, slots, sizes, fresh)
        return RoundInfo(
            contacted=jnp.sum(cohort.real),
            answered=jnp.sum(slots.alive),
            participants=jnp.sum(ok),
            uplink_values=traffic.up_values,
            downlink_values=traffic.down_values,
            uplink=traffic.uplink(slots.ids, slots.alive),
            downlink=traffic.downlink(slots.ids, slots.ids < self.sampler.population, fresh & slots.alive),
            client=means,
            server={"update_norm": tree.norm(update), **masks},
            classes=work,
        )

    # --- for the accountant ------------------------------------------------------------------------------------

    def claims(self, hparams: Hparams, params: Params) -> Claim:
        """What all stages together promise, with concrete numbers."""
        return round_claim(self.sampler, self.parts, hparams, params)


def _summed(payload: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jnp.sum(x, axis=0), payload)


def _mean(values: Array, ok: Array) -> Array:
    """Mean over the participants, 0 where there are none."""
    return jnp.sum(jnp.where(ok, values, 0.0)) / jnp.maximum(jnp.sum(ok), 1)
