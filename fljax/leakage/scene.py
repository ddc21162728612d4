"""A real round of an experiment, as it happened: the material from which every adversary's view is cut.

The oracle's part is here, too: the victims' examples, and what they would have sent without any defence. No attack sees
either; they are what attacks are scored against.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fljax.config import Experiment
from fljax.core import tree
from fljax.core.check import FljaxError
from fljax.core.keys import per_client, stream
from fljax.core.types import Array, Broadcast, Ctx, Hparams, Key, Params, PyTree, Selection
from fljax.data.federated import FederatedData
from fljax.leakage.protocol import Protocol, client_simulator
from fljax.leakage.views import AdversaryView, Uploads, visible
from fljax.privacy.statement import PrivacyStatement
from fljax.server.execute import auto_chunk
from fljax.server.sampler import bernoulli_availability
from fljax.server.state import RoundState, Transcript
from fljax.sim.build import Program, build, resolve
from fljax.sim.engine import Running, Schedule, compile_call, drive, make_call

SQUARE = {"digits": (8, 8, 1)}
"""Data sets whose examples are images written as rows."""


class Scene(NamedTuple):
    """Round t of a run. statement, hparams: of the run. state: before the round. ctx: of the round, on the server.

    victims: [V] places in the transcript. x [V, M, ...], y [V, M], sizes [V]: their examples, padded with zeros.
    bare: tree [V, ...], what they would have sent without masks, clip, compression and noise.
    """

    experiment: Experiment
    program: Program
    statement: PrivacyStatement
    hparams: Hparams
    key: Key
    ctx: Ctx
    state: RoundState
    transcript: Transcript
    selection: Selection | None
    protocol: Protocol
    victims: np.ndarray
    x: np.ndarray
    y: np.ndarray
    sizes: np.ndarray
    bare: PyTree

    @property
    def data(self) -> FederatedData:
        """The data of all clients."""
        return resident(self.program)

    def truths(self) -> list[np.ndarray]:
        """The examples of every victim, without padding."""
        return [x[:n] for x, n in zip(self.x, self.sizes, strict=True)]

    def labels(self) -> list[np.ndarray]:
        """The labels of every victim, without padding."""
        return [y[:n] for y, n in zip(self.y, self.sizes, strict=True)]


def default_round(experiment: Experiment) -> int:
    """The first round in which masks are in use; 0 without masks, where a fresh model leaks most."""
    first = experiment.dropout.warmup_rounds if experiment.dropout.source != "none" else 0
    return min(first, experiment.rounds - 1)


def set_scene(experiment: Experiment, t: int, victims: int, final: bool) -> tuple[Scene, Params | None]:
    """Runs an experiment up to round t, replays that round with everything kept, and with ``final`` runs to its end.

    Args:
      t: round that is looked at, from 0. victims: at most so many of the round's clients, evenly spread over it.

    Returns:
      (the scene, the model after the last round or None).

    Raises:
      FljaxError: a sweep, data that are streamed, a round beyond the last, a round without clients.
    """
    _check(experiment, t)
    program = build(experiment)
    hparams, statement = resolve(experiment, program)
    rounds = statement.rounds or experiment.rounds
    if t >= rounds:
        raise FljaxError(f"Expected round={t} < {rounds}, the rounds that run. Choose an earlier one.")
    numbers, key = hparams.arrays(), jax.random.key(experiment.seed)
    state = program.round.init(key, program.params(experiment.seed), numbers)
    first = jax.tree.map(lambda row: np.asarray(row[0]), state.clients[0])  # a call donates its state
    go_on = _runner(experiment, program, rounds, key, numbers, state) if t or final else None
    if t:
        assert go_on is not None
        state = go_on(Running(0, state, {}), t)
    scene = _look(experiment, program, statement, numbers, key, state, first, t, victims)
    if not final:
        return scene, None
    assert go_on is not None
    done = go_on(Running(t, jax.tree.map(jnp.copy, state), {}), rounds)
    return scene, program.round.deployed(jnp.int32(rounds - 1), done, numbers)


def resident(program: Program) -> FederatedData:
    """The training data, which are on the device: streamed data are refused."""
    assert isinstance(program.dataset.train, FederatedData)
    return program.dataset.train


def _check(experiment: Experiment, t: int) -> None:
    if experiment.sweep is not None:
        raise FljaxError(f"{experiment.name} holds a sweep. Look at one of its trials: --sweep None and its fields.")
    if experiment.data.streamed:
        raise FljaxError("Expected data.streamed=true to be false here: a round is replayed on resident data.")
    if not 0 <= t < experiment.rounds:
        raise FljaxError(f"Expected round={t} in [0, {experiment.rounds}), the rounds of {experiment.name}.")


def _runner(experiment: Experiment, program: Program, rounds: int, key: Key, numbers: Hparams, state: RoundState):
    """(running, round) -> state before that round; compiled once."""
    length = min(experiment.perf.rounds_per_call, rounds)
    call = make_call(program.round, lambda params, clients, held: {}, length)
    data, nothing = program.dataset.train, _nothing()

    def schedule(until: int) -> Schedule:
        return Schedule(jnp.int32(until), jnp.int32(rounds), jnp.int32(until))

    executable, _ = compile_call(call, np.int32(0), schedule(rounds), key, state, data, nothing, numbers)

    def go_on(running: Running, until: int) -> RoundState:
        return drive(executable, running, schedule(until), key, data, nothing, numbers)[0].state

    return go_on


def _nothing() -> Any:
    return ()


def _look(
    experiment: Experiment,
    program: Program,
    statement: PrivacyStatement,
    numbers: Hparams,
    key: Key,
    state: RoundState,
    first: PyTree,
    t: int,
    victims: int,
) -> Scene:
    """Replays the round, and takes its victims' data out of it. first: a client's private state before round 0."""
    data, now = resident(program), jnp.int32(t)
    transcript = jax.jit(program.round.transcript)(now, key, state, data, numbers)
    round_key = jax.random.fold_in(key, now)
    nobody = jnp.int32(-1)
    expected = jnp.asarray(program.sampler.expected(numbers), jnp.float32)
    ctx = Ctx(now, numbers, round_key, nobody, nobody, expected, numbers.keep_rate)
    sub = program.submodel
    selection = None if sub is None else jax.jit(sub.select)(ctx, state.submodel, state.params)
    living = np.flatnonzero(np.asarray(transcript.alive) & (np.asarray(data.size_of(transcript.cohort.ids)) > 0))
    if not len(living):
        raise FljaxError(f"Expected round={t} to have clients with examples. Choose another round.")
    chosen = living[np.unique(np.linspace(0, len(living) - 1, min(victims, len(living))).astype(int))]
    x, y, sizes = _examples(data, transcript.cohort.ids[chosen])
    protocol = _protocol(experiment, program, ctx, state, first)
    bare = bare_updates(program, ctx, state, transcript.cohort.ids[chosen])
    return Scene(
        experiment,
        program,
        statement,
        numbers,
        key,
        ctx,
        state,
        transcript,
        selection,
        protocol,
        chosen,
        x,
        y,
        sizes,
        bare,
    )


def _examples(data: Any, ids: Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(x, y, sizes) of clients, as long as the largest of them, padded with zeros."""
    offsets, x, y = np.asarray(data.offsets), np.asarray(data.x), np.asarray(data.y)
    rows = [np.arange(offsets[k], offsets[k + 1]) for k in np.asarray(ids)]
    sizes = np.array([len(r) for r in rows])
    xs, ys = (np.zeros((len(rows), sizes.max(), *part.shape[1:]), part.dtype) for part in (x, y))
    for k, r in enumerate(rows):
        xs[k, : len(r)], ys[k, : len(r)] = x[r], y[r]
    return xs, ys, sizes


