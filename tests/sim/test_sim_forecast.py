"""What a run would cost, before it runs."""

import math
import re

import pytest

from fljax.core import memory
from fljax.core.check import FljaxError
from fljax.sim.forecast import Pace, forecast, round_flops
from tests.sim import small_run


@pytest.fixture(scope="module")
def seen():
    return forecast(small_run.experiment(), quiet=True)


def test_it_tells_memory_time_and_privacy(seen):
    assert seen["rounds"] == small_run.ROUNDS and seen["chunk"] == small_run.program().chunk
    assert 0 < seen["memory"]["while_it_runs"] < seen["memory"]["free"]
    seconds = seen["seconds"]
    run = seconds["per_round"] * small_run.ROUNDS + seconds["per_evaluation"] * 3  # after rounds 3, 6 and 7
    assert seconds["expected"] == pytest.approx(seconds["compile"] + run)
    assert "-DP per user" in seen["privacy"]


def test_a_run_is_evaluated_every_so_many_rounds_and_at_its_end():
    assert Pace(2.0, 5.0).total(7, 3) == 7 * 2.0 + 3 * 5.0
    assert Pace(2.0, 5.0).total(6, 3) == 6 * 2.0 + 2 * 5.0


def test_operations_are_those_of_the_products(seen):
    """An MLP 4-4-3: 2 (4 4 + 4 3) operations forward, three times that to train, once for each expected example."""
    sizes = small_run.program().dataset.train.sizes
    assert seen["flops_per_round"] == pytest.approx(3 * 2 * (16 + 12) * 0.6 * sizes.sum())
    twice = small_run.experiment(**{"client.epochs": 2})
    assert round_flops(twice, small_run.program()) == pytest.approx(2 * seen["flops_per_round"])


def test_too_little_memory_is_refused_before_anything_runs(monkeypatch):
    def refused(*free, **fields):
        """What is said where so many bytes are free at the checks of data, of the state, and of the program."""
        room = iter(free)
        monkeypatch.setattr(memory, "free", lambda: next(room))
        with pytest.raises(FljaxError) as error:
            forecast(small_run.experiment(**fields), quiet=True)
        return str(error.value)

    data, plain = (10**9,) * 3, {"dropout.source": "none", "dropout.keep_rate": 1.0, "dropout.warmup_rounds": 0}
    assert re.search(r"22 examples to fit .* Use data.streamed=true in a single run\.", refused(100))
    assert re.search(r"data.streamed=true in a single run, or data.examples_per_client=1\.", refused(600))
    assert re.search(r"the state of a run \(.* of parameters, .* Use a smaller model\.", refused(*data, 100))
    clear = {"privacy.mechanism": "none", "privacy.noise_multiplier": None, "privacy.clip": math.inf}
    scaffold = plain | clear | {"client.algorithm": "scaffold"}  # 140 bytes a client, thrice that on the server
    assert re.search(r" of 10 clients\) to fit .* Use 3 clients or fewer\.", refused(*data, 1000, **scaffold))
    chunk = {"perf.chunk": 8}
    assert re.search(r"perf.chunk=8 to fit .* Use perf.chunk=4 or less\.", refused(*data, 10**9, 700, **chunk))
    assert re.search(r"perf.chunk=1 to fit .* Use a smaller model", refused(*data, 10**9, 100))
