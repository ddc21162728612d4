"""A secure sum with real cryptography in every round of a run: ``secure.mode = "protocol"``.

The clients' words go through the protocol of ``fljax.secure.protocol`` with the drop-outs of the round, on the host.
Its sum, and whether it is aborted, have to be those of the simulated sum; it is what the server then decodes.
"""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fljax.config import Experiment
from fljax.core.check import FljaxError
from fljax.core.types import Array, Ctx, Hparams, Key, PyTree
from fljax.secure.channel import require
from fljax.secure.masks import Lanes
from fljax.secure.protocol import MOST_CLIENTS, secure_sum
from fljax.secure.secagg import parties, recoverable
from fljax.server.sampler import Sampler
from fljax.sim.hosted import Exchange, Seen, check_alone
from fljax.sim.secure import round_graph, word_lanes

MOST_WORDS = 2**20
"""Words of one upload up to which the host makes all pads."""


def protocol_exchange(
    experiment: Experiment, sampler: Sampler, size: int, key: Key, numbers: Hparams, groups: Any = None
) -> Exchange:
    """The protocol in the place of the sum of a round.

    Args:
      sampler: who takes part. size: P, the number of shared parameters. key, numbers: of the run, from which follows
        who drops out when. groups: neuron groups of the model.

    Raises:
      FljaxError: more clients or words than real cryptography is offered for; the package is missing; from a round, a
        sum that differs from the simulated one in any bit.
    """
    check_alone()
    require()
    lanes, graph = word_lanes(experiment, sampler, size, groups), round_graph(experiment, sampler)
    _check_small(sampler.capacity, lanes.size)
    told: dict[str, Any] = {"mode": "protocol", "rounds": 0, "aborted": 0, "clients": 0, "seconds": 0.0}
    told |= {"sent_bytes": {}, "seeds_recovered": 0, "pad_keys_recovered": 0}

    @jax.jit
    def stages(t: Array, presence: Array):
        who = parties(_ctx(t, key, numbers, presence))
        return who.members, who.uploaded, who.answered, recoverable(graph, who)

    def total(seen: Seen) -> PyTree:
        begin, plain = time.perf_counter(), seen.transcript.pre_noise
        presence = (seen.transcript.cohort.ids < sampler.population).astype(np.int32) + seen.transcript.alive
        members, uploaded, answered, lives = map(np.asarray, stages(jnp.int32(seen.round), jnp.asarray(presence)))
        words = _rows(seen.transcript.payloads)
        threshold = graph.thresholds[int(members.sum())]
        result = secure_sum(words, lanes.bits, threshold, members, uploaded, answered, seen.round)
        if (result.total is not None) != bool(lives):
            raise FljaxError(f"Expected round {seen.round} to end as the simulated one. Report this: {result.reason}")
        told["seconds"] += time.perf_counter() - begin
        told["rounds"] += 1
        told["clients"] += int(members.sum())
        told["aborted"] += int(result.total is None)
        told["seeds_recovered"] += len(result.recovered[0])
        told["pad_keys_recovered"] += len(result.recovered[1])
        told["sent_bytes"] = {stage: told["sent_bytes"].get(stage, 0) + n for stage, n in result.sent.items()}
        if result.total is None:
            return jax.tree.map(np.zeros_like, plain)
        _same_words(result.total, plain, lanes, seen.round)
        return _unflat(result.total, plain, lanes.bits)

    return Exchange("secure", total, lambda: _told(told))


def _check_small(clients: int, words: int) -> None:
    """Raises FljaxError for more than real cryptography is offered for."""
    remedy = "Set secure.mode = 'masked'"
    if clients > MOST_CLIENTS:
        raise FljaxError(
            f"Expected cohorts of at most {MOST_CLIENTS} clients for secure.mode = 'protocol', found {clients}. "
            f"{remedy}, or draw fewer with sampler.kind = 'fixed_size'."
        )
    if words > MOST_WORDS:
        raise FljaxError(f"Expected at most {MOST_WORDS} words for secure.mode = 'protocol', found {words}. {remedy}.")


def _ctx(t: Array, key: Key, numbers: Hparams, presence: Array) -> Ctx:
    """What the parties of a round know: enough to say who gets how far."""
    nobody = jnp.int32(-1)
    round_key = jax.random.fold_in(key, t)
    return Ctx(t, numbers, round_key, nobody, nobody, jnp.float32(0.0), numbers.keep_rate, presence=presence)


def _told(told: dict[str, Any]) -> dict[str, Any]:
    """What was found; bytes and seconds of one round."""
    rounds = max(told["rounds"], 1)
    parts = {name: value for name, value in told.items() if name not in ("seconds", "sent_bytes", "clients")}
    each = {stage: round(n / max(told["clients"], 1), 1) for stage, n in told["sent_bytes"].items()}
    return parts | {"ms_per_round": 1e3 * told["seconds"] / rounds, "bytes_per_client": each}


def _rows(payloads: PyTree) -> np.ndarray:
    """[C, words] uint32 of all slots."""
    leaves = [np.asarray(x) for x in jax.tree.leaves(payloads)]
    return np.concatenate([x.reshape(len(x), -1).astype(np.uint32) for x in leaves], axis=1)


def _same_words(total: np.ndarray, plain: PyTree, lanes: Lanes, round: int) -> None:
    """Raises FljaxError unless the sum has the lower bits of the plain one."""
    wanted = _rows(jax.tree.map(lambda x: np.asarray(x)[None], plain))[0] & np.uint32(2**lanes.bits - 1)
    if not np.array_equal(total, wanted):
        raise FljaxError(f"Expected the sum of round {round} to have the bits of the plain one. Report this.")


def _unflat(words: np.ndarray, like: PyTree, bits: int) -> PyTree:
    """Words modulo 2^bits in the shapes and types of a tree, their sign in all higher bits."""
    unused = np.uint32(32 - bits)
    whole = np.right_shift(np.left_shift(words, unused).view(np.int32), np.int32(unused))
    leaves, structure = jax.tree.flatten(like)
    parts = np.split(whole, np.cumsum([np.size(x) for x in leaves])[:-1])
    pairs = zip(parts, leaves, strict=True)
    return jax.tree.unflatten(structure, [p.astype(np.asarray(x).dtype).reshape(np.shape(x)) for p, x in pairs])
