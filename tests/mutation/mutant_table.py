"""The generated page ``docs/mutation.md``."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

from mutants import CLASSES, NOT_PLANTED, Mutant

HEAD = """# Mutation tests

Written by `make mutation`; do not edit. Each mutant is one mistake, planted in a copy of the code; the test beside it
has to fail. Mutants that do not run at all do not count as caught.

"""


def write_table(path: Path, rows: Sequence[tuple[Mutant, bool, float]], minutes: float) -> None:
    """Writes the page.

    Args:
      path: of the page. rows: (mutant, caught, seconds of its test). minutes: of the whole command.
    """
    caught = sum(ok for _, ok, _ in rows)
    lines = [f"{caught} of {len(rows)} mutants caught, in {minutes:.0f} minutes on {platform.machine()}.", ""]
    lines += ["| mutant | class | file | mistake | caught by | seconds |", "|---|---|---|---|---|---|"]
    for mutant, ok, seconds in rows:
        test = f"`{_cell(mutant.test)}`" if ok else "**nothing**"
        cells = (f"`{mutant.name}`", mutant.bug_class, f"`{mutant.file}`", _cell(mutant.words), test, f"{seconds:.0f}")
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += ["", "## Classes", "", "| class | mistake | mutants |", "|---|---|---|"]
    for number in sorted(CLASSES | NOT_PLANTED):
        names = ", ".join(f"`{m.name}`" for m, _, _ in rows if m.bug_class == number)
        if number in NOT_PLANTED:
            lines.append(f"| {number} | does not apply: {NOT_PLANTED[number]} | |")
        else:
            lines.append(f"| {number} | {CLASSES[number]} | {names} |")
    path.write_text(HEAD + "\n".join(lines) + "\n", encoding="utf-8")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
