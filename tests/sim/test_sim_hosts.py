"""Several processes, one simulation: the same bits, and an end in time with a line; real processes under gloo."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from fljax.core.check import FljaxError
from fljax.core.tree import named_leaves
from fljax.sim import alike, checkpoint, hosts, waiting
from fljax.sim.mesh import client_mesh
from fljax.sim.run import CHECKPOINT, run
from tests.invariance import exact_round
from tests.sim.small_run import experiment
from tests.sim.two_hosts import FIELDS, PATIENCE_S, WAY

TIMEOUT_S = 300
ROOT = Path(__file__).parents[2]


def start(folder: Path, end: str) -> list[subprocess.Popen]:
    """Two processes with one CPU device each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2"}
    env |= {"JAX_NUM_CPU_DEVICES": "1", "FLJAX_HEARTBEAT_S": "60", "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "tests.sim.two_hosts", str(folder), end]
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    return [subprocess.Popen(words, env=env | {"JAX_PROCESS_ID": str(k)}, **quiet) for k in range(2)]


@pytest.fixture(scope="module")
def alone():
    return run(experiment(**FIELDS), quiet=True).params


def together(folders: dict[str, Path]) -> dict:
    """Pairs beside each other: {how they end: (folder, exit codes, (output, errors) of each process)}."""
    started = {end: start(folder, end) for end, folder in folders.items()}
    try:
        said = {}
        for end, (first, second) in started.items():
            told = first.communicate(timeout=TIMEOUT_S)
            if end in ("sleeps", "freezes"):
                second.kill()
            said[end] = [told, second.communicate(timeout=TIMEOUT_S)]
    finally:
        for process in (p for both in started.values() for p in both):
            process.kill()
    return {end: (folders[end], [p.returncode for p in started[end]], said[end]) for end in folders}


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    return together({end: tmp_path_factory.mktemp(end) for end in ("stops", "dies", "sleeps")})


def same(ours, theirs):
    """Bit by bit: words are added, whose order no sum shows."""
    for a, b in zip(ours, jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(np.asarray(a).view(np.uint32), np.asarray(b).view(np.uint32))


def test_two_processes_are_one_run_and_stop_together(ended, alone):
    """The signal reaches one of them; both stop after the same call, and nothing but results is on stdout."""
    folder, codes, said = ended["stops"]
    assert codes == [0, 0], said
    stops = [re.findall("stopped by SIGTERM after (.) of 7 rounds", errors) for _, errors in said]
    assert len(stops[0]) == 1 and stops[0] == stops[1], said
    assert [output for output, _ in said] == ["", ""]
    with np.load(folder / "params.npz") as file:
        same([file[name] for name in file.files], alone)


def test_exact_arithmetic_has_the_bits_of_one_process(ended):
    """Sums of floats that are whole numbers: parameters, server, every client's state, after three rounds."""
    expected = named_leaves(exact_round.play(WAY)[-1][0])
    with np.load(ended["stops"][0] / "exact.npz") as file:
        assert set(file.files) == set(expected) and file.files
        for name in file.files:
            assert file[name].tobytes() == np.asarray(expected[name]).tobytes(), name


def test_processes_that_differ_are_refused_with_both_values(ended):
    """Before anything is compiled, by the same words in both; then they can run what they agree on."""
    *_, said = ended["stops"]
    lines, others = ([line for line in errors.splitlines() if line.startswith("refused: ")] for _, errors in said)
    assert len(lines) == len(others) == 5 and [k for k in range(5) if lines[k] != others[k]] == [3], said
    asked = "refused: Expected the same experiment in all processes, found "
    end = ". Start all of them with "
    assert lines[0] == f"{asked}perf.rounds_per_call=3 in process 0, 2 in process 1{end}perf.rounds_per_call=3."
    assert lines[1] == f"{asked}client.lr=0.3 in process 0, 0.25 in process 1{end}client.lr=0.3."
    assert re.search(r"same data .*, found checksum of train.y=\w+ in process 0, \w+ in process 1", lines[2])
    assert "missing.npz" in others[3] and lines[3].startswith("refused: Process 1 of this run cannot begin: ")
    assert others[3].removeprefix("refused: ") in lines[3]
    assert re.search(r"same data and checkpoint .*, found rounds done=[1-6] in process 0, 0 in process 1", lines[4])


def test_a_dead_process_ends_the_run_and_one_process_goes_on(ended, alone):
    folder, codes, said = ended["dies"]
    assert codes == [2, 9], said
    assert "Another process of this run is gone" in said[0][1] and not (folder / "params.npz").exists()
    resumed = run(experiment(**FIELDS), out=folder, resume=True, quiet=True)
    same(jax.tree.leaves(resumed.params), alone)


def check_stuck(folder: Path, codes: list[int], said: list) -> None:
    """The first process ended by itself, with one line that says how it goes on; what was done before is kept."""
    errors = said[0][1]
    assert codes[0] == 2, said
    done = checkpoint.read_header(folder / CHECKPOINT)["done"]
    assert errors.count("fljax: ") == 1 and "stack trace" not in errors, errors
    assert f"go on after round {done}, found process 0 of 2 waiting for another for " in errors and done > 0
    assert f"--resume, on any number of processes, from {folder / CHECKPOINT}" in errors
    assert f"set FLJAX_HEARTBEAT_S higher, {PATIENCE_S:g} now" in errors


def test_a_process_that_sleeps_ends_the_run_with_a_line(ended):
    """Its runtime still answers, and its connections are open."""
    check_stuck(*ended["sleeps"])


@pytest.mark.slow
def test_a_process_that_is_frozen_ends_the_run_with_a_line(tmp_path):
    """The line of fljax comes before JAX misses the heartbeat."""
    check_stuck(*together({"freezes": tmp_path})["freezes"])


@pytest.mark.slow
def test_a_process_that_never_starts_is_not_waited_for_for_ever(tmp_path):
    """On the command line: one of the two has a mistake in its words, and the other one ends with a line as well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2"}
    env |= {"JAX_PROCESS_ID": "0", "FLJAX_HEARTBEAT_S": "3"}
    words = [sys.executable, "-m", "fljax", "run", "digits_fedavg", "--out", str(tmp_path / "out"), "--quiet"]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 2 and "Expected 2 processes to join this run within 3 s, found fewer." in done.stderr
    assert "stack trace" not in done.stderr and not (tmp_path / "out").exists()


@pytest.fixture
def known(monkeypatch):
    """What this process knows of its run: nothing yet."""
    monkeypatch.setattr(waiting, "_known", waiting.Known())
    monkeypatch.setenv("FLJAX_HEARTBEAT_S", "60")


@pytest.mark.usefixtures("known")
def test_the_limit_of_a_wait_follows_the_slowest_call(monkeypatch, tmp_path):
    """Generous until the first call of a run has ended, then the patience or ten calls."""
    assert waiting.limit() == 60
    waiting.begins(tmp_path)
    assert waiting.limit() == 600
    clock = iter([0.0, 5.0, 10.0, 17.0, 20.0, 21.0])
    monkeypatch.setattr(waiting, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    for expected in (60, 70, 70):
        with waiting.calling():
            pass
        assert waiting.limit() == expected


@pytest.mark.parametrize("said", ["soon", "0", "-3", "inf", "nan"])
def test_a_patience_that_is_no_number_is_refused(said, monkeypatch):
    monkeypatch.setenv("FLJAX_HEARTBEAT_S", said)
    with pytest.raises(FljaxError, match=rf"FLJAX_HEARTBEAT_S='{said}' to be a number of seconds > 0. Set it to 300"):
        waiting.patience()


@pytest.fixture
def nobody(monkeypatch):
    """An environment in which there are no other processes, and a runtime that only says what it was asked for."""
    for name in list(os.environ):
        if name.startswith(
            ("JAX_COORDINATOR", "JAX_NUM_PROCESSES", "JAX_PROCESS", "FLJAX_DISTRIBUTED", "SLURM", "JOB_")
        ):
            monkeypatch.delenv(name)
    asked = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **told: asked.append(told))
    return asked


def test_a_run_alone_joins_nobody(nobody, monkeypatch):
    hosts.join()
    monkeypatch.setenv("FLJAX_DISTRIBUTED", "0")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    hosts.join()
    assert not nobody and not jax.distributed.is_initialized() and hosts.is_first()


POD = "run-2.run.mine.svc.cluster.local"


def test_pods_of_a_job_with_a_service_find_each_other(nobody, monkeypatch):
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "2")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "4")
    monkeypatch.setattr(socket, "getfqdn", lambda: POD)
    before = jax.config.jax_enable_preemption_service
    try:
        hosts.join()
    finally:
        jax.config.update("jax_enable_preemption_service", before)
    (told,) = nobody
    assert told["coordinator_address"] == "run-0.run.mine.svc.cluster.local:8476"
    assert (told["process_id"], told["num_processes"]) == (2, 4)


def test_pods_that_cannot_know_their_number_say_what_to_set(nobody, monkeypatch):
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "2")
    monkeypatch.setattr(socket, "getfqdn", lambda: POD)
    monkeypatch.setattr(hosts, "find_spec", lambda name: None)
    with pytest.raises(FljaxError, match=r"JAX_NUM_PROCESSES in a pod beside run-0.*Set it to the completions"):
        hosts.join()
    monkeypatch.setenv("JAX_NUM_PROCESSES", "four")
    with pytest.raises(FljaxError, match="JAX_NUM_PROCESSES='four' to be a whole number"):
        hosts.join()
    assert not nobody


@pytest.mark.parametrize("name", ["sweep-2", "sweep-2.example.org", "other.run.mine.svc.cluster.local"])
def test_pods_without_a_service_stay_alone(name, nobody, monkeypatch):
    """The workers of a sweep are an indexed job, too."""
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "2")
    monkeypatch.setattr(socket, "getfqdn", lambda: name)
    hosts.join()
    assert hosts.pod() == {} and not nobody


def test_mistakes_are_told_in_one_line(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(FljaxError, match=r"perf.devices=7 to be 2, all devices of 2 processes"):
        client_mesh(7)
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(process_index=k) for k in (0, 1, 1)])
    with pytest.raises(FljaxError, match=r"found 1 in process 0 and 2 in process 1. Show 1 to each"):
        alike.check_devices()


def test_what_differs_is_named_with_the_values_that_most_have():
    """Values that one of them does not know, many differences, and long values."""
    same = {"rounds": 3, "seed": 1}
    alike.check_told("experiment", [same, dict(reversed(same.items()))], "")
    everyone = [{"a": 1, "b": None}, {"a": 2, "b": "x" * 99}, {"a": 2}]
    with pytest.raises(FljaxError) as error:
        alike.check_told("experiment", everyone, "Set {usual}.")
    told = f"a=1 in process 0, 2 in process 1 and 1 more; b=unset in process 0 and 1 more, {'x' * 57}... in process 1"
    assert str(error.value) == f"Expected the same experiment in all processes, found {told}. Set a=2, b=unset."
    with pytest.raises(FljaxError, match=r"; and 2 more. "):
        alike.check_told("experiment", [dict.fromkeys("abcde", 1), dict.fromkeys("abcde", 2)], "")


def test_every_field_that_shapes_a_program_is_told():
    """All of them but the title and the place of the files; versions and settings of JAX beside them."""
    base = alike.asked(experiment())
    assert base.keys() >= {"fljax", "jax", "jaxlib", "platform", "jax_enable_x64", "perf.rounds_per_call", "seed"}
    fields = {"perf.chunk": 7, "perf.seconds_per_call": 1.0, "data.streamed": True, "controls": {"other": {"seed": 2}}}
    changed = alike.asked(experiment(**fields, title="new", **{"data.dir": "elsewhere"}))
    differ = {name for name in base.keys() | changed.keys() if base.get(name) != changed.get(name)}
    assert differ == {"perf.chunk", "perf.seconds_per_call", "data.streamed", "controls.other.seed"}
