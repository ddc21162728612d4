"""The comparison with other simulators: the task that they get, and that fljax's runner does its arithmetic."""

import json
import subprocess
import sys

import numpy as np
import pytest

from benchmarks.vs import compare, environments
from benchmarks.vs import problem as problems
from benchmarks.vs.__main__ import make_problem, table
from benchmarks.vs.fljax import run


@pytest.fixture(scope="module")
def task() -> problems.Problem:
    return make_problem("tiny_mlp", clients=5, cohort=3)


def reference(problem: problems.Problem, rounds: int) -> dict[str, np.ndarray]:
    """FedAvg of a two-layer perceptron in float64, gradients by hand, all clients in order, no shuffling."""
    server = {name: value.astype(np.float64) for name, value in problem.params.items()}
    for _ in range(rounds):
        total = {name: np.zeros_like(value) for name, value in server.items()}
        for x, y in zip(problem.x.astype(np.float64), problem.y, strict=True):
            own = dict(server)
            for i in range(0, len(x), problem.batch):
                a, b = x[i : i + problem.batch], y[i : i + problem.batch]
                hidden = np.maximum(a @ own["dense_0/kernel"] + own["dense_0/bias"], 0)
                scores = hidden @ own["dense_1/kernel"] + own["dense_1/bias"]
                shares = np.exp(scores - scores.max(1, keepdims=True))
                back = (shares / shares.sum(1, keepdims=True) - np.eye(10)[b]) / len(b)
                inner = (back @ own["dense_1/kernel"].T) * (hidden > 0)
                grads = {"dense_1/kernel": hidden.T @ back, "dense_1/bias": back.sum(0)}
                grads |= {"dense_0/kernel": a.T @ inner, "dense_0/bias": inner.sum(0)}
                own = {name: own[name] - problem.lr * grads[name] for name in own}
            total = {name: total[name] + own[name] - server[name] for name in server}
        server = {name: server[name] + total[name] / len(problem.x) for name in server}
    return server


def ran(monkeypatch, tmp_path, problem: problems.Problem, rounds: int, warmup: int) -> dict:
    """What fljax's runner writes."""
    problems.save(tmp_path / "p.npz", problem)
    flags = ["--problem", str(tmp_path / "p.npz"), "--out", str(tmp_path / "o")]
    monkeypatch.setattr(sys, "argv", ["run", *flags, "--rounds", str(rounds), "--warmup", str(warmup)])
    run.main()
    with np.load(tmp_path / "o.npz") as file:
        return json.loads((tmp_path / "o.json").read_text()) | {"params": dict(file)}


def test_runner_does_the_arithmetic_of_the_reference(task, monkeypatch, tmp_path):
    monkeypatch.setattr("benchmarks.programs.peak_size", lambda: 64)
    check = problems.checkable(task, 3)
    found = ran(monkeypatch, tmp_path, check, rounds=2, warmup=1)
    wanted = compare.change(check, reference(check, 3))
    assert len(found["seconds"]) == 2
    assert np.linalg.norm(compare.change(check, found["params"]) - wanted) < 1e-5 * np.linalg.norm(wanted)


@pytest.mark.parametrize("steps", ["scan", pytest.param("calls", marks=pytest.mark.slow)])
def test_loop_in_plain_jax_does_the_arithmetic_of_the_reference(task, tmp_path, monkeypatch, steps):
    monkeypatch.delenv("JAX_NUMPY_RANK_PROMOTION")  # plain code broadcasts
    check = problems.checkable(task, 3)
    problems.save(tmp_path / "p.npz", check)
    found = compare.Runner("cpu", tmp_path).run("jax", tmp_path / "p.npz", {"steps": steps}, 2, 1)
    wanted = compare.change(check, reference(check, 3))
    assert len(found["seconds"]) == 2
    assert np.linalg.norm(compare.change(check, found["params"]) - wanted) < 1e-5 * np.linalg.norm(wanted)


def test_reference_tells_a_wrong_learning_rate_and_a_lost_client_apart(task):
    check = problems.checkable(task, 3)
    wanted = compare.change(check, reference(check, 1))
    for wrong in (check._replace(lr=0.101), check._replace(x=check.x[:2], y=check.y[:2]), check._replace(batch=20)):
        assert np.linalg.norm(compare.change(check, reference(wrong, 1)) - wanted) > 1e-3 * np.linalg.norm(wanted)


def test_checkable_does_not_depend_on_the_order_of_examples(task):
    check = problems.checkable(task, 3)
    assert check.cohort == len(check.x) == 3
    assert (check.x == check.x[:, ::-1]).all() and (check.y == check.y[:, :1]).all()
    assert not (check.x[0] == check.x[1]).all()


def test_problem_survives_the_file(task, tmp_path):
    problems.save(tmp_path / "p.npz", task)
    back = problems.load(tmp_path / "p.npz")
    assert back._replace(x=0, y=0, params=0) == task._replace(x=0, y=0, params=0)
    np.testing.assert_array_equal(back.x, task.x)
    assert back.params.keys() == task.params.keys()


