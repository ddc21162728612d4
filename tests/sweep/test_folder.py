"""Sweeps in their folder: taken up again, extended, refused, damaged, killed, and done by several workers at once."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_sweep
from small_sweep import accuracy, experiment, fake_runner

from fljax.core.check import FljaxError
from fljax.sim import checkpoint
from fljax.sim.engine import Running
from fljax.sweep import folder as sweep_folder
from fljax.sweep import run as sweep_run
from fljax.sweep.folder import begin, finish, missing, stored_plan, sweep_into
from fljax.sweep.preview import preview
from fljax.sweep.run import Saved, run_sweep
from fljax.sweep.store import open_results

TWICE = "select trial_id, count(*) as n from trials group by 1 having n > 1"


def bits(results) -> dict[str, bytes]:
    """Every number of the tables; where they come from and how long they took is not in them."""
    both = {"trials": results.trials, "curves": results.curves}
    return {f"{t}/{name}": column.tobytes() for t, columns in both.items() for name, column in columns.items()}


def one_line(error) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """(folder, shards that were run so far) of sweeps whose trials cost nothing."""
    log = tmp_path / "log"
    log.touch()
    monkeypatch.setattr(sweep_folder, "make_runner", fake_runner(log))
    return tmp_path / "out", lambda: [json.loads(line) for line in log.read_text().splitlines()]


@pytest.fixture(scope="module", autouse=True)
def one_program():
    """The real batches here all have one shape: they are compiled once."""
    compiled, real = {}, sweep_run.compile_call

    def once(call, *args):
        shapes = str(jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), args))
        if shapes not in compiled:
            compiled[shapes] = real(call, *args)
        return compiled[shapes]

    sweep_run.compile_call = once
    yield
    sweep_run.compile_call = real


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A real sweep that was never interrupted."""
    out = tmp_path_factory.mktemp("whole") / "out"
    return out, sweep_into(out, experiment(), quiet=True)


# ---- what is kept ---------------------------------------------------------------------------------------------------


def test_what_is_kept_is_what_ran(whole):
    """The same numbers as a sweep in memory, which the tests of ``sim`` compare with single runs."""
    _, results = whole
    memory = run_sweep(experiment(), quiet=True)
    np.testing.assert_array_equal(results.trials["test_loss"], memory.history["test_loss"][:, -1])
    assert [t.values["client.lr"] for t in memory.trials] == results.trials["client.lr"].tolist()
    curve = results.curve(5)
    np.testing.assert_array_equal(curve["round"], [2, 4, 6])
    np.testing.assert_array_equal(curve["test_loss"], memory.history["test_loss"][5][[1, 3, 5]])
    assert results.missing == 0 and len(results.shards) == 3
    for info in results.shards.values():
        assert info["provenance"]["jax"] and info["experiment"]["client"]["steps"] == 1
    assert [s["cell"] for s in results.privacy] == [
        {"client.lr": lr, "privacy.clip": clip} for lr in (0.1, 0.3) for clip in (0.5, 1.0)
    ]
    assert {s["selection_trials"] for s in results.privacy} == {8}
    assert results.trials["epsilon"][0] == results.privacy[0]["epsilon"]


def test_a_trial_is_known_by_its_experiment(ran):
    out, _ = ran
    results = sweep_into(out, experiment(), quiet=True)
    for row, trial in enumerate(results.trials["trial"].tolist()):
        values = {name: results.trials[name][row] for name in results.axes}
        cell = {name: float(v) for name, v in values.items()}
        alone = experiment().replace(**cell, seed=int(results.trials["run.seed"][row]), sweep=None)
        assert results.trials["trial_id"][row] == alone.fingerprint(), trial


# ---- once is enough -------------------------------------------------------------------------------------------------


def test_a_second_start_runs_nothing_and_changes_nothing(ran):
    out, log = ran
    sweep_into(out, experiment(), quiet=True)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert len(log()) == 3
    sweep_into(out, experiment(**{"perf.trials_per_batch": 2}), quiet=True)  # the planned width stays
    assert len(log()) == 3
    assert before == {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}


