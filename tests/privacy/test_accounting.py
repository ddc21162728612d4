"""Epsilon against its own laws (monotone, RDP above PLD, bounded); known answers are in tests/golden."""

import math
import time

import numpy as np
import pytest

from fljax.core.check import FljaxError
from fljax.core.types import SamplingLaw
from fljax.privacy import default_delta, epsilon, epsilon_series, fixed_size_bound, rdp_epsilon
from fljax.privacy.rdp import ORDERS


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FLJAX_CACHE", str(tmp_path))


FULL = SamplingLaw("full", 1.0)


def test_relations_agree_with_the_accountant_of_google():
    """Half the noise under add/remove is the full noise under replace; RDP of dp_accounting 0.6 misses the factor."""
    import dp_accounting as dp

    one, relation = dp.GaussianDpEvent(1.0), dp.NeighboringRelation.REPLACE_ONE
    replaced = dp.pld.PLDAccountant(relation).compose(one).get_epsilon(1e-5)
    assert epsilon(SamplingLaw("fixed_size", 1.0, 100), 1.0, 1, 1e-5) == pytest.approx(replaced, rel=1e-5)
    unsafe = dp.rdp.RdpAccountant(neighboring_relation=relation).compose(one).get_epsilon(1e-5)
    assert unsafe < 0.5 * replaced


def test_fixed_size_is_bracketed_by_data_sets_and_proof():
    law = SamplingLaw("fixed_size", 0.1, 100)
    usual, proven = epsilon(law, 3.0, 50, 1e-5), fixed_size_bound(law, 3.0, 50, 1e-5)
    assert usual < proven < 1.2 * usual
    assert usual > 1.5 * epsilon(SamplingLaw("poisson", 0.1, 100), 3.0, 50, 1e-5)


def test_fixed_size_bound_of_all_clients_is_the_gaussian():
    """With q = 1 both directions are the same Gaussian pair, so that the proven bound is tight."""
    law = SamplingLaw("fixed_size", 1.0, 100)
    assert fixed_size_bound(law, 4.0, 4, 1e-5) == pytest.approx(epsilon(law, 4.0, 4, 1e-5), rel=1e-3)


def test_fixed_size_mixtures_of_directions_stay_below_both():
    """The premise of the usual accounting, checked where it can be: no mixture of the two directions does worse."""
    from dp_accounting.pld import privacy_loss_distribution as pld

    step = pld.from_gaussian_mechanism(1.0, sampling_prob=0.1, value_discretization_interval=1e-3)
    add, remove = step._pmf_add, step._pmf_remove
    usual = remove.self_compose(20).get_epsilon_for_delta(1e-5)
    for k in (1, 5, 10, 19):
        assert remove.self_compose(k).compose(add.self_compose(20 - k)).get_epsilon_for_delta(1e-5) < usual


def test_truncation_costs_and_disappears():
    z, T, delta = 2.0, 100, 1e-3
    tight = epsilon(SamplingLaw("truncated_poisson", 0.1, 100, 15), z, T, delta)
    roomy = epsilon(SamplingLaw("truncated_poisson", 0.1, 100, 30), z, T, delta)
    plain = epsilon(SamplingLaw("poisson", 0.1, 100), z, T, delta)
    assert plain <= roomy < tight
    assert epsilon(SamplingLaw("truncated_poisson", 0.1, 100, 100), z, T, delta) == plain


def test_no_noise_is_infinite_without_the_accountant(monkeypatch):
    from fljax.privacy import accounting

    monkeypatch.setattr(accounting, "_run_accountant", lambda *_: pytest.fail("the accountant ran"))
    laws = (FULL, SamplingLaw("poisson", 0.1), SamplingLaw("fixed_size", 0.1, 100), SamplingLaw("cyclic", 0.1, 100))
    for law in (*laws, SamplingLaw("truncated_poisson", 0.1, 100, 30)):
        assert epsilon(law, 0.0, 10, 1e-3) == math.inf
        assert np.all(epsilon_series(law, 0.0, 10, 1e-3) == math.inf)
    assert epsilon(FULL, 1e-3, 100, 1e-3) == math.inf  # the truth is 5e7, for which there is no memory
    assert fixed_size_bound(laws[2], 0.0, 10, 1e-3) == math.inf


def test_monotone_in_noise_rounds_rate_and_delta():
    base = {"q": 0.05, "z": 1.2, "T": 50, "delta": 1e-4}

    def value(**changed):
        at = base | changed
        return epsilon(SamplingLaw("poisson", at["q"]), at["z"], at["T"], at["delta"])

    assert value(z=2.0) < value(z=1.5) < value()
    assert value(q=0.01) < value(q=0.02) < value()
    assert value(T=1) < value(T=10) < value()
    assert value(delta=1e-2) < value() < value(delta=1e-6)


@pytest.mark.parametrize("delta", [1e-5, 1e-3, 0.3])
def test_vectorised_rdp_is_that_of_google_at_the_same_orders(delta):
    import dp_accounting as dp

    for q, z, T in [(0.01, 1.0, 1000), (0.1, 0.6, 10), (1.0, 3.0, 7), (0.5, 8.0, 100), (1e-4, 0.5, 3), (0.2, 30.0, 1)]:
        event = dp.SelfComposedDpEvent(dp.PoissonSampledDpEvent(q, dp.GaussianDpEvent(z)), T)
        theirs = dp.rdp.RdpAccountant(orders=ORDERS).compose(event).get_epsilon(delta)
        assert rdp_epsilon(q, z, T, delta) == pytest.approx(theirs, rel=1e-6, abs=1e-9)


