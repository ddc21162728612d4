"""Shamir's secret sharing, t of n, over a prime field that holds 32 bytes. On the host, in exact integers.

A secret s is the constant of a random polynomial f of degree t - 1 over Z_p; the share of party i is f(i). Any t shares
determine f, and with it s = f(0). Fewer leave every secret equally likely, whatever the computing power.

Source: A. Shamir, "How to share a secret", Communications of the ACM 22(11), 1979.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Sequence
from typing import NamedTuple

from fljax.core.check import FljaxError, in_range

PRIME = 2**256 + 297
"""The smallest prime above 2^256, so that every secret of 32 bytes is an element of the field."""
SECRET_BYTES = 32
SHARE_BYTES = 33
"""Bytes of one value of the field on the wire."""


class Share(NamedTuple):
    """The share of one party. index: its number from 1 on, public. value: f(index), secret."""

    index: int
    value: int

    def to_bytes(self) -> bytes:
        """The value alone, ``SHARE_BYTES`` bytes: the index is known from the party."""
        return self.value.to_bytes(SHARE_BYTES, "big")


def split(secret: bytes, count: int, threshold: int, draw: Callable[[int], int] = secrets.randbelow) -> list[Share]:
    """Shares a secret among n parties so that any t of them recover it.

    Args:
      secret: 32 bytes. count: n. threshold: t.
      draw: (m) -> a uniform integer below m; default the operating system's.

    Returns:
      n shares with indices 1 .. n.

    Raises:
      FljaxError: a secret of another length, or t outside of 1 .. n.
    """
    if len(secret) != SECRET_BYTES:
        raise FljaxError(f"Expected a secret of {SECRET_BYTES} bytes, found {len(secret)}. Share a seed, not the data.")
    in_range(1, count, threshold=threshold, remedy=f"There are {count} parties.")
    coefficients = [int.from_bytes(secret, "big"), *(draw(PRIME) for _ in range(threshold - 1))]
    return [Share(i, _evaluate(coefficients, i)) for i in range(1, count + 1)]


def commit(secret: bytes) -> bytes:
    """A public digest (SHA-256) of a secret, by which a wrong one is found out.

    It hides a secret of 256 random bits from bounded adversaries only, unlike the shares.
    """
    return hashlib.sha256(b"fljax shared secret" + secret).digest()


def recover(shares: Sequence[Share], threshold: int, commitment: bytes | None = None) -> bytes:
    """The secret, from at least t shares.

    Args:
      shares: of different parties. threshold: t, as in ``split``.
      commitment: ``commit(secret)``, if it was published.

    Returns:
      The 32 bytes that were shared.

    Raises:
      FljaxError: fewer than t shares, two of one party; a share off the polynomial of the others, which only
        further shares can show; a secret that is not the one committed to. Nothing recovered is told then.
    """
    indices = [share.index for share in shares]
    if len(set(indices)) != len(indices) or min(indices, default=1) < 1:
        raise FljaxError(f"Expected one share of each party from 1 on, found those of {sorted(indices)}.")
    if len(shares) < threshold:
        raise FljaxError(
            f"Expected at least {threshold} shares, found {len(shares)}. Abort: too many parties are gone."
        )
    base = shares[:threshold]
    for share in shares[threshold:]:
        if _interpolate(base, share.index) != share.value:
            raise FljaxError(f"Expected share {share.index} to fit the others. Abort: one of the shares was changed.")
    number = _interpolate(base, 0)
    secret = number.to_bytes(SHARE_BYTES, "big")[-SECRET_BYTES:]
    if number >= 2 ** (8 * SECRET_BYTES) or (commitment is not None and commit(secret) != commitment):
        raise FljaxError(f"Expected shares of {sorted(indices)} to give the secret. Abort: one of them was changed.")
    return secret


def _evaluate(coefficients: Sequence[int], x: int) -> int:
    """The polynomial at x, the constant first (Horner's rule)."""
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * x + coefficient) % PRIME
    return value


def _interpolate(shares: Sequence[Share], x: int) -> int:
    """The polynomial through the shares, at x (Lagrange)."""
    total = 0
    for i, value in shares:
        top, bottom = 1, 1
        for j, _ in shares:
            if j != i:
                top, bottom = top * (x - j) % PRIME, bottom * (i - j) % PRIME
        total += value * top * pow(bottom, -1, PRIME)
    return total % PRIME
