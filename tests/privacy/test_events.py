"""Events say what ran: law by law, against the objects of dp_accounting."""

import subprocess
import sys

import numpy as np
import pytest

from fljax.core.check import FljaxError
from fljax.core.types import Hparams, SamplingLaw
from fljax.privacy import epsilon, make_event
from fljax.privacy.noise import central_gaussian


def test_poisson():
    import dp_accounting as dp

    event = make_event(SamplingLaw("poisson", 0.1, 100), 1.5, 20)
    expected = dp.SelfComposedDpEvent(dp.PoissonSampledDpEvent(0.1, dp.GaussianDpEvent(1.5)), 20)
    assert event.dp_event == expected
    assert (event.relation, event.accountant_relation, event.live) == ("add_or_remove_one", "add_or_remove_one", "rdp")
    assert event.sampler == "Poisson sampling, q=0.1"


def test_full_and_poisson_of_everyone_are_the_gaussian():
    import dp_accounting as dp

    for kind in ("full", "poisson"):
        event = make_event(SamplingLaw(kind, 1.0), 2.0, 5)
        assert event.dp_event == dp.SelfComposedDpEvent(dp.GaussianDpEvent(2.0), 5)
        assert event.relation == "add_or_remove_one"


def test_truncated_poisson():
    import dp_accounting as dp

    event = make_event(SamplingLaw("truncated_poisson", 0.1, 100, 30), 1.5, 20)
    assert event.dp_event == dp.SelfComposedDpEvent(dp.TruncatedSubsampledGaussianDpEvent(100, 0.1, 30, 1.5), 20)
    assert "cut off uniformly at 30 of 100" in event.sampler and event.live == "pld"


@pytest.mark.parametrize("capacity", [100, 101])
def test_a_capacity_for_everyone_truncates_nothing(capacity):
    law = SamplingLaw("truncated_poisson", 0.1, 100, capacity)
    assert make_event(law, 1.5, 20) == make_event(SamplingLaw("poisson", 0.1, 100), 1.5, 20)


def test_fixed_size_halves_the_noise_and_says_so():
    event = make_event(SamplingLaw("fixed_size", np.float32(0.1), 100), 1.5, 20)
    assert (event.rate, event.noise, event.relation) == (0.1, 0.75, "replace_one")
    assert event.accountant_relation == "add_or_remove_one"
    assert "without replacement, 10 of 100" in event.sampler and "half the noise" in event.sampler
    assert make_event(SamplingLaw("fixed_size", 0.1), 1.5, 20).noise == 0.75


@pytest.mark.parametrize(
    ("rate", "population", "rounds", "turns"),
    [
        (0.1, 100, 30, 3),
        (0.1, None, 30, 3),
        (np.float32(0.1), None, 30, 3),
        (0.1, 100, 31, 4),
        (0.1, None, 31, 4),
        (0.1, 100, 1, 1),
        (0.3, 10, 4, 2),
        (1.0, 7, 9, 9),
    ],
)
def test_cyclic_counts_turns(rate, population, rounds, turns):
    event = make_event(SamplingLaw("cyclic", rate, population), 1.5, rounds)
    assert (event.rounds, event.rate, event.noise, event.relation) == (turns, 1.0, 1.5, "replace_special")
    assert "no amplification" in event.sampler


def test_cyclic_turns_are_those_of_a_walk_through_the_clients():
    for population, cohort, rounds in [(10, 3, 7), (7, 7, 3), (12, 5, 30), (9, 2, 1)]:
        visits = np.bincount(np.arange(rounds * cohort) % population, minlength=population)
        assert make_event(SamplingLaw("cyclic", cohort / population, population), 1.0, rounds).rounds == visits.max()


def test_keys_tell_events_apart():
    laws = [
        SamplingLaw("poisson", 0.1, 100),
        SamplingLaw("poisson", 0.2, 100),
        SamplingLaw("truncated_poisson", 0.1, 100, 30),
        SamplingLaw("truncated_poisson", 0.1, 100, 31),
        SamplingLaw("truncated_poisson", 0.1, 101, 30),
        SamplingLaw("full", 1.0, 100),
    ]
    keys = {make_event(law, z, rounds).key for law in laws for z in (1.0, 1.0000001) for rounds in (10, 11)}
    assert len(keys) == 4 * len(laws)


def test_a_cohort_that_stands_for_a_larger_one_refers_to_the_larger_population():
    """Noise of z S C/C' on a cohort of C out of N: the event of z at the same rate in a population of N C'/C."""
    noise = central_gaussian().claim(Hparams(noise_multiplier=1.5, noise_scale=0.1)).noise
    event = make_event(SamplingLaw("truncated_poisson", 0.1, 100, 30), noise, 20)
    same = make_event(SamplingLaw("poisson", 0.1, 1000), 1.5, 20)
    assert (event.population, event.rate, event.noise, event.relation) == (1000, 0.1, 1.5, "add_or_remove_one")
    assert event.dp_event == same.dp_event and "simulated population" in event.sampler
    plain = central_gaussian().claim(Hparams(noise_multiplier=1.5)).noise
    assert make_event(SamplingLaw("poisson", 0.1, 100), plain, 20).population == 100
    with pytest.raises(FljaxError, match=r"delta=0.005 < 1/population = 0.001"):
        epsilon(SamplingLaw("poisson", 0.1, 100), noise, 20, 0.005)
    with pytest.raises(FljaxError, match=r"noise_scale=0.1.*Use Poisson cohorts"):
        make_event(SamplingLaw("fixed_size", 0.1, 100), noise, 20)


def test_no_noise_is_a_well_formed_event():
    assert make_event(SamplingLaw("poisson", 0.1), 0, 3).noise == 0


@pytest.mark.parametrize(
    ("law", "message"),
    [
        (SamplingLaw("shuffle", 0.1, 100), "sampler='shuffle' to be one of poisson"),
        (SamplingLaw("truncated_poisson", 0.1, 100), "capacity=None"),
        (SamplingLaw("truncated_poisson", 0.1, None, 30), "population=None"),
        (SamplingLaw("truncated_poisson", 0.1, 100, 0), "capacity=0"),
        (SamplingLaw("poisson", 0.1, 100, 30), "capacity=30.*'truncated_poisson'"),
        (SamplingLaw("poisson", 0.1, None, 30), "capacity=30"),
        (SamplingLaw("full", 0.5, 100), "sampling_rate=0.5 to be 1"),
        (SamplingLaw("fixed_size", 0.123, 100), r"sampling_rate=0.123.*Use 12/100 = 0.12"),
        (SamplingLaw("cyclic", 0.001, 100), r"sampling_rate=0.001.*Use 1/100"),
        (SamplingLaw("poisson", 0.1, 2.5), "population=2.5"),
    ],
)
def test_laws_that_cannot_be_are_refused_in_one_line(law, message):
    with pytest.raises(FljaxError, match=message) as caught:
        make_event(law, 1.0, 10)
    assert "\n" not in str(caught.value)


def test_importing_the_package_does_not_import_the_accountant():
    program = "import sys, fljax.privacy, fljax.cli.privacy; sys.exit('dp_accounting' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
