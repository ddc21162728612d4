"""CKKS, homomorphic encryption of real vectors: parameters, what a sum costs, how far it is off, and the real thing.

Clients encrypt, the server adds ciphertexts without a key, a holder of the secret key decrypts the sum. One level is
enough for additions: a prime for the data and one that lowers the noise of encryption.

The cost and error model needs no package. The real thing is TenSEAL (Microsoft SEAL), the extra ``he``.

Sources: Cheon, Kim, Kim, Song, "Homomorphic encryption for arithmetic of approximate numbers", ASIACRYPT 2017;
Benaissa et al., "TenSEAL", arXiv 2104.03152. On published decryptions: Li and Micciancio, EUROCRYPT 2021.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fljax.core.check import FljaxError, in_range, one_of

MOST_BITS = {4096: 109, 8192: 218, 16384: 438}
"""Degree -> bits that all primes may have together at 128-bit security (HomomorphicEncryption.org)."""
MEASURED: dict[tuple[int, tuple[int, ...]], int] = {
    (8192, (60, 40)): 131_217,
    (8192, (60, 40, 40)): 235_000,
    (8192, (40, 30)): 94_350,
    (4096, (60, 40)): 65_676,
    (4096, (50, 50)): 58_990,
    (4096, (40, 40)): 49_150,
    (16384, (60, 40)): 262_292,
    (16384, (60, 40, 60)): 460_000,
}
"""(degree, bits of the primes) -> bytes of a ciphertext as TenSEAL 0.3.18 writes it, which compresses."""
HEADER_BYTES = 145
NOISE_STD = 3.2
"""Standard deviation of a coefficient of fresh noise in SEAL."""


class Ckks(NamedTuple):
    """Parameters of the scheme.

    degree: N of the polynomials; a ciphertext holds N / 2 numbers. bits: of the primes, the last one special.
    scale_bits: numbers are multiplied by 2^scale_bits before they are rounded.
    public_key: clients encrypt with a public key; else with the secret one, which they then all hold.
    """

    degree: int = 8192
    bits: tuple[int, ...] = (60, 40)
    scale_bits: int = 40
    public_key: bool = True

    @property
    def slots(self) -> int:
        """Numbers in one ciphertext."""
        return self.degree // 2

    @property
    def ciphertext_bytes(self) -> int:
        """Bytes of one ciphertext: measured where the parameters are known, else without compression."""
        raw = 2 * 8 * self.degree * (len(self.bits) - 1) + HEADER_BYTES
        return MEASURED.get((self.degree, self.bits), raw)

    @property
    def error_std(self) -> float:
        """Standard deviation of the error of one decrypted number, fresh; that of a sum of n is sqrt(n) times as large.

        ``sqrt(N / 2 * V) / 2^scale_bits`` with V the variance of a coefficient of the noise. Encryption with the public
        key is rounded when the special prime is divided out, ``V = (1 + 2 N / 3) / 12`` for a ternary secret; with the
        secret key it is fresh noise, ``V = 3.2^2``. Both are rounded once more when they are encoded, 1 / 12. It does
        not depend on the data. It is an average over slots: under one key some have several times as much.
        """
        variance = (1 + 2 * self.degree / 3) / 12 if self.public_key else NOISE_STD**2
        return (self.degree / 2 * (variance + 1 / 12)) ** 0.5 / 2.0**self.scale_bits

    @property
    def largest(self) -> float:
        """The largest magnitude that a sum may have: beyond it decryption is wrong without a sign of it."""
        return 2.0 ** (sum(self.bits[:-1]) - 1 - self.scale_bits)

    def blocks(self, count: int) -> int:
        """Ciphertexts for so many numbers."""
        return -(-count // self.slots)

    def check(self) -> Ckks:
        """Raises FljaxError for parameters that are not secure, or leave no room for the numbers; returns itself."""
        one_of(map(str, MOST_BITS), degree=str(self.degree))
        if len(self.bits) < 2 or not all(20 <= b <= 60 for b in self.bits):
            raise FljaxError(
                f"Expected bits={self.bits!r} to be two or more primes of 20 to 60 bits, such as (60, 40)."
            )
        most = MOST_BITS[self.degree]
        if sum(self.bits) > most:
            raise FljaxError(f"Expected bits={self.bits!r} to sum to at most {most} at degree {self.degree} (128-bit).")
        room = sum(self.bits[:-1]) - 4
        in_range(10, room, scale_bits=self.scale_bits, remedy="A larger first prime gives numbers more room.")
        return self


class Cipher(NamedTuple):
    """The real scheme under one key.

    encrypt: ([m <= slots] numbers) -> ciphertext. add: (two ciphertexts) -> their sum. decrypt: ciphertext -> [m].
    write: ciphertext -> bytes.
    """

    encrypt: Callable[[np.ndarray], Any]
    add: Callable[[Any, Any], Any]
    decrypt: Callable[[Any], np.ndarray]
    write: Callable[[Any], bytes]


def require() -> Any:
    """TenSEAL; raises FljaxError in one line, naming the extra, where it is missing."""
    try:
        import tenseal
    except ImportError:
        raise FljaxError(
            "Expected the package tenseal. Install it with `pip install 'fljax[he]'`, or set verify_rounds = 0."
        ) from None
    return tenseal


def open_cipher(scheme: Ckks) -> Cipher:
    """The scheme with a new key pair from the operating system's randomness.

    Raises:
      FljaxError: TenSEAL is missing; parameters that it cannot have.
    """
    ts, scheme = require(), scheme.check()
    kind = ts.ENCRYPTION_TYPE.ASYMMETRIC if scheme.public_key else ts.ENCRYPTION_TYPE.SYMMETRIC
    context = ts.context(
        ts.SCHEME_TYPE.CKKS, scheme.degree, coeff_mod_bit_sizes=list(scheme.bits), encryption_type=kind
    )
    context.global_scale = 2.0**scheme.scale_bits
    return Cipher(
        encrypt=lambda values: ts.ckks_vector(context, np.asarray(values, np.float64).tolist()),
        add=lambda a, b: a + b,
        decrypt=lambda ciphertext: np.asarray(ciphertext.decrypt(), np.float64),
        write=lambda ciphertext: ciphertext.serialize(),
    )


class Summed(NamedTuple):
    """A sum that was made under encryption. total: [n] float64. encrypt_ms, add_ms, decrypt_ms: of one ciphertext.
    ciphertext_bytes: of one, as it was written."""

    total: np.ndarray
    encrypt_ms: float
    add_ms: float
    decrypt_ms: float
    ciphertext_bytes: int


def encrypted_total(cipher: Cipher, scheme: Ckks, rows: np.ndarray) -> Summed:
    """Sums the clients' vectors under encryption, block by block: every client encrypts, the server adds, the holder of
    the key decrypts.

    Args:
      rows: [C, n] numbers of the clients.
    """
    total, spent, size = np.zeros(rows.shape[1]), np.zeros(3), 0
    blocks = [slice(i, i + scheme.slots) for i in range(0, rows.shape[1], scheme.slots)]
    for block in blocks:
        begin = time.perf_counter()
        ciphertexts = [cipher.encrypt(row[block]) for row in rows]
        encrypted = time.perf_counter()
        summed = ciphertexts[0]
        for ciphertext in ciphertexts[1:]:
            summed = cipher.add(summed, ciphertext)
        added = time.perf_counter()
        total[block] = cipher.decrypt(summed)
        spent += encrypted - begin, added - encrypted, time.perf_counter() - added
        size = len(cipher.write(summed))
    count = len(rows) * len(blocks)
    each = 1e3 * spent / np.maximum([count, count - len(blocks), len(blocks)], 1)
    return Summed(total, *(float(ms) for ms in each), ciphertext_bytes=size)
