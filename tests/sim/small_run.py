"""One small private experiment with neuron dropout, and its compiled calls, shared by the tests of runs and sweeps."""

import os
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from fljax.config import Experiment, validate
from fljax.core.keys import stream
from fljax.core.types import Hparams
from fljax.sim.build import Program, build
from fljax.sim.engine import Running, Schedule, drive, make_call
from fljax.sim.evaluate import held_data, make_evaluate

ROUNDS, EVERY, PER_CALL = 7, 3, 3
TESTED = 17  # examples of the global test set: a number that occurs nowhere else


@cache
def file() -> Path:
    """Twelve natural clients of 5 to 9 examples in an .npz file of the session."""
    rng = np.random.default_rng(0)
    sizes = [5 + k % 5 for k in range(12)]
    center = rng.normal(size=(3, 4))

    def draw(n):
        y = rng.integers(0, 3, n)
        return (center[y] + 0.7 * rng.normal(size=(n, 4))).astype(np.float32), y

    (x, y), (test_x, test_y) = draw(sum(sizes)), draw(TESTED)
    path = Path(os.environ["FLJAX_CACHE"]) / "twelve_clients.npz"
    made = path.with_name(f"{os.getpid()}.npz")  # several processes may make it at once
    np.savez(made, x=x, y=y, client_id=np.repeat(np.arange(12), sizes), test_x=test_x, test_y=test_y)
    return made.replace(path)


def experiment(**fields) -> Experiment:
    """Ten training clients, two that never train; DP-FedAvg with Fisher dropout; fields by dotted name."""
    base = validate(
        {
            "name": "small",
            "rounds": ROUNDS,
            "eval_every": EVERY,
            "data": {"name": "npz", "dir": str(file()), "unseen_clients": 2, "client_test_fraction": 0.3},
            "model": {"name": "mlp", "hidden": [4]},
            "client": {"lr": 0.3, "batch_size": 4},
            "sampler": {"kind": "poisson", "rate": 0.6},
            "privacy": {"mechanism": "central_gaussian", "noise_multiplier": 0.5, "clip": 0.5},
            "dropout": {"source": "fisher", "keep_rate": 0.75, "warmup_rounds": 1, "refresh_rounds": 2},
            "perf": {"rounds_per_call": PER_CALL},
        }
    )
    return base.replace(**fields)


@cache
def program() -> Program:
    """What the experiment is built into."""
    return build(experiment())


TRACES = {"count": 0}


@cache
def call(length: int):
    """The uncompiled call of that many rounds; counts how often its evaluation is traced."""
    plain = make_evaluate(program().model, program().loss, program().local)

    def evaluate(*args):
        TRACES["count"] += 1
        return plain(*args)

    return make_call(program().round, evaluate, length)


@cache
def compiled(length: int):
    """The compiled call."""
    return jax.jit(call(length))


def schedule(rounds: int = ROUNDS, every: int = EVERY) -> Schedule:
    """When things happen."""
    return Schedule(jnp.int32(rounds), jnp.int32(every))


def begin(seed: int = 0, numbers: Hparams | None = None) -> Running:
    """A run before round 0."""
    numbers = experiment().hparams() if numbers is None else numbers
    key = jax.random.key(seed)
    params = program().model.init(stream(key, "init"))
    return Running(0, program().round.init(key, params, numbers.arrays()), {})


def drive_it(length=PER_CALL, seed=0, numbers=None, start=None, when=None, after_call=None) -> Running:
    """A whole run, or the rest of one that was begun."""
    numbers = experiment().hparams() if numbers is None else numbers
    data, held = program().dataset.train, held_data(program().dataset)
    start = begin(seed, numbers) if start is None else start
    args = (compiled(length), start, when or schedule(), jax.random.key(seed), data, held, numbers.arrays())
    return drive(*args, after_call=after_call)[0]


def same_history(a, b) -> bool:
    """True if two histories have the same metrics in the same order of bits."""
    return a.keys() == b.keys() and all(a[n].tobytes() == b[n].tobytes() for n in a)
