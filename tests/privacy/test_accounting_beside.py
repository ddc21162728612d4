"""What is released beside the rounds: private choices of neurons and reported classes, composed with the noise."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from fljax.core.check import FljaxError
from fljax.core.transform import Noise
from fljax.core.types import SamplingLaw
from fljax.privacy import calibrate, epsilon, epsilon_series, make_event, selection_epsilon, stated_epsilon
from fljax.privacy.accounting import GRID, all_rounds, evaluate
from fljax.privacy.mechanisms import choices

LAW, FULL = SamplingLaw("poisson", 0.1, 100), SamplingLaw("full", 1.0, 100)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FLJAX_CACHE", str(tmp_path))


def chosen(width, picks, warmup=5, every=0, multiplier=1.0):
    detail = {"choice_range": width, "choice_picks": picks, "choice_warmup": warmup, "choice_every": every}
    return Noise("gaussian", multiplier, "central", tuple(detail.items()))


def losses_of_choices(width, picks):
    """The privacy loss distribution of the choices alone."""
    event = make_event(FULL, chosen(width, picks), 9)
    return all_rounds(event.beside[0], GRID)


def test_one_choice_is_the_worst_of_all_two_point_pairs():
    """Against a scan over the pairs with losses t and t - eta, in float64."""
    width, x = 0.7, np.linspace(-0.8, 0.8, 17)
    t = np.linspace(1e-6, width - 1e-6, 20_001)
    q = -np.expm1(t - width) / (np.exp(t) - np.exp(t - width))
    pairs = np.maximum(np.exp(t) - np.exp(x[:, None]), 0) * q + np.maximum(
        np.exp(t - width) - np.exp(x[:, None]), 0
    ) * (1 - q)
    found = np.asarray(losses_of_choices(width, 1).get_delta_for_epsilon(x.tolist()))
    np.testing.assert_allclose(found, pairs.max(1), atol=3e-5)
    assert np.all(found >= pairs.max(1) - 1e-12)


def peeling(scores, scale, k):
    """Probability of every ordered outcome of k choices without replacement, proportional to exp(score / scale)."""
    weight, out = np.exp(np.asarray(scores) / scale), {}
    for order in itertools.permutations(range(len(weight)), k):
        left, p = weight.sum(), 1.0
        for i in order:
            p, left = p * weight[i] / left, left - weight[i]
        out[order] = p
    return np.array([out[o] for o in sorted(out)])


@pytest.mark.parametrize(
    "votes", [(1, 0, 0, 0, 0), (1, 1, 0, 0, 0), (0, 1, 0, 1, 1), (1, 1, 1, 1, 0), (0.3, 1, 0, 0.5, 1)]
)
def test_the_choice_of_neurons_is_covered(votes):
    """Brute force: the exact delta of three choices out of five, with and without one client, both ways round."""
    k, scale, base = 3, 2.0, np.array([2.0, 1.5, 1.0, 1.0, 0.0])
    p, q = peeling(base + np.array(votes), scale, k), peeling(base, scale, k)
    assert p.sum() == pytest.approx(1) and np.abs(np.log(p / q)).max() <= k / scale + 1e-12
    x = np.linspace(0, 1.5, 16)
    exact = [max(np.maximum(a - math.exp(e) * b, 0).sum() for a, b in ((p, q), (q, p))) for e in x]
    assert np.all(np.asarray(losses_of_choices(1 / scale, k).get_delta_for_epsilon(x.tolist())) >= exact)


def test_both_accountants_and_the_live_curve_bound_the_same_run():
    """The choices cost something, more of them cost more, and the curve ends at or above what is stated."""
    noise = chosen(0.1, 32, every=10)
    plain, stated = epsilon(LAW, 1.0, 40, 1e-3), stated_epsilon(LAW, noise, 40, 1e-3)
    by_rdp, curve = epsilon(LAW, noise, 40, 1e-3, accountant="rdp"), epsilon_series(LAW, noise, 40, 1e-3)
    assert plain < stated < stated_epsilon(LAW, chosen(0.1, 64, every=10), 40, 1e-3)
    assert abs(by_rdp / stated - 1) < 0.2
    assert curve[-1] >= stated and np.all(np.diff(curve) >= 0)
    jumps = np.diff(curve)[3:35]
    assert set(np.argsort(jumps)[-4:] + 5) >= {15, 25, 35}  # after the rounds before a choice
    cut = SamplingLaw("truncated_poisson", 0.1, 100, 30)
    assert epsilon_series(cut, noise, 40, 1e-3)[-1] >= stated_epsilon(cut, noise, 40, 1e-3) > plain


def test_noise_is_calibrated_with_the_choices_inside_of_the_target():
    noise = chosen(0.05, 16)
    z = calibrate(LAW, 3.0, 20, 1e-3, noise)
    assert 2.9 < stated_epsilon(LAW, noise._replace(multiplier=z), 20, 1e-3) <= 3.0
    assert z > calibrate(LAW, 3.0, 20, 1e-3)


def test_a_report_is_one_pure_release():
    """Alone: infinitely much noise on the rounds leaves its epsilon. Beside: at most the sum, more than the larger."""
    report = Noise("gaussian", 1e4, "local", (("report_epsilon", 0.7),))
    assert stated_epsilon(FULL, report, 3, 1e-9) == pytest.approx(0.7, abs=2e-3)
    both, rounds = report._replace(multiplier=20.0), Noise("gaussian", 20.0, "local")
    alone = stated_epsilon(FULL, rounds, 3, 1e-3)
    assert max(alone, 0.7) < stated_epsilon(FULL, both, 3, 1e-3) <= alone + 0.7
    assert selection_epsilon(FULL, both, 3, 1e-3, 5) > selection_epsilon(FULL, rounds, 3, 1e-3, 5)


def test_replacing_a_client_doubles_the_range_of_a_choice():
    fixed = SamplingLaw("fixed_size", 0.1, 100)
    for law, width in ((LAW, 0.25), (fixed, 0.5), (SamplingLaw("cyclic", 0.1, 100), 0.25)):
        (part,) = make_event(law, chosen(0.25, 8), 9).beside
        assert (1 / part.noise, part.rounds, part.rate) == (width, 8, 1.0)


@pytest.mark.parametrize(
    ("rounds", "warmup", "every", "count"),
    [(9, 0, 0, 0), (9, 1, 0, 1), (9, 9, 0, 1), (8, 9, 0, 0), (9, 2, 3, 3), (9, 0, 3, 3), (2, 0, 3, 0), (9, 1, 1, 9)],
)
def test_votes_are_counted_as_rounds_before_a_choice(rounds, warmup, every, count):
    """Against the schedule itself: rounds t < T after which a choice is due."""
    due = [
        t + 1 >= warmup and (t + 1 == warmup if every == 0 else (t + 1 - warmup) % every == 0) for t in range(rounds)
    ]
    assert choices(rounds, warmup, every) == sum(due) == count


def test_gaussians_compose_in_closed_form():
    """2 x N(3) and 7 x N(5) are one Gaussian of multiplier (2/9 + 7/25)^(-1/2); keys tell them apart."""
    run = replace(make_event(FULL, 3.0, 2), beside=(make_event(FULL, 5.0, 7),))
    same = (2 / 9 + 7 / 25) ** -0.5
    assert evaluate(run, 1e-5, "pld", GRID) == pytest.approx(epsilon(FULL, same, 1, 1e-5), rel=1e-3)
    assert run.key == "SelfComposed(Gaussian(3.0), 2) + SelfComposed(Gaussian(5.0), 7)"


def test_what_cannot_be_composed_is_refused():
    """Discrete noise has its own curve and nothing beside it; so much of a choice that nothing is left is infinite."""
    detail = (("dimension", 64.0), ("l2", 1003.0), ("l1", 8024.0), ("unit", 1000.0), ("shares", 10.0))
    noise = Noise("skellam", 2.0, "distributed", (*detail, ("report_epsilon", 1.0)))
    with pytest.raises(FljaxError, match="to be Gaussian beside"):
        make_event(SamplingLaw("fixed_size", 0.1, 100), noise, 1)
    assert stated_epsilon(LAW, chosen(500.0, 5000), 9, 1e-3) == math.inf
