"""Rules and attacks from an experiment: what is bound, what is refused, and who is caught."""

import math

import numpy as np
import pytest

from fljax.config import validate
from fljax.core.check import FljaxError
from fljax.report.page import write_report
from fljax.report.robust_tables import attacks_table, worst_cases
from fljax.sim.build import build, resolve
from fljax.sim.defence import detection
from fljax.sim.run import run
from fljax.sweep.grid import expand
from fljax.sweep.record import record_run
from fljax.sweep.store import open_results, write_results

BASE = {
    "rounds": 6,
    "eval_every": 3,
    "data": {"name": "digits", "clients": 12, "unseen_clients": 2, "examples_per_client": 20},
    "model": {"name": "mlp", "hidden": (4,)},
    "client": {"lr": 0.3, "steps": 2},
    "sampler": {"kind": "full"},
    "perf": {"rounds_per_call": 3},
}


def experiment(**fields):
    return validate(BASE).replace(**fields)


REFUSED = {
    'rule = "none" is a plain sum': {"robust.f": 2},
    "has to know who sent what": {"robust.rule": "foolsgold", "robust.groups": 2},
    'robust.rule = "krum" needs a server that sees updates': {
        "robust.rule": "krum",
        "privacy.mechanism": "distributed_skellam",
        "privacy.clip": 1.0,
    },
    "needs server.denominator": {"robust.rule": "median", "server.denominator": "realised"},
    'set privacy.clipping = "flat"': {
        "robust.rule": "median",
        "privacy.mechanism": "central_gaussian",
        "privacy.clip": 1.0,
        "privacy.clipping": "adaptive",
    },
    "leave out masks of a client's own": {"robust.rule": "median", "dropout.source": "random_per_client"},
    'set perf.dropout = "masked"': {"robust.rule": "median", "dropout.source": "random", "perf.dropout": "compact"},
    "set data.unseen_clients": {"robust.rule": "fltrust", "data.unseen_clients": 0},
    "knows updates alone": {"robust.rule": "centred_clipping", "client.algorithm": "scaffold"},
    "names a stage twice": {"robust.rule": "median", "robust.before": ["bucketing", "bucketing"]},
    'source needs kind = "label_flip"': {"attack.kind": "label_flip", "attack.source": 3},
    'target needs kind = "label_flip" or "backdoor"': {"attack.kind": "alie", "attack.target": 3},
    "optimised needs kind": {"attack.kind": "mimic", "attack.optimised": [1.0]},
    "whose data the adversary does not have": {
        "attack.kind": "ipm",
        "attack.optimised": [1.0],
        "robust.rule": "fltrust",
    },
    'attack needs server.weights = "uniform"': {
        "attack.kind": "ipm",
        "server.weights": "examples",
        "server.denominator": "realised",
    },
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(said):
    with pytest.raises(FljaxError) as error:
        experiment(**REFUSED[said])
    assert said in str(error.value) and "\n" not in str(error.value)


TOO_MANY = [
    (
        {"robust.rule": "krum", "robust.f": 4},
        "robust.f=4 to be at most 3: 'krum' needs n >= 2 f [+] 3 rows.*n=10",
    ),
    ({"robust.rule": "bulyan", "robust.f": 2}, "robust.f=2 to be at most 1: 'bulyan' needs n >= 4 f [+] 3 rows"),
    ({"robust.rule": "trimmed_mean", "robust.f": 2, "robust.groups": 3}, "at most 1: 'trimmed_mean'.*n=3"),
    (
        {"robust.rule": "bulyan", "attack.kind": "alie", "attack.fraction": 0.4},
        r"robust.f \(which follows from the share of malicious clients\)=4 to be at most 1",
    ),
]


@pytest.mark.parametrize(("fields", "said"), TOO_MANY)
def test_an_f_that_a_rule_cannot_take_is_refused(fields, said):
    e = experiment(**fields)
    with pytest.raises(FljaxError, match=said):
        resolve(e, build(e))


def test_f_follows_from_the_share_of_malicious_clients():
    for fields, f in (
        ({"attack.kind": "ipm", "attack.fraction": 0.21}, 3),
        ({"attack.kind": "ipm", "attack.fraction": 0.3}, 3),
        ({}, 2),
        ({"robust.f": 4, "attack.kind": "ipm", "attack.fraction": 0.1}, 4),
    ):
        e = experiment(**{"robust.rule": "trimmed_mean"}, **fields)
        assert resolve(e, build(e))[0].extra["robust_f"] == f


def test_a_target_epsilon_with_a_robust_rule_is_an_error_and_a_claim_is_refused():
    private = {"robust.rule": "median", "privacy.mechanism": "central_gaussian", "privacy.clip": 1.0}
    e = experiment(**private, **{"privacy.noise_multiplier": 1.0})
    statement = resolve(e, build(e))[1]
    assert statement.status == "refused" and "robust rule 'median'" in statement.reason
    e = experiment(**private, **{"privacy.epsilon": 8.0})
    with pytest.raises(FljaxError, match=r"privacy.epsilon=8 cannot be promised: how far one client can move"):
        resolve(e, build(e))


def test_strengths_shares_and_f_are_one_program():
    e = experiment(**{"robust.rule": "trimmed_mean", "attack.kind": "alie"})
    sweep = {"grid": {"attack.fraction": [0.1, 0.2], "attack.strength": [0.5, 1.5], "robust.f": [1, 2]}}
    trials = expand(e.replace(sweep=sweep))
    assert len(trials) == 8 and len({t.experiment.structure() for t in trials}) == 1
    assert e.hparams().extra["attack_strength"] == 1.5  # the kind's own


def test_a_run_under_attack_reports_success_and_who_was_caught(tmp_path):
    fields = {"attack.kind": "backdoor", "attack.strength": 5.0, "attack.target": 3, "robust.rule": "multi_krum"}
    outcome = run(experiment(**fields, **{"attack.start": 2}), quiet=True)
    assert 0.0 <= outcome.final["test_attack_success"] <= 1.0
    assert outcome.history["malicious_seen"].tolist() == [0, 0, 2, 2, 2, 2]
    summary = outcome.summary()["detection"]
    assert set(summary) == {"detection_precision", "detection_recall", "false_positive_rate", "time_to_detect"}
    assert summary["detection_recall"] > 0.5  # five times as long as the others
    record_run(tmp_path / "out", outcome)
    results = open_results(tmp_path / "out")
    assert results.trials["detection_recall"][0] == summary["detection_recall"]


# ---- by hand --------------------------------------------------------------------------------------------------------


def test_detection_by_hand():
    """Attack from round 2 of 5: one of two is caught in round 3; three honest clients are rejected among 3 x 8."""
    history = {
        "malicious_seen": [0, 2, 2, 2, 0],
        "rejected": [4, 0, 2, 2, 1],
        "rejected_malicious": [0, 0, 1, 0, 0],
        "participants": [10, 10, 10, 10, 10],
    }
    seen = detection(history)
    assert float(seen["detection_precision"]) == 1 / 4 and float(seen["detection_recall"]) == 1 / 6
    assert float(seen["false_positive_rate"]) == 3 / 24 and float(seen["time_to_detect"]) == 1.0
    batch = detection({name: np.stack([v, np.zeros(5)]) for name, v in history.items()})
    assert batch["time_to_detect"][0] == 1.0 and math.isnan(batch["time_to_detect"][1])
    assert math.isnan(batch["detection_recall"][1])
    assert detection({"participants": np.ones(3)}) == {}


def test_the_report_leads_with_the_worst_attack(tmp_path):
    kinds, rules = ["none", "alie", "ipm"], ["krum", "mean"]
    accuracy = {"krum": {"none": 0.8, "alie": 0.6, "ipm": 0.7}, "mean": {"none": 0.9, "alie": 0.8, "ipm": 0.1}}
    cells = [(rule, kind, seed) for rule in rules for kind in kinds for seed in range(2)]
    trials = {
        "trial": list(range(len(cells))),
        "robust.rule": [c[0] for c in cells],
        "attack.kind": [c[1] for c in cells],
        "run.seed": [c[2] for c in cells],
        "test_accuracy": [accuracy[r][k] + 0.02 * s for r, k, s in cells],
        "detection_recall": [math.nan if r == "mean" else 0.5 for r, _, _ in cells],
        "epsilon": [math.nan] * len(cells),
        "privacy_status": ["none"] * len(cells),
        "uplink_bytes": [1] * len(cells),
        "downlink_bytes": [1] * len(cells),
    }
    curves = {"trial": trials["trial"], "round": [1] * len(cells), "test_accuracy": trials["test_accuracy"]}
    manifest = {
        "kind": "sweep",
        "name": "demo",
        "axes": ["robust.rule", "attack.kind"],
        "privacy": [],
        "experiment": {},
    }
    write_results(tmp_path, manifest=manifest, trials=trials, curves=curves)
    found = {line["rule"]: line for line in worst_cases(open_results(tmp_path), "test_accuracy")}
    assert found["krum"]["under"] == {"attack.kind": "alie"} and found["mean"]["under"] == {"attack.kind": "ipm"}
    assert found["krum"]["worst"] == pytest.approx(0.61) and found["mean"]["clean"] == pytest.approx(0.91)
    heads, lines = attacks_table(open_results(tmp_path), "test_accuracy")
    assert heads[:3] == ["worst test accuracy (%)", "under", "without attack"] and len(lines) == 2
    assert "Against the worst of the attacks" in write_report(tmp_path, endings=()).read_text()
