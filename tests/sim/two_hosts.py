"""One process of a run, started by test_sim_hosts: FOLDER DIE. With DIE = 1 the second process dies in the middle."""

import os
import sys
from pathlib import Path

import jax
import numpy as np

from fljax.core.check import FljaxError
from fljax.sim import checkpoint, hosts, run
from tests.sim.small_run import experiment

FIELDS = {"dropout.source": "none", "dropout.keep_rate": 1.0, "dropout.warmup_rounds": 0}


def main(folder: Path, die: bool) -> None:
    hosts.join()
    if die and not hosts.is_first():
        drive = run.drive

        def short(*args, **kwargs):  # dies where the others wait for it
            return drive(*args, **kwargs | {"after_call": lambda running: os._exit(9)})

        run.drive = short
    try:
        outcome = run.run(experiment(**FIELDS), out=folder, quiet=True)
    except FljaxError as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(2)  # without waiting for the dead
    if hosts.is_first():
        np.savez(folder / "params.npz", *jax.tree.leaves(outcome.params))
        assert checkpoint.read_header(folder / run.CHECKPOINT)["done"] == 7
    jax.distributed.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] == "1")
