"""How many clients are computed at once: the waste of padding, and what is chosen on a CPU."""

import numpy as np
import pytest

from fljax.server.execute import auto_chunk, padding_waste

LARGE, MIDDLE, SMALL = 1_000_000, 20_000, 5_000


def test_waste_is_that_of_a_loop_over_batches():
    steps = np.random.default_rng(0).integers(1, 40, 24)
    for chunk in (1, 5, 24, 0):
        cohort = sorted(steps.tolist(), reverse=True)
        batches = [cohort[i : i + (chunk or 24)] for i in range(0, 24, chunk or 24)]
        executed = sum((chunk or 24) * max(b) for b in batches)  # empty slots run, too
        assert padding_waste(steps, 24, chunk) == pytest.approx(executed / sum(cohort))
    assert padding_waste(steps, 24, 1) == 1.0


def test_a_cohort_stands_for_the_quantiles_of_the_population():
    steps = np.repeat([1, 3], 500)
    assert padding_waste(steps, 10, 5) == 1.0  # five long ones and five short ones
    assert padding_waste(steps, 10, 10) == pytest.approx(30 / 20)


def test_equal_clients_are_batched_and_unequal_ones_in_smaller_batches():
    equal, tail = np.full(100, 10), np.round(np.exp(np.random.default_rng(0).normal(0, 1, 100)) * 10) + 1
    assert auto_chunk(SMALL, 64, equal) == auto_chunk(SMALL, 64) == 64
    chosen = auto_chunk(SMALL, 64, tail)
    assert 1 < chosen < 64
    assert padding_waste(tail, 64, chosen) < 1.3 < padding_waste(tail, 64, 64)
    assert auto_chunk(LARGE, 64, tail) == 1
    assert auto_chunk(MIDDLE, 64) == 64 and auto_chunk(2 * MIDDLE, 64) == 1


def test_empty_slots_count_as_long_as_a_client():
    steps = np.array([2, 2, 6, 6])
    assert padding_waste(steps, 10, 4, living=4) == pytest.approx(4 * 6 / 16)
    assert padding_waste(steps, 10, 4, living=5.2) == pytest.approx((4 * 6 + 4 * 2) / (3 * 6 + 2 * 2))
    assert padding_waste(steps, 3, 8, living=2) == pytest.approx(3 * 6 / 8)  # no wider than the cohort
    assert padding_waste(steps, 10, 2, living=0.1) == pytest.approx(2 * 2 / 2)  # at least one client


def test_batches_leave_few_slots_empty():
    """65 of 128 slots: two batches of 64 would compute 63 clients that are not there."""
    assert auto_chunk(SMALL, 128) == auto_chunk(SMALL, 128, living=127) == 64
    assert auto_chunk(SMALL, 128, living=65) == 8
    assert auto_chunk(SMALL, 76) == 16


def test_batches_are_wide_where_a_step_costs_little_but_its_overhead():
    tail = np.repeat([4, 2, 1], [4, 4, 12])
    narrow, wide = auto_chunk(MIDDLE, 20, tail), auto_chunk(100, 20, tail)
    assert narrow < 8 <= wide
