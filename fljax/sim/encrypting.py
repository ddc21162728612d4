"""Homomorphic encryption on real rounds: blocks of the real uploads are compared, or every sum is really encrypted."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from fljax.config import Experiment
from fljax.core.check import FljaxError
from fljax.core.types import PyTree
from fljax.secure.ckks import Cipher, Ckks, Summed, encrypted_total, open_cipher
from fljax.secure.encrypted import Choice
from fljax.sim.ciphers import he_caveats, scheme_of
from fljax.sim.hosted import Check, Exchange, Seen, check_alone
from fljax.sim.messages import Written, flat

LARGEST = 2**18
"""Parameters up to which every sum may be really encrypted."""


def he_check(experiment: Experiment) -> Check:
    """The check of ``[he]``: in a round that is looked at, random blocks of what is encrypted are really encrypted by
    every client that answered, added and decrypted, and compared with their plain sum in float64."""
    check_alone()
    he, scheme = experiment.he, scheme_of(experiment.he)
    cipher, told, rng = open_cipher(scheme), _told(experiment), np.random.default_rng(experiment.seed)

    def look(seen: Seen) -> None:
        rows = _hidden(experiment, seen)
        blocks = rng.permutation(scheme.blocks(rows.shape[1]))[: he.verify_blocks]
        for block in blocks:
            part = rows[:, block * scheme.slots : (block + 1) * scheme.slots]
            if len(part):
                _compare(experiment, scheme, cipher, part, seen.round, told)
        told["verified_rounds"] += 1

    return Check("he", he.verify_rounds, look, lambda: _finished(told))


def he_exchange(experiment: Experiment, size: int) -> Exchange:
    """Every sum by the real scheme: the clients' numbers are encrypted, added and decrypted on the host.

    Raises:
      FljaxError: TenSEAL is missing, or a model of more than ``LARGEST`` parameters.
    """
    check_alone()
    if size > LARGEST:
        raise FljaxError(f"Expected {size} parameters to be at most {LARGEST} in exact mode. Set he.mode = 'model'.")
    scheme = scheme_of(experiment.he)
    cipher, told = open_cipher(scheme), _told(experiment)

    def total(seen: Seen) -> PyTree:
        plain = seen.transcript.pre_noise
        rows, where = _hidden(experiment, seen), _places(experiment, seen)
        told["verified_rounds"] += 1
        if not len(rows):
            return plain
        summed = _compare(experiment, scheme, cipher, rows, seen.round, told)
        values = flat(plain).astype(np.float32)
        values[where] = summed.total.astype(np.float32)
        return _unflat(values, plain)

    return Exchange("he", total, lambda: _finished(told))


def encrypted_messages(experiment: Experiment, scheme: Ckks, cipher: Cipher, seen: Seen) -> list[Written]:
    """What the clients that answered send: their ciphertexts, and behind them what is sent in clear, as float32."""
    everything, places = _rows(seen), _places(experiment, seen)
    clear = np.setdiff1d(np.arange(everything.shape[1]), places)
    if experiment.he.rest == "dropped" or seen.transcript.public["support"] is not None:
        clear = clear[:0]
    messages = []
    for row in everything:
        hidden = row[places]
        blocks = [hidden[i : i + scheme.slots] for i in range(0, hidden.size, scheme.slots)]
        ciphertexts = b"".join(cipher.write(cipher.encrypt(block)) for block in blocks)
        rest = row[clear].astype("<f4")
        messages.append(Written(ciphertexts + rest.tobytes(), rest, row[clear]))
    return messages


def _told(experiment: Experiment) -> dict[str, Any]:
    scheme = scheme_of(experiment.he)
    return {
        "kind": experiment.he.kind,
        "mode": experiment.he.mode,
        "key": experiment.he.key,
        "share": experiment.he.share,
        "numbers_per_ciphertext": scheme.slots,
        "counted_bytes": scheme.ciphertext_bytes,
        "error_std": scheme.error_std,
        "verified_rounds": 0,
        "caveats": list(he_caveats(experiment)),
        "measured": [],
    }


def modelled(experiment: Experiment) -> dict[str, Any]:
    """What is told of homomorphic encryption where no round was looked at."""
    return _finished(_told(experiment))


def _finished(told: dict[str, Any]) -> dict[str, Any]:
    """What was found: the largest error, and the medians of the measured times."""
    parts = {name: value for name, value in told.items() if name not in ("measured", "caveats")}
    if measured := told["measured"]:
        parts["largest_error"] = max(m["error"] for m in measured)
        for name in ("ciphertext_bytes", "encrypt_ms", "add_ms", "decrypt_ms"):
            parts[name] = float(np.median([m[name] for m in measured]))
    return parts | {"caveats": told["caveats"]}


def _compare(
    experiment: Experiment, scheme: Ckks, cipher: Cipher, rows: np.ndarray, round: int, told: dict[str, Any]
) -> Summed:
    """Sums under encryption, and notes how far the result is from the plain sum."""
    plain = rows.astype(np.float64).sum(axis=0)
    largest = max(np.abs(plain).max(initial=0.0), np.abs(rows).max(initial=0.0))
    if largest >= scheme.largest:
        raise FljaxError(
            f"Expected a value of {largest:.3g} in round {round} to be below {scheme.largest:.3g}. Lower he.scale_bits."
        )
    summed = encrypted_total(cipher, scheme, rows)
    error = float(np.abs(summed.total - plain).max(initial=0.0))
    if error > experiment.he.tolerance:
        raise FljaxError(
            f"Expected the decrypted sum of round {round} within he.tolerance={experiment.he.tolerance:g}, "
            f"found {error:.3g}. Raise he.scale_bits or the tolerance."
        )
    if abs(summed.ciphertext_bytes - scheme.ciphertext_bytes) > 0.02 * scheme.ciphertext_bytes:
        told["counted_bytes"] = scheme.ciphertext_bytes  # the model has no measured size for these parameters
    told["measured"].append({**summed._asdict(), "error": error} | {"total": None})
    return summed


def _hidden(experiment: Experiment, seen: Seen) -> np.ndarray:
    """[clients that answered, n]: the numbers that each of them encrypts."""
    return _rows(seen)[:, _places(experiment, seen)]


def _rows(seen: Seen) -> np.ndarray:
    """[clients that answered, all numbers of a payload], float64."""
    count = len(seen.answered)
    payloads = [np.asarray(x, np.float64)[seen.answered] for x in jax.tree.leaves(seen.transcript.payloads)]
    return np.concatenate([x.reshape(count, -1) for x in payloads], axis=1)


def _places(experiment: Experiment, seen: Seen) -> np.ndarray:
    """Which numbers of a payload, all parts as one vector, are encrypted: indices."""
    choice, support = seen.transforms[1], seen.transcript.public["support"]
    mask = support
    if isinstance(choice, Choice):
        mask = None if seen.round < experiment.he.warmup_rounds else choice.mask
    parts = {
        name: mask if name == "update" and mask is not None else jax.tree.map(lambda x: np.ones(x.shape), part)
        for name, part in seen.transcript.pre_noise.items()
    }
    return np.flatnonzero(flat(parts) > 0)


def _unflat(values: np.ndarray, like: PyTree) -> PyTree:
    """A vector in the shapes of a tree."""
    leaves, structure = jax.tree.flatten(like)
    ends = np.cumsum([np.size(x) for x in leaves])[:-1]
    parts = [p.reshape(np.shape(x)) for p, x in zip(np.split(values, ends), leaves, strict=True)]
    return jax.tree.unflatten(structure, parts)
