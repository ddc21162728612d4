"""What keys, shares and masks weigh on the wire, by formula: bits of one client in one round.

With n parties (the client and those it shares keys with), keys of a_K and shares of a_S bits, the client of a secure
sum sends two public keys, two encrypted shares to each of the n - 1 others and one share of each of the n parties at
the end, and receives the keys and shares of the others: ``2 n a_K + (5 n - 4) a_S`` together. In SecAgg+ n is the
degree + 1.

Source: Bonawitz et al., "Practical secure aggregation for privacy-preserving machine learning", CCS 2017.
"""

from __future__ import annotations

from typing import NamedTuple

from fljax.core.check import one_of, positive

KEY_BITS = SHARE_BITS = 256
SCHEMES = ("none", "shared_key", "otp", "pairwise", "double_mask", "flashe")
"""Masks by name, see ``fljax.secure.masks``."""


class KeyTraffic(NamedTuple):
    """Bits beside the words themselves, of one client in one round."""

    sent: int
    received: int

    @property
    def total(self) -> int:
        """Both ways."""
        return self.sent + self.received


def key_traffic(scheme: str, neighbours: int = 0) -> KeyTraffic:
    """What a client sends and receives so that its words can be masked and the sum be read.

    Args:
      scheme: one of ``SCHEMES``. A shared key and that of ``flashe`` are there before the first round. ``otp`` renews a
        pad's key with the key server (a public key each way). ``pairwise`` has one public key and one secret to share,
        ``double_mask`` two.
      neighbours: others that a client shares keys with.
    """
    one_of(SCHEMES, masking=scheme)
    others = neighbours
    if scheme == "otp":
        return KeyTraffic(KEY_BITS, KEY_BITS)
    if scheme == "pairwise":
        return KeyTraffic(KEY_BITS + (2 * others + 1) * SHARE_BITS, others * (KEY_BITS + SHARE_BITS))
    if scheme == "double_mask":
        return KeyTraffic(2 * KEY_BITS + (3 * others + 1) * SHARE_BITS, 2 * others * (KEY_BITS + SHARE_BITS))
    return KeyTraffic(0, 0)


def expansion(scheme: str, values: int, bits: int, neighbours: int = 0, plain_bits: int = 32) -> float:
    """Traffic of a masked upload, keys and shares in both directions included, relative to the values in clear.

    Args:
      values: m, of one client. bits: k, of one word. neighbours: see ``key_traffic``. plain_bits: of a value in clear.
    """
    positive(values=values, bits=bits, plain_bits=plain_bits)
    return (values * bits + key_traffic(scheme, neighbours).total) / (values * plain_bits)
