"""The memory of a round grows with the clients per chunk, not with the cohort."""

import pytest

from benchmarks.memory import compiled, workload

CHUNK = 8


@pytest.mark.slow
def test_ten_thousand_clients_need_the_memory_of_a_chunk():
    small, large = workload(100), workload(10_000)
    model = 4 * small.model.num_params()
    bytes_of = lambda work: compiled(work, CHUNK)[0].memory_analysis().temp_size_in_bytes  # noqa: E731
    a, b = bytes_of(small), bytes_of(large)
    per_slot = 200  # keys, ids, order and info of a slot: numbers, not parameters
    assert b - a <= per_slot * (10_000 - 100)
    assert b <= 6 * CHUNK * model + per_slot * 10_000
    assert b < 10_000 * model / 50
