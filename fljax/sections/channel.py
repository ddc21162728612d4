"""Section of the channel between the server and each client."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fljax.sections.base import Section


class ChannelConfig(Section):
    """Encryption of what travels between the server and each client (extra `secure`)."""

    kind: Literal["none", "aes_gcm"] = "none"
    """aes_gcm: AES-256-GCM; 28 bytes more for every message, both ways"""
    verify_rounds: int = Field(25, ge=0)
    """every so many rounds the messages of the round are really written, encrypted, opened and compared (0: never)"""
