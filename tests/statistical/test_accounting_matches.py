"""What ran is what is accounted: noise, bound, sampling rate and capacity of a built experiment, measured.

Seeds are fixed; the false-alarm rates say how often another seed would fail.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import private_rounds as tiny
import pytest

from fljax.config import Experiment, validate
from fljax.core.check import FljaxError
from fljax.core.keys import stream
from fljax.core.transform import Aggregator, UpdateTransform, chain, pass_decode, pass_encode, stateless
from fljax.core.types import Hparams
from fljax.data.federated import Dataset, Examples, FederatedData
from fljax.privacy import calibrate, epsilon, state_privacy
from fljax.privacy.clip import clip
from fljax.privacy.noise import central_gaussian
from fljax.recipes import fedavg_update, private_average
from fljax.server.average import expected_average, realised_average
from fljax.server.round import make_round
from fljax.server.sampler import fixed_size, make_sampler, poisson
from fljax.sim.build import build, resolve

CLIENTS, RATE, DELTA = 200, 0.1, 1e-3
TREE = {
    "rounds": 20,
    "model": {"name": "mlp", "hidden": [32]},
    "client": {"steps": 1, "lr": 1.0},
    "sampler": {"kind": "poisson", "rate": RATE},
    "privacy": {"mechanism": "central_gaussian", "noise_multiplier": 1.3, "clip": 0.4, "delta": DELTA},
}


PLACES = (
    jnp.concatenate([jnp.arange(100), jnp.zeros(100, int)]),
    jnp.concatenate([jnp.stack([jax.random.key(5)] * 100), jax.random.split(jax.random.key(6), 100)]),
)
"""Round numbers and keys of the rounds that are looked at."""


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """200 clients of two examples."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(CLIENTS * 2, 20)).astype(np.float32)
    y = rng.integers(0, 4, CLIENTS * 2)
    train = FederatedData.from_ids(x, y, np.repeat(np.arange(CLIENTS), 2))
    return Dataset("random", "classification", train, Examples(jnp.asarray(x[:8]), jnp.asarray(y[:8])), 4, (20,))


@pytest.fixture(scope="module")
def program(dataset):
    return build(validate(TREE), dataset)


@pytest.fixture(scope="module")
def transcripts(program, dataset):
    """200 rounds from the initial state: rounds 0 to 99 of one key, then round 0 of 100 other keys."""
    h = resolve(validate(TREE), program)[0].arrays()
    state = program.round.init(jax.random.key(0), program.params(0), h)

    def one(place):
        t = program.round.transcript(*place, state, dataset.train, h)
        added = jax.tree.map(lambda r, s: r * t.public["expected"] - s, t.released["update"], t.pre_noise["update"])
        return t.public, t.cohort, added

    return jax.device_get(jax.jit(lambda places: jax.lax.map(one, places))(PLACES))


def test_noise_that_ran_is_the_multiplier_of_the_statement(transcripts, program):
    """Declared to 1e-6 and measured on 200 rounds x 804 coordinates: within 5 standard errors, 0.9 %, each."""
    public, _, added = transcripts
    z = resolve(validate(TREE), program)[1].noise_multiplier
    assert z == 1.3
    np.testing.assert_allclose(public["noise_std"] * public["expected"] / public["bound"], z, rtol=1e-6)
    noise = tiny.flat(added) / public["bound"][0]
    assert abs(noise.std() / z - 1) < 5 / np.sqrt(2 * noise.size)
    assert abs(noise.mean()) < 5 * z / np.sqrt(noise.size)


def test_noise_of_rounds_and_of_runs_is_independent(transcripts):
    """Correlation of every pair of 200 rounds over 804 coordinates below 6.5 / sqrt(n): false alarm 2e-6."""
    noise = np.concatenate([x.reshape(200, -1) for x in jax.tree.leaves(transcripts[2])], axis=1)
    assert np.abs(np.corrcoef(noise) - np.eye(200)).max() < 6.5 / np.sqrt(noise.shape[1])


def test_the_bound_is_the_clip(transcripts):
    assert np.all(transcripts[0]["bound"] == np.float32(0.4))


def test_the_rate_that_ran_is_the_rate_that_is_accounted(transcripts, program, dataset):
    """Mean cohort over 200 rounds within 5 standard errors, 2.7 %: false alarm 6e-7."""
    law = program.round.law(validate(TREE).hparams())
    assert law.rate == RATE and law.population == dataset.train.population
    sizes = transcripts[1].real.sum(1)
    assert len({tuple(ids) for ids in np.sort(transcripts[1].ids)}) == 200, "a cohort of its own for every round"
    error = np.sqrt(CLIENTS * RATE * (1 - RATE) / len(sizes))
    assert abs(sizes.mean() - CLIENTS * law.rate) < 5 * error
    np.testing.assert_allclose(transcripts[0]["expected"], CLIENTS * law.rate, rtol=1e-6)


