"""Where the shards of a sweep run: here, in local processes, as jobs of Slurm, on a Ray cluster.

All of them start the same worker, which claims free shards in the results folder (``fljax/sweep/folder.py``). Nothing
is scheduled here: Slurm, Ray and Kubernetes do that. A worker that dies leaves its shard to the others, or to the next
start of the same command.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fljax.core.check import FljaxError, one_of, positive
from fljax.sim.build import build, load_data
from fljax.sim.engine import use_compilation_cache
from fljax.sim.interrupt import Interrupted, stop_requests
from fljax.sim.progress import Progress
from fljax.sweep.folder import finish, missing, run_here, stored_plan, work
from fljax.sweep.plan import Plan
from fljax.sweep.run import Kept, resolve_all

EXECUTORS = ("local", "slurm", "ray")
LOGS = ".slurm"
"""Folder of the jobs' logs, beside the shards: on a disk that all nodes share."""
POLL_S = 0.5
STOP_S = 60.0
"""Seconds that Ray's tasks have for their checkpoints, once they were told to stop."""


def check_executor(executor: str, workers: int, options: Sequence[str]) -> None:
    """Refuses an executor that is not there, before anything is written.

    Raises FljaxError in one line with the remedy: unknown, its package or its command is missing, a bad option.
    """
    one_of(EXECUTORS, executor=executor)
    positive(workers=workers)
    if options and executor == "local":
        raise FljaxError(f"Expected --option {options[0]} to go with --executor slurm or ray.")
    parse_options(options)
    if executor == "slurm":
        _need("submitit", "slurm")
        if shutil.which("sbatch") is None:
            raise FljaxError("Expected the command sbatch of Slurm on this machine, found none. Use --executor local.")
    if executor == "ray":
        _need("ray", "ray")
    if executor == "local" and workers > 1:
        # The parent looks at the devices and computes nothing on them: their memory is for the workers.
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"


def _need(package: str, extra: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise FljaxError(f"Expected the package {package} to be installed: `pip install 'fljax[{extra}]'`.")


def parse_options(options: Sequence[str]) -> dict[str, Any]:
    """``partition=gpu`` -> {"partition": "gpu"}; whole numbers become numbers."""
    parsed: dict[str, Any] = {}
    for option in options:
        name, found, value = option.partition("=")
        if not found or not name or not value:
            raise FljaxError(f"Expected --option {option} to be name=value, such as partition=gpu.")
        parsed[name] = int(value) if value.isdigit() else value
    return parsed


def run_missing(
    folder: Path,
    plan: Plan,
    executor: str = "local",
    workers: int = 1,
    options: Sequence[str] = (),
    quiet: bool = False,
    kept: Kept | None = None,
) -> None:
    """Does what is missing of a sweep, and returns when it is done.

    Args:
      folder: of the results, on a disk that all workers share. plan: of the sweep.
      executor: ``local``, ``slurm`` or ``ray``. workers: processes, jobs or tasks.
      options: of the cluster's jobs, as ``name=value``. quiet: no progress.
      kept: data and executables that a later call in this process can use.

    Raises:
      FljaxError: workers ended before all was done; the same call goes on. Interrupted: Ctrl-C or SIGTERM.
    """
    left = missing(folder, plan)
    if not left:
        return
    if executor == "local" and workers == 1:
        return run_here(folder, plan, quiet, kept)
    calibrate(plan, left)
    workers = min(workers, len(left))
    start = {"local": _local, "slurm": _slurm, "ray": _ray}[executor]
    _watch(folder, plan, start(folder, workers, parse_options(options)), quiet)


def calibrate(plan: Plan, shards: Sequence[str]) -> None:
    """Calibrates the noise of all trials once, into the cache on disk, so that the workers need not all do it."""
    batches = [plan.batch(shard) for shard in shards]
    for group, rate in dict.fromkeys((b.group, b.rate) for b in batches):
        experiments = [t.experiment for b in batches if (b.group, b.rate) == (group, rate) for t in b.trials]
        if any(e.privacy.epsilon is not None for e in experiments):
            resolve_all(experiments, build(experiments[0], load_data(experiments[0].data), rate))


class Started(NamedTuple):
    """Workers that were started.

    over: whether all have ended. failed: one line for every worker that ended badly. stop: ends them, so that they
    write checkpoints; or says why they go on.
    """

    over: Callable[[], bool]
    failed: Callable[[], list[str]]
    stop: Callable[[], str]


def _watch(folder: Path, plan: Plan, started: Started, quiet: bool) -> None:
    """Shows progress until all workers have ended."""
    total = len(plan.rows["trial"])

    def done() -> int:
        return total - sum(len(plan.shards[shard]) for shard in missing(folder, plan))

    with stop_requests(quiet) as check, Progress(total, plan.experiment.name, quiet, done()) as bar:
        try:
            while not started.over():
                check("")
                bar.update(done())
                time.sleep(POLL_S)
        except Interrupted as stop:
            said = started.stop()
            text = f"{str(stop).strip()}, {done()} of {total} trials are kept in {folder}{said}"
            raise Interrupted(text, stop.signal) from None
        bar.update(done())
    if left := missing(folder, plan):
        reasons = "; ".join(started.failed()) or "the workers ended without a word"
        raise FljaxError(
            f"Expected all shards to be done, {len(left)} of {len(plan.shards)} are left: {reasons}. "
            "The same command goes on."
        )


def work_in(folder: str) -> int:
    """One worker of many: claims, runs and keeps shards until there are none; returns how many."""
    use_compilation_cache()
    place = Path(folder)
    plan = stored_plan(place)
    done = work(place, plan, quiet=True, wait=True)
    finish(place, plan)
    return done


# ---- processes of this machine --------------------------------------------------------------------------------------


def _local(folder: Path, workers: int, options: dict[str, Any]) -> Started:
    """Processes, each with its share of the cores and, where there are accelerators, with one of them."""
    command = [sys.executable, "-m", "fljax", "worker", str(folder), "--wait", "--quiet"]
    shares = np.array_split(sorted(os.sched_getaffinity(0)), workers) if hasattr(os, "sched_getaffinity") else []
    processes = []
    for i in range(workers):
        environment = os.environ | pinned(i, workers, accelerators())
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        if len(shares) > i and len(shares[i]):
            os.sched_setaffinity(process.pid, set(shares[i].tolist()))
        processes.append(process)

    def failed() -> list[str]:
        codes = [(i, p.returncode) for i, p in enumerate(processes) if p.returncode]
        return [f"worker {i} ended " + (f"by signal {-c}" if c < 0 else f"with code {c}") for i, c in codes]

    def stop() -> str:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            process.wait()
        return ""

    return Started(lambda: all(p.poll() is not None for p in processes), failed, stop)


def accelerators() -> list[str]:
    """Names of the GPUs of this machine as CUDA_VISIBLE_DEVICES has them; none where JAX is told to use the CPU."""
    if os.environ.get("JAX_PLATFORMS", "").startswith("cpu"):
        return []
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in visible.split(",") if name]
    if shutil.which("nvidia-smi") is None:
        return []
    found = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False).stdout
    return [str(i) for i in range(found.count("GPU "))]


