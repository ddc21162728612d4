"""Whole audits of small experiments: near the truth where nothing else is in the model, loud where noise is missing."""

import json
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import fljax.audit
from fljax.audit.run import _plan
from fljax.cli import main
from fljax.config import Experiment, validate
from fljax.core.check import FljaxError
from fljax.core.transform import UpdateTransform
from fljax.sim import build as house

TREE = {
    "name": "small",
    "rounds": 9,
    "data": {"name": "digits", "clients": 5},
    "model": {"hidden": [128]},
    "client": {"steps": 1},
    "sampler": {"kind": "full"},
    "privacy": {"mechanism": "central_gaussian", "noise_multiplier": 3.0, "clip": 0.25, "delta": 1e-5},
}
"""Nine rounds of multiplier 3 with everybody in are a Gaussian mechanism of multiplier 1: epsilon 4.377. P = 9610."""


def small(**fields) -> Experiment:
    return validate(TREE).replace(**fields)


@cache
def plain():
    return fljax.audit.audit(small(), canaries=400)


def test_implementation_mode_is_nearly_tight():
    found = plain()
    assert found.status == "consistent" and found.bounds.name == "one_run_fdp"
    assert found.epsilon_upper == pytest.approx(4.3775, rel=1e-3) == found.epsilon_experiment
    assert 0.6 < found.estimate.epsilon / found.epsilon_upper < 1.2
    assert found.estimate.low < found.epsilon_upper
    assert 0.5 < found.bounds.lower < found.epsilon_upper


def test_scores_of_absent_canaries_are_standard_normal():
    found = plain()
    assert stats.kstest(found.scores[found.signs == 0], "norm").pvalue > 1e-6
    assert found.scores[found.signs == 1].mean() > 0.6


def test_the_seed_decides_the_canaries():
    same, other = (_plan(small(), 400, "implementation", seed).canaries for seed in (0, 1))
    np.testing.assert_array_equal(same.signs, plain().signs)
    assert not np.array_equal(other.signs, plain().signs)


def too_quiet(make):
    """The chain of an experiment, with a quarter of the noise that it claims."""

    def wrapped(*args) -> UpdateTransform:
        chain = make(*args)

        def decode(key, ctx, total, alive, state):
            hparams = ctx.hparams.__class__(
                **{**vars(ctx.hparams), "noise_multiplier": ctx.hparams.noise_multiplier / 4}
            )
            return chain.decode(key, ctx._replace(hparams=hparams), total, alive, state)

        return chain._replace(decode=decode)

    return wrapped


@pytest.fixture
def file(tmp_path):
    """The experiment as a file."""
    sections = [
        f"[{k}]\n" + "\n".join(f"{a} = {json.dumps(b)}" for a, b in v.items())
        for k, v in TREE.items()
        if isinstance(v, dict)
    ]
    path = tmp_path / "small.toml"
    path.write_text("rounds = 9\n" + "\n".join(sections))
    return str(path)


def test_missing_noise_is_found_certified_and_fails_loudly(monkeypatch, capsys, file):
    monkeypatch.setattr(house, "make_transform", too_quiet(house.make_transform))
    code = main(["audit", file, "--canaries", "400", "--json", "--quiet"])
    said = json.loads(capsys.readouterr().out)
    assert code == 1 and said["status"] == "violated"
    assert said["epsilon_lower"] > said["epsilon_upper"] == pytest.approx(4.3775, rel=1e-3)
    assert "exceeds the claimed epsilon 4.377" in said["reason"]
    assert said["epsilon_estimate"] > 12, "the truth is 20.6"


@pytest.mark.slow
def test_replaced_clients_and_dropped_neurons():
    """Cohorts of fixed size that take everybody: neighbours replace a client, so that the others send the opposite.

    Half of the hidden neurons are never sent: their coordinates do not count. True epsilon 4.377 for twice the noise.
    """
    fields = {"sampler.kind": "fixed_size", "sampler.cohort": 5, "privacy.noise_multiplier": 6.0}
    dropped = {"dropout.source": "random", "dropout.keep_rate": 0.5, "client.steps": None}
    found = fljax.audit.audit(small(**fields, **dropped), canaries=400)
    assert found.to_dict()["out"] == "opposite" and found.status == "consistent"
    assert found.epsilon_upper == pytest.approx(4.3775, rel=1e-3)
    assert 0.6 < found.estimate.epsilon / found.epsilon_upper < 1.2


