"""The language of sweeps: drawn axes, conditions, what no axis may be; distributions against their closed forms."""

import math

import numpy as np
import pytest
from small_sweep import experiment

from fljax.config import validate
from fljax.core.check import FljaxError
from fljax.sections import DrawnConfig
from fljax.sweep.draw import draws, place, sobol_points
from fljax.sweep.grid import axes, expand, group
from fljax.sweep.where import condition

LR = {"low": 0.001, "high": 1.0, "scale": "log"}


def sweep(**fields):
    return experiment(fields)


def values(name, **fields):
    return [t.values[name] for t in expand(sweep(**fields))]


# ---- drawn axes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["random", "sobol"])
def test_points_are_one_axis_that_the_grid_multiplies(kind):
    fields = {kind: {"client.lr": LR, "privacy.clip": {"low": 0.1, "high": 1.0}}, "samples": 6}
    trials = expand(sweep(**fields, grid={"sampler.rate": [0.2, 0.4]}, seeds=2))
    assert len(trials) == 6 * 2 * 2
    points = {(t.values["client.lr"], t.values["privacy.clip"]) for t in trials}
    assert len(points) == 6
    assert axes(sweep(**fields, grid={"sampler.rate": [0.2, 0.4]}).sweep) == ["client.lr", "sampler.rate"]
    assert [g.label for g in group(trials)] == ["all trials"]


@pytest.mark.parametrize("kind", ["random", "sobol"])
def test_more_samples_extend_the_same_points(kind):
    few = values("client.lr", **{kind: {"client.lr": LR}}, samples=5)
    many = values("client.lr", **{kind: {"client.lr": LR}}, samples=23)
    assert many[:5] == few
    assert values("client.lr", **{kind: {"client.lr": LR}}, samples=5, sample_seed=1) != few


def test_a_random_field_keeps_its_values_when_others_are_added():
    alone = values("client.lr", random={"client.lr": LR}, samples=5)
    assert values("client.lr", random={"privacy.clip": {"low": 1, "high": 2}, "client.lr": LR}, samples=5) == alone


@pytest.mark.parametrize(
    ("drawn", "quantile"),
    [
        ({"low": -1.0, "high": 3.0}, lambda u: -1 + 4 * u),
        (LR, lambda u: 10 ** (3 * u - 3)),
        ({"low": 2, "high": 5, "integer": True}, lambda u: 2 + math.floor(4 * u)),
        ({"low": 1, "high": 100, "scale": "log", "integer": True}, lambda u: min(max(round(0.5 * 201**u), 1), 100)),
        ({"choice": ["a", "b", "c"]}, lambda u: "abc"[math.floor(3 * u)]),
    ],
    ids=["linear", "log", "integer", "log integer", "choice"],
)
def test_a_distribution_is_its_quantile_function(drawn, quantile):
    config = DrawnConfig(**drawn)
    for u in np.linspace(0, 1 - 1e-9, 301):
        found, expected = place(config, float(u)), quantile(float(u))
        assert found == pytest.approx(expected) and type(found) is (type(expected))
    if not config.choice:
        ends = place(config, 0.0), place(config, 1 - 1e-12)
        assert ends == pytest.approx((config.low, config.high), rel=1e-6)


def test_random_values_are_uniform():
    """Kolmogorov: sup |F_n - F| of 4000 values exceeds 2.65 / sqrt(n) with a probability of 2 exp(-2 2.65^2) < 2e-6."""
    found = np.sort([point["client.lr"] for point in draws(sweep(random={"client.lr": LR}, samples=4000).sweep)])
    shares = np.log10(found) / 3 + 1
    steps = np.arange(1, 4001) / 4000
    assert max(np.abs(steps - shares).max(), np.abs(steps - 1 / 4000 - shares).max()) < 2.65 / math.sqrt(4000)


def test_sobol_points_are_even_in_every_projection():
    """A (t, m, s)-net in base 2: every dyadic interval of length 1/64 holds exactly one of 64 points."""
    points = sobol_points(64, 5, 0)
    for column in points.T:
        assert sorted(np.floor(64 * column).astype(int)) == list(range(64))
    halves = np.floor(8 * points[:, :2]).astype(int)
    assert len({*map(tuple, halves.tolist())}) == 64  # of the first two, also every square of side 1/8


def test_a_choice_that_comes_twice_is_one_point():
    fields = {"random": {"client.steps": {"choice": [1, 2]}}, "samples": 12}
    assert sorted(values("client.steps", **fields)) == [1, 2]


def test_lists_may_be_values_of_fields_that_are_lists():
    base = sweep(grid={"model.hidden": [[8], [8, 4]]}).replace(**{"model.name": "mlp"})
    assert [t.experiment.model.hidden for t in expand(base)] == [(8,), (8, 4)]
    assert [g.label for g in group(expand(base))] == ["model.hidden=(8,)", "model.hidden=(8, 4)"]


