"""Clients at a time by measurement: what is tried, what is kept on disk and in checkpoints, and what is refused."""

import json
from functools import cache
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import small_run

from fljax.config import validate
from fljax.core import answers, memory
from fljax.core.check import FljaxError
from fljax.server.execute import auto_chunk
from fljax.sim import checkpoint, probe
from fljax.sim.build import build
from fljax.sim.devices import local_steps
from fljax.sim.engine import Running, drive
from fljax.sim.feed import Feed
from fljax.sim.forecast import forecast
from fljax.sim.run import CHECKPOINT, begin, compile_fitting, run

EVEN = np.full(100, 10)
SMALL, LARGE = 1000, 60_000  # parameters on both sides of what a CPU takes one by one


def experiment(**fields):
    """Four of twelve clients in each of five rounds, without privacy; clients at a time are measured."""
    base = validate(
        {
            "name": "probed",
            "rounds": 5,
            "eval_every": 5,
            "data": {"name": "npz", "dir": str(small_run.file())},
            "model": {"name": "logistic"},
            "client": {"lr": 0.3, "batch_size": 4},
            "sampler": {"kind": "fixed_size", "cohort": 4},
            "perf": {"chunk": "probe", "rounds_per_call": 3, "seconds_per_call": float("inf")},
        }
    )
    return base.replace(**fields)


@cache
def program():
    """With the batch of the rule."""
    return build(experiment())


@cache
def sizes() -> list[int]:
    """What is tried, the rule's first."""
    return probe.candidates(program().chunk, 15, program().sampler.capacity)


