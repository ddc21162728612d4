"""Plants mistakes in a copy of fljax, one at a time, and asks whether the test that should notice it does.

    python tests/mutation/run.py                 all mutants, and docs/mutation.md          (`make mutation`)
    python tests/mutation/run.py --only NAME     those whose name contains NAME; no table
    python tests/mutation/run.py --jobs 4        more at once; each worker has a copy of its own

Mutants are listed in ``mutants.py``: a text, what it becomes, the mistake in words, and the test that has to fail. The
working tree is read and never written: the package and its tests are copied to a temporary folder, and pytest runs
there. First the named tests must pass on an unchanged copy. A mutant counts as caught only where its test itself fails;
a mutant that does not import, or that raises an error of Python's own, shows nothing and counts as survived.

Exit code: 0 all caught, 1 a mutant survived, 2 a test fails without any mutant.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import NamedTuple

from mutant_table import write_table
from mutants import MUTANTS, Mutant

ROOT = Path(__file__).parents[2]
COPIED = ("fljax", "tests", "experiments", "pyproject.toml", "README.md")
SECONDS = 300
"""A test that takes longer on a mutant is stopped; the mutant counts as survived."""
NEVER_RUN = ("ImportError", "ModuleNotFoundError", "SyntaxError", "IndentationError")
CRASHES = ("NameError", "UnboundLocalError", "AttributeError", "TypeError", "KeyError", "IndexError")
"""Errors that say that the mutant does not run, rather than that a test saw a wrong value."""


class Verdict(NamedTuple):
    """What pytest said. code: its exit code, None where it was stopped. failed: tests whose own check failed, with the
    first line of the reason. crashed: tests that could not run. seconds: wall time."""

    code: int | None
    failed: tuple[str, ...]
    crashed: tuple[str, ...]
    seconds: float
    output: str

    @property
    def caught(self) -> bool:
        """True if a test failed by its own check, and nothing crashed."""
        return self.code == 1 and bool(self.failed) and not self.crashed


class Result(NamedTuple):
    """A mutant and what its test said about it."""

    mutant: Mutant
    verdict: Verdict


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; see the top of this file."""
    options = _parser().parse_args(arguments)
    chosen = [m for m in MUTANTS if options.only is None or options.only in m.name]
    if not chosen:
        print(f"Expected --only {options.only} to be part of a mutant's name.")
        return 2
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="fljax-mutation-") as folder:
        copies = [copy_project(Path(folder) / f"copy-{i}") for i in range(options.jobs)]
        broken = baseline(copies, sorted({m.test for m in chosen}))
        if broken:
            print("These tests fail without any mutant:", *broken, sep="\n")
            return 2
        print(f"{len({m.test for m in chosen})} tests pass unchanged, {time.perf_counter() - start:.0f} s")
        results = plant_all(copies, chosen)
    minutes = (time.perf_counter() - start) / 60
    survived = [r.mutant.name for r in results if not r.verdict.caught]
    print(f"{len(results) - len(survived)} of {len(results)} mutants caught in {minutes:.1f} minutes")
    if options.only is None or options.table:
        path = ROOT / "docs" / "mutation.md"
        write_table(path, [(r.mutant, r.verdict.caught, r.verdict.seconds) for r in results], minutes)
    if survived:
        print("Survived:", *survived, sep="\n")
    return 1 if survived else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Plants mistakes in a copy of fljax and sees whether tests notice.")
    parser.add_argument("--only", help="part of a name: run those mutants alone")
    parser.add_argument("--jobs", type=int, default=2, help="how many at once")
    parser.add_argument("--table", action="store_true", help="write docs/mutation.md although --only is given")
    return parser


# ---- copies ----------------------------------------------------------------------------------------------------------


def copy_project(folder: Path) -> Path:
    """What the tests need, in a folder of its own."""
    folder.mkdir(parents=True)
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        else:
            shutil.copy(source, folder / name)
    return folder


def mutated(text: str, mutant: Mutant) -> str:
    """The text of the mutant's file with the mistake in it.

    Raises ValueError unless what is to be replaced is there exactly once.
    """
    count = text.count(mutant.old)
    if count != 1:
        raise ValueError(f"{mutant.name}: expected its text once in {mutant.file}, found it {count} times.")
    return text.replace(mutant.old, mutant.new)


