"""What a program needs is known before it runs, and the largest batch that fits is found."""

import jax
import jax.numpy as jnp
import pytest

from fljax.core import memory
from fljax.core.check import FljaxError

MIB = 2**20


def squares(batch):
    """Holds batch matrices of 1 MiB at once: their squares are wanted in two orders of summation."""
    x = jnp.ones((512, 512))

    def call(x):
        each = jax.lax.map(lambda k: x * k, jnp.arange(batch, dtype=jnp.float32))
        return jnp.sum(jnp.sort(each, axis=0), axis=0)

    return jax.jit(call).lower(x).compile()


def test_the_need_grows_with_the_batch_and_knows_its_arguments():
    small, large = memory.needed(squares(4)), memory.needed(squares(8))
    assert small.arguments == large.arguments == MIB
    assert large.more - small.more >= 3.5 * MIB


def test_a_batch_that_is_too_large_is_made_smaller_until_it_fits():
    limit = 12 * MIB
    executable, size = memory.fit(squares, 16, False, limit, "perf.chunk")
    assert 1 <= size < 16
    assert memory.needed(executable).more <= memory.SHARE * limit
    assert memory.needed(squares(2 * size + 2)).more > memory.SHARE * limit  # and not much too small


def test_without_a_limit_nothing_is_changed():
    assert memory.fit(squares, 8, True, None, "perf.chunk")[1] == 8


def test_what_was_asked_for_is_refused_with_one_that_fits():
    with pytest.raises(FljaxError, match=r"perf.chunk=16 to fit .* Use perf.chunk=\d+\.") as error:
        memory.fit(squares, 16, True, 12 * MIB, "perf.chunk")
    named = int(str(error.value).split("Use perf.chunk=")[1].rstrip("."))
    assert memory.needed(squares(named)).more <= memory.SHARE * 12 * MIB


def test_what_never_fits_is_refused():
    with pytest.raises(FljaxError, match=r"free\. Use a smaller model"):
        memory.fit(squares, 4, False, MIB, "perf.chunk")
    with pytest.raises(FljaxError, match=r"Expected states to fit into memory: 2 GiB are needed at least, 1 GiB"):
        memory.check_room("states", 2 * memory.GIB, memory.GIB, "Use fewer clients.")


def test_sizes_of_arrays_and_keys():
    key = jax.random.key(0)
    tree = {"a": jnp.zeros((3, 5)), "b": jnp.zeros(7, jnp.int8)}
    assert memory.size_of(tree) == memory.size_of(jax.eval_shape(lambda: tree)) == 67
    assert memory.size_of((tree, key)) == 67 + jax.random.key_data(key).nbytes


def test_free_memory_is_the_least_of_kernel_and_control_group(tmp_path, monkeypatch):
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   2048 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert memory.free() == 2 * MIB
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert memory.free() == 2 * MIB
    (tmp_path / "memory.max").write_text("2000\n")
    assert memory.free() == 1000


def test_what_cannot_fit_is_not_even_compiled():
    def never(size):
        raise AssertionError(size)

    with pytest.raises(FljaxError, match=r"perf.chunk=16 to fit .*: 16 MiB are needed at least, .*=10 or less\."):
        memory.fit(never, 16, True, 12 * MIB, "perf.chunk", each=MIB)
    compiled = []
    _, size = memory.fit(lambda n: (compiled.append(n), squares(n))[1], 16, False, 12 * MIB, "perf.chunk", each=MIB)
    assert compiled[0] == 10 and size <= 10