@pytest.fixture(scope="module")
def given():
    """Runs that were given each of the candidates as a number."""
    return {size: run(experiment(**{"perf.chunk": size}), quiet=True) for size in sizes()}


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """An empty cache; the folder in which answers will lie."""
    small_run.file()  # lies in the cache of the session
    monkeypatch.setenv("FLJAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / probe.FOLDER


def store(chunk: int) -> None:
    """Puts an answer on disk."""
    steps = local_steps(experiment().client, program().dataset.train.sizes)
    answers.store(probe.FOLDER, probe.question(experiment(), program(), steps), chunk)


@pytest.fixture
def times(monkeypatch):
    """What the clock would say by clients at a time (1 s for others), and the candidates of each measurement."""
    said, asked = {}, []

    def measured(programs, *_):
        asked.append(list(programs))
        return {size: said.get(size, 1.0) for size in programs}

    monkeypatch.setattr(probe, "measured", measured)
    return said, asked


def stop(*_):
    pytest.fail("measured again")


# ---- candidates -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "params", "capacity", "expected"),
    [
        ("cpu", LARGE, 50, [1, 2, 4]),
        ("cpu", LARGE, 3, [1, 2, 3]),
        ("cpu", LARGE, 1, [1]),
        ("cpu", SMALL, 200, [16, 4, 8, 32, 200]),
        ("cpu", SMALL, 5000, [64, 16, 32, 128]),
        ("cpu", SMALL, 3, [3, 1]),
        ("gpu", 2**24, 100, [64, 16, 100]),
        ("gpu", SMALL, 100, [100, 25]),
    ],
)
def test_the_rule_comes_first_and_its_neighbours_once(backend, params, capacity, expected, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    rule = auto_chunk(params, capacity, EVEN)
    assert rule == expected[0]
    assert probe.candidates(rule, params, capacity) == expected


def test_no_batch_is_larger_than_the_share_of_a_device():
    assert probe.candidates(64, SMALL, 100, devices=2) == [50, 16, 32]
    assert probe.candidates(64, SMALL, 101, devices=2) == [51, 16, 32]


def test_the_fastest_wins_and_ties_go_to_the_rule():
    assert probe.fastest({8: 1.0, 2: 0.9, 4: 0.8}, 8) == 4
    assert probe.fastest({8: 1.0, 4: 0.98}, 8) == 8
    assert probe.fastest({8: 1.0, 4: 0.96}, 8) == 4
    assert probe.fastest({2: 1.0, 4: 0.98}, 8) == 4  # the rule's does not fit


# ---- results and measurement ----------------------------------------------------------------------------------------


def test_every_candidate_gives_the_same_run(given):
    """To float32; arithmetic that is exact is bit-identical, in tests/invariance."""
    assert sizes() == [4, 1, 2] and [given[size].program.chunk for size in sizes()] == sizes()
    for size in sizes()[1:]:
        for name, values in given[2].history.items():
            np.testing.assert_allclose(given[size].history[name], values, rtol=1e-4, atol=1e-5, err_msg=name)


def test_measuring_is_done_once_and_changes_no_result(given, kept, monkeypatch, capsys):
    """By the real clock: a run that measures is, to the bit, the run that is given the same number."""
    shown = forecast(experiment())
    tried, chunk = shown["tried_seconds_per_round"], shown["chunk"]
    assert "trying 1, 2, 4 clients at a time" in capsys.readouterr().err
    assert list(tried) == ["1", "2", "4"] and all(seconds > 0 for seconds in tried.values())
    assert shown["chosen_by"] == "probe" and chunk == probe.fastest({int(k): v for k, v in tried.items()}, 4)
    (file,) = kept.iterdir()
    assert json.loads(file.read_text())["value"] == chunk
    monkeypatch.setattr(probe, "measured", stop)
    second = run(experiment(), quiet=True)
    assert small_run.same_history(second.history, given[chunk].history)
    for outcome, by in ((second, "probe"), (given[chunk], "asked")):
        told = outcome.summary()["execution"]
        assert (told["chunk"], told["chosen_by"]) == (chunk, by)


def test_a_run_is_not_changed_by_the_rounds_that_measure_it(given, monkeypatch):
    """They get copies of the state, are not evaluated, and do not reach beyond what the feed has ready."""
    monkeypatch.setattr(probe, "CALL_S", 1e9)  # as many rounds as there may be, however busy the machine is
    two = experiment(**{"perf.chunk": 2})
    begun, executable, inputs, _ = compile_fitting(two, begin(two, None, False), True)
    asked = []

    def call(t0, schedule, *rest):
        asked.append((int(t0), int(schedule.until), int(schedule.every)))
        return executable(t0, schedule, *rest)

    data = inputs[2].now(0)
    feed = Feed(lambda t: data, lambda t: 2, stop)
    seconds = probe.measured({2: call}, begun.running, (*inputs[:2], feed, *inputs[3:]), 3)
    assert list(seconds) == [2] and 0 < seconds[2] < 10
    assert asked == [(0, 1, 2**30), (0, 2, 2**30), (0, 2, 2**30)]
    done, _ = drive(executable, begun.running, *inputs)
    assert small_run.same_history(done.history, given[2].history)


# ---- what is kept ---------------------------------------------------------------------------------------------------


@pytest.fixture
def ask(kept):
    """(experiment) -> the choice, and what was compiled for it, without a compiler."""

    def choose(asked=None, rounds=5):
        compiled, start = [], Running(0, {}, {})
        return probe.probe_chunk(asked or experiment(), program(), compiled.append, start, (), rounds), compiled

    return choose


@pytest.fixture
def roomy(monkeypatch):
    monkeypatch.setattr(probe.memory, "free", lambda: None)


def test_a_stored_answer_is_taken(ask, times, roomy, kept):
    """Also where it is not what would be measured now, and for another seed or number of the program."""
    said, asked = times
    said[1] = 0.5
    assert ask() == ((1, "probe", {2: 1.0, 1: 0.5, 4: 1.0}), sizes())
    (file,) = kept.iterdir()
    file.write_text(json.dumps(json.loads(file.read_text()) | {"value": 4}))
    for same in ({}, {"seed": 5}, {"client.lr": 0.1}, {"rounds": 9}, {"name": "x"}, {"perf.rounds_per_call": 2}):
        assert ask(experiment(**same)) == ((4, "probe", None), [])
    assert asked == [sizes()]


@pytest.mark.parametrize("damage", ["", "{", "null", "VALUE:99999", "VALUE:true", 'VALUE:"3"', "VALUE:1.0", "QUESTION"])
def test_a_damaged_file_is_measured_anew_and_rewritten(damage, ask, times, roomy, kept):
    said, asked = times
    said[1] = 0.5
    before, _ = ask()
    (file,) = kept.iterdir()
    good = file.read_text()
    if damage.startswith("VALUE:"):
        damage = json.dumps(json.loads(good) | {"value": json.loads(damage.removeprefix("VALUE:"))})
    elif damage == "QUESTION":
        damage = json.dumps(json.loads(good) | {"question": "another", "value": 4})
    file.write_text(damage)
    assert ask()[0] == before and len(asked) == 2
    assert file.read_text() == good


@pytest.mark.parametrize(
    "change",
    [
        {"client.batch_size": 2},
        {"client.epochs": 3},
        {"client.algorithm": "scaffold"},
        {"privacy.mechanism": "central_gaussian", "privacy.noise_multiplier": 1.0, "privacy.clip": 1.0},
        {"robust.rule": "median", "server.denominator": "expected"},
        {"perf.devices": 2},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_structure_is_another_question(change):
    assert probe.question(experiment(**change), program(), EVEN) != probe.question(experiment(), program(), EVEN)


def test_another_machine_cohort_or_amount_of_work_is_another_question(monkeypatch):
    whole = build(experiment(**{"sampler.kind": "full", "sampler.cohort": None}))
    asked = {probe.question(experiment(), p, steps) for p in (program(), whole) for steps in (EVEN, 2 * EVEN)}
    for name, value in (("cpu_name", "another"), ("jax", SimpleNamespace(**vars(jax) | {"__version__": "9"}))):
        with monkeypatch.context() as patch:
            patch.setattr(probe, name, value if name == "jax" else lambda: "another")
            asked.add(probe.question(experiment(), program(), EVEN))
    assert len(asked) == 6


def test_a_folder_that_cannot_be_written_costs_only_time(ask, times, roomy, kept):
    kept.parent.write_text("")
    assert ask()[0].by == "probe" and ask()[1] == sizes()


def test_what_does_not_fit_beside_the_state_is_left_out(kept, times, monkeypatch):
    """Programs that need as many bytes as clients, beside a state of 100 bytes; 0.9 of what is free may be used."""
    monkeypatch.setattr(memory, "needed", lambda size: memory.Need(0, size))
    start = Running(0, {"w": np.zeros(100, np.uint8)}, {})

    def at(free):
        monkeypatch.setattr(memory, "free", lambda: free)
        return probe.probe_chunk(experiment(), program(), lambda size: size, start, (), 5)

    assert at(100 / 0.9) == (4, "rule", None) and not kept.exists()  # left to what makes batches smaller
    assert list(at(102.5 / 0.9).seconds) == [1, 2]


def test_nothing_is_measured_where_nothing_is_left_to_run(ask, times):
    assert ask(rounds=0) == ((4, "rule", None), [])


class Stopped(Exception):
    """A run that was killed."""


def test_long_runs_are_measured_unasked_and_no_others(given, kept, monkeypatch):
    """Four of twelve clients with 81 examples; three passes through four inputs and three classes."""
    default, flops = experiment(**{"perf.chunk": None}), 81 * 4 / 12 * 3 * 2 * 4 * 3
    monkeypatch.setitem(probe.LONG, "cpu", 5 * flops)
    assert probe.measures(default, program(), 5) and not probe.measures(default, program(), 4)
    for chunk in (1, 0, "rule"):
        assert not probe.measures(experiment(**{"perf.chunk": chunk}), program(), 5)
    assert begin(default.replace(rounds=4), None, False).choice.by == "rule"
    store(1)
    outcome = run(default, quiet=True)
    assert outcome.chosen_by == "probe" and outcome.program.chunk == 1
    assert small_run.same_history(outcome.history, given[1].history)
    with monkeypatch.context() as patch:
        patch.setattr(jax, "process_count", lambda: 2)
        assert not probe.measures(default, program(), 5)
    protocol = SimpleNamespace(perf=default.perf, host_sums=True)
    assert not probe.measures(protocol, program(), 5)


def test_a_resumed_run_takes_what_its_checkpoint_says(given, kept, tmp_path, monkeypatch):
    """Killed after one call; meanwhile the answer on disk is another. The same bits all the same."""
    store(1)
    save = checkpoint.save

    def save_and_die(*args):
        save(*args)
        raise Stopped

    monkeypatch.setattr(checkpoint, "save", save_and_die)
    with pytest.raises(Stopped):
        run(experiment(), out=tmp_path, quiet=True)
    monkeypatch.setattr(checkpoint, "save", save)
    header = checkpoint.read_header(tmp_path / CHECKPOINT)
    assert header["execution"] == {"chunk": 1, "chosen_by": "probe", "backend": "cpu"} and header["done"] == 3
    store(4)
    resumed = run(experiment(), out=tmp_path, resume=True, quiet=True)
    assert small_run.same_history(resumed.history, given[1].history)
    assert resumed.summary()["execution"]["chunk"] == 1 and resumed.chosen_by == "probe"
    assert begin(experiment(**{"perf.chunk": None}), tmp_path / CHECKPOINT, True).choice.chunk == 1
    assert begin(experiment(**{"perf.chunk": 4}), tmp_path / CHECKPOINT, True).choice == (4, "asked", None)


@pytest.mark.parametrize(("chunk", "fits", "by"), [(None, 4, "rule"), (None, 1, "memory"), (2, 2, "asked")])
def test_what_chose_is_said_and_kept(chunk, fits, by, monkeypatch):
    """Also where less fits into memory than was chosen. Nothing is compiled."""
    monkeypatch.setattr("fljax.sim.run.compile_call", lambda *_: (None, 0.0))
    monkeypatch.setattr(memory, "fit", lambda compile_at, *_: (compile_at(fits), fits))
    whole = experiment(**{"perf.chunk": chunk})
    begun = compile_fitting(whole, begin(whole, None, False), True)[0]
    assert begun.choice == (fits, by, None) and begun.program.chunk == fits
    assert probe.recalled(begun.header) == (fits, by, None)


def test_headers_of_older_checkpoints_and_other_backends_say_nothing():
    entry = probe.Choice(3, "probe", {3: 1.0}).entry()
    assert probe.recalled({"execution": entry}) == probe.Choice(3, "probe")
    for header in ({}, {"execution": None}, {"execution": {"chunk": 3}}, {"execution": entry | {"chunk": "3"}}):
        assert probe.recalled(header) is None
    assert probe.recalled({"execution": entry | {"backend": "tpu"}}) is None


def test_answers_of_other_folders_are_apart(kept):
    answers.store("one", "question", 1)
    assert answers.lookup("one", "question") == 1 and answers.lookup("two", "question") is None


# ---- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"sweep": {"seeds": 2}}, "single runs, not batches of trials; set it to a number"),
        ({"secure.masking": "double_mask", "secure.mode": "protocol"}, "sums that the host makes; set it to a number"),
        ({"he.kind": "ckks", "he.mode": "exact"}, "sums that the host makes; set it to a number"),
        ({"perf.chunk": "prob"}, '\'prob\' should be a number of clients, 0 for all of them, "probe" or "rule"'),
        ({"perf.chunk": -1}, "-1 should be a number of clients"),
    ],
)
def test_where_it_cannot_be_it_is_refused_in_one_line(fields, says):
    with pytest.raises(FljaxError) as error:
        experiment(**fields)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_several_processes_would_have_to_agree(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(FljaxError, match=r'perf.chunk="probe" to be a number in a run of 2 processes.*leave it out'):
        probe.check_alone(experiment())
    probe.check_alone(experiment(**{"perf.chunk": 3}))
