"""What a page says of encryption: what was encrypted, what it cost, what real messages showed, and what it is not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from fljax.report import text

TITLES = {
    "channel": "Channel between server and clients",
    "he": "Homomorphic encryption",
    "secure": "Secure sum by real cryptography",
}
KINDS = {"aes_gcm": "AES-256-GCM", "ckks": "CKKS"}
NOTES = {
    "channel": ("It hides content on its way. It hides neither lengths nor who sends when, and ends at the server.",),
    "secure": ("Sums had the bits of the simulated ones in every round; keys are new in each.",),
}


class Part(NamedTuple):
    """One kind of encryption. pairs: label and text. notes: sentences under them."""

    title: str
    pairs: list[tuple[str, str]]
    notes: tuple[str, ...]


def encryption_parts(manifest: Mapping[str, Any]) -> list[Part]:
    """The parts of a run that were encrypted; none where nothing was."""
    found: Mapping[str, Mapping[str, Any]] = manifest.get("encryption") or {}
    return [Part(TITLES.get(name, name), _pairs(told), _notes(name, told)) for name, told in found.items()]


def _notes(name: str, told: Mapping[str, Any]) -> tuple[str, ...]:
    return (*NOTES.get(name, ()), *map(str, told.get("caveats") or ()))


def _pairs(told: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Label and text of every number; what belongs to one name stands in one line."""
    return [(_label(name), _value(name, value)) for name, value in told.items() if name != "caveats"]


def _label(name: str) -> str:
    return name.replace("gb_per_s", "GB sealed per second and core").replace("_", " ")


def _value(name: str, value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key.replace('_', ' ')} {_value(key, part)}" for key, part in value.items())
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e5 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return KINDS.get(str(value), text.words(value))
