"""The trials of a batch on several devices: each device has a share of its own, and the results are the same."""

import os
import subprocess
import sys

import numpy as np
import pytest
from small_sweep import experiment

from fljax.core.check import FljaxError
from fljax.sweep.plan import Plan, make_plan
from fljax.sweep.run import make_runner, run_sweep

BOTH_AXES = """
import jax, numpy as np
from small_sweep import experiment
from fljax.sim import mesh
from fljax.sweep.run import run_sweep
both = mesh.client_mesh(2, 2)
assert dict(both.shape) == {"trials": 2, "clients": 2} and both.size == len(jax.devices()) == 4
one, four = (run_sweep(experiment(**fields), quiet=True).history for fields in (
    {"perf.trials_per_batch": 4}, {"perf.trials_per_batch": 4, "perf.trial_devices": 2, "perf.devices": 2}))
for name, values in one.items():
    np.testing.assert_allclose(four[name], values, rtol=2e-5, atol=1e-6, err_msg=name)
print("same")
"""


@pytest.fixture(scope="module")
def on_one():
    return run_sweep(experiment(**{"perf.trials_per_batch": 4}), quiet=True)


def test_two_devices_find_what_one_finds(on_one):
    """Eight trials in batches of four, two on each device."""
    spread = run_sweep(experiment(**{"perf.trials_per_batch": 4, "perf.trial_devices": 2}), quiet=True)
    assert [t.values for t in spread.trials] == [t.values for t in on_one.trials]
    assert spread.history.keys() == on_one.history.keys()
    for name, values in on_one.history.items():
        np.testing.assert_allclose(spread.history[name], values, rtol=2e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(("most", "devices", "width"), [(3, 2, 2), (5, 2, 4), (50, 2, 8), (50, 3, 9), (8, 8, 8)])
def test_a_batch_has_as_many_trials_on_every_device(most, devices, width):
    """Eight trials: full batches are rounded down, and a batch of all of them is rounded up, filled with copies."""
    plan = make_plan(experiment(**{"perf.trials_per_batch": most, "perf.trial_devices": devices}))
    assert set(plan.rows["width"].tolist()) == {width}


def test_too_few_trials_or_a_width_that_does_not_divide_are_refused():
    with pytest.raises(FljaxError, match=r"perf.trials_per_batch=3 >= perf.trial_devices=4. Use 4\."):
        make_plan(experiment(**{"perf.trial_devices": 4}))
    planned = make_plan(experiment())  # batches of three
    spread = Plan(planned.experiment.replace(**{"perf.trial_devices": 2}), planned.rows)
    with pytest.raises(FljaxError, match=r"perf.trial_devices=2 to divide the 3 trials .* Use perf.trial_devices=1\."):
        make_runner(spread, list(spread.shards), quiet=True)(next(iter(spread.shards)), None)
    with pytest.raises(
        FljaxError,
        match=r"perf.trial_devices=4 x perf.devices=1 <= 2.* Use perf.trial_devices=2 x perf",
    ):
        run_sweep(experiment(**{"perf.trial_devices": 4, "perf.trials_per_batch": 4}), quiet=True)


@pytest.mark.slow  # a process with four devices
def test_trials_and_clients_are_spread_at_once():
    """Two groups of two devices: trials over the groups, clients over the devices of a group."""
    there = {**os.environ, "JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu"}
    del there["NPROC"]  # as a user has it, with too few threads for many programs at once
    there["PYTHONPATH"] = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    ran = subprocess.run([sys.executable, "-c", BOTH_AXES], env=there, capture_output=True, text=True, timeout=300)
    assert ran.stdout.strip() == "same", ran.stderr[-2000:]
