"""The protocol of a secure sum with real cryptography, for a few clients on the host.

X25519 key agreement, HKDF-SHA-256, pads by AES-256-CTR, Shamir's shares of the secrets sealed by AES-256-GCM, and
Ed25519 signatures on who uploaded. The stages, with a threshold t that counts the others:

    advertise    every member sends two public keys, signed: one to seal shares, one to make pads of pairs
    share        it shares its pad key and the seed of its self mask among the others, t of them recover
    upload       its words plus a pad from its seed, plus or minus a pad for every other member that shared
    consistency  who is left signs the list of those that uploaded, and checks that the others were told the same
    unmask       it sends its shares: of the SEED of who uploaded, of the PAD KEY of who did not, never both of one
    server       recovers, checks what it recovered against what was advertised, and takes the pads off

The arithmetic is modulo 2^k, so that the sum has the same bits as one without pads. Clients and server are separate
functions, which see what they were sent; the same process plays all of them.

Source: Bonawitz et al., "Practical secure aggregation for privacy-preserving machine learning", CCS 2017, with the
consistency check of its active model. Identities (signing keys) are taken to be known. Needs the extra ``secure``.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from fljax.core.check import FljaxError, in_range
from fljax.secure import shamir
from fljax.secure.channel import NONCE_BYTES, require

MOST_CLIENTS = 32
SEED_BYTES = 32


class Advert(NamedTuple):
    """What a member tells all others. seal_key, pad_key: X25519 public keys. commitment: of its seed. signature: on
    all three."""

    seal_key: bytes
    pad_key: bytes
    commitment: bytes
    signature: bytes

    def signed(self, round: int, index: int) -> bytes:
        """The bytes that the signature covers."""
        return struct.pack(">QQ", round, index) + self.seal_key + self.pad_key + self.commitment


class Client(NamedTuple):
    """What one member knows. sign, seal, pad: private keys. seed: of its self mask. shares: of the others' secrets."""

    round: int
    index: int
    sign: Any
    seal: Any
    pad: Any
    seed: bytes
    adverts: Mapping[int, Advert]
    shares: Mapping[int, tuple[shamir.Share, shamir.Share]]


class Result(NamedTuple):
    """What came of a round. total: [d] uint32 words modulo 2^k, or None where it was aborted. reason: why it was.
    sent: bytes that all clients sent, by stage. recovered: whose (seeds, pad keys) the server got."""

    total: np.ndarray | None
    reason: str
    sent: dict[str, int]
    recovered: tuple[list[int], list[int]]


# ---- one client ------------------------------------------------------------------------------------------------------


def new_identity() -> Any:
    """A signing key of a client; its public part is known to all before the first round."""
    require()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.generate()


