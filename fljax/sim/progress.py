"""Progress between the calls of a run: a bar in a terminal, plain lines in a file, a live view in a notebook."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from fljax.core import html
from fljax.sim.live import in_notebook, live_view, open_display

LINES_EVERY_S = 5.0


class Progress:
    """Counts work done towards a total and shows it with an estimate of the time left.

    Args:
      total: units of work. label: what is running. quiet: show nothing.
      done: units that were done before, by an earlier start; they do not count towards the speed.
    """

    def __init__(self, total: int, label: str, quiet: bool = False, done: int = 0):
        self.total, self.label, self.quiet, self.before = total, label, quiet, done
        self.start, self.last, self.said = time.monotonic(), 0.0, -1
        self._bar: Any = None
        self._task: Any = None
        self._show: Callable[[str], None] | None = None

    def __enter__(self) -> Progress:
        if not self.quiet and in_notebook():
            self._show = open_display()
        elif not self.quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar
            from rich.table import Column

            left = TimeRemainingColumn(compact=True, table_column=Column(min_width=5, no_wrap=True))
            columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), left)
            self._bar = Bar(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True))
            self._task = self._bar.add_task(self.label, total=self.total, completed=self.before, note="")
            self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int, note: str = "", history: Mapping[str, np.ndarray] | None = None) -> None:
        """Tells how many units are done, and what is known by now, such as the epsilon so far.

        A notebook also shows the history, metrics [rounds done] by name, as curves.
        """
        if self.quiet:
            return
        if self._bar is not None:
            self._bar.update(self._task, completed=done, note=note)
            return
        now = time.monotonic()
        if self._show is not None:
            self._show(live_view(done, self.total, self._text(now, done, note), history))
            return
        if self.said == done == self.total or (done < self.total and now - self.last < LINES_EVERY_S):
            return
        self.last, self.said = now, done
        print(self._text(now, done, note), file=sys.stderr, flush=True)

    def _text(self, now: float, done: int, note: str) -> str:
        spent, mine = now - self.start, done - self.before
        end = f"{duration(spent / mine * (self.total - done))} left" if mine else ""  # nothing done, nothing known
        if done >= self.total:
            end = f"done in {duration(spent)}"
        parts = [f"{self.label}: {done}/{self.total}", end, note]
        return ", ".join(part for part in parts if part)


def duration(seconds: float) -> str:
    """``45 s``, ``3 min 05 s``, ``2 h 07 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


@contextmanager
def said(what: str, quiet: bool = False):
    """Says what is going on and how long it took, ``compiling ... 4.1 s``: on stderr, or in the notebook's cell."""
    start = time.perf_counter()
    if not quiet and in_notebook():
        show = open_display()
        show(html.paragraph(f"{what} ...", soft=True))
        try:
            yield
        finally:
            show(html.paragraph(f"{what} ... {time.perf_counter() - start:.1f} s", soft=True))
        return
    if not quiet:
        print(f"{what} ... ", end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if not quiet:
            print(f"{time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)
