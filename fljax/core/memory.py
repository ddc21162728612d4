"""Memory before it is used: what a compiled program will need, what is free, and the largest chunk that fits.

The compiler knows the peak of a program before it runs. It grows with the clients (or trials) that are computed at
once, so that a batch that is too large can be made smaller instead of failing in the middle of a run.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from fljax.core.check import FljaxError
from fljax.core.types import PyTree

GIB, MIB = 2**30, 2**20
SHARE = 0.9
"""Share of the free memory that a program may plan with; the rest is for the host and for fragmentation."""
CGROUP, MEMINFO = Path("/sys/fs/cgroup"), Path("/proc/meminfo")


class Need(NamedTuple):
    """Bytes of a compiled program. arguments: what it is given (data, states). more: on top of them while it runs."""

    arguments: int
    more: int


def needed(executable: Any) -> Need:
    """What a compiled program needs, by the compiler's own account; donated arguments serve as outputs."""
    stats = executable.memory_analysis()
    outputs = stats.output_size_in_bytes - stats.alias_size_in_bytes
    return Need(stats.argument_size_in_bytes, stats.temp_size_in_bytes + max(0, outputs))


def size_of(tree: PyTree) -> int:
    """Bytes of a tree of arrays or of ShapeDtypeStructs."""
    shapes = jax.eval_shape(lambda: jax.tree.map(_plain, tree)) if _has_keys(tree) else tree
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))


def _has_keys(tree: PyTree) -> bool:
    return any(jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) for x in jax.tree.leaves(tree))


def _plain(x: Any) -> Any:
    return jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x


def free() -> int | None:
    """Bytes that are free now on the (first) device of the computation; None where nobody tells."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"]) - int(stats.get("bytes_in_use", 0))
    return free_on_host()


def free_on_host() -> int | None:
    """The least of what the kernel holds available and what the control group of the process has left, in bytes."""
    known = [n for n in (_available(), _left_in_group()) if n is not None]
    return min(known) if known else None


def _available() -> int | None:
    try:
        lines = MEMINFO.read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024 * int(found[0]) if found else None


def _left_in_group() -> int | None:
    try:
        most, used = ((CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return None
    return None if most == "max" else int(most) - int(used)


def fit(
    compile_at: Callable[[int], Any], size: int, fixed: bool, limit: int | None, field: str, each: int = 0
) -> tuple[Any, int]:
    """Compiles a program at the largest batch that fits.

    Args:
      compile_at: (clients or trials at once) -> executable.
      size: the batch to begin with. fixed: it was asked for, so that it is refused and not made smaller.
      limit: free bytes, or None for no check.
      field: its name, for the message.
      each: bytes that one of the batch needs at least, so that what cannot fit is not even compiled.

    Returns:
      (executable, the batch that it is for).

    Raises:
      FljaxError: the asked batch does not fit (the message names one that does), or not even one at a time.
    """
    if limit is not None and size * each > SHARE * limit:
        most = max(1, int(SHARE * limit / each))
        if fixed and size > most:
            check_room(f"{field}={size}", size * each, limit, f"Use {field}={most} or less.")
        size = most
    while True:
        executable = compile_at(size)
        need = needed(executable)
        if limit is None or need.more <= SHARE * limit:
            return executable, size
        smaller = max(1, min(size - 1, int(size * SHARE * limit / need.more)))  # if all of it grows with the batch
        told = f"{said(need.more)} are needed beside its data, {said(limit)} are free"
        if size == 1:
            raise FljaxError(f"Expected {field}={size} to fit into memory: {told}. Use a smaller model or batch.")
        if fixed:
            fits = fit(compile_at, smaller, False, limit, field)[1]
            raise FljaxError(f"Expected {field}={size} to fit into memory: {told}. Use {field}={fits}.")
        size = smaller


def check_room(what: str, size: int, limit: int | None, remedy: str) -> None:
    """Raises FljaxError unless arrays of so many bytes fit; to be asked before they are made."""
    if limit is not None and size > SHARE * limit:
        told = f"{said(size)} are needed at least, {said(limit)} are free"
        raise FljaxError(f"Expected {what} to fit into memory: {told}. {remedy}")


def said(size: int) -> str:
    """Bytes as text: 1.5 GiB, 300 MiB."""
    return f"{size / GIB:.3g} GiB" if size >= GIB / 2 else f"{size / MIB:.3g} MiB"
