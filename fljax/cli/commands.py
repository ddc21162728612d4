"""All commands by name, and the way from the words of a command line to the one that was meant.

A command is a dataclass whose fields are its flags, with a method ``execute``. Its module is imported when it is
called, so that help and mistakes cost no import of JAX.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple


class Command(NamedTuple):
    """One line of the help. place: "module:class". takes: which fields of an experiment it can override, if any."""

    help: str
    place: str
    takes: str = ""

    def load(self) -> Any:
        """The dataclass."""
        module, _, name = self.place.partition(":")
        return getattr(importlib.import_module(module), name)


ALL, DATA = "all", "data"
"""Overridable fields: of the whole experiment, or of its section data."""

COMMANDS: dict[str, Command | dict[str, Command]] = {
    "run": Command("Run one experiment.", "fljax.cli.run:Run", ALL),
    "sweep": Command("Run all trials of an experiment with a sweep.", "fljax.cli.sweep:Sweep", ALL),
    "worker": Command("Do free shards of a sweep that was begun: one worker of many.", "fljax.cli.sweep:Worker"),
    "query": Command("Ask results in SQL.", "fljax.cli.sweep:Query"),
    "audit": Command("Audit the privacy of an experiment with canary clients.", "fljax.cli.audit:Audit", ALL),
    "leakage": Command("Attack a round: what an adversary learns from what it sees.", "fljax.cli.leakage:Leakage", ALL),
    "report": Command("Write tables, figures and report.html of results again.", "fljax.cli.look:Report"),
    "cite": Command("Print BibTeX of the methods that an experiment uses.", "fljax.cli.look:Cite"),
    "privacy": {
        "epsilon": Command("Epsilon of a run that was noised with a given multiplier.", "fljax.cli.privacy:Epsilon"),
        "calibrate": Command("The smallest noise multiplier for an epsilon.", "fljax.cli.privacy:Calibrate"),
        "select": Command("The price of releasing only the best of several trials.", "fljax.cli.privacy:Select"),
    },
    "data": {"inspect": Command("Show a data set and its partition.", "fljax.cli.data:Inspect", DATA)},
    "list": Command("List experiments, data sets, models and traced fields.", "fljax.cli.look:List"),
    "init": Command("Write a new experiment file from a commented template.", "fljax.cli.files:Init"),
    "schema": Command("Print the JSON schema of experiment files, for editors.", "fljax.cli.files:Schema"),
    "completion": Command("Print a script that completes commands in a shell.", "fljax.cli.completion:Completion"),
    "doctor": Command("Check this installation.", "fljax.cli.doctor:Doctor"),
}
"""Commands, and groups of commands, by name, in the order of the help."""

GROUPS = {
    "privacy": "Ask the accountant for an epsilon, a noise or a price.",
    "data": "Look at data and at how they are divided among clients.",
}
"""Help of the groups."""


def dispatch(words: list[str]) -> int:
    """Parses the words and executes the command; returns the exit code.

    Raises FljaxError in one line for a command, a flag or a field that does not exist, with the closest one.
    """
    if words[:1] == ["--version"]:
        import fljax

        print(fljax.__version__)
        return 0
    path, known = ["fljax"], COMMANDS
    while True:
        if not words or words[0] in ("--help", "-h"):
            print(overview(path, known))
            return 0
        command = find(words[0], known, " ".join(path))
        path, words = [*path, words[0]], words[1:]
        if isinstance(command, Command):
            return _execute(command, words, " ".join(path))
        known = command


def find(name: str, known: Mapping[str, Any], prog: str) -> Any:
    """The entry of that name. Raises FljaxError with the closest name."""
    if name not in known:
        from fljax.cli.parse import meant
        from fljax.core.check import FljaxError

        options = ", ".join(known)
        raise FljaxError(f"Expected command {name!r} to be one of {options}.{meant(name, known)} Try {prog} --help.")
    return known[name]


def _execute(command: Command, words: list[str], prog: str) -> int:
    from fljax.cli.parse import HELP, parse, parse_known

    kind = command.load()
    if not command.takes:
        return parse(kind, words, prog).execute() or 0
    from fljax.cli.arguments import check_names, split_files
    from fljax.core.check import FljaxError

    words, files = split_files(words)
    if any(word in HELP for word in words):
        _help_with_fields(command, words, files, prog)
        return 0
    try:
        parsed, overrides = parse_known(kind, words, prog)
    except FljaxError as error:
        first = " Its name comes before the flags." if words and words[0].startswith("-") else ""
        raise FljaxError(f"{error}{first}") from None
    check_names(overrides, kind)
    return parsed.execute([*files, *overrides]) or 0


def _help_with_fields(command: Command, words: list[str], files: list[str], prog: str) -> None:
    """The help of a command, and all fields that it can override, with the values of a named experiment."""
    import contextlib
    import shutil

    from fljax.cli.arguments import overridden
    from fljax.cli.fields import fields_text
    from fljax.cli.parse import HELP, parse_known
    from fljax.config import Experiment

    with contextlib.suppress(SystemExit):
        parse_known(command.load(), [HELP[0]], prog)
    named = next((word for word in words if not word.startswith("-")), None)
    if named is None and command.takes == ALL:
        print(f"\n{prog} EXPERIMENT --help also lists the fields that can be overridden, with their values in it.")
        return
    experiment = overridden(named, files) if named and command.takes == ALL else Experiment()
    only = None if command.takes == ALL else command.takes
    print("\n" + fields_text(experiment, min(shutil.get_terminal_size().columns, 120), only))


def overview(path: list[str], known: Mapping[str, Any]) -> str:
    """The first thing somebody sees."""
    title = GROUPS.get(path[-1], "a simulator of private federated learning")
    rows = {name: entry.help if isinstance(entry, Command) else GROUPS[name] for name, entry in known.items()}
    width = max(map(len, rows)) + 2
    shown = "\n".join(f"  {name:<{width}}{text}" for name, text in rows.items())
    prog = " ".join(path)
    return f"{prog}: {title}\n\n{shown}\n\n{prog} COMMAND --help tells the rest."
