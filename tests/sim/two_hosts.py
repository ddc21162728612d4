"""One process of a run, started by test_sim_hosts: FOLDER END.

The sums of the run are made of whole numbers, so that no order of adding can be seen in them. With END = stops the two
are first told different things, which is refused; then the second one alone gets SIGTERM in the middle of a run, and
both go on later; then they play the round of exact arithmetic. Otherwise the second process comes to its END in the
middle: it dies, sleeps or freezes.
"""

import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from fljax.core.check import FljaxError
from fljax.core.tree import named_leaves
from fljax.sim import checkpoint, hosts, run
from fljax.sim.engine import use_compilation_cache
from fljax.sim.interrupt import Interrupted
from fljax.sim.mesh import client_mesh
from fljax.sim.waiting import HEARTBEAT
from tests.invariance import exact_round
from tests.sim.small_run import experiment, file

FIELDS = {
    "dropout.source": "none",
    "dropout.keep_rate": 1.0,
    "dropout.warmup_rounds": 0,
    "secure.masking": "clear",
    "perf.chunk": 1,
    "perf.seconds_per_call": 5.0,
}
PATIENCE_S = 6.0
WAY = exact_round.Way(chunk=3)
ENDS = {
    "stops": lambda: signal.raise_signal(signal.SIGTERM),
    "dies": lambda: os._exit(9),
    "sleeps": lambda: time.sleep(1000),
    "freezes": lambda: os.kill(os.getpid(), signal.SIGSTOP),
}


def after_call(act):
    """Lets the second process do something between its first call and what follows it."""
    drive = run.drive

    def changed(*args, **kwargs):
        usual = kwargs.pop("after_call")
        return drive(*args, **kwargs, after_call=lambda running: (act(), usual(running)))

    if not hosts.is_first():
        run.drive = changed
    return drive


def try_to_run(fields: dict, folder: Path) -> None:
    """Says why it is refused."""
    try:
        run.run(experiment(**FIELDS | fields), out=folder, quiet=True, resume=True)
    except FljaxError as error:
        print(f"refused: {error}", file=sys.stderr, flush=True)


def differ(folder: Path) -> None:
    """Runs of which this process is told something else than the other."""
    first = hosts.is_first()
    other = folder / "other_labels.npz"
    if not first:
        with np.load(file()) as stored:
            np.savez(other, **{n: (stored[n] + 1) % 3 if n == "y" else stored[n] for n in stored.files})
    for fields in (
        {"perf.rounds_per_call": 3 if first else 2},
        {"client.lr": 0.3 if first else 0.25, "title": "first" if first else "second"},
        {"data.dir": str(file() if first else other)},
        {"data.dir": str(file() if first else folder / "missing.npz")},
    ):
        try_to_run(fields, folder)


def play_exactly() -> dict[str, np.ndarray]:
    """The state after three rounds of ``exact_round.play``, on the devices of both processes; by name."""
    mesh = client_mesh(1)
    spread = partial(hosts.everywhere, mesh=mesh)
    key, numbers, data = spread((jax.random.key(0), exact_round.hparams(), exact_round.data()))
    built = exact_round.round_of(WAY)
    state = spread(built.init(jax.random.key(0), jnp.zeros(3), exact_round.hparams()))
    step = jax.jit(built.step, out_shardings=NamedSharding(mesh, PartitionSpec()))
    for t in range(3):
        state, _ = step(np.int32(t), key, state, data, numbers)
    return {name: np.asarray(leaf) for name, leaf in named_leaves(state).items()}


def main(folder: Path, end: str) -> None:
    hosts.join()
    use_compilation_cache()
    if end in ("sleeps", "freezes"):
        os.environ[HEARTBEAT] = str(PATIENCE_S)  # to join they get more time
    if end == "stops":
        differ(folder)
    drive = after_call(ENDS[end])
    try:
        if end == "stops":
            try:
                run.run(experiment(**FIELDS), out=folder, quiet=True)
            except Interrupted as stop:
                print(stop, file=sys.stderr)
            run.drive = drive
            try_to_run({}, folder if hosts.is_first() else folder / "without_checkpoint")
        outcome = run.run(experiment(**FIELDS), out=folder, quiet=True, resume=True)
    except FljaxError as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(2)  # without waiting for the dead
    played = play_exactly()
    if hosts.is_first():
        np.savez(folder / "params.npz", *jax.tree.leaves(outcome.params))
        np.savez(folder / "exact.npz", **played)
        assert checkpoint.read_header(folder / run.CHECKPOINT)["done"] == 7
    jax.distributed.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
