"""Experiments on the command line: names, overrides, and the one line that every mistake gets."""

import math

import pytest

from fljax.cli.arguments import load_experiment, overridden, parse_overrides, shrink
from fljax.config import Experiment, load, traced_fields, validate
from fljax.core.check import FljaxError
from fljax.core.types import Hparams
from fljax.sweep.grid import expand, group


def test_flags_become_values_of_their_type():
    tokens = "--rounds 5 --client.lr=0.5 --model.hidden 32 16 --client.shared dense_0 --privacy.clip inf"
    assert parse_overrides([*tokens.split(), "--client.batch-size", "None", "--model.dropout", "--seed", "-1"]) == {
        "rounds": 5,
        "client.lr": 0.5,
        "model.hidden": [32, 16],
        "client.shared": ["dense_0"],
        "privacy.clip": math.inf,
        "client.batch_size": None,
        "model.dropout": True,
        "seed": -1,
    }


def test_a_value_without_a_flag_is_an_error():
    with pytest.raises(FljaxError, match="'5' to follow a flag"):
        parse_overrides(["5"])


def test_overrides_are_validated_like_files():
    assert overridden("digits_fedavg", ["--client.lr", "0.25"]).client.lr == 0.25
    with pytest.raises(FljaxError) as error:
        overridden("digits_fedavg", ["--client.lrr", "1", "--rounds", "-3", "--server.optimizer", "sdg"])
    lines = str(error.value).split("\n")
    assert len(lines) == 3
    assert any("unknown key client.lrr. Perhaps you meant lr." in line for line in lines)
    assert any("rounds = -3 should be greater than or equal to 1" in line for line in lines)
    assert any("server.optimizer = 'sdg'" in line for line in lines)


def test_an_unknown_experiment_names_the_closest():
    with pytest.raises(FljaxError, match="Perhaps you meant 'digits_fedavg'"):
        load_experiment("digits_fedavgg")


def test_a_path_may_be_a_string_or_a_path(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('rounds = 7\n[data]\nname = "digits"\n')
    assert load_experiment(file) == load_experiment(str(file)) and load_experiment(file).rounds == 7


def test_files_report_all_mistakes_at_once_with_the_file(tmp_path):
    file = tmp_path / "bad.toml"
    file.write_text("rounds = 3\nround = 2\n[client]\nlr = -1\nepochs = 1\nsteps = 2\n[privcy]\nclip = 1\n")
    with pytest.raises(FljaxError) as error:
        load(file)
    lines = str(error.value).split("\n")
    assert all(line.startswith(str(file)) for line in lines)
    assert any("unknown key round. Perhaps you meant rounds." in line for line in lines)
    assert any("unknown key privcy. Perhaps you meant privacy." in line for line in lines)
    assert any("client.lr = -1 should be greater than 0" in line for line in lines)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"client": {"epochs": 1, "steps": 2}}, "exclude each other"),
        ({"privacy": {"epsilon": 2.0, "clip": 1.0}}, 'set mechanism = "central_gaussian"'),
        ({"privacy": {"mechanism": "central_gaussian", "epsilon": 2.0}}, "noise needs a finite clip"),
        ({"privacy": {"mechanism": "central_gaussian", "epsilon": -2.0}}, "privacy.epsilon = -2.0 should be greater"),
        ({"sampler": {"kind": "fixed_size"}}, "needs cohort"),
        ({"dropout": {"keep_rate": 0.5}}, "needs a source"),
        ({"dropout": {"source": "fisher", "keep_rate": 0.0}}, "dropout.keep_rate = 0.0 should be greater than 0"),
        (
            {
                "privacy": {"mechanism": "central_gaussian", "epsilon": 2.0, "clip": 1.0},
                "server": {"denominator": "realised"},
            },
            'server.denominator = "expected"',
        ),
        ({"client": {"algorithm": "scaffold", "shared": ["dense_0"]}}, 'shared works with algorithm = "fedavg"'),
    ],
)
def test_contradictions_say_what_to_do(fields, says):
    with pytest.raises(FljaxError) as error:
        validate(fields)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_every_traced_field_is_a_number_of_the_round():
    rooms = ("secure.", "robust.", "attack.")  # their numbers are extra ones, there where the room is used
    known = set(vars(Hparams()))
    named = {name for field, name in traced_fields().items() if not field.startswith(rooms)}
    assert named - {"upload_epsilon", "support_keep"} <= known  # which stand for noise_multiplier and keep_rate
    assert (named - {"upload_epsilon", "support_keep"}) | {"extra"} == known


def test_structure_ignores_traced_numbers_and_nothing_else():
    base = Experiment()
    same = base.replace(**{"client.lr": 0.7, "privacy.clip": math.inf, "seed": 3, "name": "x", "perf.chunk": 1})
    assert same.structure() == base.structure()
    for field, value in [("rounds", 3), ("model.name", "cnn"), ("client.steps", 2), ("server.optimizer", "adam")]:
        assert base.replace(**{field: value}).structure() != base.structure()


def test_the_fingerprint_ignores_speed_and_names_and_nothing_else():
    base = Experiment()
    assert base.replace(**{"perf.chunk": 1, "title": "t", "data.dir": "/x"}).fingerprint() == base.fingerprint()
    for field, value in [("seed", 1), ("client.lr", 0.2), ("privacy.delta", 1e-4), ("data.seed", 1)]:
        assert base.replace(**{field: value}).fingerprint() != base.fingerprint()


def test_a_quick_look_keeps_the_ends_of_every_axis():
    small = shrink(load_experiment("digits_privacy_utility"))
    trials = expand(small)
    assert small.rounds <= 10
    assert small.dropout.warmup_rounds < small.rounds, "no neuron would be dropped"
    assert len(trials) == 2 * 2 * 2 * 2
    assert {t.values["privacy.epsilon"] for t in trials} == {2.0, math.inf}
    assert len(group(trials)) == 2
