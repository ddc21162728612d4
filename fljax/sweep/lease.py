"""Leases: which worker does which shard. Files in the results folder, no server and no locks.

A worker that wants shard S creates ``.claims/S.<g>`` for the next free generation g. Creation is exclusive: the content
is written under a name of its own and linked to the final name, which fails if somebody was faster, on local disks and
on NFS alike. The file of the highest generation is the lease in force. Its owner touches it four times a lease; a
lease that was not touched for a whole one has expired, and so has one whose process on this very machine is gone.
Generation g + 1 may be created only then, so that an expired lease has one heir.

Time is the file server's own (a file that was just touched against the lease), so that clocks need not agree. A worker
that was stopped for longer than a lease may do a shard that somebody else does too; only one of the two can keep it
(see fljax/sweep/shards.py), and their results are the same bits.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fljax.sweep.files import writing

CLAIMS = ".claims"
LEASE_S = 120.0
"""Seconds without a touch after which a lease has expired; a worker on the machine of a dead one need not wait."""


def identity() -> dict[str, Any]:
    """What tells this process from all others: machine, boot, process namespace, number and start."""
    pid = os.getpid()
    return {"host": socket.gethostname(), "place": _place(), "pid": pid, "start": _start(pid)}


def _place() -> str:
    """This boot of this machine, and the namespace that numbers its processes; empty where the system does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _start(pid: int) -> str:
    """When a process started, in the system's ticks; empty if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return ""


def _gone(owner: Any) -> bool:
    """True if the owner ran on this machine and does no longer; False where that cannot be known."""
    if not isinstance(owner, dict) or not owner.get("place") or owner["place"] != _place():
        return False
    return _start(int(owner.get("pid", 0))) != owner.get("start")


@contextmanager
def claimed(folder: Path, shard: str, lease: float | None = None) -> Iterator[bool]:
    """Tries to become the one who does a shard; the lease is kept alive until the block ends, and given up then.

    Args:
      folder: of the results. shard: its id. lease: seconds (default LEASE_S).
    Yields:
      True, or False where somebody else is at it.
    """
    lease = LEASE_S if lease is None else lease
    text = json.dumps(identity() | {"claim": uuid.uuid4().hex})
    path = _claim(folder / CLAIMS, shard, lease, text)
    if path is None:
        yield False
        return
    stop = threading.Event()
    beat = threading.Thread(target=_keep_alive, args=(path, text, stop, lease / 4), daemon=True)
    beat.start()
    try:
        yield True
    finally:
        stop.set()
        beat.join()
        if _is(path, text):
            path.unlink(missing_ok=True)


def is_claimed(folder: Path, shard: str, lease: float | None = None) -> bool:
    """Whether somebody is doing a shard now."""
    _, newest = _newest(folder / CLAIMS, shard)
    return newest is not None and not _expired(newest, LEASE_S if lease is None else lease)


def _claim(claims: Path, shard: str, lease: float, text: str) -> Path | None:
    """The lease that was created and says ``text``, or None where one is in force."""
    with writing(claims.parent):
        claims.mkdir(parents=True, exist_ok=True)
        generation, newest = _newest(claims, shard)
        if newest is not None and not _expired(newest, lease):
            return None
        path, own = claims / f"{shard}.{generation + 1}", claims / f".{uuid.uuid4().hex}"
        try:
            own.write_text(text)
            os.link(own, path)
        except FileExistsError:
            return None
        finally:
            own.unlink(missing_ok=True)
    if newest is not None:
        newest.unlink(missing_ok=True)  # an heir's own generation is the higher one: nobody looks at this any more
    return path


def _newest(claims: Path, shard: str) -> tuple[int, Path | None]:
    """(generation, file) of the lease in force or expired; (-1, None) where there is none."""
    found = [(int(p.suffix[1:]), p) for p in claims.glob(f"{shard}.*") if p.suffix[1:].isdigit()]
    return max(found, default=(-1, None))


def _expired(path: Path, lease: float) -> bool:
    """Whether a lease's owner is gone, or did not touch it for a whole lease."""
    try:
        text, touched = path.read_text(), path.stat().st_mtime
    except OSError:  # given up in this moment: the next attempt sees it
        return False
    with contextlib.suppress(ValueError):
        if _gone(json.loads(text)):
            return True
    clock = path.with_name(f".{uuid.uuid4().hex}")
    try:
        clock.touch()
        return clock.stat().st_mtime - touched > lease
    except OSError:
        return False
    finally:
        clock.unlink(missing_ok=True)


def _is(path: Path, text: str) -> bool:
    """Whether a lease is still the one that says so: it may have had an heir."""
    try:
        return path.read_text() == text
    except OSError:
        return False


def _keep_alive(path: Path, text: str, stop: threading.Event, every: float) -> None:
    while not stop.wait(every):
        with contextlib.suppress(OSError):  # the server is away: what counts is the commit
            if _is(path, text):
                os.utime(path)
