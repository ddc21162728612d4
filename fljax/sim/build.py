"""From an experiment to what runs: the data, one program per static structure, numbers and the privacy statement.

The program, the calibrated noise and the epsilon all come from the same sampler and the same stages, so that they
cannot disagree.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fljax.client.dpsgd import dpsgd_update
from fljax.client.prox import ditto_update, fedprox_update
from fljax.client.scaffold import scaffold_update
from fljax.client.sgd import Training, fedavg_update, fedsgd_update
from fljax.config import Experiment
from fljax.core import tree
from fljax.core.check import FljaxError
from fljax.core.keys import stream
from fljax.core.transform import Noise
from fljax.core.types import Hparams, LocalUpdate, Params, Round, SamplingLaw, SubModel
from fljax.data import Dataset, load_dataset
from fljax.dropout.baselines import magnitude_dropout, ordered_dropout, random_dropout, rescale, rolling_dropout
from fljax.dropout.fisher import fisher_dropout
from fljax.dropout.information import Learner
from fljax.dropout.positions import reported_positions
from fljax.dropout.sources import exact_dropout, paid_dropout, public_dropout, random_per_client, self_released_dropout
from fljax.dropout.votes import gumbel_dropout
from fljax.dropout.widths import random_widths
from fljax.models import Loss, Model, make_loss, make_model
from fljax.models.precision import compute_in
from fljax.privacy.accounting import default_delta
from fljax.privacy.budget import affordable_rounds
from fljax.privacy.calibration import calibrate_many
from fljax.privacy.ledger import Ledger, open_ledger
from fljax.privacy.mechanisms import GAUSSIAN, make_event
from fljax.privacy.record import private_gradient, smallest_client, state_record_privacy
from fljax.privacy.statement import PrivacyStatement, state_privacy
from fljax.privacy.validity import mask_route
from fljax.robust.poison import Goal
from fljax.sections import DataConfig
from fljax.secure.channel import OVERHEAD
from fljax.server.clients import Compact, Link
from fljax.server.execute import PerfFlags, auto_chunk, padding_waste
from fljax.server.optim import server_optimiser
from fljax.server.round import make_round
from fljax.server.sampler import Sampler, bernoulli_availability, make_sampler
from fljax.sim.ciphers import encrypted, he_caveats
from fljax.sim.defence import attack_goal, make_aggregator, make_attack, robust_numbers
from fljax.sim.devices import counted_devices, local_steps, tier_rates
from fljax.sim.mechanisms import make_transform
from fljax.sim.mesh import check_busy, client_mesh
from fljax.sim.secure import agreement
from fljax.sim.tiers import check_tiers, make_tiers, noise_trap

SUBMODELS = {
    "fisher": fisher_dropout,
    "random": random_dropout,
    "ordered": ordered_dropout,
    "rolling": rolling_dropout,
    "magnitude": magnitude_dropout,
}
"""Sources of masks by name: (groups, forward) -> SubModel."""


@dataclass(frozen=True)
class Program:
    """Everything static of an experiment, shared by all trials of one structure.

    dataset, model, loss: what is learnt. local: the client's algorithm. sampler: who takes part. round: the round.
    chunk: clients per vmapped batch. waste: steps executed relative to those that count (see ``padding_waste``).
    goal: what a simulated attack wants of the model, to be evaluated; None without one.
    submodel: dropout of neurons, or None.
    """

    dataset: Dataset
    model: Model
    loss: Loss
    local: LocalUpdate
    sampler: Sampler
    round: Round
    chunk: int
    waste: float
    goal: Goal | None = None
    submodel: SubModel | None = None

    def params(self, seed: int) -> Params:
        """Initial parameters of a run."""
        return self.model.init(stream(jax.random.key(seed), "init"))


def load_data(config: DataConfig) -> Dataset:
    """The data set of an experiment, partitioned and on the device."""
    fields = config.model_dump(exclude={"name", "dir"})
    return load_dataset(config.name, data_dir=config.dir, **fields)


def _same(part: Any) -> Any:
    return part


class Guests(NamedTuple):
    """Clients beside those of the data set, as an audit adds them, with ids N, N + 1, ...

    count: how many. local: (the clients' algorithm) -> one that knows them. available: (who answers) -> the same.
    """

    count: int = 0
    local: Callable[[LocalUpdate], LocalUpdate] = _same
    available: Callable[[Callable], Callable] = _same


def build(
    experiment: Experiment, dataset: Dataset | None = None, max_rate: float | None = None, guests: Guests | None = None
) -> Program:
    """Builds the program of an experiment.

    Args:
      experiment: validated configuration; only its structure matters.
      dataset: loaded data, if the caller has them already.
      max_rate: the largest sampling rate that will run (default: the experiment's own); it fixes the cohort's slots.
      guests: clients beside those of the data set; they count as population.
    """
    extra = guests or Guests()
    dataset = load_data(experiment.data) if dataset is None else dataset
    options = experiment.model.model_dump(exclude={"name"}, exclude_none=True)
    model = make_model(experiment.model.name, dataset.input_shape, dataset.num_classes, **options)
    loss = make_loss(dataset.task)
    population, law = dataset.train.population + extra.count, experiment.sampler
    groups = experiment.privacy.bands
    sampler = make_sampler(law.kind, population, rate=max_rate or law.rate, cohort=law.cohort, groups=groups)
    mesh = client_mesh(experiment.perf.devices)
    check_busy(mesh, sampler.capacity)
    plain = _local(experiment, model, loss, population)
    local = extra.local(plain)
    size, leaves = _shared_size(model, local)
    chain = make_transform(experiment, sampler, size, leaves, dataset.train.max_size, model.groups)
    dropped = _dropout(experiment, model, loss, dataset, population)
    aggregator = make_aggregator(experiment, dataset, plain, population)
    rounds = partial(
        make_round,
        sampler=sampler,
        local=local,
        transform=encrypted(experiment, chain, sampler, size),
        server=server_optimiser(experiment.server.optimizer),
        aggregator=aggregator,
        adversary=make_attack(experiment, dataset, population),
        available=extra.available(bernoulli_availability),
        **dropped,
        agreement=agreement(experiment),
        devices=counted_devices(experiment, population, dataset.train.max_size),
        link=_link(experiment),
    )
    summing = aggregator is None or aggregator.collect == "sum"
    living = _living(experiment, model, rounds(), sampler, max_rate) if summing else None
    steps, asked = local_steps(experiment.client, dataset.train.sizes), experiment.perf.chunk
    chunk = asked if isinstance(asked, int) else auto_chunk(size, sampler.capacity, steps, living)
    built = rounds(perf=PerfFlags(chunk, mesh))
    waste, goal = padding_waste(steps, sampler.capacity, chunk, living), attack_goal(experiment, dataset)
    return Program(dataset, model, loss, local, sampler, built, chunk, waste, goal, dropped.get("submodel"))


def _link(experiment: Experiment) -> Link:
    """How messages travel."""
    he = experiment.he
    return Link(OVERHEAD if experiment.channel.kind == "aes_gcm" else 0, he.kind != "none" and he.key == "clients")


def _dropout(experiment: Experiment, model: Model, loss: Loss, dataset: Dataset, population: int) -> dict[str, Any]:
    """Which neurons clients train: sub-model, tiers and execution, as arguments of ``make_round``."""
    d = experiment.dropout
    if d.source == "none":
        return {}
    compact = None
    if experiment.perf.dropout == "compact":
        if d.auto_keep > 0:
            raise FljaxError(f"Expected dropout.auto_keep={d.auto_keep:g} to be 0 under perf.dropout = 'compact'.")
        compact = Compact(d.widest, d.warmup_rounds)
    rates = tier_rates(experiment, model, dataset)
    tiers = None if len(rates) == 1 else make_tiers(experiment, rates, dataset, population)
    return {"submodel": _submodel(experiment, model, loss, dataset), "tiers": tiers, "compact": compact}


def _submodel(experiment: Experiment, model: Model, loss: Loss, dataset: Dataset) -> SubModel:
    """The source of the masks."""
    d, learner = experiment.dropout, Learner(model.apply, loss, model.groups)
    if d.source == "public":
        return public_dropout(learner, _public_inputs(dataset, d.public_examples), d.forward, d.information)
    if d.source == "random_per_client":
        return random_per_client(model.groups, d.forward)
    if d.source == "paid":
        return paid_dropout(learner, d.forward, d.information)
    if d.source == "gumbel":
        return gumbel_dropout(learner, d.forward, d.information)
    if d.source == "exact":
        chosen = exact_dropout(learner, d.forward, d.support, d.information, d.positions)
        epsilon = experiment.secure.positions_epsilon
        return chosen if epsilon is None else reported_positions(chosen, epsilon)
    if d.source == "self_released":  # the std that local_gaussian adds to one upload
        return self_released_dropout(model.groups, d.forward, lambda c: c.hparams.noise_multiplier * c.hparams.clip)
    return SUBMODELS[d.source](model.groups, d.forward)


def _public_inputs(dataset: Dataset, count: int) -> jax.Array:
    """Inputs of clients that never train, or uniform random ones in [0, 1)."""
    if dataset.unseen is not None:
        return dataset.unseen.x[:count]
    if not jnp.issubdtype(dataset.train.x.dtype, jnp.floating):
        raise FljaxError("Expected data.unseen_clients=0 to be > 0: random inputs stand for images, not for text.")
    return jax.random.uniform(jax.random.key(0), (count, *dataset.input_shape))


def _shared_size(model: Model, local: LocalUpdate) -> tuple[int, int]:
    """P, the number of parameters that travel, and the number of arrays that hold them."""
    shared = jax.eval_shape(lambda k: local.split(model.init(k))[0], jax.random.key(0))
    return tree.num_elements(shared), len(jax.tree.leaves(shared))


def _living(
    experiment: Experiment, model: Model, unbatched: Round, sampler: Sampler, max_rate: float | None
) -> float | None:
    """Clients that are expected to answer in a round at the largest sampling rate; None where clients keep anything
    between rounds, so that no batch of slots is skipped. unbatched: the round, whose batches are not chosen yet."""
    numbers = experiment.hparams()
    state = jax.eval_shape(unbatched.init, jax.random.key(0), model.shapes(), numbers)
    if jax.tree.leaves(state.clients):
        return None
    numbers = numbers if max_rate is None else _with(numbers, sampling_rate=max_rate)
    return float(sampler.expected(numbers)) * float(numbers.availability)


def _local(experiment: Experiment, model: Model, loss: Loss, population: int) -> LocalUpdate:
    """The client's algorithm by name."""
    c = experiment.client
    epochs = 1 if c.epochs is None and c.steps is None else c.epochs
    scaler = rescale(model.groups) if experiment.dropout.rescale else None
    optimiser = _client_optimiser(experiment)
    learnt = compute_in(model, c.precision)
    training = Training(learnt, loss, optimiser, epochs, c.steps, c.batch_size, scaler, c.present_classes)
    if experiment.dropout.widths:
        d, learner = experiment.dropout, Learner(learnt.apply, loss, model.groups)
        training = training._replace(objective=random_widths(learner, d.widths, d.distill is not None))
    if experiment.privacy.mechanism == "record_gaussian":
        return dpsgd_update(training, private_gradient)
    if c.algorithm == "fedavg":
        return fedavg_update(training, c.shared)
    if c.algorithm == "scaffold":
        return scaffold_update(training, population)
    return {"fedsgd": fedsgd_update, "fedprox": fedprox_update, "ditto": ditto_update}[c.algorithm](training)


def _client_optimiser(experiment: Experiment):
    """learning rate -> optax optimiser, with momentum and weight decay where they are asked for."""
    c = experiment.client
    if c.optimizer == "sgd":
        base = lambda lr: optax.sgd(lr, c.momentum or None)  # noqa: E731
    elif c.optimizer == "adamw":
        return lambda lr: optax.adamw(lr, weight_decay=c.weight_decay)
    else:
        base = getattr(optax, c.optimizer)
    if c.weight_decay == 0:
        return base
    return lambda lr: optax.chain(optax.add_decayed_weights(c.weight_decay), base(lr))


def resolve(
    experiment: Experiment, program: Program, noise: float | None = None, known: PrivacyStatement | None = None
) -> tuple[Hparams, PrivacyStatement]:
    """The numbers of one trial, its noise calibrated, and what may be said about its privacy.

    Args:
      experiment: the trial. program: of its structure.
      noise: the calibrated noise multiplier, if it is known already (see ``calibrated``).
      known: the statement, if it is known from a trial with the same privacy, sampler and rounds.

    Returns:
      (numbers, statement); ``statement.rounds`` is how many rounds may run, fewer than asked for under a budget.

    Raises:
      FljaxError: the budget cannot be met, delta >= 1/N.
    """
    privacy, hparams = experiment.privacy, experiment.hparams()
    check_tiers(experiment, program.model.groups)
    hparams = _with(hparams, extra=hparams.extra | robust_numbers(experiment, program.sampler))
    if experiment.dropout.tiers == "resources" and experiment.perf.dropout != "compact":
        rates = tier_rates(experiment, program.model, program.dataset)
        hparams = _with(hparams, extra=hparams.extra | {f"tier_{k}": rate for k, rate in enumerate(rates)})
    if privacy.epsilon is not None:
        noise = calibrated([experiment], program)[0] if noise is None else noise
        hparams = _with(hparams, noise_multiplier=noise)
    if known is not None:
        return hparams, known
    claim = program.round.claims(hparams, program.params(0))
    reasons = [claim.reason] if claim.reason else []
    law = program.round.law(hparams)
    rounds = _affordable(experiment, program, law, claim.noise)
    if claim.noise is not None and claim.noise.trust == "record":
        sizes = program.dataset.train.sizes
        statement = state_record_privacy(law, claim.noise, rounds, privacy.delta, sizes, reasons)
    else:
        statement = state_privacy(law, claim.noise, rounds, privacy.delta, reasons, claim.values_only)
    if he_caveats(experiment):
        statement = dataclasses.replace(statement, caveats=(*he_caveats(experiment), *statement.caveats))
    if claim.noise is not None and claim.masks is not None and statement.status != "none":
        route = (mask_route(claim.masks), *noise_trap(experiment, claim.noise.trust))
        statement = dataclasses.replace(statement, caveats=(*route, *statement.caveats))
    if statement.status == "refused" and privacy.epsilon is not None:
        raise FljaxError(f"privacy.epsilon={privacy.epsilon:g} cannot be promised: {statement.reason}")
    return hparams, statement


def privacy_ledger(program: Program, hparams: Hparams, statement: PrivacyStatement) -> Ledger:
    """What a run spends round by round; empty where no epsilon is stated, or where every client has its own."""
    noise = program.round.claims(hparams, program.params(0)).noise
    if statement.epsilon is None or noise is None or noise.trust == "record":
        return Ledger()
    assert statement.rounds is not None and statement.delta is not None
    return open_ledger(program.round.law(hparams), noise, statement.rounds, statement.delta)


def _asked(
    program: Program, law: SamplingLaw, noise: Noise, rounds: int, delta: float | None
) -> tuple[SamplingLaw, Noise, float]:
    """What the accountant is asked about: at record level the smallest client. Delta is N^-1.1 unless it is given."""
    if noise.trust == "record":
        return smallest_client(law, noise, delta, program.dataset.train.sizes)
    population = make_event(law, noise, rounds).population or program.sampler.population
    return law, noise, delta or default_delta(population)


def _affordable(experiment: Experiment, program: Program, law: SamplingLaw, noise: Noise | None) -> int:
    """The rounds that the budget allows, all of them where there is none."""
    budget = experiment.privacy.budget
    if budget is None or noise is None:
        return experiment.rounds
    law, noise, delta = _asked(program, law, noise, experiment.rounds, experiment.privacy.delta)
    rounds = affordable_rounds(law, noise, experiment.rounds, delta, budget)
    if rounds == 0:
        raise FljaxError(f"Expected privacy.budget={budget:g} to allow one round. Use more noise or a larger budget.")
    return rounds


def calibrated(experiments: list[Experiment], program: Program) -> list[float]:
    """Noise multipliers that meet the trials' target epsilons; equal questions are answered once, and cached."""
    asked, place, known = [], [], {}
    params = program.params(0)
    for experiment in experiments:
        target = experiment.privacy.epsilon
        if target is None or target == math.inf:
            place.append(None)
            continue
        hparams = _with(experiment.hparams(), noise_multiplier=1.0)
        mechanism = (experiment.privacy.model_copy(update={"epsilon": None}), experiment.sampler, experiment.dropout)
        if mechanism not in known:
            known[mechanism] = program.round.claims(hparams, params).noise or GAUSSIAN
        law, noise = program.round.law(hparams), known[mechanism]
        law, noise, delta = _asked(program, law, noise, experiment.rounds, experiment.privacy.delta)
        place.append(len(asked))
        asked.append((law, target, experiment.rounds, delta, noise))
    answers = calibrate_many(asked)
    return [0.0 if p is None else answers[p] for p in place]


def _with(hparams: Hparams, **values: Any) -> Hparams:
    return dataclasses.replace(hparams, **values)
