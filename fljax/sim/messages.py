"""The messages of a round as bytes: what its clients really send, written as the round counts it, and read back."""

from __future__ import annotations

import secrets
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fljax.compress import pack
from fljax.compress.bitpack import pack_bits, unpack_bits
from fljax.compress.sparsify import kept_count
from fljax.config import Experiment
from fljax.core.types import PyTree
from fljax.sections.secure import PAIRED
from fljax.secure.ledger import key_traffic
from fljax.server.sampler import Sampler
from fljax.sim.secure import round_graph, word_lanes

POSITIONS = {"none": "all", "topk": "listed", "randk": "public"}
"""compress.sparsify -> how the positions of sent values are told."""

_pack, _unpack = jax.jit(pack_bits, static_argnums=1), jax.jit(unpack_bits, static_argnums=(1, 2))


class Words(NamedTuple):
    """How uploads are written as words. bits: of one. keys: bytes of keys and shares that a client sends beside them.
    whole: a word for every coordinate, also where neurons are dropped."""

    bits: int
    keys: int = 0
    whole: bool = True


def words_of(experiment: Experiment, sampler: Sampler, size: int, groups: Any = None) -> Words | None:
    """How uploads of an experiment are written as words; None where they are not."""
    masking, mechanism = experiment.secure.masking, experiment.privacy.mechanism
    if masking == "none":
        return Words(experiment.privacy.bits) if mechanism.startswith("distributed_") else None
    others = 0
    if masking in PAIRED:
        graph = round_graph(experiment, sampler)
        others = min(graph.degree, graph.clients - 1)
    keys = 0 if masking == "clear" else key_traffic(masking, others).sent // 8
    return Words(word_lanes(experiment, sampler, size, groups).bits, keys, masking != "clear")


class Written(NamedTuple):
    """One upload. message: its bytes. values: what a reader makes of them, [n] float32. sent: what was meant, [n]."""

    message: bytes
    values: np.ndarray
    sent: np.ndarray


def flat(tree: PyTree) -> np.ndarray:
    """All numbers of a tree as one vector, in the type of its first array."""
    leaves = [np.ravel(np.asarray(x)) for x in jax.tree.leaves(tree)]
    return np.concatenate(leaves) if leaves else np.zeros(0, np.float32)


def downlink_message(params: PyTree, algorithm: PyTree, support: PyTree = None) -> bytes:
    """What one client receives: the parameters, those of the sub-model alone where there is one, and the state of the
    algorithm, as float32."""
    return _on(flat(params), support).astype("<f4").tobytes() + flat(algorithm).astype("<f4").tobytes()


def uplink_messages(
    experiment: Experiment, payloads: dict[str, PyTree], support: PyTree, words: Words | None = None
) -> list[Written]:
    """What the clients of a round send.

    Args:
      experiment: how uploads are compressed. payloads: of the clients that answered, leaves [n, ...].
      support: 0/1 tree, or None: the public mask that all of them follow. words: where payloads are whole numbers.

    Returns:
      One message for each client: its parts in the order of their names, each filled up to whole bytes.
    """
    count = len(jax.tree.leaves(payloads)[0])
    if words is not None:
        return [_words_upload(_row(payloads, i), support, words) for i in range(count)]
    return [_upload(experiment, _row(payloads, i), payloads, support) for i in range(count)]


def _row(payloads: Any, i: int) -> Any:
    return jax.tree.map(lambda x: np.asarray(x)[i], payloads)


def _upload(experiment: Experiment, payload: dict[str, PyTree], everyone: dict[str, PyTree], support) -> Written:
    parts = []
    for name in sorted(set(payload) - {"count"}):  # counts follow from masks that the server knows
        if name == "update":
            parts.append(_update(experiment, payload[name], everyone[name], support))
        else:
            parts.append(_floats(flat(payload[name])))
    message = b"".join(part.message for part in parts)
    return Written(message, *(np.concatenate([part[i] for part in parts]) for i in (1, 2)))


