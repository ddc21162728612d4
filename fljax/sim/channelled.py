"""The encrypted channel on real messages: those of every so many rounds are written, sealed, opened and compared."""

from __future__ import annotations

import time
from typing import Any

import jax
import numpy as np

from fljax.config import Experiment
from fljax.core.check import FljaxError
from fljax.secure.channel import OVERHEAD, Endpoint, Place, measure, new_key, open_endpoint
from fljax.secure.ckks import Cipher, open_cipher
from fljax.sim.ciphers import scheme_of
from fljax.sim.encrypting import encrypted_messages
from fljax.sim.hosted import Check, Seen, check_alone, relative
from fljax.sim.messages import Words, Written, downlink_message, uplink_messages

ROUNDING = 1e-6
"""How far, relative to the largest value, a quantised value may be from what is read: weights scale after rounding."""


SIZES = 0.01
"""How far ciphertexts may be from their counted size: what TenSEAL writes is compressed."""


def channel_check(experiment: Experiment, population: int, words: Words | None = None) -> Check:
    """The check of ``[channel]``. population: N. words: how uploads are written as words, None where they are floats.

    In a round that is looked at, every message of the round is written down, sealed by its sender and opened by its
    receiver. What is opened has to be what was written; what is read from it has to be the payload; and the bytes have
    to be those that the round counts. Of each such round one message is changed by a bit and sent twice, and has to be
    refused both times.
    """
    check_alone()
    he = experiment.he.kind != "none"
    cipher = open_cipher(scheme_of(experiment.he)) if he else None
    server_key = new_key()
    clients, server = open_endpoint(server_key), open_endpoint(server_key)
    told: dict[str, Any] = {"kind": experiment.channel.kind, "overhead_bytes": OVERHEAD}
    told |= {"verified_rounds": 0, "messages": 0, "bytes": 0, "refused": 0, "seconds": 0.0, "gb_per_s": measure()}

    def look(seen: Seen) -> None:
        start = time.perf_counter()
        written = _uplink(experiment, seen, cipher, words)
        down, model = _downlink(experiment, seen, population, written), 0
        for client in down:
            place = Place(seen.round, client, "down")
            model += _carry(server, clients, place, down[client])
        up = 0
        for client, one in written.items():
            place = Place(seen.round, client, "up")
            up += _carry(clients, server, place, one.message)
            if relative(one.values, one.sent) > ROUNDING:
                raise FljaxError(f"Expected {place} to be read as it was sent. Report this: uploads are written wrong.")
        _same_bytes("up", up, seen.uplink, seen.round, SIZES if he else 0.0)
        _same_bytes("down", model, seen.downlink, seen.round, SIZES if he else 0.0)
        told["seconds"] += time.perf_counter() - start
        told["verified_rounds"] += 1
        told["messages"] += len(down) + len(written)
        told["bytes"] += up + model
        told["refused"] += _attack(clients, server, seen.round)

    return Check("channel", experiment.channel.verify_rounds, look, lambda: dict(told))


def _carry(sender: Endpoint, receiver: Endpoint, place: Place, message: bytes) -> int:
    """Sends one message; the bytes that travelled."""
    sealed = sender.seal(place, message)
    if receiver.open(place, sealed) != message:
        raise FljaxError(f"Expected {place} to be opened as it was sealed. Report this: the channel is broken.")
    return len(sealed)


def _attack(clients: Endpoint, server: Endpoint, round: int) -> int:
    """Changes a bit of a message, and sends another one twice: how many of the two were refused, which is both."""
    place = Place(round, 2**32, "up")  # nobody's number, so that no counter of a client moves
    sealed = clients.seal(place, bytes(64))
    changed = bytes([*sealed[:-1], sealed[-1] ^ 1])
    _refused(server, place, changed)
    server.open(place, sealed)
    _refused(server, place, sealed)
    return 2


def _refused(server: Endpoint, place: Place, sealed: bytes) -> None:
    try:
        server.open(place, sealed)
    except FljaxError:
        return
    raise FljaxError(f"Expected {place} to be refused, it was changed or sent twice. Report this.")


def _downlink(experiment: Experiment, seen: Seen, population: int, written: dict[int, Written]) -> dict[int, bytes]:
    """What every client that was contacted receives, by its id: the model, or a sum that the server cannot read, which
    is as long as an upload."""
    if experiment.he.kind != "none" and experiment.he.key == "clients" and written:
        message = next(iter(written.values())).message + downlink_message({}, seen.algorithm)
        return {int(k): message for k in seen.transcript.cohort.ids if k < population}
    dropped = experiment.dropout.source != "none" and experiment.dropout.forward == "submodel"
    support = seen.transcript.public["support"] if dropped else None
    message = downlink_message(seen.params, seen.algorithm, support)
    return {int(k): message for k in seen.transcript.cohort.ids if k < population}


def _uplink(experiment: Experiment, seen: Seen, cipher: Cipher | None, words: Words | None) -> dict[int, Written]:
    """What every client that answered sends, by its id."""
    slots, t = seen.answered, seen.transcript
    if not len(slots):
        return {}
    payloads = jax.tree.map(lambda x: np.asarray(x)[slots], t.payloads)
    ids = np.asarray(t.cohort.ids)[slots]
    if cipher is not None:
        messages = encrypted_messages(experiment, scheme_of(experiment.he), cipher, seen)
    else:
        messages = uplink_messages(experiment, payloads, t.public["support"], words)
    return dict(zip(ids.tolist(), messages, strict=True))


def _same_bytes(link: str, found: int, counted: int, round: int, slack: float) -> None:
    if abs(found - counted) > slack * counted:
        raise FljaxError(
            f"Expected the messages {link} of round {round} to have the {counted} bytes that it counts, found {found}. "
            "Report this, and set channel.verify_rounds = 0."
        )
