"""Mistakes about privacy, on the command line and in experiments: one line that names the value and the remedy."""

import json

import pytest

from fljax.cli import main

EPSILON = ["privacy", "epsilon", "--rounds", "10", "--noise-multiplier", "1", "--sampling-rate", "0.1"]
CALIBRATE = ["privacy", "calibrate", "--rounds", "10", "--sampling-rate", "0.1", "--population", "100"]
SELECT = ["privacy", "select", "--rounds", "10", "--noise-multiplier", "1", "--sampling-rate", "0.1"]
RUN = ["run", "digits_dp_fedavg", "--quiet", "--rounds", "5"]
GIVEN = ["--privacy.epsilon", "None", "--privacy.noise-multiplier", "1.5"]

MISTAKES = [
    ([*CALIBRATE, "--epsilon", "0"], ("epsilon=0.0 > 0", "Use a larger target")),
    ([*CALIBRATE, "--epsilon", "-2"], ("epsilon=-2.0 > 0", "Use a larger target")),
    ([*CALIBRATE, "--epsilon", "inf"], ("epsilon=inf", "use noise_multiplier=0")),
    ([*CALIBRATE, "--epsilon", "2", "--delta", "0.01"], ("delta=0.01 < 1/population = 0.01", "Use 0.00631")),
    ([*CALIBRATE, "--epsilon", "2", "--delta", "0"], ("delta=0.0", "(0, 1)")),
    ([*EPSILON, "--delta", "1"], ("delta=1.0", "(0, 1)")),
    ([*EPSILON], ("delta=None", "Give delta, or population")),
    ([*EPSILON[:-1], "1.5", "--delta", "1e-5"], ("sampling_rate=1.5", "(0, 1]")),
    ([*EPSILON[:-1], "0", "--delta", "1e-5"], ("sampling_rate=0.0", "(0, 1]")),
    ([*EPSILON, "--delta", "1e-5", "--noise-multiplier", "-1"], ("noise_multiplier=-1.0 >= 0", "Use 0")),
    ([*EPSILON, "--delta", "1e-5", "--relation", "replace_one"], ("relation='replace_one'", "Leave relation out")),
    ([*EPSILON, "--delta", "1e-5", "--rounds", "0"], ("rounds=0", "whole number >= 1")),
    ([*SELECT, "--delta", "1e-5", "--trials", "0"], ("trials=0", ">= 1")),
    ([*SELECT, "--delta", "1e-5", "--trials", "5", "--accountant", "rdp"], ("accountant='rdp'", "Leave it out")),
    ([*RUN, "--privacy.epsilon", "0"], ("privacy.epsilon = 0", "greater than 0")),
    ([*RUN, "--privacy.epsilon", "-1"], ("privacy.epsilon = -1", "greater than 0")),
    ([*RUN, "--privacy.noise-multiplier", "0"], ("epsilon and noise_multiplier exclude each other",)),
    (
        [*RUN, *GIVEN, "--privacy.noise-multiplier", "0", "--privacy.budget", "2"],
        ("budget needs noise_multiplier > 0",),
    ),
    ([*RUN, "--privacy.clip", "0"], ("privacy.clip = 0", "greater than 0")),
    ([*RUN, "--privacy.clip", "-1"], ("privacy.clip = -1", "greater than 0")),
    ([*RUN, "--privacy.clip", "inf"], ("finite clip", "set clip")),
    ([*RUN, "--sampler.rate", "1.5"], ("sampler.rate = 1.5", "less than or equal to 1")),
    ([*RUN, "--privacy.delta", "0"], ("privacy.delta = 0", "greater than 0")),
    ([*RUN, "--privacy.delta", "1"], ("privacy.delta = 1", "less than 1")),
    ([*RUN, "--privacy.delta", "0.01"], ("delta=0.01 < 1/population", "Use 0.0")),
    ([*RUN, "--privacy.mechanism", "central_gausian"], ("privacy.mechanism", "central_gaussian")),
    ([*RUN, "--privacy.mechanism", "central_tree"], ("sampler='poisson' to be 'cyclic'", "Set sampler.kind")),
    (
        [*RUN, "--privacy.mechanism", "distributed_discrete_gaussian"],
        ("sampler='poisson'", "Use fixed_size, full or cyclic"),
    ),
    ([*RUN, "--sampler.kind", "fixed_size"], ("needs cohort",)),
    (
        [*RUN, *GIVEN, "--privacy.noise-scale", "0.1", "--privacy.mechanism", "local_gaussian"],
        ("noise_scale needs mechanism",),
    ),
]


@pytest.mark.parametrize(("arguments", "says"), MISTAKES, ids=lambda v: "_".join(map(str, v))[-50:])
def test_one_line_with_the_value_and_the_remedy(capsys, tmp_path, arguments, says):
    if arguments[0] == "run":
        arguments = [*arguments, "--out", str(tmp_path / "out")]
    code = main(arguments)
    out, err = capsys.readouterr()
    assert code == 2 and out == "", err
    assert err.count("\n") == 1 and err.startswith("fljax: ") and "Traceback" not in err
    for words in says:
        assert words in err
    assert not (tmp_path / "out").exists()


def test_unknown_words_are_refused_by_the_parser(capsys):
    assert main([*EPSILON, "--delta", "1e-5", "--relation", "swap"]) == 2
    err = capsys.readouterr().err
    assert "'swap'" in err and "add_or_remove_one" in err and err.count("\n") == 1


def test_select_prints_both_epsilons(capsys):
    assert main([*SELECT, "--population", "100", "--delta", "1e-3", "--trials", "20", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["trials"] == 20 and said["epsilon"] < said["epsilon_selection"] < 4 * said["epsilon"]
    assert any("does not cover a plain best of a fixed grid" in caveat for caveat in said["caveats"])