def _protocol(experiment: Experiment, program: Program, ctx: Ctx, state: RoundState, first: PyTree) -> Protocol:
    """What everybody knows of the experiment; the mean image and the range are those of its public test set."""
    dataset, sub = program.dataset, program.submodel
    quiet = ctx._replace(hparams=_without_noise(ctx.hparams, experiment))
    simulate = client_simulator(program.local, quiet, state.algorithm, first, sub is None or sub.forward == "submodel")
    public = np.asarray(dataset.test.x)
    shape, reals = tuple(dataset.input_shape), np.issubdtype(public.dtype, np.floating)
    image = shape if len(shape) == 3 else SQUARE.get(dataset.name) if len(shape) == 1 else None
    low, high = (float(public.min()), float(public.max())) if reals else (0.0, 1.0)
    together = auto_chunk(tree.num_elements(state.params), 64) or 64
    known = (low, high, dataset.test.x, dataset.test.y, dataset.num_classes)
    return Protocol(simulate, program.model, program.loss, shape, image, *known, at_once=together)


def _without_noise(hparams: Hparams, experiment: Experiment) -> Hparams:
    """The numbers of a client that does not noise its own steps."""
    if experiment.privacy.mechanism != "record_gaussian":
        return hparams
    return dataclasses.replace(hparams, noise_multiplier=jnp.float32(0.0))


