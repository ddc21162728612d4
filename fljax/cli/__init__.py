"""The command line: ``fljax run | sweep | audit | report | privacy | list | doctor``.

Results go to stdout, everything else to stderr. A mistake of the user is one line and exit code 2, without traceback.
"""

from __future__ import annotations

import sys


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    from fljax.cli.commands import dispatch
    from fljax.core.check import FljaxError

    try:
        return dispatch(sys.argv[1:] if arguments is None else arguments)
    except FljaxError as error:
        print(f"fljax: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("fljax: interrupted; a run continues with --resume from its last checkpoint", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0