def test_vectorised_rdp_broadcasts_and_is_fast():
    rdp_epsilon(0.1, 1.0, 1, 1e-5)  # scipy is imported
    q, z = np.meshgrid(np.linspace(0.001, 1, 40), np.linspace(0, 5, 25))
    start = time.perf_counter()
    values = rdp_epsilon(q, z, 100, 1e-5)
    assert time.perf_counter() - start < 3  # measured 0.2 s for these 1,000; generous on a shared machine
    assert values.shape == (25, 40) and np.all(np.isinf(values[0])) and np.all(np.isfinite(values[1:]))
    assert values[7, 9] == rdp_epsilon(q[7, 9], z[7, 9], 100, 1e-5)


def test_series_of_rounds():
    law = SamplingLaw("poisson", 0.01, 1000)
    series = epsilon_series(law, 1.0, 300, 1e-4)
    assert series.shape == (300,) and np.all(np.diff(series) >= 0)
    assert series[99] == pytest.approx(float(rdp_epsilon(0.01, 1.0, 100, 1e-4)), rel=1e-12)
    assert series[-1] >= epsilon(law, 1.0, 300, 1e-4)


@pytest.mark.parametrize(
    "law",
    [
        SamplingLaw("truncated_poisson", 0.1, 100, 25),
        SamplingLaw("fixed_size", 0.1, 100),
        SamplingLaw("cyclic", 0.1, 100),
        FULL,
    ],
)
def test_series_is_an_upper_bound_for_every_law(law):
    series = epsilon_series(law, 3.0, 40, 1e-3)
    assert np.all(np.diff(series) >= 0)
    for rounds in (1, 13, 40):
        assert series[rounds - 1] >= epsilon(law, 3.0, rounds, 1e-3)


def test_default_delta_is_below_one_over_n():
    assert default_delta(100) == pytest.approx(6.31e-3, rel=1e-3)
    assert all(default_delta(n) < 1 / n for n in (2, 10, 10**9))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((SamplingLaw("poison", 0.1), 1.0, 10, 1e-5), "sampler='poison'.*Perhaps you meant 'poisson'"),
        ((SamplingLaw("poisson", 0.0), 1.0, 10, 1e-5), "sampling_rate=0.0"),
        ((SamplingLaw("poisson", math.nan), 1.0, 10, 1e-5), "sampling_rate=nan"),
        ((SamplingLaw("poisson", 1.1), 1.0, 10, 1e-5), "sampling_rate=1.1"),
        ((SamplingLaw("poisson", 0.1), -1.0, 10, 1e-5), "noise_multiplier=-1.0 >= 0. Use 0 for no noise"),
        ((SamplingLaw("poisson", 0.1), math.nan, 10, 1e-5), "noise_multiplier=nan"),
        ((SamplingLaw("poisson", 0.1), math.inf, 10, 1e-5), "noise_multiplier=inf"),
        ((SamplingLaw("poisson", 0.1), 1.0, 0, 1e-5), "rounds=0"),
        ((SamplingLaw("poisson", 0.1), 1.0, 1.5, 1e-5), "rounds=1.5"),
        ((SamplingLaw("poisson", 0.1), 1.0, math.inf, 1e-5), "rounds=inf"),
        ((SamplingLaw("poisson", 0.1), 1.0, 10, 0.0), "delta=0.0"),
        ((SamplingLaw("poisson", 0.1), 1.0, 10, 1.0), "delta=1.0"),
        ((SamplingLaw("poisson", 0.1), 1.0, 10, math.nan), "delta=nan"),
        ((SamplingLaw("poisson", 0.1, 100), 1.0, 10, 0.01), r"delta=0.01 < 1/population = 0.01. Use 0.00631"),
        ((SamplingLaw("poisson", 0.1, 0), 1.0, 10, 1e-3), "population=0"),
        ((SamplingLaw("fixed_size", 0.1, 100), 1.0, 10, 1e-3, "rdp"), "accountant='rdp'"),
        ((SamplingLaw("truncated_poisson", 0.1, 100, 30), 1.0, 10, 1e-3, "rdp"), "accountant='rdp'"),
        ((SamplingLaw("poisson", 0.1), 1.0, 10, 1e-3, "prv"), "accountant='prv'"),
    ],
)
def test_bad_input_gets_one_line(arguments, message):
    with pytest.raises(FljaxError, match=message) as caught:
        epsilon(*arguments[:4], accountant=arguments[4] if len(arguments) > 4 else "pld")
    assert "\n" not in str(caught.value)


def test_other_bad_input():
    with pytest.raises(FljaxError, match="population=1"):
        default_delta(1)
    with pytest.raises(FljaxError, match="sampler='poisson'"):
        fixed_size_bound(SamplingLaw("poisson", 0.1), 1.0, 10, 1e-5)
    with pytest.raises(FljaxError, match="delta"):
        epsilon_series(SamplingLaw("poisson", 0.1, 100), 1.0, 10, 0.5)
