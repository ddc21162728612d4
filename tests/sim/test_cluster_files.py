"""The files of experiments/cluster for one simulation over several processes, run for real where that can be done."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fljax.sim import hosts
from fljax.sweep.store import open_results

CLUSTER = Path(__file__).parents[2] / "experiments/cluster"
ROUNDS = ["--rounds", "1500"]
TIMEOUT_S = 400


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder whose bin/activate leads to this fljax, one CPU device for every process."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/fljax").write_text(f'#!/bin/sh\nexec {sys.executable} -m fljax "$@"\n')
    (tmp_path / "bin/fljax").chmod(0o755)
    (tmp_path / "bin/activate").write_text(f'export PATH="{tmp_path}/bin:$PATH"\n')
    for name, value in {"JAX_NUM_CPU_DEVICES": "1", "VENV": str(tmp_path), "OUT": str(tmp_path / "out")}.items():
        monkeypatch.setenv(name, value)
    return tmp_path


def alone(place: Path, rounds: list[str]) -> Path:
    """The same run in one process."""
    words = ["run", "digits_fedavg", *rounds, "--out", str(place / "alone"), "--quiet"]
    subprocess.run([str(place / "bin/fljax"), *words], check=True, stdout=subprocess.DEVNULL)
    return place / "alone"


def same(one: Path, other: Path) -> None:
    """Sums over two devices are added in another order; over many rounds that grows, but no random number differs."""
    ours, theirs = open_results(one).trials, open_results(other).trials
    assert ours["uplink_bytes"] == theirs["uplink_bytes"]
    np.testing.assert_allclose(ours["test_loss"], theirs["test_loss"], rtol=1e-3)
    with np.load(one / "params.npz") as a, np.load(other / "params.npz") as b:
        assert a.files == b.files
        for name in a.files:
            np.testing.assert_allclose(a[name], b[name], atol=5e-3)


def wait_for(what) -> None:
    end = time.monotonic() + TIMEOUT_S
    while not what():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.5)


def asked(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.slow
def test_a_simulation_of_two_slurm_tasks_is_stopped_requeued_and_goes_on(place):
    """Slurm's signal at the end of its time, in the middle of the run; the job goes back into the queue."""
    if shutil.which("sbatch") is None or subprocess.run(["sinfo"], check=False).returncode:
        pytest.skip("no Slurm answers here: see experiments/cluster/README.md for one of a single node")
    log, script = place / "log", str(CLUSTER / "slurm_simulation.sh")
    job = asked("sbatch", "--parsable", f"--output={log}", f"--chdir={place}", script, *ROUNDS)

    def state() -> str:
        return asked("squeue", "--noheader", "--jobs", job, "--states=all", "--format=%T")

    try:
        wait_for(lambda: (place / "out/.checkpoint.npz").exists())
        asked("scancel", "--signal=TERM", job)
        wait_for(lambda: state() == "PENDING")
        assert "stopped by SIGTERM after" in log.read_text()
        asked("scontrol", "update", f"JobId={job}", "StartTime=now")  # Slurm would hold it for two minutes
        wait_for(lambda: state() not in ("PENDING", "RUNNING", "COMPLETING"))
    finally:
        subprocess.run(["scancel", job], check=False)
    assert state() == "COMPLETED" and "1500/1500" in log.read_text(), log.read_text()
    same(place / "out", alone(place, ROUNDS))


NAMED = """
import os, socket, sys
socket.getfqdn = lambda name="": os.environ["POD"]
from fljax.cli import main
sys.exit(main())
"""


@pytest.mark.slow
def test_the_pods_of_a_simulation_find_each_other(place, monkeypatch):
    """What two pods would do, by their names and numbers alone; the name of the first leads to this machine."""
    yaml = pytest.importorskip("yaml")
    service, job = yaml.safe_load_all((CLUSTER / "kubernetes_simulation.yaml").read_text())
    pod, name = job["spec"]["template"]["spec"], job["metadata"]["name"]
    (container,) = pod["containers"]
    env = {entry["name"]: entry["value"] for entry in container["env"]}
    assert pod["subdomain"] == service["metadata"]["name"] and service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": name} and job["spec"]["completionMode"] == "Indexed"
    assert {job["spec"]["completions"], job["spec"]["parallelism"]} == {int(env["JAX_NUM_PROCESSES"])}
    names = [f"{name}-{i}.{pod['subdomain']}.default.svc.cluster.local" for i in range(2)]
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")
    monkeypatch.setattr(socket, "getfqdn", lambda: names[1])
    assert hosts.pod() == {"coordinator_address": f"{names[0]}:{hosts.PORT}", "process_id": 1}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        env["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{free.getsockname()[1]}"  # in place of the cluster's DNS
    env |= {"JAX_NUM_PROCESSES": "2", "OUT": str(place / "out"), "FLJAX_CACHE": os.environ["FLJAX_CACHE"]}
    given = [re.sub(r"\$\((\w+)\)", lambda found: env[found[1]], word) for word in container["args"]]
    assert container["command"] == ["fljax", "run"]
    words = [sys.executable, "-c", NAMED, "run", *given, "--rounds", "50"]
    there = [os.environ | env | {"POD": names[i], "JOB_COMPLETION_INDEX": str(i)} for i in range(2)]
    pods = [subprocess.Popen(words, env=one) for one in there]
    try:
        assert [p.wait(timeout=TIMEOUT_S) for p in pods] == [0, 0]
    finally:
        for process in pods:
            process.kill()
    same(place / "out", alone(place, ["--rounds", "50"]))
