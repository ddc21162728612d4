"""The command line: ``fljax run | sweep | audit | report | privacy | data | list | init | schema | doctor ...``

Results go to stdout, everything else to stderr. A mistake of the user is one line and exit code 2, without traceback;
a command that was stopped says how it goes on and exits with 130 (Ctrl-C) or 143 (SIGTERM).
"""

from __future__ import annotations

import signal
import sys


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        from fljax.cli.commands import dispatch

        return dispatch(words)
    except KeyboardInterrupt as stop:
        print(f"fljax: {stop or 'interrupted'}.{_how_to_go_on(words)}", file=sys.stderr)
        return 128 + getattr(stop, "signal", signal.SIGINT)
    except BrokenPipeError:
        return 0
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        print(f"fljax: {place}{error.strerror or error}. Nothing more was written.", file=sys.stderr)
        return _failed()
    except ValueError as error:
        from fljax.core.check import FljaxError  # not above: it imports JAX, which help does not need

        if not isinstance(error, FljaxError):
            raise
        print(f"fljax: {error}", file=sys.stderr)
        return _failed()


def _failed() -> int:
    """Exit code 2. One process of several ends here and now: waiting at exit for the others may have no end."""
    hosts = sys.modules.get("fljax.sim.hosts")
    if hosts is not None and hosts.several():
        from fljax.sim.waiting import leave

        leave(2)
    return 2


def _how_to_go_on(words: list[str]) -> str:
    """The command that continues where this one was stopped; what was kept is known to the file system."""
    import shlex

    if not words or words[0] not in ("run", "sweep", "worker"):
        return ""
    flag = ["--resume"] if words[0] == "run" and "--resume" not in words else []
    return f" Continue with: {shlex.join(['fljax', *words, *flag])}"