def test_more_seeds_and_values_run_the_new_trials_only(ran):
    out, log = ran
    first = sweep_into(out, experiment(), quiet=True)
    more = {"grid": {"privacy.clip": [0.5, 1.0], "client.lr": [0.1, 0.3, 0.7]}, "seeds": 3}
    second = sweep_into(out, experiment(more), quiet=True)
    assert len(first.trials["trial"]) == 8 and len(second.trials["trial"]) == 18
    assert len(log()) == 3 + 4  # ten new trials, three at a time
    old = dict(zip(first.trials["trial_id"], first.trials["trial"], strict=True))
    new = dict(zip(second.trials["trial_id"], second.trials["trial"], strict=True))
    assert old.items() <= new.items()
    expected = [accuracy(lr, s) for lr, s in zip(second.trials["client.lr"], second.trials["run.seed"], strict=True)]
    np.testing.assert_allclose(second.trials["test_accuracy"], expected)
    assert not len(second.sql(TWICE)["n"])


def test_a_new_axis_keeps_the_trials_that_lie_on_it(ran):
    """The base's clip, 0.5, is one of the new axis' values: the trials that ran with it have it in their column."""
    out, log = ran
    sweep_into(out, experiment({"grid": {"client.lr": [0.1, 0.3]}, "seeds": 2}), quiet=True)
    results = sweep_into(out, experiment(), quiet=True)
    assert len(log()) == 2 + 2
    assert sorted(results.trials["privacy.clip"].tolist()) == [0.5] * 4 + [1.0] * 4
    assert results.sql('SELECT count(*) AS n FROM trials WHERE "privacy.clip" = 0.5 AND trial < 4')["n"][0] == 4


def test_fewer_values_leave_the_others_out_of_the_tables(ran):
    out, log = ran
    sweep_into(out, experiment(), quiet=True)
    fewer = {"grid": {"client.lr": [0.3], "privacy.clip": [0.5, 1.0]}, "seeds": [1]}
    results = sweep_into(out, experiment(fewer), quiet=True)
    assert len(log()) == 3
    assert results.trials["client.lr"].tolist() == [0.3, 0.3] and set(results.trials["run.seed"]) == {1}
    assert set(results.curves["trial"]) == set(results.trials["trial"])
    again = sweep_into(out, experiment(), quiet=True)
    assert len(again.trials["trial"]) == 8 and not len(again.sql(TWICE)["n"])


def test_restart_runs_everything_again(ran):
    out, log = ran
    sweep_into(out, experiment(), quiet=True)
    sweep_into(out, experiment(), restart=True, quiet=True)
    assert len(log()) == 6 and len(set(log())) == 3


def test_other_settings_of_the_same_name_are_refused_and_nothing_changes(ran):
    out, _ = ran
    sweep_into(out, experiment(), quiet=True)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with pytest.raises(FljaxError) as error:
        begin(out, experiment(rounds=5))
    assert "has changed since" in one_line(error) and "--restart" in str(error.value)
    with pytest.raises(FljaxError, match="found results of 'small_sweep'"):
        begin(out, experiment(name="other"))
    assert before == {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert len(sweep_into(out, experiment(rounds=5), restart=True, quiet=True).trials["trial"]) == 8


def test_a_bad_sweep_writes_nothing(tmp_path):
    with pytest.raises(FljaxError):
        begin(tmp_path / "out", experiment({"grid": {"client.rl": [0.1]}}))
    assert not (tmp_path / "out").exists()


# ---- damage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["trials.parquet", "curves.parquet", "shard.json"])
def test_a_damaged_shard_is_said_set_aside_and_done_again(ran, capsys, name):
    out, log = ran
    before = bits(sweep_into(out, experiment(), quiet=True))
    path = sorted(out.glob(f"shards/*/{name}"))[1]
    content = bytearray(path.read_bytes())
    content[20] ^= 4
    path.write_bytes(bytes(content))
    with pytest.raises(FljaxError) as error:
        open_results(out)
    assert str(path) in one_line(error)
    results = sweep_into(out, experiment(), quiet=True)
    said = capsys.readouterr().err
    assert str(path) in said and "set aside" in said and said.count("\n") == 1
    assert log()[3:] == [path.parent.name]
    assert bits(results) == before
    (kept,) = (out / "quarantine").iterdir()
    assert (kept / name).read_bytes() == bytes(content)


def test_a_full_disk_is_one_line_and_loses_no_finished_shard(ran, monkeypatch):
    out, log = ran
    real, room = os.fsync, iter(range(1000))

    def fsync(descriptor):
        if next(room) > 12:
            raise OSError(28, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(FljaxError) as error:
            sweep_into(out, experiment(), quiet=True)
    assert "No space left on device" in one_line(error)
    left = missing(out, stored_plan(out))
    assert 0 < len(left) < 3 and not list(out.glob(".staging/*")) and not list(out.glob(".claims/*"))
    assert open_results(out).missing == sum(len(stored_plan(out).shards[s]) for s in left)
    done = len(log())
    results = sweep_into(out, experiment(), quiet=True)
    assert len(log()) == done + len(left) and results.missing == 0


# ---- kills and races ------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Not an Exception: nothing in the code may catch it."""


def test_a_batch_goes_on_at_its_checkpoint_bit_by_bit(whole, tmp_path, monkeypatch):
    """Killed in the second batch, after its second call (the first call has one round, the others two)."""
    out, save, calls = tmp_path / "out", checkpoint.save, []

    def save_and_die(path, running, header):
        save(path, running, header)
        calls.append(running.done)
        if len(calls) == 5:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(sweep_run, "CHECKPOINT_EVERY_S", 0.0)
        patch.setattr(checkpoint, "save", save_and_die)
        with pytest.raises(Killed):
            sweep_into(out, experiment(), quiet=True)
    (path,) = (out / ".progress").iterdir()
    done = checkpoint.read_header(path)["done"]
    assert done == 3 and len(missing(out, stored_plan(out))) == 2
    starts = []
    real = sweep_run.drive
    monkeypatch.setattr(
        sweep_run, "drive", lambda f, start, *a, **k: starts.append(start.done) or real(f, start, *a, **k)
    )
    results = sweep_into(out, experiment(), quiet=True)
    assert starts == [done, 0]
    assert bits(results) == bits(whole[1])
    assert not (out / ".progress").exists()


def test_a_damaged_checkpoint_is_said_and_the_batch_starts_anew(tmp_path, capsys):
    path, nothing = tmp_path / "shard.npz", Running(0, (), {})  # pyrefly: ignore
    path.write_bytes(b"no checkpoint")
    assert sweep_run._start(Saved(path, {}), nothing) is nothing
    assert "not a readable checkpoint" in capsys.readouterr().err and not path.exists()


def start_worker(out: Path, log: Path, seconds: float) -> subprocess.Popen:
    """A worker process whose trials cost nothing but time."""
    command = [sys.executable, str(Path(small_sweep.__file__)), str(out), str(log), str(seconds)]
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(Path(small_sweep.__file__).parent)})