# ---- pytest ----------------------------------------------------------------------------------------------------------


def run_tests(folder: Path, tests: Sequence[str], *, first_only: bool = True, seconds: float = SECONDS) -> Verdict:
    """Runs tests in a copy, in a process of its own. Compiled programs are shared by all processes of the command."""
    report = folder / "report.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "", f"--junitxml={report}"]
    command += [*(["-x"] if first_only else []), *tests]
    environment = os.environ | {
        "PYTHONPATH": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",  # a mutant may have the size and the second of its file: no stale bytecode
        "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }
    start = time.perf_counter()
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return Verdict(None, (), (), time.perf_counter() - start, f"stopped after {seconds:g} s")
    failed, crashed = _read_report(report)
    return Verdict(done.returncode, failed, crashed, time.perf_counter() - start, done.stdout + done.stderr)


def _read_report(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(tests that failed by their own check, tests that crashed), each with its reason."""
    failed, crashed = [], []
    for case in ElementTree.parse(path).iter("testcase") if path.exists() else ():
        for kind in ("failure", "error"):
            for found in case.findall(kind):
                reason = (found.get("message") or "").strip().split("\n")[0]
                line = f"{case.get('classname')}::{case.get('name')}: {reason[:120]}"
                (crashed if kind == "error" or _crash(found.text or "") else failed).append(line)
    return tuple(failed), tuple(crashed)


def _crash(traceback: str) -> bool:
    """Does a traceback end in the package with an error of Python's own? In a test the same error is a wrong value."""
    places = re.findall(r"^(\S+\.py):\d+: (\w+)", traceback, re.MULTILINE)
    if not places:
        return True
    file, error = places[-1]
    return error in NEVER_RUN or (error in CRASHES and "tests/" not in file)


def baseline(copies: Sequence[Path], tests: Sequence[str]) -> list[str]:
    """The named tests that do not pass in an unchanged copy; also a check that the copy is what is imported."""
    probe = [sys.executable, "-B", "-c", "import fljax; print(fljax.__file__)"]
    environment = os.environ | {"PYTHONPATH": str(copies[0])}
    seen = subprocess.run(probe, cwd=copies[0], env=environment, capture_output=True, text=True).stdout.strip()
    if not seen.startswith(str(copies[0])):
        return [f"The copy in {copies[0]} is not what Python imports, but {seen}."]
    shares = [list(tests[i :: len(copies)]) for i in range(len(copies))]
    pairs = [(copy, share) for copy, share in zip(copies, shares, strict=True) if share]
    with ThreadPoolExecutor(len(copies)) as threads:
        verdicts = list(threads.map(lambda p: run_tests(*p, first_only=False, seconds=60 * len(p[1])), pairs))
    return [
        line
        for v in verdicts
        if v.code != 0
        for line in (*v.failed, *v.crashed, "" if v.failed or v.crashed else v.output[-2000:])
    ]


def plant_all(copies: Sequence[Path], chosen: Sequence[Mutant]) -> list[Result]:
    """Every mutant in a copy that is free, in the order of the list."""
    free: Queue[Path] = Queue()
    for copy in copies:
        free.put(copy)

    def one(mutant: Mutant) -> Result:
        copy = free.get()
        try:
            result = Result(mutant, planted(copy, mutant, lambda: run_tests(copy, [mutant.test])))
        finally:
            free.put(copy)
        print(_line(result), flush=True)
        return result

    with ThreadPoolExecutor(len(copies)) as threads:
        return list(threads.map(one, chosen))


def planted(copy: Path, mutant: Mutant, look: Callable[[], Verdict]) -> Verdict:
    """Runs something while the mutant is in the copy, and takes it out again."""
    path = copy / mutant.file
    before = path.read_text(encoding="utf-8")
    path.write_text(mutated(before, mutant), encoding="utf-8")
    try:
        return look()
    finally:
        path.write_text(before, encoding="utf-8")


def _line(result: Result) -> str:
    mutant, verdict = result
    if verdict.caught:
        return f"caught    {mutant.name}  {verdict.seconds:.1f} s"
    why = (*verdict.crashed, *verdict.failed) or (f"exit code {verdict.code}: {verdict.output[-300:]}",)
    return f"SURVIVED  {mutant.name}  {verdict.seconds:.1f} s  {why[0]}"


if __name__ == "__main__":
    sys.exit(main())