# ---- plans: what runs, without running it ----------------------------------------------------------------------------


def planned(mode: str = "implementation", count: int = 40, **fields):
    return _plan(small(**fields), count, mode, 0)


def test_the_claim_is_that_of_the_run_with_canaries():
    plan = planned(
        **{"sampler.kind": "poisson", "sampler.rate": 0.4, "privacy.epsilon": 3, "privacy.noise_multiplier": None}
    )
    law = plan.program.round.law(plan.hparams)
    assert law.population == 45 and law.rate == pytest.approx(0.4)
    assert plan.statement.epsilon == pytest.approx(3.0, rel=2e-2)  # the noise is that of five clients, uncut
    assert plan.stated.epsilon <= 3.0 and plan.hparams.noise_multiplier == plan.stated.noise_multiplier


@pytest.mark.parametrize(
    ("fields", "sign"),
    [
        ({}, 0.0),
        ({"sampler.kind": "fixed_size", "sampler.cohort": 5}, -1.0),
        ({"privacy.mechanism": "local_gaussian"}, -1.0),
        ({"privacy.mechanism": "distributed_skellam", "privacy.bits": 4}, -1.0),  # too few bits: no claim
    ],
)
def test_canaries_that_are_out_follow_the_neighbouring_relation(fields, sign):
    assert {*np.asarray(planned(**fields).canaries.signs).tolist()} == {1.0, sign}


def test_cohorts_grow_with_the_population_and_delta_stays_below_one_client():
    plan = planned(**{"sampler.kind": "cyclic", "sampler.cohort": 2, "privacy.delta": 0.15})
    assert plan.experiment.sampler.cohort == 18 and plan.program.sampler.population == 45
    assert plan.experiment.privacy.delta == pytest.approx(45**-1.1)


@pytest.mark.parametrize("mode", ["implementation", "realistic"])
@pytest.mark.parametrize("algorithm", ["fedavg", "fedsgd", "fedprox", "scaffold", "ditto"])
def test_every_algorithm_can_be_audited(mode, algorithm):
    plan = planned(mode, **{"client.algorithm": algorithm, "privacy.clipping": "adaptive"})
    data, numbers, key = plan.program.dataset.train, plan.hparams.arrays(), jax.random.key(0)
    state = plan.program.round.init(key, plan.program.params(0), numbers)
    after, _ = jax.eval_shape(plan.program.round.step, jnp.int32(0), key, state, data, numbers)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert plan.program.sampler.population == 45


def test_a_run_without_a_claim_says_so():
    plan = planned(**{"privacy.noise_multiplier": 0.0})
    assert plan.statement.status == "none"
    found = fljax.audit.Audit(
        "x",
        "realistic",
        plan.statement,
        1e-5,
        plain().estimate,
        plain().bounds,
        1,
        1,
        0,
        0.0,
        None,
        (),
        plain().scores,
        plain().signs,
    )
    assert found.epsilon_upper is None and found.status == "none" and "no noise" in found.reason
    assert json.loads(json.dumps(found.to_dict()))["epsilon_upper"] is None and "NONE" in found.text()


@pytest.mark.parametrize(
    ("fields", "arguments", "message"),
    [
        ({}, {"canaries": 19}, "canaries=19 >= 20"),
        ({}, {"canaries": 2403}, "canaries=2403 <= 2402"),
        ({}, {"mode": "tight"}, "mode='tight'"),
        ({"sweep": {"seeds": 2}}, {}, "holds a sweep"),
        ({"privacy.noise_scale": 0.5}, {}, "noise_scale"),
        ({"privacy.mechanism": "record_gaussian"}, {}, "record_gaussian"),
    ],
)
def test_what_cannot_be_audited_is_one_line(fields, arguments, message):
    with pytest.raises(FljaxError, match=message) as error:
        fljax.audit.audit(small(**fields), **arguments)
    assert "\n" not in str(error.value)


def test_mistakes_on_the_command_line_are_exit_code_two(capsys, file):
    assert main(["audit", file, "--canaries", "9999", "--quiet"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