def test_racing_workers_one_of_which_is_killed_do_every_shard_once(tmp_path):
    """Two workers, 40 shards; one is killed at a random moment in its work. Only its shard in flight runs twice."""
    out, log = tmp_path / "out", tmp_path / "log"
    many = {"grid": {"client.lr": [round(0.01 * i, 2) for i in range(1, 41)]}, "seeds": 3}
    plan = begin(out, experiment(many))
    assert len(plan.shards) == 40
    workers = [start_worker(out, log, 0.04) for _ in range(2)]
    while not log.exists() or len(log.read_text().splitlines()) < 6:
        assert any(w.poll() is None for w in workers)
        time.sleep(0.01)
    time.sleep(random.Random(0).uniform(0, 0.2))
    os.kill(workers[0].pid, signal.SIGKILL)
    assert [w.wait() for w in workers] == [-signal.SIGKILL, 0]
    started = [json.loads(line) for line in log.read_text().splitlines()]
    assert set(started) == set(plan.shards) and len(started) - len(set(started)) <= 1
    assert missing(out, plan) == [] and finish(out, plan)
    results = open_results(out)
    assert results.manifest["state"] == "complete"
    assert len(results.trials["trial"]) == 120 and not len(results.sql(TWICE)["n"])
    lr, seed = results.trials["client.lr"], results.trials["run.seed"]
    np.testing.assert_allclose(
        results.trials["test_accuracy"], [accuracy(*pair) for pair in zip(lr, seed, strict=True)]
    )


def test_a_preview_tells_trials_memory_time_and_privacy_and_writes_nothing(tmp_path):
    out = tmp_path / "out"
    found = preview(experiment(), out)
    assert not out.exists()
    assert (found["trials"], found["shards"], found["finished_shards"], found["compiles"]) == (8, 3, 0, 1)
    (program,) = found["programs"]
    assert program["trials"] == 8 and program["memory"] > 3 * 4 * 60 * 10  # three trials, each with its parameters
    assert program["flops_per_round"] > 0
    evaluations = -(-6 // experiment().eval_every)
    run = 6 * program["batch_s_per_round"] + evaluations * program["batch_s_per_evaluation"]
    expected = program["compile_s"] + 3 * run
    assert found["seconds"] == pytest.approx(expected)
    assert len(found["privacy"]) == 2 and all(text.startswith("(ε = ") for text in found["privacy"].values())
