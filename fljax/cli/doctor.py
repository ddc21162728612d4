"""``fljax doctor``: what this installation has, what is missing, and where data and caches lie."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fljax.cli.shared import lines, print_json

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "dp-accounting", "pydantic", "tyro", "duckdb", "matplotlib")
NOT_SHOWN = ("cuda", "test", "docs")
"""Extras of developers, and one that shows in the devices."""
GIB = 2**30


@dataclass(frozen=True)
class Doctor:
    """Check this installation: versions, devices, memory, a compiled computation, data found, caches.

    Attributes:
      json: print one JSON object on stdout.
    """

    json: bool = False

    def execute(self) -> None:
        """Prints what this installation has, and what is missing."""
        from fljax.core.check import FljaxError

        checks = examine()
        print_json(checks) if self.json else print(lines(checks))
        if not checks["compiles"]:
            raise FljaxError("Expected a compiled product to be right. Reinstall jax and jaxlib in one version.")


def examine() -> dict[str, Any]:
    """All that ``fljax doctor`` tells, as JSON values; sizes in GiB."""
    import fljax
    from fljax.core.provenance import cpu_name

    return {
        "fljax": fljax.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": f"{cpu_name()}, {os.cpu_count()} cores",
        **_memory(),
        **_accelerators(),
        "versions": {name: _version(name) for name in PACKAGES},
        "extras": _extras(),
        "cache": _cache(),
        "data_dir": _data_dir(),
        "data": _data(),
    }


def _accelerators() -> dict[str, Any]:
    """The devices that JAX sees, their memory where they tell it, and whether one of them computes."""
    import jax
    import jax.numpy as jnp

    def told(device: Any) -> str:
        stats = device.memory_stats() or {}
        if "bytes_limit" not in stats:
            return f"{device.platform}: {device.device_kind}"
        used, limit = stats.get("bytes_in_use", 0) / GIB, stats["bytes_limit"] / GIB
        return f"{device.platform}: {device.device_kind}, {used:.1f} of {limit:.1f} GiB in use"

    product = jax.jit(lambda x: x @ x)(jnp.eye(64))
    return {
        "devices": [told(device) for device in jax.devices()],
        "compiles": bool(jnp.array_equal(product, jnp.eye(64))),
    }


def _memory() -> dict[str, Any]:
    """Main memory in GiB, where the system tells it."""
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return {}
    kib = {line.split(":")[0]: int(line.split()[1]) for line in text.splitlines() if line.split()[1:2]}
    return {
        "memory_gib": round(kib["MemTotal"] * 1024 / GIB, 1),
        "memory_free_gib": round(kib["MemAvailable"] * 1024 / GIB, 1),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _extras() -> dict[str, str]:
    """For every optional feature of the package: installed, or how to install it."""
    try:
        needs = importlib.metadata.requires("fljax") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    extras: dict[str, list[str]] = {}
    for need in needs:
        found = re.match(r"([\w.-]+).*extra == ['\"]([\w-]+)['\"]", need)
        if found and found[2] not in NOT_SHOWN:
            extras.setdefault(found[2], []).append(found[1])
    lacking = {name: [p for p in packages if _version(p) == "missing"] for name, packages in extras.items()}
    return {name: f'missing: pip install "fljax[{name}]"' if gone else "installed" for name, gone in lacking.items()}


def _cache() -> dict[str, Any]:
    """Where compiled programs and answers (of the accountant, of measurements) are kept, and what they take."""
    from fljax.core import answers

    root = answers.root()
    files = [path for path in root.rglob("*") if path.is_file()] if root.is_dir() else []
    existing = next(path for path in (root, *root.parents) if path.exists())
    return {
        "folder": str(root),
        "files": len(files),
        "size_gib": round(sum(path.stat().st_size for path in files) / GIB, 3),
        "disk_free_gib": round(shutil.disk_usage(existing).free / GIB, 1),
        "writable": os.access(existing, os.W_OK),
    }


def _data_dir() -> str:
    named = os.environ.get("FLJAX_DATA")
    if not named:
        return "FLJAX_DATA is not set; only digits and synthetic are at hand"
    return (
        named if os.path.isdir(named) else f"FLJAX_DATA={named} is not a folder; only digits and synthetic are at hand"
    )


def _data() -> dict[str, str]:
    """For every data set that is read from files under FLJAX_DATA: found, or what is missing; files are not read."""
    from fljax.data.registry import DATASETS, missing_files

    if not os.path.isdir(os.environ.get("FLJAX_DATA") or ""):
        return {}
    return {name: missing_files(name) or "found" for name, info in DATASETS.items() if info.files}
