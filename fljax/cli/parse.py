"""From the words of a command to its dataclass. What does not parse is one line with the closest right word."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import re
from collections.abc import Iterable
from typing import Any, get_type_hints

import tyro

from fljax.core.check import FljaxError

HELP = ("-h", "--help")


def parse(kind: type, words: list[str], prog: str) -> Any:
    """The command that the words ask for.

    Raises:
      FljaxError: in one line: an unknown flag, with the closest known one; a missing or bad value.
      SystemExit: with code 0, after help was asked for and printed.
    """
    known = [*HELP, *flags(kind)]
    given = [word.partition("=")[0].replace("_", "-") for word in words if word.startswith("--")]
    strange = [word for word in given if word not in known and word.replace("--no-", "--", 1) not in known]
    command, unknown = (None, strange) if strange else parse_known(kind, words, prog)
    if unknown:
        raise FljaxError(f"Expected {unknown[0]!r} to be left out.{meant(unknown[0], flags(kind))} Try {prog} --help.")
    return command


def parse_known(kind: type, words: list[str], prog: str) -> tuple[Any, list[str]]:
    """As ``parse``, with the words that the command does not know: fields of an experiment that are overridden."""
    complaint = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")  # the parser draws its boxes by the encoding
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(kind, args=words, prog=prog, return_unknown_args=True)
    except SystemExit as stop:
        if stop.code in (None, 0):
            raise
    complaint.seek(0)
    raise FljaxError(f"{_one_line(complaint.read())} Try {prog} --help.")


def flags(kind: type) -> list[str]:
    """The flags of a command, such as ``--data-dir``."""
    return [f"--{name.replace('_', '-')}" for name, hint in hints(kind).items() if not _positional(hint)]


def hints(kind: type) -> dict[str, Any]:
    """The types of a command's arguments by name, positional ones included."""
    known = get_type_hints(kind, include_extras=True)
    return {field.name: known[field.name] for field in dataclasses.fields(kind)}


def _positional(hint: Any) -> bool:
    return tyro.conf.Positional[int].__metadata__[0] in getattr(hint, "__metadata__", ())  # pyrefly: ignore


def meant(word: str, known: Iterable[str], most: int = 1) -> str:
    """`` Perhaps you meant X.`` for the known words that are closest, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=most)
    return f" Perhaps you meant {' or '.join(close)}." if close else ""


def _one_line(box: str) -> str:
    """The text of the parser's box, without its frame and its pointer to the help."""
    text = " ".join(re.sub(r"[─│╭╰╯]|-{4,}", " ", box.replace("╮", ":", 1).replace("╮", " ")).split())
    text = re.sub(r" ?For full helptext, (run|see):? .*?--help\.?", "", text.replace(" :", ":"))
    return text.rstrip(".") + "."
