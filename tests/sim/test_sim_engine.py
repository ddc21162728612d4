"""The scan: conditions that stay conditions, one trace for all numbers, and chunks that change nothing."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_run
import tiny
from jax.experimental.compilation_cache import compilation_cache

from fljax.core.types import Hparams
from fljax.sim.engine import Call, bytes_sent, compile_call, drive, paced, programs_kept, programs_read, steady
from fljax.sim.evaluate import held_data

TRIALS = 2


def subjaxprs(equation):
    """The jaxprs inside an equation."""
    for value in equation.params.values():
        for part in value if isinstance(value, (tuple, list)) else [value]:
            part = getattr(part, "jaxpr", part)
            if hasattr(part, "eqns"):
                yield part


def walk(jaxpr, conds=0):
    """(equation, number of conditions around it) of a jaxpr and all jaxprs inside it."""
    for equation in jaxpr.eqns:
        yield equation, conds
        for inner in subjaxprs(equation):
            yield from walk(inner, conds + (equation.primitive.name == "cond"))


def evaluations(batched_round: bool) -> list[int]:
    """Conditions around each matrix product with the test set in a call vmapped over trials."""
    started = [small_run.begin(seed) for seed in range(TRIALS)]
    state = jax.tree.map(lambda *x: jnp.stack(x), *[s.state for s in started])
    keys = jax.vmap(jax.random.key)(jnp.arange(TRIALS))
    one = small_run.experiment().hparams().arrays()
    numbers = jax.tree.map(lambda x: jnp.stack([x] * TRIALS), one)
    data, held = small_run.program().dataset.train, held_data(small_run.program().dataset)
    t0 = jnp.zeros(TRIALS, jnp.int32) if batched_round else jnp.int32(0)
    axes = (0 if batched_round else None, None, 0, 0, None, None, 0)
    vmapped = jax.vmap(small_run.call(3), in_axes=axes)
    found = jax.make_jaxpr(vmapped)(t0, small_run.schedule(), keys, state, data, held, numbers)
    return [
        conds
        for equation, conds in walk(found.jaxpr)
        if equation.primitive.name == "dot_general"
        and any(small_run.TESTED in v.aval.shape for v in equation.invars if hasattr(v, "aval"))
    ]


def test_a_sweep_evaluates_inside_two_real_conditions():
    """One for rounds past the end, one for rounds between evaluations; the two products are the model's layers."""
    assert evaluations(batched_round=False) == [2, 2]


def test_a_batched_round_number_would_lose_them():
    """The control: with t batched, evaluation happens in every round. This is what the test above would catch."""
    assert evaluations(batched_round=True) == [0, 0]


def test_no_number_seed_or_length_traces_a_second_time():
    small_run.drive_it()
    traced, programs = small_run.TRACES["count"], small_run.compiled(small_run.PER_CALL)._cache_size()
    for fields in ({"client.lr": 0.1}, {"privacy.clip": 0.2}, {"sampler.rate": 0.2}, {"dropout.refresh_rounds": 0}):
        small_run.drive_it(numbers=small_run.experiment(**fields).hparams())
    small_run.drive_it(seed=5)
    assert len(small_run.drive_it(when=small_run.schedule(2, 1)).history["participants"]) == 2
    assert len(small_run.drive_it(when=small_run.schedule(9, 4)).history["participants"]) == 9
    assert small_run.TRACES["count"] == traced
    assert small_run.compiled(small_run.PER_CALL)._cache_size() == programs == 1


def test_a_remainder_gives_the_same_run_as_another_chunking():
    """Seven rounds in calls of three and in calls of five: equal bits, though neither divides seven."""
    three, five = small_run.drive_it(3), small_run.drive_it(5)
    assert three.done == five.done == small_run.ROUNDS
    assert tiny.same_bits(three.state, five.state)
    assert small_run.same_history(three.history, five.history)
    assert all(len(v) == small_run.ROUNDS for v in three.history.values())


def test_calls_cut_short_by_time_give_the_same_run():
    """Every round is longer than the limit: calls of one round, in the program that was compiled for five."""
    data, held = small_run.program().dataset.train, held_data(small_run.program().dataset)
    numbers = small_run.experiment().hparams().arrays()
    when = small_run.schedule()._replace(until=jnp.int32(0))
    seen = []
    args = (small_run.compiled(5), small_run.begin(), when, jax.random.key(0), data, held, numbers)
    done, times = drive(*args, seconds=1e-9, after_call=lambda r: seen.append(r.done))
    assert seen == list(range(1, small_run.ROUNDS + 1)) and [count for count, _ in times] == [1] * small_run.ROUNDS
    whole = small_run.drive_it(3)
    assert tiny.same_bits(done.state, whole.state)
    assert small_run.same_history(done.history, whole.history)


def test_the_pace_follows_the_slower_of_the_last_two_calls():
    """Half of the limit, by rounds / seconds measured; one round first, then at most four times as many."""
    assert paced([], 5.0) == 1
    assert paced([(1, 0.001)], 5.0) == 4
    assert paced([(16, 0.1), (64, 0.4)], 5.0) == 256
    assert paced([(10, 1.0), (20, 4.0)], 5.0) == 12  # 0.2 s a round: 2.5 s are 12 rounds
    assert paced([(10, 4.0), (20, 2.0)], 5.0) == 6  # the call before was slower: 0.4 s a round
    assert paced([(9, 90.0), (1, 0.1), (1, 0.1)], 5.0) == 4
    assert paced([(1, 60.0)], 5.0) == 1
    assert paced([(1, 0.0)], 5.0) == 4
    assert paced([(7, 9.0)], math.inf) >= 10**6


