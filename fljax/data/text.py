"""Loader of text: Shakespeare's plays, one client per role, next-character prediction."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fljax.core.check import FljaxError, in_range, non_negative, positive
from fljax.data.base import Folder, Source, stacked
from fljax.data.formats import read_table

CHARACTERS = "\n" + "".join(chr(code) for code in range(32, 127))
"""The vocabulary: id 0 is padding, character i of this string has id i + 1, anything else has the last id.

It is fixed and does not depend on the data, so that it says nothing about any client.
"""
PAD = 0
UNKNOWN = len(CHARACTERS) + 1
VOCABULARY_SIZE = len(CHARACTERS) + 2  # 98

COLUMNS = 6  # line id, play, speech number, line number, speaker, text
PLAY, SPEAKER, LINE = 1, 4, 5
NOT_A_ROLE = "Stage Directions"


def _id_table() -> np.ndarray:
    """[256] character code -> id; codes above 255 are looked up as 255, which is unknown."""
    table = np.full(256, UNKNOWN, np.int32)
    table[[ord(c) for c in CHARACTERS]] = np.arange(1, len(CHARACTERS) + 1)
    return table


_IDS = _id_table()


def encode(text: str) -> np.ndarray:
    """Text -> [len(text)] int32 ids, 1 .. VOCABULARY_SIZE - 1."""
    codes = np.frombuffer(text.encode("utf-32-le"), "<u4")
    return _IDS[np.minimum(codes, 255)]


def decode(ids: np.ndarray) -> str:
    """Ids -> text; padding is left out, and an unknown character becomes U+FFFD."""
    letters = np.asarray(["", *CHARACTERS, "�"])
    return "".join(letters[np.asarray(ids).reshape(-1)])


def sequences(ids: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Cuts a text into non-overlapping sequences for next-character prediction.

    Args:
      ids: [m] the text.
      length: L.

    Returns:
      x [n, L] and y [n, L] with ``y[i, j] = ids[i L + j + 1]``: every character but the first is a target exactly once.
      The last sequence is filled up with 0. A text of fewer than 2 characters gives n = 0.
    """
    n = -(-max(len(ids) - 1, 0) // length)
    padded = np.zeros(n * length + 1, np.int32)
    padded[: min(len(ids), len(padded))] = ids[: len(padded)]
    x, y = padded[:-1].copy(), padded[1:]
    x[y == PAD] = PAD  # the last character has no target: it is no input either
    return x.reshape(n, length), y.reshape(n, length)


def shakespeare(
    data_dir: str | Path | None = None, *, length: int = 80, min_chars: int = 0, test_fraction: float = 0.2
) -> Source:
    """The spoken lines of Shakespeare's plays; a client is one role of one play.

    Reads ``shakespeare_lines.tsv`` (or ``.tsv.gz``): line id, play, speech number, line number, speaker, text, no
    header. Stage directions are dropped; a role's lines are joined by newlines in the order of the file. The last
    fifth of the characters of each role is its test text. x and y are [n, L] int32 ids of ``CHARACTERS``; 0 is
    padding, and a target of 0 counts nowhere: losses and metrics leave it out.

    Args:
      data_dir: folder with ``shakespeare/``.
      length: L, characters of a sequence.
      min_chars: drop roles with fewer characters. Roles whose training text has fewer than 2 are always dropped.
      test_fraction: share of each role's text that is held out, at its end.

    Source: W. Shakespeare (public domain); as a federated task: McMahan et al., AISTATS 2017.
    """
    positive(length=length)
    non_negative(min_chars=min_chars)
    in_range(0, 1, closed="neither", test_fraction=test_fraction)
    path = Folder("shakespeare", data_dir).file("shakespeare_lines.tsv")
    train, test = [], []
    for text in _roles(path):
        if len(text) < min_chars:
            continue
        ids = encode(text)
        cut = len(ids) - int(test_fraction * len(ids))
        if cut >= 2:
            train.append(sequences(ids[:cut], length))
            test.append(sequences(ids[cut:], length))
    if not train:
        raise FljaxError(f"{path}: no role has min_chars={min_chars} characters. Use a smaller min_chars.")
    (x, y, ids), (test_x, test_y, test_ids) = stacked(train), stacked(test)
    return Source(
        name="shakespeare",
        task="next_char",
        x=x,
        y=y,
        client_ids=ids,
        test_x=test_x,
        test_y=test_y,
        test_client_ids=test_ids,
        num_classes=VOCABULARY_SIZE,
        description=f"Shakespeare's plays, clients are roles, sequences of {length} characters",
        licence="public domain",
    )


def _roles(path: Path) -> list[str]:
    """The text of each role, in the order of (play, role)."""
    lines: dict[tuple[str, str], list[str]] = {}
    for _, cells in read_table(path, "\t", COLUMNS):
        if cells[SPEAKER] != NOT_A_ROLE:
            lines.setdefault((cells[PLAY], cells[SPEAKER]), []).append(cells[LINE])
    return ["\n".join(lines[role]) for role in sorted(lines)]