# ---- conditions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "fields", "holds"),
    [
        ("a.b * 2 <= c", {"a.b": 2, "c": 4}, True),
        ("a.b * 2 < c", {"a.b": 2, "c": 4}, False),
        ("1 < a.b <= 3", {"a.b": 3}, True),
        ("1 < a.b < 3", {"a.b": 3}, False),
        ("a == 'x' or b == \"y\"", {"a": "z", "b": "y"}, True),
        ("not (a in ['x', 'y'])", {"a": "x"}, False),
        ("a not in ('x', 'y') and b", {"a": "w", "b": True}, True),
        ("a ** 2 + b // 2 - 7 % 4 == -a + 11", {"a": 3, "b": 5}, True),
        ("a < inf and b == none", {"a": 1.0, "b": None}, True),
        ("a == true", {"a": False}, False),
    ],
)
def test_conditions_mean_what_python_means(text, fields, holds):
    assert condition(text)(fields.__getitem__) is holds


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('touch x')",
        "a.b()",
        "a[0] == 1",
        "[x for x in a]",
        "lambda: 1",
        "a := 1",
        "f'{a}'",
        "(1).real == 1",
        "a if b else c",
        "a is b",
        "a @ b",
        "b'x' == a",
        "1 <",
        "a = 1",
        "",
        "(" * 300,
        "a + " * 400 + "a",
    ],
)
def test_everything_else_is_refused_before_it_means_anything(text):
    with pytest.raises(FljaxError) as error:
        condition(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["a < 'x'", "'x' * 1000000000 == a", "2 ** 5000 > a", "1 / 0 > a", "a in 3"])
def test_values_that_do_not_fit_are_one_line(text):
    with pytest.raises(FljaxError, match=r"sweep\.where") as error:
        condition(text)(lambda name: 1)
    assert "\n" not in str(error.value)


def test_where_leaves_cells_out_before_they_are_validated():
    """Dropout needs a source: the cells that are no experiments are left out, and those with a source stay."""
    grid = {"dropout.keep_rate": [0.5, 1.0], "dropout.source": ["none", "random"]}
    kept = expand(sweep(grid=grid, where=["dropout.keep_rate == 1 or dropout.source != 'none'"]))
    found = [(t.values["dropout.keep_rate"], t.values["dropout.source"]) for t in kept]
    assert found == [(0.5, "random"), (1.0, "none"), (1.0, "random")]


def test_where_sees_fields_that_are_not_swept():
    assert values("client.lr", grid={"client.lr": [0.1, 3.0]}, where=["client.lr * client.steps < rounds / 3"]) == [0.1]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"grid": {"client.lr": [[0.1, 0.2]]}}, r"client\.lr = \(0\.1, 0\.2\) should be a valid number"),
        ({"grid": {"client.lr": ["fast"]}}, r"client\.lr = 'fast' should be a valid number"),
        ({"grid": {"client.lr": [0.1, 0.1]}}, "twice"),
        ({"zip": {"client.lr": [0.1, 0.1], "privacy.clip": [1, 1.0]}}, "twice"),
        ({"grid": {"seed": [1]}}, r"sweep\.seeds"),
        ({"grid": {"perf.chunk": [1]}}, "change no result"),
        ({"grid": {"data.dir": ["a"]}}, "change"),
        ({"grid": {"name": ["a"]}}, "names the whole sweep"),
        ({"random": {"client.lr": LR}, "sobol": {"client.lr": LR}}, "one axis"),
        ({"random": {"client.lr": LR}, "grid": {"client.lr": [1.0]}}, "one axis"),
        ({"grid": {"client.lr": [0.1]}, "where": ["client.lr > 1"]}, "leaves none"),
        ({"grid": {"client.lr": [0.1]}, "where": ["client.lrr > 1"]}, "Perhaps you meant lr"),
        ({"grid": {"client.lr": [0.1]}, "where": ["lr > 1"]}, "to be a field"),
        ({"grid": {"client.lr.x": [0.1]}}, r"client"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_one_line(fields, says):
    from fljax.sweep.plan import make_plan

    with pytest.raises(FljaxError, match=says) as error:
        make_plan(sweep(**fields))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("drawn", "says"),
    [
        ({}, "low and high, or a choice"),
        ({"low": 1.0}, "low and high, or a choice"),
        ({"low": 1.0, "high": 2.0, "choice": [1]}, "low and high, or a choice"),
        ({"low": 2.0, "high": 1.0}, "below high"),
        ({"low": 0.0, "high": 1.0, "scale": "log"}, "low > 0"),
        ({"low": 0.5, "high": 3.0, "integer": True}, "whole ends"),
        ({"choice": [1], "integer": True}, "beside a choice"),
        ({"low": 1.0, "high": 2.0, "shape": 3}, "unknown key"),
    ],
)
def test_a_distribution_that_makes_no_sense_is_refused(drawn, says):
    with pytest.raises(FljaxError, match=says) as error:
        validate({"sweep": {"random": {"client.lr": drawn}}})
    assert "\n" not in str(error.value)