def advertise(round: int, index: int, identity: Any) -> tuple[Client, Advert]:
    """Fresh keys of one round, and what is told of them."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    seal, pad, seed = X25519PrivateKey.generate(), X25519PrivateKey.generate(), secrets.token_bytes(SEED_BYTES)
    advert = Advert(_public(seal), _public(pad), shamir.commit(seed), b"")
    advert = advert._replace(signature=identity.sign(advert.signed(round, index)))
    return Client(round, index, identity, seal, pad, seed, {}, {}), advert


def share_keys(
    client: Client, adverts: Mapping[int, Advert], identities: Mapping[int, Any], threshold: int
) -> tuple[Client, dict[int, bytes]]:
    """Shares both secrets among the other members: (client, sealed shares by receiver).

    Args:
      adverts: of all members. identities: their public signing keys. threshold: t.

    Raises:
      FljaxError: fewer than t others; an advert that is not its sender's, or that has the key of another.
    """
    for j, advert in adverts.items():
        _check_signature(identities[j], advert.signature, advert.signed(client.round, j), f"the keys of client {j}")
    keys = [key for advert in adverts.values() for key in (advert.seal_key, advert.pad_key)]
    if len(set(keys)) != len(keys):
        raise FljaxError(f"Expected the members of round {client.round} to have keys of their own. Abort the round.")
    others = sorted(set(adverts) - {client.index})
    _enough(len(others), threshold, "share keys")
    own_key = client.pad.private_bytes_raw()
    split = partial(shamir.split, count=len(others), threshold=threshold)
    pairs = zip(others, split(own_key), split(client.seed), strict=True)
    client = client._replace(adverts=dict(adverts))
    return client, {j: _seal(client, j, key, seed) for j, key, seed in pairs}


def upload(client: Client, inbox: Mapping[int, bytes], words: np.ndarray, bits: int, threshold: int):
    """(client with the shares that it holds, its masked words [d] uint32).

    Args:
      inbox: sealed shares by sender, of those that shared keys. words: [d] integers modulo 2^bits.

    Raises:
      FljaxError: fewer than t others shared; a sealed share that was changed.
    """
    _enough(len(inbox), threshold, "upload")
    client = client._replace(shares={j: _open(client, j, sealed) for j, sealed in inbox.items()})
    masked = words.astype(np.uint32) + self_pad(client.seed, client.round, words.size)
    for j in sorted(inbox):
        pad = pair_pad(client.pad, client.adverts[j].pad_key, client.round, words.size)
        masked = masked + pad if client.index < j else masked - pad
    return client, masked & _low(bits)


def sign_list(client: Client, uploaded: Iterable[int]) -> bytes:
    """Signs who uploaded, as this client was told."""
    return client.sign.sign(_list_bytes(client.round, uploaded))


def reveal(
    client: Client,
    uploaded: Iterable[int],
    signatures: Mapping[int, bytes],
    identities: Mapping[int, Any],
    threshold: int,
) -> dict[int, shamir.Share]:
    """The shares that the server may have: of the seed of who uploaded, of the pad key of who did not.

    Args:
      uploaded: as this client was told. signatures: of those that are left, on what they were told.

    Raises:
      FljaxError: fewer than t others signed; one of them was told another list, by which a server could ask for both
        secrets of a client.
    """
    uploaded = sorted(uploaded)
    others = set(signatures) - {client.index}
    _enough(len(others), threshold, "unmask")
    for j in sorted(others):
        listed = _list_bytes(client.round, uploaded)
        _check_signature(identities[j], signatures[j], listed, f"the list of uploads that client {j} signed")
    return {j: seed if j in uploaded else key for j, (key, seed) in client.shares.items()}


# ---- the server ------------------------------------------------------------------------------------------------------


def unmask(
    round: int,
    adverts: Mapping[int, Advert],
    uploads: Mapping[int, np.ndarray],
    revealed: Mapping[int, Mapping[int, shamir.Share]],
    threshold: int,
    bits: int,
) -> tuple[np.ndarray, tuple[list[int], list[int]]]:
    """The sum modulo 2^bits of what was uploaded, and whose seeds and pad keys were recovered.

    Args:
      adverts: of all members that shared keys. uploads: masked words by index. revealed: by who answered, shares of the
        others.

    Raises:
      FljaxError: too few shares; a recovered secret that is not the one advertised: a share was changed.
    """
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    size = len(next(iter(uploads.values())))
    total = np.zeros(size, np.uint32)
    gone = sorted(set(adverts) - set(uploads))
    for i in sorted(uploads):
        seed = shamir.recover(_shares_of(i, revealed), threshold, adverts[i].commitment)
        total = total + uploads[i] - self_pad(seed, round, size)
    for i in gone:
        key = X25519PrivateKey.from_private_bytes(shamir.recover(_shares_of(i, revealed), threshold))
        if _public(key) != adverts[i].pad_key:
            raise FljaxError(f"Expected the shares of client {i} to give its key. Abort: one of them was changed.")
        for j in sorted(uploads):
            pad = pair_pad(key, adverts[j].pad_key, round, size)
            total = total - pad if j < i else total + pad
    return total & _low(bits), (sorted(uploads), gone)


def _shares_of(i: int, revealed: Mapping[int, Mapping[int, shamir.Share]]) -> list[shamir.Share]:
    return [shares[i] for _, shares in sorted(revealed.items()) if i in shares]


# ---- all of it -------------------------------------------------------------------------------------------------------


def secure_sum(
    words: np.ndarray,
    bits: int,
    threshold: int,
    members: np.ndarray,
    uploaded: np.ndarray,
    answered: np.ndarray,
    round: int = 0,
) -> Result:
    """Plays a whole round with the given drop-outs.

    Args:
      words: [n, d] integers modulo 2^bits; rows of clients that do not upload are not read.
      threshold: t, others that recover a secret.
      members, uploaded, answered: [n] bool: who shares keys, who of them uploads, who of them is left to unmask.

    Returns:
      The sum over ``uploaded`` modulo 2^bits; an aborted result where fewer than t others are left at some stage.

    Raises:
      FljaxError: more than ``MOST_CLIENTS`` clients, bits out of range; the package is missing.
    """
    in_range(1, 32, bits=bits)
    if len(words) > MOST_CLIENTS:
        raise FljaxError(
            f"Expected at most {MOST_CLIENTS} clients with real cryptography, found {len(words)}. "
            "Set secure.mode = 'masked'."
        )
    sent: dict[str, int] = dict.fromkeys(("advertise", "share", "upload", "consistency", "unmask"), 0)
    try:
        total, recovered = _play(
            words, bits, threshold, [*map(np.flatnonzero, (members, uploaded, answered))], round, sent
        )
    except Aborted as why:
        return Result(None, str(why), sent, ([], []))
    return Result(total, "", sent, recovered)


class Aborted(FljaxError):
    """A stage that too few clients reached: the round is aborted, and nothing more is told."""


def _play(words: np.ndarray, bits: int, threshold: int, stages: list, round: int, sent: dict[str, int]):
    """The stages one after the other. stages: indices of members, of those that uploaded, and that answered."""
    members, uploaded, answered = ([int(i) for i in stage] for stage in stages)
    signers = {i: new_identity() for i in members}
    identities = {i: signer.public_key() for i, signer in signers.items()}
    clients, adverts = {}, {}
    for i in members:
        clients[i], adverts[i] = advertise(round, i, signers[i])
        sent["advertise"] += sum(map(len, adverts[i]))
    sealed: dict[int, dict[int, bytes]] = {}
    for i in members:
        clients[i], sealed[i] = share_keys(clients[i], adverts, identities, threshold)
        sent["share"] += sum(map(len, sealed[i].values()))
    uploads = {}
    for i in uploaded:
        inbox = {j: sealed[j][i] for j in members if j != i}
        clients[i], uploads[i] = upload(clients[i], inbox, words[i], bits, threshold)
        sent["upload"] += -(-words.shape[1] * bits // 8)
    _enough(len(uploads) - 1, threshold, "upload")
    signatures = {i: sign_list(clients[i], uploads) for i in answered}
    sent["consistency"] += sum(map(len, signatures.values()))
    revealed = {i: reveal(clients[i], uploads, signatures, identities, threshold) for i in answered}
    sent["unmask"] += sum(shamir.SHARE_BYTES * len(shares) for shares in revealed.values())
    _enough(len(answered) - 1, threshold, "unmask")
    return unmask(round, adverts, uploads, revealed, threshold, bits)


# ---- building blocks -------------------------------------------------------------------------------------------------


def pair_pad(private: Any, public: bytes, round: int, size: int) -> np.ndarray:
    """The pad of a pair of clients, [size] uint32, from the private key of one and the public key of the other."""
    return _stream(_agree(private, public, b"fljax pad" + struct.pack(">Q", round)), size)


def self_pad(seed: bytes, round: int, size: int) -> np.ndarray:
    """The self mask of a client, [size] uint32, from its seed."""
    return _stream(_derive(seed, b"fljax self mask" + struct.pack(">Q", round)), size)


def _stream(key: bytes, size: int) -> np.ndarray:
    """Words of the key stream of AES-256-CTR; every key makes one stream."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    made = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update(bytes(4 * size))
    return np.frombuffer(made, "<u4").astype(np.uint32)


