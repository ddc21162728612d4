"""What a run would cost, before it runs."""

import pytest

from fljax.core.check import FljaxError
from fljax.sim import memory
from fljax.sim.forecast import forecast, round_flops
from tests.sim import small_run


@pytest.fixture(scope="module")
def seen():
    return forecast(small_run.experiment(), quiet=True)


def test_it_tells_memory_time_and_privacy(seen):
    assert seen["rounds"] == small_run.ROUNDS and seen["chunk"] == small_run.program().chunk
    assert 0 < seen["memory"]["while_it_runs"] < seen["memory"]["free"]
    seconds = seen["seconds"]
    assert seconds["expected"] == pytest.approx(seconds["compile"] + seconds["per_round"] * small_run.ROUNDS)
    assert "-DP per user" in seen["privacy"]


def test_operations_are_those_of_the_products(seen):
    """An MLP 4-4-3: 2 (4 4 + 4 3) operations forward, three times that to train, once for each expected example."""
    sizes = small_run.program().dataset.train.sizes
    assert seen["flops_per_round"] == pytest.approx(3 * 2 * (16 + 12) * 0.6 * sizes.sum())
    twice = small_run.experiment(**{"client.epochs": 2})
    assert round_flops(twice, small_run.program()) == pytest.approx(2 * seen["flops_per_round"])


def test_too_little_memory_is_refused_before_anything_runs(monkeypatch):
    monkeypatch.setattr(memory, "free", lambda: 100)
    with pytest.raises(FljaxError, match=r"the states of 10 clients to fit into memory: .* Use fewer clients"):
        forecast(small_run.experiment(), quiet=True)
    room = iter([10**9, 100])
    monkeypatch.setattr(memory, "free", lambda: next(room))
    with pytest.raises(FljaxError, match=r"perf.chunk=1 to fit into memory: .* Use a smaller model"):
        forecast(small_run.experiment(**{"perf.chunk": 8}), quiet=True)
