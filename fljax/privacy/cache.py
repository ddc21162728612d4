"""Answers of the accountant on disk, in ``$FLJAX_CACHE/accounting``, by default ``~/.cache/fljax/accounting``.

A file that is damaged or of another question is a miss, never a wrong answer (``core/answers.py``). Two processes that
answer the same question at the same time write the same number.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fljax.core import answers

FORMAT = 1  # raise when a change of the code changes an answer
FOLDER = "accounting"


def folder() -> Path:
    """Where answers are kept; read from the environment at each call."""
    return answers.root() / FOLDER


@lru_cache(maxsize=1)
def _library() -> str:
    try:
        return version("dp-accounting")  # from the metadata: importing the package would take seconds
    except PackageNotFoundError:
        return "unknown"


def _question(kind: str, parts: dict[str, object]) -> str:
    return json.dumps({"kind": kind, "format": FORMAT, "dp_accounting": _library(), **parts}, sort_keys=True)


def lookup(kind: str, **parts: object) -> float | None:
    """The stored answer, or None where there is none that can be trusted.

    Args:
      kind: what was asked, such as ``epsilon``.
      **parts: everything the answer depends on, as JSON values. The version of dp_accounting is added.
    """
    value = answers.lookup(FOLDER, _question(kind, parts))
    return value if isinstance(value, float) and math.isfinite(value) and value >= 0 else None


def remember(compute: Callable[[], float], kind: str, **parts: object) -> float:
    """The stored answer, or else the computed one, which is then stored.

    Returns:
      Bit-identical numbers whether they were stored or computed. A folder that cannot be written costs time only.
    """
    value = lookup(kind, **parts)
    if value is None:
        value = float(compute())
        answers.store(FOLDER, _question(kind, parts), value)
    return value
