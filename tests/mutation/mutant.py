"""What a mutant is."""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """One mistake.

    name: unique. bug_class: a key of ``mutants.CLASSES``. words: the mistake, for people. file: relative to the root.
    old: a text that is in the file exactly once. new: what it becomes. test: the id of the test that has to fail.
    """

    name: str
    bug_class: int
    words: str
    file: str
    old: str
    new: str
    test: str
