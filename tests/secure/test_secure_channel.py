"""The encrypted channel: what is opened is what was sealed, and everything else is refused without a byte of it."""

import itertools
import sys

import pytest

from fljax.core.check import FljaxError
from fljax.secure.channel import OVERHEAD, Endpoint, Place, client_key, new_key, open_endpoint

pytest.importorskip("cryptography", reason="needs fljax[secure]")

SECRET = bytes(range(32))
MESSAGE = b"a message of some length, " * 3
HERE = Place(5, 3, "up")


def ends() -> tuple[Endpoint, Endpoint]:
    return open_endpoint(SECRET), open_endpoint(SECRET)


def refused(end: Endpoint, place: Place, sealed: bytes, why: str) -> None:
    """The message is refused in one line that holds nothing of the content."""
    with pytest.raises(FljaxError, match=why) as error:
        end.open(place, sealed)
    assert "\n" not in str(error.value) and "of some length" not in str(error.value)
    assert error.value.__cause__ is None


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 10_000])
def test_what_is_opened_is_what_was_sealed_28_bytes_longer(size):
    sender, receiver = ends()
    message = bytes(i % 251 for i in range(size))
    sealed = sender.seal(HERE, message)
    assert len(sealed) == size + 28 == size + OVERHEAD
    assert receiver.open(HERE, sealed) == message
    assert size < 16 or message[:16] not in sealed


def test_it_is_aes_256_gcm_by_a_known_answer():
    """Test case 13 of the GCM specification (McGrew and Viega): AES-256, all zero, the tag of the empty message."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    tag = AESGCM(bytes(32)).encrypt(bytes(12), b"", None)
    assert tag.hex() == "530f8afbc74536b9a963b4f1c4cb738b"
    sealed = open_endpoint(SECRET).seal(HERE, MESSAGE)
    own = AESGCM(client_key(SECRET, 3, "up")).decrypt(sealed[:12], sealed[12:], HERE.associated())
    assert own == MESSAGE, "the wire is nonce | ciphertext | tag"


def test_every_changed_bit_is_found_out():
    sender, receiver = ends()
    sealed = sender.seal(HERE, MESSAGE)
    for byte, bit in itertools.product(range(len(sealed)), (0, 7)):
        changed = bytearray(sealed)
        changed[byte] ^= 1 << bit
        refused(receiver, HERE, bytes(changed), "changed")
    assert receiver.open(HERE, sealed) == MESSAGE, "refused messages change nothing"


def test_every_truncation_is_found_out():
    sender, receiver = ends()
    sealed = sender.seal(HERE, MESSAGE)
    for size in range(len(sealed)):
        refused(receiver, HERE, sealed[:size], "cut")
    refused(receiver, HERE, sealed + b"\0", "changed")


@pytest.mark.parametrize("elsewhere", [Place(4, 3, "up"), Place(6, 3, "up"), Place(5, 2, "up"), Place(5, 3, "down")])
def test_a_message_of_another_round_client_or_direction_is_refused(elsewhere):
    sender, receiver = ends()
    refused(receiver, elsewhere, sender.seal(HERE, MESSAGE), "another's")


def test_the_round_alone_is_authenticated_too():
    """Rounds share a key: only the associated data tell them apart."""
    sender, receiver = ends()
    assert client_key(SECRET, 3, "up") == client_key(SECRET, 3, "up")
    refused(receiver, HERE._replace(round=6), sender.seal(HERE, MESSAGE), "another's")


def test_replayed_messages_are_refused_at_once_later_and_out_of_order():
    sender, receiver = ends()
    first, second, third = (sender.seal(HERE._replace(round=r), MESSAGE) for r in (5, 5, 6))
    assert receiver.open(HERE, first) == MESSAGE
    refused(receiver, HERE, first, "replay")
    assert receiver.open(HERE._replace(round=6), third) == MESSAGE
    refused(receiver, HERE, second, "replay")  # authentic, of this round, never seen, but behind
    refused(receiver, HERE, first, "replay")
    refused(receiver, HERE._replace(round=6), third, "replay")


def test_clients_do_not_share_keys_or_counters():
    sender, receiver = ends()
    keys = {client_key(SECRET, c, d) for c in range(50) for d in ("up", "down")}
    assert len(keys) == 100
    for client in (3, 4, 3):
        place = Place(0, client, "up")
        assert receiver.open(place, sender.seal(place, MESSAGE)) == MESSAGE


def test_nonces_never_repeat_under_a_key():
    sender, seen = open_endpoint(SECRET), set()
    for round, client, direction, _ in itertools.product(range(20), range(5), ("up", "down"), range(2)):
        nonce = sender.seal(Place(round, client, direction), b"")[:12]
        assert (client, direction, nonce) not in seen
        seen.add((client, direction, nonce))
    with pytest.raises(FljaxError, match="come after round 19"):
        sender.seal(Place(18, 0, "up"), b"")
    assert new_key() != new_key()


def test_another_secret_opens_nothing():
    sender = open_endpoint(SECRET)
    refused(open_endpoint(bytes(32)), HERE, sender.seal(HERE, MESSAGE), "changed")
    with pytest.raises(FljaxError, match="32 bytes, found 16"):
        open_endpoint(bytes(16))


def test_a_missing_package_is_one_line_that_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(FljaxError, match=r"fljax\[secure\]"):
        open_endpoint(SECRET)
