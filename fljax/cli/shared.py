"""What commands share: the flags of an experiment's command, and how answers are printed."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro


@dataclass(frozen=True)
class ExperimentCommand:
    """What run and sweep share.

    Attributes:
      experiment: name of an experiment (`fljax list`), path of a TOML file, or @ and such a path.
      out: folder of the results (default: results/<name>).
      data_dir: folder with the original data files (default: $FLJAX_DATA).
      fast: a quick look: few rounds and seeds, through every step.
      json: print one JSON object on stdout.
      quiet: no progress.
    """

    experiment: tyro.conf.Positional[str]
    out: Path | None = None
    data_dir: str | None = None
    fast: bool = False
    json: bool = False
    quiet: bool = False


def print_json(value: Any) -> None:
    """One strict JSON object on stdout; numbers that JSON does not have (inf, NaN) become null."""
    print(json.dumps(strict(value), allow_nan=False, default=str))


def strict(value: Any) -> Any:
    """The value with null in place of infinite numbers and NaN, and with text as keys."""
    if isinstance(value, dict):
        return {str(k): strict(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [strict(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def lines(value: Any, indent: str = "") -> str:
    """Nested values as indented lines for people."""
    if isinstance(value, dict):
        return "\n".join(_entry(k, v, indent) for k, v in value.items())
    if isinstance(value, list):
        return "\n".join(f"{indent}- {_in_a_row(v)}" for v in value)
    return f"{indent}{value}"


def _entry(name: str, value: Any, indent: str) -> str:
    if isinstance(value, dict | list) and value:
        return f"{indent}{name}:\n{lines(value, indent + '  ')}"
    return f"{indent}{name}: {value if value not in ({}, []) else 'none'}"


def _in_a_row(value: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else lines(value)
