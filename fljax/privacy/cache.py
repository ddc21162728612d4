"""Answers of the accountant on disk: one small JSON file per question, safe with several processes.

The folder is ``$FLJAX_CACHE/accounting``, by default ``~/.cache/fljax/accounting``. A file holds its whole question, so
a collision of names, a half-written or a damaged file is a miss, never a wrong answer. Files are replaced atomically:
two processes that answer the same question at the same time write the same number, and the later one wins.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

FORMAT = 1  # raise when a change of the code changes an answer


def folder() -> Path:
    """Where answers are kept; read from the environment at each call."""
    root = os.environ.get("FLJAX_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "fljax") / "accounting"


@lru_cache(maxsize=1)
def _library() -> str:
    try:
        return version("dp-accounting")  # from the metadata: importing the package would take seconds
    except PackageNotFoundError:
        return "unknown"


def _question(kind: str, parts: dict[str, object]) -> str:
    return json.dumps({"kind": kind, "format": FORMAT, "dp_accounting": _library(), **parts}, sort_keys=True)


def _file(question: str) -> Path:
    return folder() / f"{hashlib.sha256(question.encode()).hexdigest()[:32]}.json"


def lookup(kind: str, **parts: object) -> float | None:
    """The stored answer, or None where there is none that can be trusted.

    Args:
      kind: what was asked, such as ``epsilon``.
      **parts: everything the answer depends on, as JSON values. The version of dp_accounting is added.
    """
    question = _question(kind, parts)
    try:
        entry = json.loads(_file(question).read_text(encoding="utf-8"))
        value = entry["value"]
        trusted = entry["question"] == question and isinstance(value, float) and math.isfinite(value) and value >= 0
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return value if trusted else None


def remember(compute: Callable[[], float], kind: str, **parts: object) -> float:
    """The stored answer, or else the computed one, which is then stored.

    Returns:
      Bit-identical numbers whether they were stored or computed. A folder that cannot be written costs time only.
    """
    value = lookup(kind, **parts)
    if value is None:
        value = float(compute())
        question = _question(kind, parts)
        with contextlib.suppress(OSError):
            write(_file(question), json.dumps({"question": question, "value": value}))
    return value


def write(path: Path, text: str) -> None:
    """Writes a file atomically, so that two processes leave one whole file; makes its folder. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