def test_the_capacity_that_ran_is_in_the_law(transcripts, program):
    law = program.round.law(validate(TREE).hparams())
    slots = transcripts[1].ids.shape[1]
    assert law.kind == "truncated_poisson" and law.capacity == program.sampler.capacity == slots < CLIENTS
    assert f"cut off uniformly at {slots} of {CLIENTS}" in resolve(validate(TREE), program)[1].sampler


def test_a_sampler_with_room_for_all_is_plain_poisson():
    assert poisson(10, 1.0).law(Hparams(sampling_rate=0.5)).kind == "poisson"


def sampled(sampler, hparams, rounds: int):
    """Cohorts of many rounds as counts per client, and their sizes."""
    draw = jax.jit(jax.vmap(lambda t: sampler.sample(jax.random.key(2), t, hparams)))
    cohorts = jax.device_get(draw(jnp.arange(rounds)))
    assert np.all((cohorts.ids < sampler.population) == cohorts.real)
    assert np.all(np.diff(cohorts.real.astype(int), axis=1) <= 0), "empty slots come last"
    for ids, real in zip(cohorts.ids, cohorts.real, strict=True):
        assert len(set(ids[real])) == real.sum(), "nobody is in twice"
    return np.bincount(cohorts.ids[cohorts.real], minlength=sampler.population), cohorts.real.sum(1)


def test_poisson_inclusion_is_the_same_for_every_client():
    """Chi-square of 60 binomial counts around q T: false alarm 1e-6 (59 + 5.5 sqrt(118) = 119)."""
    rounds, q = 3000, 0.2
    counts, sizes = sampled(poisson(60, 0.3), Hparams(sampling_rate=q).arrays(), rounds)
    chi = ((counts - q * rounds) ** 2).sum() / (rounds * q * (1 - q))
    assert chi < 125
    variance = 60 * q * (1 - q)  # independent clients, not a cohort of fixed size
    assert abs(sizes.var() / variance - 1) < 5 * np.sqrt(2 / rounds) + 0.01


def test_truncation_hits_every_client_alike():
    """At q = max_rate + something the cohort overflows: first and last half of the ids lose equally (5 sigma)."""
    sampler = poisson(400, 0.05)
    counts, sizes = sampled(sampler, Hparams(sampling_rate=0.5).arrays(), 500)
    assert np.all(sizes == sampler.capacity)
    share = counts[:200].sum() / counts.sum()
    assert abs(share - 0.5) < 5 * 0.5 / np.sqrt(counts.sum())


@pytest.mark.parametrize("kind", ["fixed_size", "cyclic", "full"])
def test_other_samplers_run_their_law(kind):
    sampler = make_sampler(kind, 30, cohort=None if kind == "full" else 6)
    law, h = sampler.law(Hparams()), Hparams().arrays()
    counts, sizes = sampled(sampler, h, 500)
    assert np.all(sizes == round(law.rate * 30)) and float(sampler.expected(h)) == sizes[0]
    if kind == "fixed_size":
        assert abs(counts - 100).max() < 5.5 * np.sqrt(500 * 0.2 * 0.8)  # false alarm 30 x 4e-8
    else:
        assert counts.max() - counts.min() <= 1


def test_the_statement_is_that_of_the_law_and_the_multiplier(program):
    experiment = validate(TREE)
    hparams, statement = resolve(experiment, program)
    assert statement.status == "valid"
    assert statement.epsilon == epsilon(program.round.law(hparams), 1.3, experiment.rounds, DELTA)
    assert (statement.rounds, statement.delta, statement.population) == (20, DELTA, CLIENTS)


def test_a_target_is_met_by_the_noise_that_will_run(program):
    experiment = validate(TREE | {"privacy": TREE["privacy"] | {"noise_multiplier": None, "epsilon": 4.0}})
    hparams, statement = resolve(experiment, program)
    assert statement.status == "valid" and 3.8 < statement.epsilon <= 4.0
    assert hparams.noise_multiplier == statement.noise_multiplier
    assert hparams.noise_multiplier == calibrate(program.round.law(hparams), 4.0, 20, DELTA)


def test_a_target_of_infinity_runs_without_noise_and_states_nothing(program):
    experiment = validate(TREE | {"privacy": TREE["privacy"] | {"noise_multiplier": None, "epsilon": math.inf}})
    hparams, statement = resolve(experiment, program)
    assert (hparams.noise_multiplier, statement.status, statement.epsilon) == (0.0, "none", None)


