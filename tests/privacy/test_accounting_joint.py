"""Rounds of different kinds: composed like the parts, refused where the parts do not fit."""

import math
from dataclasses import replace

import pytest

from fljax.core.check import FljaxError
from fljax.core.transform import Noise
from fljax.core.types import SamplingLaw
from fljax.privacy import compose_epsilon, effective_multiplier, epsilon, make_event, split_multiplier
from fljax.privacy.accounting import fixed_size_bound

LAW = SamplingLaw("poisson", 0.1, 100)
DETAIL = (("dimension", 64.0), ("l2", 1003.0), ("l1", 8024.0), ("unit", 1000.0), ("shares", 10.0))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FLJAX_CACHE", str(tmp_path))


def one(z, law=LAW, rounds=1):
    return make_event(law, z, rounds)


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_equal_parts_are_the_plain_composition(accountant):
    plain = epsilon(LAW, 2.0, 20, 1e-3, accountant=accountant)
    assert compose_epsilon([(one(2.0), 20)], 1e-3, accountant=accountant) == pytest.approx(plain, rel=1e-9)
    split = [(one(2.0, rounds=3), 4), (one(2.0), 8), (one(0.5), 0)]
    assert compose_epsilon(split, 1e-3, accountant=accountant) == pytest.approx(plain, rel=1e-3)


def test_gaussians_compose_in_closed_form():
    full = SamplingLaw("full", 1.0)
    parts = [(one(3.0, full), 2), (one(5.0, full), 7)]
    same = effective_multiplier(*[3.0] * 2, *[5.0] * 7)
    assert compose_epsilon(parts, 1e-5) == pytest.approx(epsilon(full, same, 1, 1e-5), rel=1e-3)


def test_fixed_size_cohorts_are_composed_by_the_proven_bound():
    law = SamplingLaw("fixed_size", 0.1, 100)
    proven = fixed_size_bound(law, 4.0, 9, 1e-3)
    assert compose_epsilon([(one(4.0, law), 4), (one(4.0, law), 5)], 1e-3) == pytest.approx(proven, rel=1e-6)
    assert proven > 1.02 * epsilon(law, 4.0, 9, 1e-3)


def test_a_part_without_noise_or_with_next_to_none_is_infinite():
    assert compose_epsilon([(one(2.0), 5), (one(0.0), 1)], 1e-3) == math.inf
    assert compose_epsilon([(one(2.0), 5), (one(1e-3), 50)], 1e-3) == math.inf


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ([], "parts="),
        ([(one(2.0), 0)], "parts="),
        ([(one(2.0), -1)], "times=-1"),
        ([(one(2.0), 1.5)], "times=1.5"),
        ([(one(2.0), 1), (one(2.0, SamplingLaw("fixed_size", 0.1, 100)), 1)], "share a relation.*replace_one"),
        ([(one(2.0), 1), (one(Noise("gaussian", 2.0, "local")), 1)], "share a relation.*local"),
        ([(one(2.0), 1), (replace(one(2.0), population=50), 1)], "share a relation.*N=50"),
        (
            [(one(Noise("skellam", 2.0, "distributed", DETAIL), SamplingLaw("fixed_size", 0.1, 100)), 1)],
            "mechanism='skellam'",
        ),
    ],
)
def test_parts_that_do_not_fit_are_one_line(parts, says):
    with pytest.raises(FljaxError, match=says) as caught:
        compose_epsilon(parts, 1e-3)
    assert "\n" not in str(caught.value)


def test_other_bad_input():
    with pytest.raises(FljaxError, match=r"delta=0\.1 < 1/population"):
        compose_epsilon([(one(2.0), 1)], 0.1)
    with pytest.raises(FljaxError, match="accountant='rdp'"):
        compose_epsilon([(one(2.0, SamplingLaw("fixed_size", 0.1, 100)), 1)], 1e-3, accountant="rdp")


def test_multipliers_join_and_split():
    assert effective_multiplier(3.0, 4.0) == pytest.approx(12 / 5)
    assert effective_multiplier(2.0, math.inf) == 2.0 and effective_multiplier(math.inf) == math.inf
    assert effective_multiplier(2.0, 0.0) == 0.0
    parts = split_multiplier(1.3, (0.5, 0.3, 0.2))
    assert parts[0] == pytest.approx(1.3 * math.sqrt(2)) and effective_multiplier(*parts) == pytest.approx(1.3)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: effective_multiplier(), "multipliers="),
        (lambda: effective_multiplier(1.0, -2.0), "noise_multiplier=-2.0"),
        (lambda: split_multiplier(-1.0, (1.0,)), "noise_multiplier=-1.0"),
        (lambda: split_multiplier(1.0, (0.5, 0.4)), "sum to 1"),
        (lambda: split_multiplier(1.0, (1.0, 0.0)), "share=0.0"),
        (lambda: split_multiplier(1.0, ()), "sum to 1"),
    ],
)
def test_multipliers_out_of_range_are_one_line(call, says):
    with pytest.raises(FljaxError, match=says) as caught:
        call()
    assert "\n" not in str(caught.value)
