"""Commands and executors of sweeps: what is missing is said first; several processes; kills; a real cluster."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_sweep import experiment, fake_runner

from fljax.cli import main
from fljax.config import load
from fljax.core.check import FljaxError
from fljax.sweep import executors
from fljax.sweep import folder as sweep_folder
from fljax.sweep.executors import accelerators, check_executor, parse_options, pinned
from fljax.sweep.folder import begin, sweep_into
from fljax.sweep.store import open_results

FILE = """
rounds = {rounds}
eval_every = 5
[data]
name = "synthetic"
clients = 6
[model]
name = "logistic"
[client]
steps = 1
batch_size = 4
[sampler]
rate = 0.5
[privacy]
mechanism = "central_gaussian"
noise_multiplier = 1.0
clip = 0.5
[perf]
trials_per_batch = 4
rounds_per_call = 20
[sweep]
seeds = 4
[sweep.grid]
"client.lr" = [0.05, 0.1, 0.2, 0.4]
"privacy.clip" = [0.25, 0.5]
"""


def write_file(folder: Path, rounds: int) -> str:
    path = folder / "eight_shards.toml"
    path.write_text(FILE.format(rounds=rounds))
    return str(path)


def fljax(*words, **options) -> subprocess.Popen:
    """The command line in a process of its own."""
    command = [sys.executable, "-m", "fljax", *map(str, words)]
    return subprocess.Popen(command, **{"stdout": subprocess.DEVNULL, **options})


def table(out: Path) -> dict[str, bytes]:
    results = open_results(out)
    assert results.missing == 0
    assert not len(results.sql("select trial_id from trials group by 1 having count(*) > 1")["trial_id"])
    return {name: column.tobytes() for name, column in results.trials.items()}


def call(capsys, *words):
    code = main([str(w) for w in words])
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """The folder of a sweep whose trials cost nothing."""
    monkeypatch.setattr(sweep_folder, "make_runner", fake_runner())
    sweep_into(tmp_path / "out", experiment(), quiet=True)
    return tmp_path / "out"


def test_query_prints_a_table_json_and_csv(capsys, finished):
    sql = 'select "client.lr", avg(test_accuracy) as mean from trials group by 1 order by 1'
    code, out, _ = call(capsys, "query", finished, sql, "--json")
    assert code == 0
    assert json.loads(out) == {
        "columns": ["client.lr", "mean"],
        "rows": [[0.1, 0.1005], [0.3, 0.3005]],
        "missing_trials": 0,
    }
    code, out, _ = call(capsys, "query", finished, sql, "--csv")
    assert out == "client.lr,mean\n0.1,0.1005\n0.3,0.3005\n"
    code, out, _ = call(capsys, "query", finished, "select trial from trials order by 1", "--rows", "3")
    assert code == 0 and "5 more rows" in out
    code, out, err = call(capsys, "query", finished, "select nothing from trials")
    assert code == 2 and out == "" and err.count("\n") == 1 and "nothing" in err


def test_a_worker_needs_a_sweep(capsys, tmp_path, finished):
    code, _, err = call(capsys, "worker", tmp_path / "nowhere")
    assert code == 2 and err.count("\n") == 1 and "fljax sweep" in err
    code, out, _ = call(capsys, "worker", finished)
    assert code == 0 and "0 shards done here, 0 of 3 left" in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--executor", "slurm"], "sbatch"),
        (["--executor", "ray"], "fljax[ray]"),
        (["--workers", "0"], "workers=0"),
        (["--option", "partition=gpu"], "--executor slurm"),
        (["--executor", "slurm", "--option", "partition"], "name=value"),
        (["--where", "x"], "--where"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_written(capsys, tmp_path, monkeypatch, words, says):
    monkeypatch.setattr(executors.shutil, "which", lambda name: None)
    real = executors.importlib.util.find_spec
    monkeypatch.setattr(executors.importlib.util, "find_spec", lambda name: None if name == "ray" else real(name))
    out = tmp_path / "out"
    code, text, err = call(capsys, "sweep", write_file(tmp_path, 5), "--out", out, *words)
    assert code == 2 and text == "" and err.count("\n") == 1 and says in err
    assert not out.exists()


def test_options_are_names_and_values():
    assert parse_options(["partition=gpu", "time=90", "mem=16G"]) == {"partition": "gpu", "time": 90, "mem": "16G"}
    with pytest.raises(FljaxError, match="executor='slrum'"):
        check_executor("slrum", 1, [])


def test_workers_get_devices_in_turn_and_share_their_memory(monkeypatch):
    assert pinned(3, 4, []) == {}
    devices = [pinned(i, 4, ["0", "1"]) for i in range(4)]
    assert [d["CUDA_VISIBLE_DEVICES"] for d in devices] == ["0", "1", "0", "1"]
    assert {d["XLA_PYTHON_CLIENT_MEM_FRACTION"] for d in devices} == {"0.45"}
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION" not in pinned(1, 2, ["0", "1"])
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert accelerators() == ["2", "5"]
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert accelerators() == []


@pytest.mark.slow
def test_a_worker_does_what_a_killed_one_left(tmp_path):
    """Two real workers, the first killed with -9 in its work: the second does the rest, and all of it once."""
    out = tmp_path / "out"
    plan = begin(out, load(write_file(tmp_path, 400)))
    first = fljax("worker", out, "--quiet")
    while not list(out.glob("shards/*/shard.json")):
        assert first.poll() is None
        time.sleep(0.02)
    second = fljax("worker", out, "--quiet", "--wait")
    os.kill(first.pid, signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL, "the sweep was over before it was killed"
    assert second.wait() == 0
    assert len(plan.shards) == 8 and open_results(out).manifest["state"] == "complete"
    table(out)


@pytest.mark.slow
def test_three_kills_at_random_moments_change_no_bit(tmp_path):
    """kill -9 of the whole sweep three times; the same command each time; the table of one that was never touched."""
    file, rng = write_file(tmp_path, 2000), random.Random(1)
    words = ["--out", tmp_path / "cut", "--quiet"]
    assert fljax("sweep", file, "--out", tmp_path / "whole", "--quiet").wait() == 0
    kills = 0
    while kills < 3:
        process = fljax("sweep", file, *words)
        try:
            process.wait(timeout=rng.uniform(4, 9))
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
    assert fljax("sweep", file, *words).wait() == 0
    assert kills > 0 and table(tmp_path / "cut") == table(tmp_path / "whole")


@pytest.mark.slow
def test_two_local_workers_make_the_same_table(tmp_path):
    file = write_file(tmp_path, 200)
    assert fljax("sweep", file, "--out", tmp_path / "one", "--quiet").wait() == 0
    assert fljax("sweep", file, "--out", tmp_path / "two", "--quiet", "--workers", "2").wait() == 0
    assert table(tmp_path / "one") == table(tmp_path / "two")
    processes = {info["provenance"]["command"] for info in open_results(tmp_path / "two").shards.values()}
    assert all("worker" in command for command in processes)


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["slurm", "ray"])
def test_a_cluster_makes_the_same_table(tmp_path, executor):
    """On a real Slurm (of one node is enough), on a Ray that is started here."""
    if executor == "slurm" and (shutil.which("sbatch") is None or subprocess.run(["sinfo"], check=False).returncode):
        pytest.skip("no Slurm answers here: see experiments/cluster/README.md for one of a single node")
    if executor == "ray":
        pytest.importorskip("ray")
    file = write_file(tmp_path, 200)
    assert fljax("sweep", file, "--out", tmp_path / "one", "--quiet").wait() == 0
    words = ["--executor", executor, "--workers", "2", "--out", tmp_path / "two", "--quiet"]
    assert fljax("sweep", file, *words).wait() == 0
    assert table(tmp_path / "one") == table(tmp_path / "two")
