"""A small update of three arrays, and what a stage does to it: shared by the tests of compression."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from fljax.core.types import Ctx, Hparams

SHAPES = {"bias": (7,), "kernel": (9, 11), "scale": (2, 3, 5)}
P = sum(int(np.prod(s)) for s in SHAPES.values())
LEAVES = len(SHAPES)
KEY = jax.random.key(3)


def update(seed: int = 0, scale: float = 1.0) -> dict:
    """Normal values, each array of another size."""
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(scale * 10.0**i * rng.normal(size=s), jnp.float32)
        for i, (name, s) in enumerate(SHAPES.items())
    }


def support(seed: int = 0, share: float = 0.6) -> dict:
    """A 0/1 mask like the update."""
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.uniform(size=s) < share, jnp.float32) for name, s in SHAPES.items()}


def everything() -> dict:
    """The support of all coordinates: it runs the program of any other support."""
    return {name: jnp.ones(s) for name, s in SHAPES.items()}


def context(rate=1.0, mask=None, round_key=KEY) -> Ctx:
    """What a stage is told, with a share of the values to send and a support."""
    nobody, one = jnp.int32(-1), jnp.float32(1.0)
    return Ctx(jnp.int32(0), Hparams(compress_rate=rate), round_key, nobody, nobody, one, one, mask)


def states(stage, rate=1.0):
    """(server state, client state) of a stage before the first round."""
    return stage.init(jax.tree.map(jnp.zeros_like, update()), Hparams(compress_rate=rate))


@cache
def program(stage):
    """The client half of a stage, compiled once for all numbers; beside the update travels a weight."""

    def run(u, rate, mask, round_key, key, own):
        server, client = states(stage)
        own = client if own is None else own
        payload = {"update": u, "weight": jnp.float32(3.0)}
        payload, own, _ = stage.encode(key, context(rate, mask, round_key), payload, server, own)
        return payload["update"], own, payload["weight"]

    return jax.jit(run)


def send(stage, u, *, rate=1.0, mask=None, round_key=KEY, key=KEY, own=None):
    """(what leaves the client, its new state)."""
    sent, own, weight = program(stage)(u, rate, mask, round_key, key, own)
    assert isinstance(weight, jax.core.Tracer) or np.all(weight == 3.0), "no stage may touch the weight"
    return sent, own


def flat(tree) -> np.ndarray:
    """All numbers in one float64 vector, in the tree's own order."""
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)])


def unflat(vector) -> dict:
    """The inverse of flat."""
    ends = np.cumsum([int(np.prod(s)) for s in SHAPES.values()])
    parts = np.split(np.asarray(vector, np.float32), ends[:-1])
    return {name: jnp.asarray(x.reshape(s)) for (name, s), x in zip(SHAPES.items(), parts, strict=True)}


def best(values, k: int, allowed=None) -> np.ndarray:
    """Oracle: bool vector of the k largest magnitudes, the first of equal ones, by a stable sort."""
    score = np.abs(np.asarray(values, np.float64))
    if allowed is not None:
        score = np.where(allowed, score, -1.0)
    chosen = np.zeros(score.size, bool)
    chosen[np.argsort(-score, kind="stable")[:k]] = True
    return chosen
