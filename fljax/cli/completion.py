"""``fljax completion``: a script for the shell that completes commands, flags, fields, their values and experiments.

The script is made from the same tables as the help and starts no Python, so that it answers at once. Names of
experiments are those that ship with fljax and those in ./experiments at the time of completing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import tyro

from fljax.cli import commands
from fljax.cli.arguments import shipped
from fljax.cli.fields import sections
from fljax.cli.parse import flags, hints
from fljax.data import DATASETS

SCRIPT = """\
# Completion of fljax for bash and zsh. Made by `fljax completion {shell}`.
_fljax() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" words="" path="${{COMP_WORDS[1]}}"
  case "$path" in {groups}) (( COMP_CWORD > 2 )) && path="$path ${{COMP_WORDS[2]}}" ;; esac
  if (( COMP_CWORD == 1 )); then
    words="{top}"
  else
    case "$path $before" in
{values}
    esac
    if [[ -z $words ]]; then
      case "$path" in
{words}
      esac
    fi
    case "$path" in
      {experiments})
        if [[ $word != -* && $before != --* ]]; then
          [[ $path == "data inspect" ]] && words="$words {datasets}"
          words="$words {shipped} $(cd experiments 2>/dev/null && ls *.toml 2>/dev/null | sed 's/[.]toml$//')"
        fi ;;
    esac
  fi
  COMPREPLY=( $(compgen -W "$words" -- "$word") )
  if [[ $word != -* ]] && (( COMP_CWORD > 1 )) && [[ ${{#COMPREPLY[@]}} -eq 0 ]]; then
    COMPREPLY=( $(compgen -f -- "$word") )
  fi
}}
complete -o filenames -o bashdefault -F _fljax fljax
"""
ZSH = "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"


@dataclass(frozen=True)
class Completion:
    """Print a script that completes fljax on the command line.

    bash: eval "$(fljax completion bash)" in ~/.bashrc; zsh: eval "$(fljax completion zsh)" in ~/.zshrc.

    Attributes:
      shell: bash or zsh.
    """

    shell: tyro.conf.Positional[Literal["bash", "zsh"]]

    def execute(self) -> None:
        """Prints the script."""
        print((ZSH if self.shell == "zsh" else "") + script(self.shell), end="")


def script(shell: str) -> str:
    """The script: one case per command, and one per flag with known values."""
    paths = dict(_paths())
    groups = [name for name, entry in commands.COMMANDS.items() if isinstance(entry, dict)]
    rows = [(path, [*_positional(c), *flags(c.load()), "--help", *_fields(c.takes)]) for path, c in paths.items()]
    rows += [(g, [*members]) for g, members in commands.COMMANDS.items() if isinstance(members, dict)]
    values = [(f"{path} {flag}", words) for path, c in paths.items() for flag, words in _values(c)]
    return SCRIPT.format(
        shell=shell,
        groups="|".join(groups),
        top=" ".join([*commands.COMMANDS, "--help", "--version"]),
        values=_cases(values, "      "),
        words=_cases(rows, "        "),
        experiments="|".join(_quoted(path) for path, c in paths.items() if c.takes),
        shipped=" ".join(shipped()),
        datasets=" ".join(DATASETS),
    )


def _paths() -> Iterator[tuple[str, commands.Command]]:
    """("privacy epsilon", command) of every command."""
    for name, entry in commands.COMMANDS.items():
        if isinstance(entry, dict):
            yield from ((f"{name} {member}", command) for member, command in entry.items())
        else:
            yield name, entry


def _fields(takes: str) -> list[str]:
    """The flags of the fields that a command can override."""
    names = [field.name for section, _, fields in sections() if takes in (commands.ALL, section) for field in fields]
    return [f"--{name.replace('_', '-')}" for name in names] if takes else []


def _values(command: commands.Command) -> Iterator[tuple[str, list[str]]]:
    """(flag, its values) for flags and fields of a few values; flags of paths have none, and are left to the shell."""
    for name, hint in hints(command.load()).items():
        words = list(_choices(hint))
        if words or Path in get_args(hint) or name == "data_dir":
            yield f"--{name.replace('_', '-')}", words
    for section, _, fields in sections():
        for field in fields:
            if command.takes in (commands.ALL, section) and "|" in field.kind:
                yield f"--{field.name.replace('_', '-')}", field.kind.split("|")


def _positional(command: commands.Command) -> list[str]:
    """The words that the first argument of a command can be."""
    flags_of, known = flags(command.load()), hints(command.load())
    return [w for name, hint in known.items() if f"--{name.replace('_', '-')}" not in flags_of for w in _choices(hint)]


def _choices(hint: Any) -> Iterator[str]:
    """The words of a Literal anywhere in a type."""
    if get_origin(hint) is Literal:
        yield from map(str, get_args(hint))
        return
    for inner in get_args(hint):
        yield from _choices(inner)


def _cases(rows: list[tuple[str, list[str]]], indent: str) -> str:
    return "\n".join(f'{indent}{_quoted(pattern)}) words="{" ".join(words) or " "}" ;;' for pattern, words in rows)


def _quoted(pattern: str) -> str:
    return f'"{pattern}"'