def test_metrics_of_the_evaluation_exist_in_its_rounds_and_in_the_last():
    history = small_run.drive_it().history
    for name in ("test_loss", "test_accuracy", "client_loss_mean", "client_accuracy_p10", "unseen_accuracy"):
        assert list(np.isfinite(history[name])) == [False, False, True, False, False, True, True]


def test_a_shorter_run_is_the_beginning_of_a_longer_one():
    """But for the evaluation of its last round."""
    short, whole = small_run.drive_it(when=small_run.schedule(4)), small_run.drive_it()
    for name in ("participants", "loss", "update_norm", "noise_std"):
        np.testing.assert_array_equal(short.history[name], whole.history[name][:4])


def test_a_compiled_call_gives_its_state_back_into_the_next():
    """With the state donated, shapes and types of what goes out are those of what comes in."""

    def call(t0, schedule, key, state, data, held, hparams):
        return Call(state + t0, {"participants": t0 + jnp.arange(2)})

    args = (small_run.schedule(5), jax.random.key(0), jnp.zeros(3, jnp.int32), None, None, Hparams().arrays())
    executable, seconds = compile_call(call, jnp.int32(0), *args)
    start = small_run.Running(0, jnp.zeros(3, jnp.int32), {})
    seen = []
    when, key, _, *rest = args
    done, times = drive(executable, start, when, key, *rest, after_call=lambda r: seen.append(r.done))
    assert seen == [2, 4, 5] and [count for count, _ in times] == [2, 2, 1]
    np.testing.assert_array_equal(done.history["participants"], range(5))
    np.testing.assert_array_equal(done.state, [0 + 2 + 4] * 3)
    assert seconds > 0


def test_steady_time_leaves_out_the_first_call():
    assert steady([(2, 100.0), (2, 4.0), (1, 3.0), (4, 4.0)]) == pytest.approx(2.0)
    assert steady([(2, 100.0)]) == 50.0 and steady([]) == 0.0


def test_bytes_are_counted_exactly_where_int32_would_overflow():
    many = np.full(3, 2**30, np.int32)
    history = {"uplink_kib": many, "uplink_rest": many, "downlink_kib": many, "downlink_rest": 0 * many}
    assert bytes_sent(history) == (3 * (2**40 + 2**30), 3 * 2**40)


# ---- programs on disk -----------------------------------------------------------------------------------------------


CACHE = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture
def short_programs_too(monkeypatch, tmp_path):
    """A process without a cache, and one to come that keeps what compiles in no time; the folder of its programs."""
    update, before = jax.config.update, settings()
    for name, value in zip(CACHE, (None, 5.0), strict=True):
        update(name, value)
    compilation_cache.reset_cache()  # commands that ran before in this process have theirs
    monkeypatch.setenv("FLJAX_CACHE", str(tmp_path))
    monkeypatch.setattr(jax.config, "update", lambda k, v: update(k, 0.0 if (k, v) == (CACHE[1], 1.0) else v))
    yield tmp_path / "xla"
    for name, value in zip(CACHE, before, strict=True):
        update(name, value)
    compilation_cache.reset_cache()


def settings():
    return tuple(jax.config.values[name] for name in CACHE)


def test_a_call_is_kept_in_a_process_that_compiled_before_and_nothing_else_is(short_programs_too):
    before = settings()
    jax.jit(lambda x: x + 31)(1.0)
    compile_call(lambda *args: args[3] + 32, *[jnp.float32(0.0)] * 4)
    assert settings() == before == (None, 5.0)
    kept = list(short_programs_too.glob("*-cache"))
    assert len(kept) == 1
    jax.jit(lambda x: x + 33)(1.0)
    assert list(short_programs_too.glob("*-cache")) == kept


def test_a_second_start_reads_the_program_and_says_so(short_programs_too):
    for hits in (0, 1):
        with programs_read() as read:
            compile_call(lambda *args: args[3] + 37, *[jnp.float32(0.0)] * 4)
        assert len(read) == hits


def test_a_cache_that_the_process_has_given_up_is_not_used(short_programs_too, tmp_path):
    jax.config.update(CACHE[0], str(tmp_path / "given up"))
    jax.jit(lambda x: x + 35)(1.0)
    jax.config.update(CACHE[0], None)
    compile_call(lambda *args: args[3] + 36, *[jnp.float32(0.0)] * 4)
    assert len(list(short_programs_too.glob("*-cache"))) == 1


def test_a_cache_of_the_process_stays(short_programs_too, tmp_path):
    own = str(tmp_path / "own")
    jax.config.update("jax_compilation_cache_dir", own)
    try:
        with programs_kept():
            assert settings()[0] == own
    finally:
        jax.config.update("jax_compilation_cache_dir", None)
    assert not short_programs_too.exists()


def test_a_cache_that_cannot_be_written_costs_only_time(short_programs_too, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FLJAX_CACHE", str(tmp_path / "file"))
    with programs_kept():
        assert settings()[0] is None and jax.jit(lambda x: x + 34)(1.0) == 35.0
