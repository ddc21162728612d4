"""Trackers: what they are told, that they may fail, and what is said where their package is missing."""

import struct
import sys
import types

import numpy as np
import pytest

from fljax.config import Experiment
from fljax.core.check import FljaxError
from fljax.sim.trackers import TRACKERS, Tracker, check_trackers, open_trackers

EXPERIMENT = Experiment(name="tracked", rounds=5)
NAN = float("nan")
HISTORY = {
    "participants": np.array([3, 4, 5], np.int32),
    "test_accuracy": np.array([NAN, 0.5, NAN], np.float32),
    "epsilon_spent": np.array([0.1, 0.2, 0.3, 0.4, 0.5]),  # of all rounds, also of those to come
}
ROUNDS = {
    1: {"participants": 3.0, "epsilon_spent": 0.1},
    2: {"participants": 4.0, "test_accuracy": 0.5, "epsilon_spent": 0.2},
    3: {"participants": 5.0, "epsilon_spent": 0.3},
}


def told(opened):
    """Tells the history in two calls, the first of which ended after one round."""
    with opened as tell:
        tell({name: values[:1] for name, values in HISTORY.items()}, 0)
        tell(HISTORY, 1)


def test_every_round_is_told_once_without_what_was_not_measured():
    seen, closed = {}, []

    def log(t, metrics):
        assert t not in seen
        seen[t] = dict(metrics)

    told(open_trackers([Tracker("mine", log, lambda: closed.append(1))], EXPERIMENT, None))
    assert seen == ROUNDS and closed == [1]


def records(path):
    """The records of an event file: length, checksum, bytes, checksum."""
    data, at = path.read_bytes(), 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        yield data[at + 12 : at + 12 + length]
        at += 16 + length


def test_tensorboard_writes_an_event_file(tmp_path):
    pytest.importorskip("tensorboardX", reason="the extra tensorboard is not installed")
    from tensorboardX.proto.event_pb2 import Event

    told(open_trackers(["tensorboard"], EXPERIMENT, tmp_path))
    (file,) = (tmp_path / ".tensorboard").iterdir()
    found, texts = {}, []
    for record in records(file):
        event = Event.FromString(record)
        for value in event.summary.value:
            if value.HasField("simple_value"):
                found.setdefault(event.step, {})[value.tag] = value.simple_value
            else:
                texts.append(str(value))
    assert found.keys() == ROUNDS.keys()
    for t, metrics in ROUNDS.items():
        assert found[t] == pytest.approx(metrics)
    assert "tracked" in texts[0]


@pytest.fixture
def calls(monkeypatch):
    """Stand-ins for W&B and MLflow that write down how they are called."""
    calls = []

    def note(name):
        return lambda *args, **kwargs: calls.append((name, args, kwargs))

    run = types.SimpleNamespace(log=note("log"), finish=note("finish"))
    fake = types.ModuleType("wandb")
    fake.init = lambda **kwargs: calls.append(("init", (), kwargs)) or run
    monkeypatch.setitem(sys.modules, "wandb", fake)
    fake = types.ModuleType("mlflow")
    for name in ("set_experiment", "start_run", "log_params", "log_metrics", "end_run"):
        setattr(fake, name, note(name))
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    for variable in ("WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(variable, raising=False)
    return calls


def test_wandb_gets_one_run_with_the_settings(calls, tmp_path, monkeypatch):
    told(open_trackers(["wandb"], EXPERIMENT, tmp_path / "out"))
    kinds = [name for name, _, _ in calls]
    assert kinds == ["init", "log", "log", "log", "finish"]
    begun = calls[0][2]
    assert (begun["project"], begun["name"], begun["dir"]) == ("fljax", "tracked", str(tmp_path / "out/.wandb"))
    assert begun["config"]["rounds"] == 5 and begun["config"]["client"]["lr"] == 0.1
    assert {kwargs["step"]: args[0] for name, args, kwargs in calls if name == "log"} == ROUNDS
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    calls.clear()
    told(open_trackers(["wandb"], EXPERIMENT, None))
    assert calls[0][2]["project"] == "mine" and calls[0][2]["dir"] is None


def test_mlflow_gets_flat_parameters_and_steps(calls, monkeypatch):
    told(open_trackers(["mlflow"], EXPERIMENT, None))
    kinds = [name for name, _, _ in calls]
    assert kinds == ["set_experiment", "start_run", "log_params", *["log_metrics"] * 3, "end_run"]
    assert calls[0][1] == ("fljax",) and calls[1][2] == {"run_name": "tracked"}
    assert calls[2][1][0]["client.lr"] == 0.1 and calls[2][1][0]["rounds"] == 5
    assert {kwargs["step"]: args[0] for name, args, kwargs in calls if name == "log_metrics"} == ROUNDS
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    assert not any(kwargs["synchronous"] for name, _, kwargs in calls if name == "log_metrics")
    calls.clear()
    told(open_trackers(["mlflow"], EXPERIMENT, None))
    assert calls[0][0] == "start_run"  # MLflow reads the variable itself


def test_a_tracker_that_fails_is_named_once_and_left_out(capsys):
    seen, tries = [], []

    def fail(t, metrics):
        tries.append(t)
        raise OSError("no space\nleft")

    broken = Tracker("broken", fail, lambda: pytest.fail("it was left out"))
    told(open_trackers([broken, Tracker("mine", lambda t, m: seen.append(t), lambda: None)], EXPERIMENT, None))
    assert seen == [1, 2, 3] and tries == [1]
    said = capsys.readouterr()
    assert said.err == "tracker broken failed and is left out from here on: no space left\n" and said.out == ""


def test_a_tracker_that_cannot_be_opened_does_not_stop_the_run(calls, capsys):
    sys.modules["wandb"].init = lambda **kwargs: 1 / 0
    told(open_trackers(["wandb", "mlflow"], EXPERIMENT, None))
    assert "tracker wandb failed" in capsys.readouterr().err
    assert calls[-1][0] == "end_run"


@pytest.mark.parametrize("name", TRACKERS)
def test_a_missing_package_is_one_line_before_anything_runs(monkeypatch, tmp_path, name):
    monkeypatch.setitem(sys.modules, {"tensorboard": "tensorboardX"}.get(name, name), None)
    with pytest.raises(FljaxError) as error:
        check_trackers([name], tmp_path)
    assert "pip install" in str(error.value) and "\n" not in str(error.value)


def test_what_cannot_be_asked_for_is_one_line():
    with pytest.raises(FljaxError, match="Perhaps you meant 'wandb'"):
        check_trackers(["wandbb"], None)
    pytest.importorskip("tensorboardX", reason="the extra tensorboard is not installed")
    with pytest.raises(FljaxError, match="results folder"):
        check_trackers(["tensorboard"], None)
