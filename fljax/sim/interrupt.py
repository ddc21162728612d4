"""Being asked to stop: Ctrl-C and SIGTERM wait for the end of the running call, so that a checkpoint can be written."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

from fljax.sim.waiting import leave

NAMES: dict[int, str] = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class Interrupted(KeyboardInterrupt):
    """Work that was stopped between two calls. ``signal``: the number of the signal that asked for it."""

    def __init__(self, text: str, number: int):
        super().__init__(text)
        self.signal = number


class Check(Protocol):
    """What ``stop_requests`` yields."""

    def __call__(self, done: str, first: Callable[[], None] = ..., /) -> None:
        """Raises Interrupted if a stop was asked for."""


@contextmanager
def stop_requests(quiet: bool = False, agree: Callable[[int], int] = int, several: bool = False) -> Iterator[Check]:
    """Catches Ctrl-C and SIGTERM while it lasts.

    Yields:
      ``check(done, first)``, to be called between two calls: if one of the two was asked for, calls ``first()``, which
      may write a checkpoint, and raises Interrupted("stopped by Ctrl-C " + done); otherwise it does nothing.

    A second one stops at once. Outside of the main thread, which signals do not reach, nothing is caught.

    Args:
      quiet: do not say on stderr that the request was heard.
      agree: from the signal that came here (0: none) to the one that several processes obey together.
      several: this is one of several processes: a second signal ends it even where it waits for the others.
    """
    asked: list[int] = []

    def remember(number: int, frame: Any) -> None:
        if asked:
            raise Interrupted(f"stopped by {NAMES[number]} at once", number)
        asked.append(number)
        if not quiet:
            print("\nstopping at the end of this call; again to stop at once", file=sys.stderr, flush=True)

    def check(done: str, first: Callable[[], None] = lambda: None) -> None:
        if number := agree(asked[0] if asked else 0):
            first()
            raise Interrupted(f"stopped by {NAMES[number]} {done}", number)

    if threading.current_thread() is not threading.main_thread():
        yield check
        return
    before = {number: signal.signal(number, remember) for number in NAMES}
    try:
        with left_at_second() if several else nullcontext():
            yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def left_at_second() -> Iterator[None]:
    """Ends this process at the second Ctrl-C or SIGTERM while it lasts, with 130 or 143.

    Handlers of Python run in the main thread, which may wait in the runtime for another process, and not come back. The
    number of a signal is written to a pipe at once, where a thread reads it.
    """
    heard, tell = os.pipe()
    os.set_blocking(tell, False)

    def listen() -> None:
        asked = 0
        while number := os.read(heard, 1):
            asked += number[0] in NAMES
            if asked == 2:
                print(f"fljax: stopped by {NAMES[number[0]]} at once.", file=sys.stderr, flush=True)
                leave(128 + number[0])

    before, listener = signal.set_wakeup_fd(tell), threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(tell)
        listener.join()
        os.close(heard)
