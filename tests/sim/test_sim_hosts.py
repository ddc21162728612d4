"""Several processes, one simulation: the same result, and an end in time when a process dies; real processes, gloo."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from fljax.core.check import FljaxError
from fljax.sim import hosts
from fljax.sim.mesh import client_mesh
from fljax.sim.run import run
from tests.sim.small_run import experiment
from tests.sim.two_hosts import FIELDS

TIMEOUT_S = 150
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


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Both runs, beside each other: {how they end: (folder, exit codes, (output, errors) of each process)}."""
    folders = {end: tmp_path_factory.mktemp(end) for end in ("stops", "dies")}
    started = {end: start(folder, end) for end, folder in folders.items()}
    try:
        said = {end: [p.communicate(timeout=TIMEOUT_S) for p in both] for end, both in started.items()}
    finally:
        for process in (p for both in started.values() for p in both):
            process.kill()
    return {end: (folders[end], [p.returncode for p in started[end]], said[end]) for end in folders}


def same(ours, theirs):
    """Sums over two devices are added in another order; nothing else may differ."""
    for a, b in zip(ours, jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


def test_two_processes_are_one_run_and_stop_together(ended, alone):
    """The signal reaches one of them; both stop after the same call, and nothing but results is on stdout."""
    folder, codes, said = ended["stops"]
    assert codes == [0, 0], said
    stops = [re.findall("stopped by SIGTERM after (.) of 7 rounds", errors) for _, errors in said]
    assert len(stops[0]) == 1 and stops[0] == stops[1], said
    assert [output for output, _ in said] == ["", ""]
    with np.load(folder / "params.npz") as file:
        same([file[name] for name in file.files], alone)


def test_a_dead_process_ends_the_run_and_one_process_goes_on(ended, alone):
    folder, codes, said = ended["dies"]
    assert codes[1] == 9 and codes[0] not in (0, None), said
    assert "process" in said[0][1] and not (folder / "params.npz").exists()
    resumed = run(experiment(**FIELDS), out=folder, resume=True, quiet=True)
    same(jax.tree.leaves(resumed.params), alone)


def test_a_run_alone_joins_nobody(monkeypatch):
    for name in ("JAX_COORDINATOR_ADDRESS", "FLJAX_DISTRIBUTED", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    hosts.join()
    assert not jax.distributed.is_initialized() and hosts.is_first()


def test_mistakes_are_told_in_one_line(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(FljaxError, match=r"perf.devices=7 to be 2, all devices of 2 processes"):
        client_mesh(7)
    everyone = np.array([[1, 2, 3], [1, 2, 4]])
    monkeypatch.setattr("jax.experimental.multihost_utils.process_allgather", lambda mine: everyone)
    with pytest.raises(FljaxError, match="start at round 3, found 4 in process 1"):
        hosts.check_same("ff", 3)
    everyone[1] = [1, 5, 3]
    with pytest.raises(FljaxError, match="found another in process 1"):
        hosts.check_same("ff", 3)