@pytest.mark.parametrize("peer", sorted(set(environments.PEERS) - {"jax"}))  # whose one device has all cores
def test_every_peer_is_tried_with_one_core_and_with_all(peer):
    used = [
        s.get("devices", 1) * s.get("processes", 1) * s.get("threads", 1)
        for s in compare.settings(peer, "mlp", 8, "cpu")
    ]
    assert min(used) == 1 and max(used) == 8
    env = compare.environment({"threads": 3}, "cpu")
    assert env["OMP_NUM_THREADS"] == "3" and "XLA_FLAGS" not in env


def test_the_jax_loop_convolves_outside_of_a_scan_on_a_cpu():
    assert compare.settings("jax", "cnn", 2, "cpu") == [{"steps": "calls"}]
    for model, device in (("mlp", "cpu"), ("cnn", "cuda")):
        assert [s["steps"] for s in compare.settings("jax", model, 2, device)] == ["scan", "calls"]


def test_requirements_name_versions_and_no_registry():
    for peer in set(environments.PEERS) - set(environments.OURS):
        lines = (environments.HERE / peer / "requirements.txt").read_text().splitlines()
        packages = [line for line in lines if not line.startswith("#")]
        assert packages and all("==" in line and "://" not in line for line in packages)


def test_a_runner_that_fails_says_why(task, tmp_path, monkeypatch):
    problems.save(tmp_path / "p.npz", task)
    monkeypatch.setenv("FLJAX_BENCH_PYTORCH", sys.executable)  # an interpreter without PyTorch, or with it
    if subprocess.run([sys.executable, "-c", "import torch"], capture_output=True, check=False).returncode == 0:
        pytest.skip("PyTorch is installed here")
    with pytest.raises(RuntimeError, match=r"pytorch .* failed \(1\): ModuleNotFoundError: No module named 'torch'"):
        compare.Runner("cpu", tmp_path).run("pytorch", tmp_path / "p.npz", {"threads": 1}, 1, 1)


def test_a_peer_without_environment_is_absent_in_a_line(task, tmp_path, monkeypatch):
    monkeypatch.setenv("FLJAX_CACHE", str(tmp_path))
    monkeypatch.delenv("FLJAX_BENCH_PFL", raising=False)
    found = compare.compare(task, ["pfl"], compare.Length(2, 1, 1), 2, "cpu", build=False)
    assert found["pfl"]["error"].startswith(f"Expected an environment of pfl in {tmp_path}/bench/pfl, found none")
    assert "\n" not in found["pfl"]["error"] and not (tmp_path / "bench").exists()


@pytest.mark.slow  # nine processes
def test_what_is_known_is_told_after_every_turn(task, tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_NUMPY_RANK_PROMOTION")
    monkeypatch.setenv("FLJAX_BENCH_PYTORCH", "/bin/false")
    seen = []

    def tell(result, line):
        seen.append((line.split()[0], {peer: len(row.get("turns", [])) for peer, row in result.items()}))

    found = compare.compare(task, ["fljax", "pytorch", "jax"], compare.Length(2, 1, 1), 2, "cpu", False, tell)
    assert [word for word, _ in seen] == ["fljax", "pytorch:", "jax", "turn", "turn"]
    assert seen[-2][1] == {"fljax": 1, "pytorch": 0, "jax": 1} and seen[-1][1]["jax"] == 2
    assert found["jax"]["difference"] < 1e-5 and found["jax"]["over_fljax"] > 0
    assert found["jax"]["steady_s_per_round"] == np.median(found["jax"]["turns"])


def test_preparing_says_what_runs_and_what_does_not(monkeypatch, capsys):
    monkeypatch.setenv("FLJAX_BENCH_PFL", "/bin/false")
    assert not environments.prepare(["pfl", "jax"], "cpu")
    lines = capsys.readouterr().out.splitlines()
    assert "Expected an environment in which pfl runs: no message. Name another interpreter than /bin/false" in lines[0]
    assert lines[1].split(maxsplit=1)[1] == f"ready: {sys.executable}"


@pytest.mark.slow
def test_pytorch_multiplies_on_a_gpu_as_jax_does(monkeypatch):
    monkeypatch.delenv("FLJAX_CACHE")  # the environments of whoever measures here, not the cache of the tests
    code = "import torch; from benchmarks.vs import torch_model as t; t.as_jax_multiplies()"
    code += "; print(torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)"
    try:
        python = environments.python_of("pytorch", build=False)
    except RuntimeError as error:
        pytest.skip(str(error))
    done = subprocess.run([python, "-c", code], cwd=compare.ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["high", "True"]


def test_table_puts_the_fastest_first_and_keeps_what_failed():
    row = {"fastest_s_per_round": 1, "slowest_s_per_round": 3, "setting": {}, "over_fljax": 2.0, "difference": 1e-7}
    peers = {"a": row | {"steady_s_per_round": 2.0}, "b": {"error": "no wheel"}, "c": row | {"steady_s_per_round": 1.0}}
    lines = table({"peers": peers}).splitlines()
    assert [line[0] for line in lines[1:]] == ["c", "a", "b"]
    assert "no wheel" in lines[3]
