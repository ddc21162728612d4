"""One virtual environment for each simulator: they conflict with ours and with each other.

They lie in ``$FLJAX_CACHE/bench/<peer>``, by default ``~/.cache/fljax/bench/<peer>``, and are built from
``benchmarks/vs/<peer>/requirements.txt`` where they are missing or older than that file. pip obeys its own variables:
``PIP_NO_INDEX=1 PIP_FIND_LINKS=/wheels`` builds them from a folder of wheels, without a network.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
PEERS = ("fljax", "jax", "pytorch", "pfl", "fedjax", "flower")
OURS = ("fljax", "jax")
"""Those that run in the environment that we are in."""
PYTORCH = ("pytorch", "pfl", "flower")
"""Those that compute in PyTorch."""


def folder(peer: str) -> Path:
    """Where the environment of a peer lies."""
    return Path(os.environ.get("FLJAX_CACHE") or Path.home() / ".cache" / "fljax") / "bench" / peer


def python_of(peer: str, build: bool = True) -> Path:
    """The interpreter that runs a peer, built first where it is missing. ``OURS`` run in the one that we are in.

    ``$FLJAX_BENCH_<PEER>`` may name another interpreter that has the simulator, such as one with PyTorch for a GPU.

    Args:
      build: False never builds.

    Raises:
      RuntimeError: if the environment cannot be built, with pip's last line; or is absent where nothing is built.
    """
    named = os.environ.get(f"FLJAX_BENCH_{peer.upper()}")
    if named or peer in OURS:
        return Path(named or sys.executable)
    where, requirements = folder(peer), HERE / peer / "requirements.txt"
    stamp, wanted = where / "requirements.sha256", hashlib.sha256(requirements.read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text() != wanted:
        if not build:
            raise RuntimeError(
                f"Expected an environment of {peer} in {where}, found none that fits its requirements. Build it by "
                f"`python -m benchmarks.vs --prepare --peers {peer}`, or name an interpreter that has it in "
                f"FLJAX_BENCH_{peer.upper()}."
            )
        print(f"building the environment of {peer} in {where}", file=sys.stderr)
        shutil.rmtree(where, ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(where)], peer)
        pip = [str(where / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _run([*pip, "-r", str(requirements)], peer)
        stamp.write_text(wanted)
    return where / "bin/python"


def prepared(peer: str, device: str) -> Path:
    """The interpreter of a peer, built where it is missing, after its runner was imported there.

    Raises:
      RuntimeError: if it cannot be built, or its runner cannot be imported, or its PyTorch does not see the GPU that is
        asked for (device ``cuda``); with the last line of what was said.
    """
    python, code = python_of(peer), f"import benchmarks.vs.{peer}.run"
    if device == "cuda" and peer in PYTORCH:
        code += "; import torch; torch.zeros(1, device='cuda')"
    try:
        _run([str(python), "-c", code], peer)
    except RuntimeError as error:
        remedy = f"Name another interpreter than {python} in FLJAX_BENCH_{peer.upper()}, or remove {folder(peer)}."
        raise RuntimeError(f"{error}. {remedy}") from None
    return python


def prepare(peers: Sequence[str], device: str) -> bool:
    """Builds the environments of these peers, tries them, and prints a line of each. False where one failed."""
    good = True
    for peer in peers:
        try:
            print(f"{peer:10s} ready: {prepared(peer, device)}", flush=True)
        except RuntimeError as error:
            good = False
            print(f"{peer:10s} {error}", flush=True)
    return good


def _run(command: list[str], peer: str) -> None:
    env = os.environ | {"PYTHONPATH": str(HERE.parents[1])}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        raise RuntimeError(f"Expected an environment in which {peer} runs: {lines[-1]}")
