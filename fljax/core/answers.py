"""Answers on disk: one small JSON file per question, safe with several processes.

The folders are in ``$FLJAX_CACHE``, by default ``~/.cache/fljax``. A file holds its whole question, so that a collision
of names, a half-written or a damaged file is a miss, never a wrong answer. Files are replaced atomically: of two
processes that answer the same question at the same time, the later one wins.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any


def root() -> Path:
    """Where everything is kept that can be made again; read from the environment at each call."""
    named = os.environ.get("FLJAX_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "fljax"


def lookup(folder: str, question: str) -> Any:
    """The stored answer (a JSON value, to be checked by who asks), or None where there is none of this question."""
    try:
        entry = json.loads(_file(folder, question).read_text(encoding="utf-8"))
        return entry["value"] if entry["question"] == question else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def store(folder: str, question: str, value: Any) -> None:
    """Stores an answer (a JSON value). A folder that cannot be written costs time only."""
    with contextlib.suppress(OSError):
        _write(_file(folder, question), json.dumps({"question": question, "value": value}))


def _file(folder: str, question: str) -> Path:
    return root() / folder / f"{hashlib.sha256(question.encode()).hexdigest()[:32]}.json"


def _write(path: Path, text: str) -> None:
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