def bare_updates(program: Program, ctx: Ctx, state: RoundState, ids: Array) -> PyTree:
    """What clients would send in the round without any defence: tree [n, ...]."""
    return jax.jit(lambda ids: jax.lax.map(lambda i: bare_update(program, ctx, state, i), ids))(ids)


def bare_update(program: Program, ctx: Ctx, state: RoundState, client: Array) -> PyTree:
    """What ONE client would send in the round without masks, clip, compression and noise."""
    numbers = dataclasses.replace(ctx.hparams, noise_multiplier=jnp.float32(0.0), clip=jnp.float32(math.inf))
    mine = ctx._replace(hparams=numbers, id=client, keep_rate=jnp.float32(1.0))
    own = jax.tree.map(lambda row: row[client], state.clients[0])
    key = jax.random.fold_in(stream(ctx.round_key, "client"), client)
    shard = resident(program).take(jnp.int32(0), client)
    broadcast = Broadcast(state.params, state.algorithm, None)
    payload, *_ = program.local.run(stream(key, "local"), mine, broadcast, own, shard)
    return payload["update"]


# ---- what becomes of it in the eyes of an adversary -----------------------------------------------------------------


def make_view(scene: Scene, adversary: str, defences: list[str], final: Params | None = None) -> AdversaryView:
    """The view of an adversary, cut out of a scene: what its defences hide is None in it.

    Where single uploads are hidden, or are words and no numbers, ``uploads`` is their sum, or else what was released.
    """
    items = visible(adversary, defences)
    uploads = None
    if "uploads" in items and "models" in items and is_update(scene, scene.transcript.payloads["update"], 1):
        uploads = Uploads(single_uploads(scene), upload_masks(scene), jnp.asarray(scene.sizes).reshape(-1, 1))
    elif "models" in items and ("sum" in items or "released" in items):
        uploads = _together(scene, "sum" in items)
    return AdversaryView(
        adversary,
        scene.protocol,
        model=scene.state.params if "models" in items else None,
        uploads=uploads,
        neurons=all_neurons(scene) if "positions" in items else None,
        cohorts=all_cohorts(scene) if "cohorts" in items else None,
        released=scene.transcript.released["update"] if "released" in items else None,
        final=final if "final" in items else None,
    )


def is_update(scene: Scene, sent: PyTree, axes: int) -> bool:
    """Whether what was sent is real numbers in the shape of the model, behind so many leading axes, and not words."""
    like = jax.tree.leaves(scene.state.params)
    shapes = [x.shape[axes:] for x in jax.tree.leaves(sent) if jnp.issubdtype(x.dtype, jnp.floating)]
    return shapes == [x.shape for x in like]


def single_uploads(scene: Scene) -> PyTree:
    """The victims' uploads as they were sent: tree [V, ...]."""
    return jax.tree.map(lambda u: u[scene.victims], scene.transcript.payloads["update"])


