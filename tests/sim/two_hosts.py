"""One process of a run, started by test_sim_hosts: FOLDER END.

With END = dies the second process dies in the middle. With END = stops it alone gets SIGTERM there, and both go on
later.
"""

import os
import signal
import sys
from pathlib import Path

import jax
import numpy as np

from fljax.core.check import FljaxError
from fljax.sim import checkpoint, hosts, run
from fljax.sim.engine import use_compilation_cache
from fljax.sim.interrupt import Interrupted
from tests.sim.small_run import experiment

FIELDS = {"dropout.source": "none", "dropout.keep_rate": 1.0, "dropout.warmup_rounds": 0, "perf.seconds_per_call": 5.0}


def after_call(act):
    """Lets the second process do something between its first call and what follows it."""
    drive = run.drive

    def changed(*args, **kwargs):
        usual = kwargs.pop("after_call")
        return drive(*args, **kwargs, after_call=lambda running: (act(), usual(running)))

    if not hosts.is_first():
        run.drive = changed
    return drive


def main(folder: Path, end: str) -> None:
    hosts.join()
    use_compilation_cache()
    drive = after_call(lambda: os._exit(9) if end == "dies" else signal.raise_signal(signal.SIGTERM))
    try:
        if end == "stops":
            try:
                run.run(experiment(**FIELDS), out=folder, quiet=True)
            except Interrupted as stop:
                print(stop, file=sys.stderr)
            run.drive = drive
        outcome = run.run(experiment(**FIELDS), out=folder, quiet=True, resume=True)
    except FljaxError as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(2)  # without waiting for the dead
    if hosts.is_first():
        np.savez(folder / "params.npz", *jax.tree.leaves(outcome.params))
        assert checkpoint.read_header(folder / run.CHECKPOINT)["done"] == 7
    jax.distributed.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