# ---- refusals --------------------------------------------------------------------------------------------------------


def claims(*stages: UpdateTransform, clip_at: float = 0.4, aggregator: Aggregator | None = None):
    """Claims of a round of these stages with noise 1.3, and the statement that follows."""
    local = fedavg_update(tiny.training())
    sampler = fixed_size(20, 5)
    round = make_round(sampler=sampler, local=local, transform=chain(*stages), aggregator=aggregator)
    h = Hparams(clip=clip_at, noise_multiplier=1.3)
    claim = round.claims(h, tiny.model().init(jax.random.key(0)))
    return state_privacy(round.law(h), claim.noise, 10, DELTA, [claim.reason] if claim.reason else [])


def silent() -> UpdateTransform:
    """A user's stage that states no claim."""
    return UpdateTransform("mine", stateless, pass_encode, pass_decode)


def mine() -> Aggregator:
    """A user's aggregator that states no claim."""

    def reduce(key, ctx, collected, alive, state):
        return jax.tree.map(lambda x: 2 * x, collected), state, {}

    return Aggregator("mine", "sum", "sum", lambda params, hparams: (), reduce)


@pytest.mark.parametrize(
    ("stages", "more", "reason"),
    [
        ((realised_average(), clip(), central_gaussian()), {}, "realised weights"),
        ((realised_average("uniform"), clip(), central_gaussian()), {}, "realised weights"),
        ((expected_average(), clip(), silent(), central_gaussian()), {}, "states no privacy claim"),
        ((expected_average(), clip(), central_gaussian(), silent()), {}, "states no privacy claim"),
        ((expected_average(), clip(), central_gaussian()), {"aggregator": mine()}, "states no privacy claim"),
        ((expected_average(), central_gaussian()), {}, "nothing bounds"),
        ((expected_average(), clip(), central_gaussian()), {"clip_at": math.inf}, "nothing bounds"),
        ((clip(), central_gaussian()), {}, "nothing bounds"),  # the number of examples travels unbounded
        ((expected_average(), clip(), central_gaussian(), central_gaussian()), {}, "more than one stage adds noise"),
    ],
)
def test_what_cannot_be_promised_is_refused_with_its_reason(stages, more, reason):
    statement = claims(*stages, **more)
    assert (statement.status, statement.epsilon) == ("refused", None)
    assert reason in statement.reason and "\n" not in statement.sentence()


def test_the_private_chain_itself_is_not_refused():
    assert claims(private_average()).status == "valid"


def test_a_target_that_cannot_be_promised_is_one_line(program):
    experiment = validate(TREE | {"privacy": TREE["privacy"] | {"noise_multiplier": None, "epsilon": 4.0}})
    local, sampler = program.local, program.sampler
    broken = make_round(
        sampler=sampler, local=local, transform=chain(expected_average(), clip(), silent(), central_gaussian())
    )
    with pytest.raises(FljaxError, match=r"privacy\.epsilon=4 cannot be promised: a stage states no privacy") as error:
        resolve(experiment, program.__class__(**{**vars(program), "round": broken}), noise=1.0)
    assert "\n" not in str(error.value)


def test_a_delta_of_one_over_the_population_is_refused(program):
    at = TREE["privacy"] | {"delta": 1 / CLIENTS}
    statement = resolve(validate(TREE | {"privacy": at}), program)[1]
    assert statement.status == "refused" and "1/population" in statement.reason
    target = at | {"noise_multiplier": None, "epsilon": 4.0}
    with pytest.raises(FljaxError, match="1/population") as error:
        resolve(validate(TREE | {"privacy": target}), program)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"server.denominator": "realised"}, "denominator"),
        ({"privacy.clip": math.inf}, "noise needs a finite clip"),
        ({"privacy.epsilon": 1.0}, "exclude each other"),
        ({"privacy.mechanism": "none"}, "has no clip and no noise"),
    ],
)
def test_experiments_that_contradict_privacy_are_refused_when_they_are_written(fields, message):
    with pytest.raises(FljaxError, match=message):
        validate(TREE).replace(**fields)


def test_cohorts_of_the_round_are_those_of_the_sampler(program, transcripts):
    """The round hands the sampler the key of its own stream, and runs exactly the ids it returns."""
    h = Experiment.model_validate(TREE).hparams().arrays()
    for i in (0, 7, 150):
        t, key = PLACES[0][i], PLACES[1][i]
        drawn = program.sampler.sample(stream(key, "sample"), t, h)
        assert sorted(np.asarray(drawn.ids)) == sorted(transcripts[1].ids[i])
