"""Runs every simulator on one problem, in turn, each turn in a fresh process; the best setting of each.

A turn in a fresh process costs start-up time that is not counted. In return no simulator's idle threads or actors
disturb another, and a simulator that is fast in some processes and slow in others shows it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.vs import environments
from benchmarks.vs import problem as problems

ROOT = Path(__file__).parents[2]
LIMIT_S, PROBE_LIMIT_S = 600, 120
"""Seconds that a process may take, in a turn and while a setting is tried."""


class Length(NamedTuple):
    """Rounds of a turn: timed, before those, and in one call of fljax."""

    rounds: int
    warmup: int
    per_call: int


def settings(peer: str, model: str, cores: int, device: str) -> list[dict[str, Any]]:
    """The settings of a peer that are tried. On a CPU: every way to use one core or all of them."""
    layouts = [{"layout": "channels_last"}, {}] if model == "cnn" else [{}]
    if peer == "fljax":
        return [{"devices": 1}] if device != "cpu" or cores == 1 else [{"devices": 1}, {"devices": cores}]
    if peer == "jax":
        # XLA's own convolution inside of a loop takes minutes a round on a CPU: nobody would write that twice.
        looped = [] if device == "cpu" and model == "cnn" else [{"steps": "scan"}]
        return [*looped, {"steps": "calls"}]
    if peer == "fedjax":
        return [{"backend": "jit"}] + ([{"backend": "pmap", "devices": cores}] if device == "cpu" and cores > 1 else [])
    if device != "cpu":
        return [{"processes": 1, "threads": 1, **layout} for layout in layouts]
    if peer == "flower":
        return [{"threads": t, **layout} for t in sorted({1, cores}) for layout in layouts]
    ways = sorted({(1, 1), (1, cores), (cores, 1)})
    return [{"processes": p, "threads": t, **layout} for p, t in ways for layout in layouts]


def environment(setting: dict[str, Any], device: str) -> dict[str, str]:
    """Environment variables of a runner. Those of the caller that tune threads or devices are not inherited."""
    tuning = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "XLA_FLAGS", "JAX_NUM_CPU_DEVICES", "NPROC", "JAX_PLATFORMS")
    env = {k: v for k, v in os.environ.items() if k not in tuning}
    env |= {"PYTHONPATH": str(ROOT), "FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    env |= {"PFL_PYTORCH_DEVICE": device, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    env |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # a GPU has other processes beside a runner: ours, for one
    if device == "cpu":
        env |= {"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
    if "threads" in setting:
        env["OMP_NUM_THREADS"] = str(setting["threads"])
    count = setting.get("devices", 1)
    if count > 1 and "backend" in setting:  # the older JAX of FedJAX
        env["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={count}"
    elif count > 1:
        env |= {"JAX_NUM_CPU_DEVICES": str(count), "NPROC": str(max(16, 2 * count))}
    return env


class Runner:
    """Starts runners and reads what they write, in a folder of its own."""

    def __init__(self, device: str, folder: Path) -> None:
        self.device, self.folder = device, folder

    def run(
        self, peer: str, problem: Path, setting: dict[str, Any], rounds: int, warmup: int, limit_s: float = LIMIT_S
    ) -> dict[str, Any]:
        """One process of a peer: its result, with the final parameters under ``params``.

        Raises:
          RuntimeError: if it fails or takes too long; with what it said last.
        """
        out = self.folder / "result"
        command = [str(environments.python_of(peer))]
        if peer == "pfl" and setting.get("processes", 1) > 1:
            command += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={setting['processes']}"]
        command += ["-m", f"benchmarks.vs.{peer}.run", "--problem", str(problem), "--out", str(out)]
        command += ["--rounds", str(rounds), "--warmup", str(warmup), "--setting", json.dumps(setting)]
        env = environment(setting, self.device)
        if (
            peer in environments.OURS and self.device != "cpu"
        ):  # compiling is not timed, and long on a GPU: once is enough
            env["JAX_COMPILATION_CACHE_DIR"] = str(self.folder / "xla")
        for ending in (".json", ".npz"):
            out.with_suffix(ending).unlink(missing_ok=True)
        log = self.folder / "log"
        with log.open("w") as file:
            process = subprocess.Popen(
                [*command, "--device", self.device], cwd=ROOT, env=env, stdout=file, stderr=file, start_new_session=True
            )
            try:
                code = process.wait(limit_s)
            except subprocess.TimeoutExpired:
                code = f"no end after {limit_s} s"
            finally:
                _end_group(process)
        if code or not out.with_suffix(".json").exists():
            raise RuntimeError(f"{peer} {setting} failed ({code}): {_reason(log.read_text())}")
        result = json.loads(out.with_suffix(".json").read_text())
        with np.load(out.with_suffix(".npz")) as file:
            return result | {"params": dict(file)}


def _reason(log: str) -> str:
    """The last line that names an error, or the last one of all."""
    lines = [line.strip() for line in log.splitlines() if line.strip()] or ["no message"]
    named = [line for line in lines if "Error: " in line] or lines
    return named[-1][:300]


def _end_group(process: subprocess.Popen) -> None:
    """Ends what a runner has left behind: its own processes and those that they started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def choose(runner: Runner, peer: str, path: Path, tried: list[dict], length: Length) -> list[dict[str, Any]]:
    """Each setting once: [{setting, seconds or error}], the fastest first."""
    rows = []
    for setting in tried:
        try:
            rounds = -(-length.rounds // 3)
            seconds = runner.run(peer, path, setting, rounds, length.warmup, PROBE_LIMIT_S)["seconds"]
            rows.append({"setting": setting, "seconds": float(np.median(seconds))})
        except RuntimeError as error:
            rows.append({"setting": setting, "seconds": float("inf"), "error": str(error)})
    return sorted(rows, key=lambda row: row["seconds"])


def change(problem: problems.Problem, params: dict[str, np.ndarray]) -> np.ndarray:
    """How far the parameters moved, as one vector."""
    return np.concatenate([np.ravel(params[name] - problem.params[name]) for name in sorted(problem.params)])


def compare(
    problem: problems.Problem,
    peers: list[str],
    length: Length,
    turns: int,
    device: str,
    build: bool = True,
    tell: Callable[[dict[str, Any], str], None] = lambda result, line: None,
) -> dict[str, Any]:
    """Per peer: settings tried, best setting, median seconds of each turn, versions, and the check of its arithmetic.

    ``difference`` is the distance between the changes of the parameters by the peer and by fljax, relative to the
    latter, after two rounds of ``problem.checkable``. ``over_fljax`` is the median over turns of the ratio in a turn.
    A peer that cannot be built or run has ``error`` only.

    Args:
      build: False reports peers without an environment instead of building it.
      tell: is given the result so far, and a line about it, when a peer's settings are tried and after every turn.
    """
    cores = os.cpu_count() or 1
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        runner, path, small = Runner(device, Path(name)), Path(name) / "problem.npz", Path(name) / "check.npz"
        problems.save(path, problem)
        check = problems.checkable(problem, min(4, len(problem.x)))
        problems.save(small, check)
        moved = None
        for peer in peers:
            tried = settings(peer, problem.model, cores, device)
            if peer == "fljax":
                tried = [setting | {"rounds_per_call": length.per_call} for setting in tried]
            try:
                environments.python_of(peer, build)
                rows = choose(runner, peer, path, tried, length)
                best = rows[0]["setting"]
                own = change(check, runner.run(peer, small, best | {"rounds_per_call": 1}, 2, 1)["params"])
            except RuntimeError as error:
                result[peer] = {"error": str(error)}
                tell(result, f"  {peer}: {error}")
                continue
            moved = own if peer == "fljax" else moved
            result[peer] = {"setting": best, "settings_tried": rows, "turns": []}
            if moved is not None:
                result[peer]["difference"] = float(np.linalg.norm(own - moved) / np.linalg.norm(moved))
            tell(result, "\n".join(f"  {peer} {row['setting']}: {_told(row)}" for row in rows))
        fit = [peer for peer in result if "error" not in result[peer]]
        for turn in range(turns):
            _take_turn(runner, path, result, fit, length)
            seen = ", ".join(f"{peer} {result[peer]['turns'][-1]:.4f}" for peer in fit)
            tell(result, f"  turn {turn + 1} of {turns}: {seen}")
    return result


def _take_turn(runner: Runner, path: Path, result: dict[str, Any], fit: list[str], length: Length) -> None:
    """Every peer once; renews medians, ratios and versions in the result. A peer that fails leaves ``fit``."""
    for peer in list(fit):
        try:
            done = runner.run(peer, path, result[peer]["setting"], length.rounds, length.warmup)
        except RuntimeError as error:
            fit.remove(peer)
            result[peer]["error"] = str(error)
            continue
        done.pop("params")
        result[peer]["turns"].append(float(np.median(done.pop("seconds"))))
        result[peer] |= done
    for peer in fit:
        seconds = np.array(result[peer]["turns"])
        result[peer] |= {
            "steady_s_per_round": float(np.median(seconds)),
            "fastest_s_per_round": float(seconds.min()),
            "slowest_s_per_round": float(seconds.max()),
        }
        if "fljax" in fit:
            result[peer]["over_fljax"] = float(np.median(seconds / np.array(result["fljax"]["turns"])))


def _told(row: dict[str, Any]) -> str:
    return row.get("error") or f"{row['seconds']:.4f} s a round"
