"""The audit of one experiment: its own round, run once with canaries among the clients, and its epsilon tested.

Everything but the clients' updates is what ``fljax run`` would run: sampler, masks, clip, noise, aggregation, server.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fljax.audit.canaries import Canaries, canary_available, canary_update, draw_canaries
from fljax.audit.estimate import SIGNIFICANCE, estimate_epsilon, load_auditor, lower_bounds
from fljax.audit.result import Audit
from fljax.audit.scores import canary_scores, check_count
from fljax.config import Experiment
from fljax.core import tree
from fljax.core.check import FljaxError, one_of
from fljax.core.keys import stream
from fljax.core.types import Hparams, PyTree
from fljax.privacy.accounting import default_delta
from fljax.privacy.events import RELATIONS, Event
from fljax.privacy.mechanisms import make_event
from fljax.privacy.statement import PrivacyStatement
from fljax.sim.build import Guests, Program, build, load_data, resolve
from fljax.sim.engine import Running, Schedule, compile_call, drive, make_call
from fljax.sim.progress import said

MODES = ("implementation", "realistic")
FEWEST = 20


def audit(
    experiment: Experiment, *, canaries: int = 500, mode: str = "implementation", seed: int = 0, quiet: bool = True
) -> Audit:
    """Measures how much of one client the trained model gives away, and compares it with the epsilon that is claimed.

    ``canaries`` made-up clients join the N real ones; each is in or out by its own fair coin. Those that are in send a
    random direction that the clip cuts to its full length S. After T rounds every canary is looked for in
    ``x_T - x_0``; how well those that are in stand out gives an estimate of epsilon and a certified lower bound.

    Args:
      experiment: without a sweep.
      canaries: k, at least 20 and at most a quarter of the parameters.
      mode: ``implementation``: real clients send exact zeros and nothing is trained, so that only canaries and noise
        are in the model and the estimate is as tight as it can be. ``realistic``: they train.
      seed: of coins, directions, cohorts and noise.
      quiet: nothing on stderr.

    Returns:
      An Audit. Its status is ``violated`` where the certified lower bound is above the accountant's epsilon.

    Raises:
      FljaxError: too few or too many canaries, an unknown mode, a sweep, noise per example or a rescaled cohort, no
        jax_privacy, a model that does not move or diverges.
    """
    start = time.perf_counter()
    _check(experiment, canaries, mode)
    load_auditor()
    plan = _plan(experiment, canaries, mode, seed)
    with said("auditing", quiet):
        scores = canary_scores(plan.canaries.key, canaries, _change(plan, seed))
    signs = np.asarray(plan.canaries.signs)
    delta = plan.experiment.privacy.delta
    assert delta is not None  # _planned has set it
    return Audit(
        name=experiment.name,
        mode=mode,
        statement=plan.statement,
        delta=delta,
        estimate=estimate_epsilon(scores, signs, delta),
        bounds=lower_bounds(scores, signs, delta, gaussian=_is_gaussian(plan)),
        rounds=plan.experiment.rounds,
        parameters=plan.size,
        seed=seed,
        seconds=time.perf_counter() - start,
        epsilon_experiment=plan.stated.epsilon,
        caveats=_caveats(plan, mode, experiment.privacy.delta, canaries),
        scores=scores,
        signs=signs,
    )


class _Plan(NamedTuple):
    """The audited run before it runs. experiment: as it will run. program, hparams, statement: of it, with canaries.
    stated: the statement of the experiment without them. size: P."""

    experiment: Experiment
    program: Program
    hparams: Hparams
    statement: PrivacyStatement
    stated: PrivacyStatement
    canaries: Canaries
    size: int


def _check(experiment: Experiment, canaries: int, mode: str) -> None:
    """Refuses what an audit cannot measure."""
    one_of(MODES, mode=mode)
    if canaries < FEWEST:
        raise FljaxError(f"Expected canaries={canaries} >= {FEWEST}. Fewer say nothing; 500 is usual.")
    if experiment.sweep is not None:
        raise FljaxError(f"{experiment.name} holds a sweep. Audit one of its trials: --sweep None and its fields.")
    privacy = experiment.privacy
    if experiment.data.streamed:
        raise FljaxError("Expected data.streamed=true to be false in an audit: it replays rounds on resident data.")
    if privacy.mechanism == "record_gaussian":
        raise FljaxError("Expected a mechanism that protects clients: canary clients do not measure record_gaussian.")
    if privacy.noise_scale != 1:
        raise FljaxError(
            f"Expected privacy.noise_scale={privacy.noise_scale:g} to be 1: this run has less noise than the "
            "larger cohort whose epsilon is stated."
        )


def _plan(experiment: Experiment, count: int, mode: str, seed: int) -> _Plan:
    """Adds the canaries: the same noise, rounds and sampling rate; what they cost in epsilon is accounted anew."""
    dataset = load_data(experiment.data)
    program = build(experiment, dataset)
    own, stated = resolve(experiment, program)
    population, size = program.sampler.population, _shared_size(program)
    check_count(count, size)
    out = -1.0 if _relation(program, own, stated) == "replace_one" else 0.0
    drawn = draw_canaries(stream(jax.random.key(seed), "audit"), count, out)
    weight = experiment.server.weight_cap or 1.0
    guests = Guests(
        count,
        lambda local: canary_update(local, population, drawn, train=mode == "realistic", weight=weight),
        lambda available: canary_available(available, population, drawn),
    )
    planned = _planned(experiment, stated.rounds or experiment.rounds, population, count)
    audited = build(planned, dataset, guests=guests)
    hparams, statement = resolve(planned, audited, noise=own.noise_multiplier)
    return _Plan(planned, audited, hparams, statement, stated, drawn, size)


def _planned(experiment: Experiment, rounds: int, population: int, count: int) -> Experiment:
    """The experiment of the larger population: cohorts grow with it (rounded down), delta stays below 1 / it."""
    larger = population + count
    delta = experiment.privacy.delta or default_delta(population)
    fields: dict[str, Any] = {"rounds": rounds, "privacy.budget": None}
    fields["privacy.delta"] = delta if delta < 1 / larger else default_delta(larger)
    if experiment.sampler.cohort is not None:
        fields["sampler.cohort"] = experiment.sampler.cohort * larger // population
    return experiment.replace(**fields)


def _event(program: Program, hparams: Hparams, statement: PrivacyStatement) -> Event | None:
    """What the accountant composed, or None where it states nothing."""
    noise = program.round.claims(hparams, program.params(0)).noise
    if statement.status != "valid" or noise is None or statement.rounds is None:
        return None
    return make_event(program.round.law(hparams), noise, statement.rounds)


def _relation(program: Program, hparams: Hparams, statement: PrivacyStatement) -> str:
    """The neighbouring relation of the claim; where there is none, that of the trust model and the sampler."""
    event = _event(program, hparams, statement)
    if event is not None:
        return event.relation
    noise = program.round.claims(hparams, program.params(0)).noise
    if noise is not None and noise.trust in ("local", "distributed"):
        return "replace_one"
    return RELATIONS.get(program.round.law(hparams).kind, "add_or_remove_one")


def _is_gaussian(plan: _Plan) -> bool:
    """Whether the claim is exactly that of a Gaussian mechanism: without sampling, composed Gaussians are one."""
    event = _event(plan.program, plan.hparams, plan.statement)
    return event is not None and event.mechanism == "gaussian" and event.rate == 1 and event.truncation is None


def _shared_size(program: Program) -> int:
    return tree.num_elements(jax.eval_shape(lambda: program.local.split(program.params(0))[0]))


def _change(plan: _Plan, seed: int) -> PyTree:
    """Runs all rounds and returns final minus initial shared parameters."""
    program, rounds = plan.program, plan.experiment.rounds
    numbers, key = plan.hparams.arrays(), jax.random.key(seed)
    state = program.round.init(key, program.params(plan.experiment.seed), numbers)
    before = jax.tree.map(jnp.copy, state.params)  # the state is donated
    call = make_call(program.round, lambda params, clients, held: {}, min(plan.experiment.perf.rounds_per_call, rounds))
    schedule, data = Schedule(jnp.int32(rounds), jnp.int32(rounds)), program.dataset.train
    nothing: Any = ()
    executable, _ = compile_call(call, jnp.int32(0), schedule, key, state, data, nothing, numbers)
    done, _ = drive(executable, Running(0, state, {}), schedule, key, data, nothing, numbers)
    return jax.tree.map(jnp.subtract, done.state.params, before)


def _caveats(plan: _Plan, mode: str, delta: float | None, count: int) -> tuple[str, ...]:
    """What makes the numbers smaller than the truth, or different from those of the experiment."""
    experiment, statement = plan.experiment, plan.statement
    server, audited = experiment.server, experiment.privacy.delta or 0.0
    sampled = plan.program.round.law(plan.hparams).rate < 1 or experiment.sampler.availability < 1
    steady = server.optimizer == "sgd" and server.momentum == 0 and server.lr_decay == 1 and server.lr_warmup == 0
    caveats = [f"The claim is that of {plan.program.sampler.population} clients: canaries are clients too."]
    if delta is not None and delta != audited:
        caveats.append(f"delta is {audited:.3g}, not {delta:.3g}: it has to be below 1 / population.")
    if sampled:
        caveats.append("Not all clients are in every round, and the final model shows their sum: the estimate is low.")
    if not steady:
        caveats.append("The server's optimiser or schedule does not weight all rounds alike: the estimate is low.")
    if mode == "realistic":
        caveats.append("Updates of real clients hide canaries as noise does, which the claim does not count on.")
    if experiment.privacy.clipping == "per_layer":
        caveats.append("Layers are clipped one by one, which turns a canary a little: the estimate is low.")
    if statement.trust == "local":
        caveats.append("The server sees every upload, the audit only what became of their sum: the estimate is low.")
    if not _is_gaussian(plan) and 2 * count * audited > SIGNIFICANCE:
        caveats.append(f"For the certified bound delta = {audited:.3g} is large: it has little power here.")
    return tuple(caveats)
