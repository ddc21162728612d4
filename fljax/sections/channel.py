"""Sections of the channel between the server and each client, and of homomorphic encryption."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from fljax.sections.base import Section


class ChannelConfig(Section):
    """Encryption of what travels between the server and each client (extra `secure`)."""

    kind: Literal["none", "aes_gcm"] = "none"
    """aes_gcm: AES-256-GCM; 28 bytes more for every message, both ways"""
    verify_rounds: int = Field(25, ge=0)
    """every so many rounds the messages of the round are really written, encrypted, opened and compared (0: never)"""


class HeConfig(Section):
    """Homomorphic encryption of uploads by CKKS (extra `he`): the server adds what it cannot read."""

    kind: Literal["none", "ckks"] = "none"
    """ckks: uploads travel as ciphertexts; their bytes count, and the sum has the error of the scheme"""
    mode: Literal["model", "exact"] = "model"
    """model: cost and error by formula; exact: every sum is really encrypted, added and decrypted (small models)"""
    key: Literal["clients", "authority"] = "clients"
    """who holds the secret key: all clients, who get the encrypted sum back; or a third party, who decrypts sums"""
    degree: Literal[4096, 8192, 16384] = 8192
    """N of the polynomials; a ciphertext holds N/2 numbers"""
    bits: tuple[int, ...] = (60, 40)
    """bits of the primes, the last of them the special one"""
    scale_bits: int = Field(40, ge=10, le=60)
    """numbers are rounded to multiples of 2^-scale_bits"""
    public_key: bool = True
    """clients encrypt with a public key; else with the secret one (a tenth of the error)"""
    share: float = Field(1.0, gt=0, le=1)
    """share of the coordinates that is encrypted, the most informative by what was released"""
    rest: Literal["plain", "dropped"] = "plain"
    """what happens to the other coordinates: sent in clear, or not sent"""
    warmup_rounds: int = Field(1, ge=0)
    """rounds at the beginning in which everything is encrypted, where share < 1"""
    decay: float = Field(0.9, ge=0, lt=1)
    """decay of the moving average by which coordinates are ranked"""
    least: int | None = Field(None, ge=1)
    """with local noise and share < 1: clients of a round that arrive at the least (default: all of the cohort)"""
    verify_rounds: int = Field(25, ge=0)
    """every so many rounds random blocks of the real uploads are encrypted, added, decrypted and compared (0: never)"""
    verify_blocks: int = Field(1, ge=1)
    """ciphertexts per client that are looked at in such a round"""
    tolerance: float = Field(1e-6, gt=0)
    """largest difference between the decrypted sum and the plain one"""

    @model_validator(mode="after")
    def _sums_by_somebody(self) -> HeConfig:
        if self.kind == "none" and (self.mode, self.share, self.rest) != ("model", 1.0, "plain"):
            raise ValueError('mode, share and rest need kind = "ckks"; leave them out')
        if self.share == 1 and self.rest == "dropped":
            raise ValueError('rest = "dropped" needs share < 1; leave it out')
        return self
