"""Randomness: one key per run, named streams, client keys by client id.

Every consumer of random numbers folds the name of its stream into the key it was given. Two consumers therefore
never share numbers, and switching one of them off leaves every other stream bit-identical: ablations are compared on
common random numbers. Client keys are made from the client's **id**, never from its slot in the cohort or from the
round alone, so that neither the order of a cohort nor its padding can change a result.
"""

from __future__ import annotations

import zlib

import jax

from fljax.core.check import one_of
from fljax.core.types import Array, Key

STREAMS = (
    "init",  # model parameters
    "private",  # private parameters of clients
    "sample",  # cohorts
    "available",  # which sampled clients answer
    "client",  # one key per client and round
    "local",  # local training of one client: shuffling, drop-out layers
    "encode",  # client half of the transforms
    "masks",  # public randomness of neuron masks
    "tiers",  # classes that clients draw anew in every round
    "query",  # a client's query of neuron scores
    "aggregate",  # aggregation rule
    "decode",  # server half of the transforms: noise
    "secure",  # pads of a secure sum, the graph of its clients, and who leaves it when
    "adversary",  # who is malicious, and what they send
    "audit",  # canaries of an audit: their coins and directions
    "leakage",  # an adversary's own draws: starting points, shadow models, made-up clients
)


def stream(key: Key, name: str) -> Key:
    """The key of the named stream: fold_in(key, crc32(name)).

    Args:
      key: a typed key, of the run, of a round or of a client.
      name: one of STREAMS; the list is closed, so that two parts of the library cannot pick one name by accident.
    """
    one_of(STREAMS, stream=name)
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def per_client(key: Key, ids: Array) -> Key:
    """One key per client id: ids [C] -> keys [C]; the same id gets the same key in any slot."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(ids)


def per_stage(key: Key, count: int) -> list[Key]:
    """One key for each stage of a chain, by position."""
    return [jax.random.fold_in(key, i) for i in range(count)]
