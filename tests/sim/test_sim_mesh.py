"""Devices that are asked for are there and have work, or the run is refused; runs of several need no tuned threads."""

import json
import os
import subprocess
import sys

import pytest

from fljax.core.check import FljaxError
from fljax.sim.build import build
from fljax.sim.mesh import client_mesh
from tests.sim import small_run


def test_more_devices_than_there_are_are_refused_with_what_works():
    """The tests have two."""
    with pytest.raises(FljaxError, match=r"perf.devices=3 <= 2, .* Use perf.devices=2, or set JAX_NUM_CPU_DEVICES=3 "):
        client_mesh(3)
    with pytest.raises(
        FljaxError, match=r"perf.trial_devices=2 x .* <= 2.* Use perf.trial_devices=1 x perf.devices=2,"
    ):
        client_mesh(3, trials=2)
    assert client_mesh(2).shape == {"clients": 2} and client_mesh(1) is None


def test_devices_without_a_client_are_refused():
    alone = {"sampler.kind": "fixed_size", "sampler.cohort": 1, "perf.devices": 2}
    with pytest.raises(FljaxError, match=r"perf.devices=2 <= 1, the most clients of a round. Use perf.devices=1\."):
        build(small_run.experiment(**alone))


def test_two_devices_of_one_process_run_to_the_end_with_the_threads_of_any_machine(tmp_path):
    """Collectives of programs under way together could wait for each other for ever; a run has one at a time."""
    there = {**os.environ, "JAX_NUM_CPU_DEVICES": "2"}
    del there["NPROC"]
    asked = ["--rounds=20", "--perf.devices=2", "--perf.rounds_per_call=1", "--out", str(tmp_path / "out"), "--json"]
    command = [sys.executable, "-m", "fljax", "run", "digits_fedavg", *asked, "--quiet"]
    done = subprocess.run(command, env=there, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["final"]["test_accuracy"] > 0.3
