"""One virtual environment for each simulator: they conflict with ours and with each other.

They lie in ``$FLJAX_CACHE/bench/<peer>``, by default ``~/.cache/fljax/bench/<peer>``, and are built from
``benchmarks/vs/<peer>/requirements.txt`` where they are missing or older than that file.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PEERS = ("fljax", "pytorch", "pfl", "fedjax", "flower")


def folder(peer: str) -> Path:
    """Where the environment of a peer lies."""
    return Path(os.environ.get("FLJAX_CACHE") or Path.home() / ".cache" / "fljax") / "bench" / peer


def python_of(peer: str) -> Path:
    """The interpreter that runs a peer, built first where it is missing. fljax runs in the one that we are in.

    ``$FLJAX_BENCH_<PEER>`` may name another interpreter that has the simulator, such as one with PyTorch for a GPU.

    Raises:
      RuntimeError: if the environment cannot be built; with pip's last line.
    """
    named = os.environ.get(f"FLJAX_BENCH_{peer.upper()}")
    if named or peer == "fljax":
        return Path(named or sys.executable)
    where, requirements = folder(peer), HERE / peer / "requirements.txt"
    stamp, wanted = where / "requirements.sha256", hashlib.sha256(requirements.read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"building the environment of {peer} in {where}", file=sys.stderr)
        shutil.rmtree(where, ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(where)], peer)
        pip = [str(where / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _run([*pip, "-r", str(requirements)], peer)
        stamp.write_text(wanted)
    return where / "bin/python"


def _run(command: list[str], peer: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        raise RuntimeError(f"Expected to build the environment of {peer}: {lines[-1]}")
