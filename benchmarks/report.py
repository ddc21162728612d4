"""What all benchmarks write: JSON with hardware, versions and commit, and the comparison with a stored file."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from fljax.core.provenance import provenance

SECONDS = ("steady_s_per_round", "steady_s", "compile_s", "import_s")
"""Fields in which less is better; they are what is compared with a baseline."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of every benchmark: --json, --tell, --out, --compare."""
    parser.add_argument("--json", action="store_true", help="print JSON only")
    parser.add_argument("--tell", action="store_true", help="a line of JSON whenever more is known, the result last")
    parser.add_argument("--out", type=Path, help="folder for a JSON file")
    parser.add_argument("--compare", type=Path, metavar="BASELINE", help="a stored JSON file to compare with")


def finished(benchmark: str, result: dict[str, Any], load: tuple[float, ...]) -> dict[str, Any]:
    """The result with where it comes from. load: ``os.getloadavg()`` before the benchmark began."""
    loads = {"before": load, "after": os.getloadavg()}
    return {"benchmark": benchmark, **result, "load": loads, "provenance": provenance()}


def so_far(result: dict[str, Any], args: argparse.Namespace, line: str) -> None:
    """Tells what a long measurement knows before its end: the line on stderr, or with --tell a line of JSON.

    Whoever ends the process early still has the last line of JSON, which is ``unfinished``.
    """
    if args.tell:
        print(json.dumps({**result, "unfinished": True}), flush=True)
    else:
        print(line, file=sys.stderr, flush=True)


def deliver(result: dict[str, Any], name: str, args: argparse.Namespace, lines: list[str]) -> None:
    """Writes the file, compares with the baseline, and prints either JSON or the lines."""
    if args.compare:
        result["compared"] = compared(result, json.loads(args.compare.read_text()))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / f"{name}_{jax.default_backend()}.json").write_text(json.dumps(result, indent=1) + "\n")
    if args.json:
        print(json.dumps(result))
        return
    print("\n".join(lines))
    for path, row in result.get("compared", {}).items():
        print(f"  {path}: {row['now']:.4g} s, baseline {row['baseline']:.4g} s, ratio {row['ratio']:.3f}")


def compared(result: dict[str, Any], baseline: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Every number of seconds that both have, by its path: now, in the baseline, and now / baseline.

    Raises:
      ValueError: if the baseline is of another benchmark or workload: its seconds would mean something else.
    """
    usual = {"precision": "float32"}  # of files that do not say it
    for field in ("workload", "settings", "precision"):
        ours, theirs = (each.get(field, usual.get(field)) for each in (result, baseline))
        if ours != theirs:
            raise ValueError(f"Expected a baseline with {field}={ours}, found {theirs}.")
    old = dict(_seconds(baseline))
    return {
        path: {"now": now, "baseline": old[path], "ratio": now / old[path]}
        for path, now in _seconds(result)
        if old.get(path)
    }


def _seconds(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """(path, seconds) of all fields in ``SECONDS``."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in items:
        here = f"{path}.{name}".removeprefix(".")
        if name in SECONDS:
            yield here, float(inner)
        else:
            yield from _seconds(inner, here)