def pinned(index: int, workers: int, devices: Sequence[str]) -> dict[str, str]:
    """What a worker's environment says about its device: one of them, and its share of a memory that others use too."""
    if not devices:
        return {}
    sharing = -(-workers // len(devices))
    share = {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 / sharing:.2f}"} if sharing > 1 else {}
    return {
        "CUDA_VISIBLE_DEVICES": devices[index % len(devices)],
        "XLA_PYTHON_CLIENT_PREALLOCATE": "true",
        **share,
    }


# ---- Slurm ----------------------------------------------------------------------------------------------------------


class SlurmWorker(NamedTuple):
    """What a job of Slurm calls. When its time is over it is put into the queue again, and goes on."""

    folder: str

    def __call__(self, index: int) -> int:
        """One worker; the index tells the jobs of an array apart."""
        return work_in(self.folder)

    def checkpoint(self, index: int) -> Any:
        """Called before a job is stopped: what is to be called after it was queued again."""
        from submitit.helpers import DelayedSubmission  # pyrefly: ignore[missing-import]

        return DelayedSubmission(self, index)


def _slurm(folder: Path, workers: int, options: dict[str, Any]) -> Started:
    """An array of jobs, by submitit."""
    import submitit  # pyrefly: ignore[missing-import]

    executor = submitit.AutoExecutor(folder=(folder / LOGS).resolve(), cluster="slurm", slurm_max_num_timeout=100)
    common = {"name": "fljax", "slurm_array_parallelism": workers, "timeout_min": options.pop("time", 60)}
    own = {"mem_gb", "cpus_per_task", "gpus_per_node", "timeout_min", "nodes", "tasks_per_node"}
    try:
        executor.update_parameters(**common, **{k if k in own else f"slurm_{k}": v for k, v in options.items()})
        with contextlib.redirect_stderr(io.StringIO()):  # what sbatch complains of stands in the error
            jobs = executor.map_array(SlurmWorker(str(folder.resolve())), list(range(workers)))
    except (NameError, ValueError, TypeError, submitit.core.utils.FailedJobError) as error:
        reason = " ".join(str(error).split())
        raise FljaxError(f"Expected Slurm to take the jobs: {reason[:300]}. See --option.") from None

    def failed() -> list[str]:
        return [f"job {j.job_id} {j.state.lower()}, see {folder / LOGS}" for j in jobs if j.state != "COMPLETED"]

    ids = jobs[0].job_id.split("_")[0]
    return Started(
        lambda: all(job.done() for job in jobs),
        failed,
        lambda: f"; the jobs go on, `squeue` shows them and `scancel {ids}` ends them",
    )


# ---- Ray ------------------------------------------------------------------------------------------------------------


def _ray(folder: Path, workers: int, options: dict[str, Any]) -> Started:
    """Tasks on the Ray cluster of RAY_ADDRESS, or on one that is started here."""
    import ray  # pyrefly: ignore[missing-import]

    if not ray.is_initialized():
        with warnings.catch_warnings():
            # Ray starts its processes by fork and exec; JAX warns of a fork that goes on in Python.
            warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
            ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        task = ray.remote(work_in).options(max_retries=-1, **options)
    except (ValueError, TypeError) as error:
        raise FljaxError(f"Expected Ray to take the tasks: {' '.join(str(error).split())}. See --option.") from None
    tasks = [task.remote(str(folder.resolve())) for _ in range(workers)]

    def over() -> bool:
        return not ray.wait(tasks, num_returns=len(tasks), timeout=0)[1]

    def failed() -> list[str]:
        lines = []
        for i, reference in enumerate(tasks):
            try:
                ray.get(reference, timeout=0)
            except Exception as error:  # whatever the task raised, wrapped by Ray
                lines.append(f"task {i}: {' '.join(str(error).split())[-200:]}")
        return lines

    def stop() -> str:
        for reference in tasks:
            ray.cancel(reference)  # as by Ctrl-C: a checkpoint is written
        ray.wait(tasks, num_returns=len(tasks), timeout=STOP_S)
        return ""

    return Started(over, failed, stop)