def _words_upload(payload: dict[str, PyTree], support: PyTree, words: Words) -> Written:
    """Words of all parts; behind the update stand keys and shares, here random bytes of their number."""
    parts = []
    for name in sorted(payload):
        on = support if name == "update" and not words.whole else None
        parts.append(whole_numbers(_on(flat(payload[name]), on), words.bits))
    message = b"".join(part.message for part in parts) + secrets.token_bytes(words.keys)
    return Written(message, *(np.concatenate([part[i] for part in parts]) for i in (1, 2)))


def _floats(values: np.ndarray) -> Written:
    message = values.astype("<f4").tobytes()
    return Written(message, np.frombuffer(message, "<f4"), values)


def _update(experiment: Experiment, update: PyTree, everyone: PyTree, support: PyTree) -> Written:
    """The update: compressed values, or floats."""
    values, c = _on(flat(update), support), experiment.compress
    if not c.on:
        return _floats(values)
    sizes = _sizes(update, support)
    sparse = c.sparsify != "none"
    kept = int(kept_count(jnp.float32(c.keep), values.size)) if sparse else values.size
    bits = {"none": 32, "stochastic": c.bits, "sign": 1}[c.quantise]
    layout = pack.Layout(sizes, kept, bits, POSITIONS[c.sparsify])
    scales = np.array([step_of(x, bits) for x in np.split(values, np.cumsum(sizes)[:-1])]) if bits < 32 else None
    known = None if layout.positions != "public" else _public(everyone, support, kept)
    message = pack.encode(layout, values, scales, known)
    return Written(message, pack.decode(layout, message, known), values)


def whole_numbers(values: np.ndarray, bits: int) -> Written:
    """Whole numbers modulo 2^bits, packed one behind the other, lowest bit first; read back with their sign.

    What is meant by a number is what its lower bits say: masked words use no others.
    """
    words = values.astype(np.int64) & ((1 << bits) - 1)
    message = np.asarray(_pack(jnp.asarray(words.astype(np.uint32)), bits)).tobytes()
    stream = jnp.asarray(np.frombuffer(message, np.uint8))
    read = np.asarray(_unpack(stream, values.size, bits)).astype(np.int64)
    read, sent = (np.where(w >= 1 << (bits - 1), w - (1 << bits), w) for w in (read, words))
    return Written(message, read, sent)


def step_of(values: np.ndarray, bits: int) -> np.float32:
    """The scale of one quantised array: its step, or the magnitude of its signs.

    The largest value is the top level s, so that max / s is the step but for its last digit, which is found by trying.
    """
    most = np.abs(values).max(initial=np.float32(0))
    if bits == 1 or most == 0:
        return np.float32(most)
    guess = np.float32(most / np.float32(2 ** (bits - 1) - 1))
    near = (guess, np.nextafter(guess, np.float32(0)), np.nextafter(guess, np.float32(np.inf)))
    return min(near, key=lambda step: float(np.abs(np.rint(values / step) * step - values).max()))


def _public(everyone: PyTree, support: PyTree, kept: int) -> np.ndarray:
    """[n] bool with ``kept`` True: the positions that the round's key made, where any client sent something; those at
    which nobody did are as good as any other, all of them are zero."""
    rows = np.stack([_on(flat(_row(everyone, i)), support) for i in range(len(jax.tree.leaves(everyone)[0]))])
    known = np.any(rows != 0, axis=0)
    known[np.flatnonzero(~known)[: kept - int(known.sum())]] = True
    return known


def _on(values: np.ndarray, support: PyTree) -> np.ndarray:
    return values if support is None else values[flat(support) > 0]


def _sizes(update: PyTree, support: PyTree) -> tuple[int, ...]:
    of = update if support is None else support
    return tuple(int(np.size(x) if support is None else np.sum(np.asarray(x) > 0)) for x in jax.tree.leaves(of))