def _derive(secret: bytes, info: bytes) -> bytes:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(SHA256(), 32, None, info).derive(secret)


def _agree(private: Any, public: bytes, info: bytes) -> bytes:
    """The key that two parties share, by X25519 and HKDF."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

    return _derive(private.exchange(X25519PublicKey.from_public_bytes(public)), info)


def _public(private: Any) -> bytes:
    return private.public_key().public_bytes_raw()


def _place(client: Client, start: int, end: int) -> bytes:
    return b"fljax shares" + struct.pack(">QQQ", client.round, start, end)


def _seal(client: Client, to: int, key: shamir.Share, seed: shamir.Share) -> bytes:
    """Both shares of one receiver under a key that the two of them agree on, which is used once."""
    place = _place(client, client.index, to)
    cipher = require().AESGCM(_agree(client.seal, client.adverts[to].seal_key, place))
    nonce = secrets.token_bytes(NONCE_BYTES)
    return nonce + cipher.encrypt(nonce, bytes([key.index]) + key.to_bytes() + seed.to_bytes(), place)


def _open(client: Client, sender: int, sealed: bytes) -> tuple[shamir.Share, shamir.Share]:
    from cryptography.exceptions import InvalidTag

    place = _place(client, sender, client.index)
    cipher = require().AESGCM(_agree(client.seal, client.adverts[sender].seal_key, place))
    try:
        opened = cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], place)
    except InvalidTag:
        raise FljaxError(f"Expected the shares of client {sender} to be authentic. Abort: they were changed.") from None
    index, values = opened[0], (opened[1 : 1 + shamir.SHARE_BYTES], opened[1 + shamir.SHARE_BYTES :])
    key, seed = (shamir.Share(index, int.from_bytes(value, "big")) for value in values)
    return key, seed


def _check_signature(identity: Any, signature: bytes, message: bytes, what: str) -> None:
    from cryptography.exceptions import InvalidSignature

    try:
        identity.verify(signature, message)
    except InvalidSignature:
        raise FljaxError(f"Expected {what} to be what others were told. Abort: the server is not consistent.") from None


def _list_bytes(round: int, uploaded: Iterable[int]) -> bytes:
    listed = sorted(uploaded)
    return b"fljax uploads" + struct.pack(f">Q{len(listed)}Q", round, *listed)


def _enough(others: int, threshold: int, stage: str) -> None:
    if others < threshold:
        raise Aborted(f"Expected {threshold} others to {stage}, found {max(others, 0)}. The round is aborted.")


def _low(bits: int) -> np.uint32:
    return np.uint32(2**bits - 1)
