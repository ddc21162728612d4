"""How many clients a built program computes at once: those that come, where empty batches are skipped, or all slots."""

import numpy as np
import pytest

from fljax.cli.arguments import load_experiment
from fljax.server.execute import auto_chunk, padding_waste
from fljax.sim.build import build

CLIENTS, RATE = 143, 0.3
ALL = {  # what a client keeps, or a server that sees every update: no batch is skipped
    "its control variate": {"client.algorithm": "scaffold"},
    "its own model": {"client.algorithm": "ditto"},
    "what compression left out": {"compress.sparsify": "topk", "compress.error_feedback": True},
    "the neurons that it chose": {"dropout.source": "exact", "dropout.keep_rate": 0.5},
    "nothing, for a rule that sees all": {
        "robust.rule": "median",
        "server.denominator": "expected",
        "server.weights": "uniform",
    },
}


def built(max_rate=None, **fields):
    return build(load_experiment("digits_fedavg").replace(**fields), max_rate=max_rate)


def check(program, living):
    """The batch and its waste are those of so many clients, which is not what all slots would give."""
    steps, capacity = np.ones(CLIENTS), program.sampler.capacity
    arguments = program.model.num_params(), capacity, steps
    assert program.chunk == auto_chunk(*arguments, living)
    assert program.waste == padding_waste(steps, capacity, program.chunk, living)
    other = None if living is not None else RATE * CLIENTS
    assert padding_waste(steps, capacity, program.chunk, other) != program.waste


@pytest.mark.parametrize(
    ("fields", "share"),
    [({}, RATE), ({"sampler.availability": 0.5}, 0.5 * RATE), ({"max_rate": 0.6}, 0.6), ({"sampler.rate": 0.1}, 0.1)],
)
def test_batches_are_for_the_clients_that_are_expected(fields, share):
    check(built(**fields), share * CLIENTS)


@pytest.mark.parametrize("kept", ALL)
def test_batches_are_for_all_slots_where_none_is_skipped(kept):
    check(built(**ALL[kept]), None)
