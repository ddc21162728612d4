"""Waiting for the other processes of a run, and not for ever.

A process that is stuck keeps its connections open, and JAX's runtime, whose threads go on, takes it for alive. So every
wait for others has a limit. The process that reaches it says so in one line and leaves with exit code 2; its
connections close, by which the others notice at once.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import jax

from fljax.core.check import FljaxError

HEARTBEAT = "FLJAX_HEARTBEAT_S"
PATIENCE_S = 300.0
GENEROUS = 10.0
"""Times the patience before the first call has ended, while others may still read data and compile; and times the
slowest call after it."""
GRACE_S = 2.0
"""Seconds in which the others say why they leave, before the first process takes JAX's service away from them."""


@dataclass
class Known:
    """What this process knows of the run that it is in.

    done: rounds. path: of its checkpoint. fresh: no call of it has ended. slowest: seconds of the slowest call.
    """

    done: int = 0
    path: Path | None = None
    fresh: bool = False
    slowest: float = 0.0


_known = Known()


def patience() -> float:
    """FLJAX_HEARTBEAT_S, in seconds (300). Raises FljaxError unless it is a number > 0."""
    said = os.environ.get(HEARTBEAT, "")
    try:
        seconds = float(said or PATIENCE_S)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise FljaxError(f"Expected {HEARTBEAT}={said!r} to be a number of seconds > 0. Set it to {PATIENCE_S:g}.")
    return seconds


def limit() -> float:
    """Seconds that this process waits for others: its patience, or ten times its slowest call where that is more.

    Ten times its patience before the first call of a run has ended.
    """
    return max(patience() * (GENEROUS if _known.fresh else 1.0), GENEROUS * _known.slowest)


def begins(path: Path | None) -> None:
    """A run begins: the others read data and compile next. path: of its checkpoint, if it keeps any."""
    global _known
    _known = Known(path=path, fresh=True)


def reached(done: int) -> None:
    """So many rounds are done."""
    _known.done = done


def leave(code: int) -> NoReturn:
    """Ends this process without waiting at exit for the others of its run; they see that it is gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    if jax.distributed.is_initialized() and jax.process_count() > 1 and jax.process_index() == 0:
        time.sleep(GRACE_S)
    os._exit(code)


@contextmanager
def within(seconds: float, say: Callable[[], str], end: Callable[[int], object] = leave) -> Iterator[None]:
    """Prints ``fljax: `` and what ``say()`` returns on stderr, and calls ``end(2)``, if the body takes longer.

    A thread does so, since the main one may never come back from the runtime.
    """

    def give_up() -> None:
        print(f"fljax: {say()}", file=sys.stderr, flush=True)
        end(2)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def waiting() -> Iterator[None]:
    """Ends this process where the other processes of its run do not do within ``limit()`` what the body needs."""
    if jax.process_count() == 1:
        yield
        return
    seconds, here = limit(), f"process {jax.process_index()} of {jax.process_count()}"

    def say() -> str:
        if _known.path is None:
            go_on = "; nothing is kept without a results folder"
        else:
            go_on = f" with --resume, on any number of processes, from {_known.path}"
        return (
            f"Expected all processes to go on after round {_known.done}, found {here} waiting for another for "
            f"{seconds:g} s. It is stuck or gone: end it, then start all again{go_on}. If it was "
            f"only slow, set {HEARTBEAT} higher, {patience():g} now."
        )

    with within(seconds, say):
        yield


@contextmanager
def calling() -> Iterator[None]:
    """``waiting`` around a compiled call, whose time counts for the limit of the next waits."""
    begin = time.monotonic()
    with waiting():
        yield
    _known.fresh = False
    _known.slowest = max(_known.slowest, time.monotonic() - begin)
