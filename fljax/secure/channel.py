"""An encrypted channel between the server and each client: AES-256-GCM on the bytes that are really sent.

Every client shares one key with the server for each direction, so that no client can read what another one sends. A
sealed message is

    nonce (12 bytes) | AES-256-GCM(key, nonce, message; associated data) | tag (16 bytes, part of the ciphertext)

Associated data are the round, the client and the direction. They are not sent: the receiver authenticates with what it
expects, so that a message of another round, client or direction is refused. The channel hides the content. It hides
neither its length nor who sends when, and it ends at the server, who reads everything.

Source: NIST SP 800-38D (GCM); RFC 5869 (HKDF). Needs the extra ``secure`` (the package ``cryptography``).
"""

from __future__ import annotations

import secrets
import struct
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from fljax.core.check import FljaxError, one_of

NONCE_BYTES, TAG_BYTES, KEY_BYTES = 12, 16, 32
OVERHEAD = NONCE_BYTES + TAG_BYTES
"""Bytes by which a sealed message is longer than its content."""
DIRECTIONS = ("up", "down")
DISCARD = "Discard it, and ask the sender for a new one."


class Place(NamedTuple):
    """Where a message belongs. round, client: numbers from 0 on. direction: ``up`` to the server, or ``down``."""

    round: int
    client: int
    direction: str

    def associated(self) -> bytes:
        """What is authenticated beside the message."""
        return b"fljax v1" + struct.pack(">QQB", self.round, self.client, DIRECTIONS.index(self.direction))

    def __str__(self) -> str:
        return f"a message {self.direction} of client {self.client} in round {self.round}"


class Endpoint(NamedTuple):
    """One end of the channels of all clients; it remembers what was sent and what was accepted.

    seal: (place, message bytes) -> sealed bytes, ``OVERHEAD`` longer. Its nonces count up and never repeat under a key.
    open: (place, sealed bytes) -> message bytes, or FljaxError.
    """

    seal: Callable[[Place, bytes], bytes]
    open: Callable[[Place, bytes], bytes]


def require() -> Any:
    """The package ``cryptography``; raises FljaxError in one line, naming the extra, where it is missing."""
    try:
        import cryptography
        from cryptography.hazmat.primitives.ciphers import aead
    except ImportError:
        raise FljaxError("Expected the package cryptography. Install it with `pip install 'fljax[secure]'`.") from None
    del cryptography
    return aead


def new_key() -> bytes:
    """32 bytes from the operating system: the secret from which the keys of all clients of ONE run follow.

    A run that is resumed draws a new one, because its counters start anew.
    """
    return secrets.token_bytes(KEY_BYTES)


def client_key(secret: bytes, client: int, direction: str) -> bytes:
    """The key of one client and direction, by HKDF-SHA-256 from the secret of the run."""
    require()
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    one_of(DIRECTIONS, direction=direction)
    info = b"fljax channel " + direction.encode() + client.to_bytes(8, "big")
    return HKDF(SHA256(), KEY_BYTES, None, info).derive(secret)


def open_endpoint(secret: bytes) -> Endpoint:
    """One end of the channels of a run.

    Args:
      secret: 32 bytes, the same at both ends; see ``new_key``. One end seals under it for each direction: two senders
        with the same secret and direction would repeat nonces.

    A message is accepted once, and only if its counter is above that of all accepted before from the same client and
    direction: replayed messages and those that come out of order are refused. The counter is looked at after the tag,
    so that nobody else can move it. Nothing decrypted leaves ``open`` unless all checks passed.

    Raises:
      FljaxError: the package is missing; a secret of another length; from ``seal``, a round before one that was sealed
        already; from ``open``, one line for a message that was changed, cut, replayed, or belongs elsewhere.
    """
    aead = require()
    if len(secret) != KEY_BYTES:
        raise FljaxError(f"Expected a secret of {KEY_BYTES} bytes, found {len(secret)}. Make one with new_key().")
    ciphers: dict[tuple[int, str], Any] = {}
    sent: dict[tuple[int, str], tuple[int, int]] = {}  # (client, direction) -> (counter, round) of the last one
    accepted: dict[tuple[int, str], int] = {}

    def cipher(place: Place) -> Any:
        who = (place.client, place.direction)
        if who not in ciphers:
            ciphers[who] = aead.AESGCM(client_key(secret, *who))
        return ciphers[who]

    def seal(place: Place, message: bytes) -> bytes:
        counter, last = sent.get((place.client, place.direction), (0, 0))
        if place.round < last:
            raise FljaxError(f"Expected {place} to come after round {last}, which is sealed already. Use a new key.")
        nonce = (counter + 1).to_bytes(NONCE_BYTES, "big")
        sent[place.client, place.direction] = (counter + 1, place.round)
        return nonce + cipher(place).encrypt(nonce, message, place.associated())

    def opened(place: Place, sealed: bytes) -> bytes:
        if len(sealed) < OVERHEAD:
            raise FljaxError(
                f"Expected {place} of {OVERHEAD} bytes or more, found {len(sealed)}: it was cut. {DISCARD}"
            )
        message, nonce = _authentic(cipher(place), place, sealed), sealed[:NONCE_BYTES]
        counter, before = int.from_bytes(nonce, "big"), accepted.get((place.client, place.direction), 0)
        if counter <= before:
            raise FljaxError(f"Expected {place} to be new: message {counter} came after {before}, a replay. {DISCARD}")
        accepted[place.client, place.direction] = counter
        return message

    return Endpoint(seal, opened)


def _authentic(cipher: Any, place: Place, sealed: bytes) -> bytes:
    """The content of a sealed message, or FljaxError unless its tag is that of this key and place."""
    from cryptography.exceptions import InvalidTag

    try:
        return cipher.decrypt(bytes(sealed[:NONCE_BYTES]), sealed[NONCE_BYTES:], place.associated())
    except InvalidTag:
        raise FljaxError(f"Expected {place} to be authentic: changed, cut or another's. {DISCARD}") from None


def measure(size: int = 2**22, repeats: int = 5) -> float:
    """GB/s that one core of this machine seals: the median over some messages of ``size`` random bytes."""
    end, message, times = open_endpoint(new_key()), secrets.token_bytes(size), []
    for round in range(repeats):
        start = time.perf_counter()
        end.seal(Place(round, 0, "up"), message)
        times.append(time.perf_counter() - start)
    return size / sorted(times)[repeats // 2] / 1e9