def ones_like_uploads(scene: Scene, count: int) -> PyTree:
    """The mask of those who keep everything: tree [count, ...]."""
    return jax.tree.map(lambda p: jnp.ones((count, *p.shape)), scene.state.params)


def upload_masks(scene: Scene) -> PyTree:
    """Which coordinates every victim trained and sent, as the positions that travel with its upload tell."""
    count, sub = len(scene.victims), scene.program.submodel
    masks = ones_like_uploads(scene, count)
    if sub is not None and scene.transcript.neurons is not None:
        chosen = {g: m[scene.victims] for g, m in scene.transcript.neurons.items()}
        masks = jax.vmap(lambda m: sub.groups.masks(scene.state.params, m))(chosen)
    if scene.experiment.compress.sparsify != "none":  # what was not sent is told by its absence
        masks = jax.tree.map(lambda m, u: m * (u != 0), masks, single_uploads(scene))
    return masks


def _together(scene: Scene, before_noise: bool) -> Uploads:
    """The sum of the round as one update, before the server's noise or as it was released."""
    whole, like = scene.transcript.released["update"], scene.state.params
    total = scene.transcript.pre_noise["update"]
    if before_noise and is_update(scene, total, 0):
        whole = total
    support = scene.transcript.public["support"]
    mask = jax.tree.map(jnp.ones_like, like) if support is None else support
    alive = np.asarray(scene.transcript.alive)
    sizes = scene.data.size_of(scene.transcript.cohort.ids[np.flatnonzero(alive)])
    lead = lambda part: jax.tree.map(lambda x: x[None], part)  # noqa: E731
    return Uploads(lead(whole), lead(mask), sizes.reshape(1, -1))


def all_cohorts(scene: Scene) -> np.ndarray:
    """Who took part in which round of the run: [T, N] bool. Cohorts are a function of key and round alone."""
    sampler, rounds = scene.program.sampler, scene.statement.rounds or scene.experiment.rounds

    def one(t: Array) -> Array:
        cohort = sampler.sample(stream(scene.key, "sample"), t, scene.hparams)
        keys = per_client(stream(jax.random.fold_in(scene.key, t), "available"), cohort.ids)
        alive = cohort.real & bernoulli_availability(keys, cohort.ids, t, scene.hparams)
        return jnp.zeros(sampler.population, bool).at[cohort.ids].set(alive, mode="drop")

    return np.asarray(jax.jit(lambda ts: jax.lax.map(one, ts))(jnp.arange(rounds)))


def all_neurons(scene: Scene) -> dict[str, Array] | None:
    """Whose neurons every client of the federation would keep if it were in this round; None where all keep the same.

    Clients that choose by themselves do so on their own data, with their own memory, under the round's model.
    """
    if not chosen_by_clients(scene):
        return None
    ids = jnp.arange(scene.data.population)
    keys = per_client(stream(scene.ctx.round_key, "client"), ids)
    return choices(scene, keys, ids, scene.state.clients[2], scene.data)


def chosen_by_clients(scene: Scene) -> bool:
    """Whether clients keep different neurons, which they or the server choose one by one."""
    sub = scene.program.submodel
    return sub is not None and sub.own is not None and scene.experiment.dropout.source != "self_released"


def choices(scene: Scene, keys: Key, ids: Array, states: PyTree, data: Any) -> dict[str, Array]:
    """Masks of neurons of any clients: keys [n], ids [n], states of the choice [n, ...] -> {group: [n, size]}."""
    sub, params = scene.program.submodel, scene.state.params
    assert sub is not None and sub.own is not None
    own, selection = sub.own, scene.selection

    def one(args):
        key, client, state = args
        ctx = scene.ctx._replace(id=client)
        chosen, _ = own.choose(stream(key, "masks"), ctx, params, state, data.take(jnp.int32(0), client), selection)
        return sub.masks(ctx, chosen)

    batch = min(64, ids.shape[0])
    return jax.jit(lambda *args: jax.lax.map(one, args, batch_size=batch))(keys, ids, states)
