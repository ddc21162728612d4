"""The commands as a user calls them: what they print, their exit codes, and that mistakes overwrite nothing."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec

import numpy as np
import pytest

from fljax.cli import main
from fljax.sweep.store import open_results

NOISE = ["--rounds", "10", "--noise-multiplier", "1", "--delta", "1e-5"]
TRACK = ["--track", "tensorboard"] if find_spec("tensorboardX") else []
QUICK = ["--rounds", "6", "--eval-every", "3", "--quiet"]


def call(capsys, *arguments):
    """(exit code, stdout, stderr) of a command."""
    code = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def snapshot(folder):
    """Every file below a folder with its bytes."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run of digits_fedavg, and what it printed."""
    out = tmp_path_factory.mktemp("run") / "out"
    process = subprocess.run(
        [*(sys.executable, "-m", "fljax", "run", "digits_fedavg", "--json", "--quiet"), *TRACK, "--out", str(out)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert process.stderr == ""
    return out, process.stdout


def test_run_prints_one_json_object_and_learns(finished):
    out, text = finished
    said = json.loads(text)
    assert said["final"]["test_accuracy"] >= 0.95
    assert said["final"]["test_loss"] > 0
    assert said["privacy"]["status"] == "none"
    for key in ("epsilon", "delta", "unit", "relation", "sampler", "accountant", "reason"):
        assert key in said["privacy"]
    assert said["communication"]["uplink_bytes"] > 0
    assert said["communication"]["downlink_bytes"] > 0
    assert said["timing"]["compile_s"] > 0
    assert said["timing"]["steady_s_per_round"] > 0
    assert said["out"] == str(out)


def test_run_leaves_report_table_and_parameters(finished):
    out, text = finished
    results = open_results(out)
    assert results.manifest["kind"] == "run"
    assert results.trials["test_accuracy"][0] == pytest.approx(json.loads(text)["final"]["test_accuracy"])
    assert "<html" in (out / "report.html").read_text()
    assert not TRACK or len(list((out / ".tensorboard").iterdir())) == 1
    with np.load(out / "params.npz") as params:
        assert params["dense_0/kernel"].shape == (64, 32)


def test_uplink_is_the_number_of_participants_times_the_model_and_its_weight(finished):
    out, _ = finished
    results = open_results(out)
    parameters = 64 * 32 + 32 + 32 * 10 + 10
    with np.load(out / ".checkpoint.npz") as archive:
        clients = int(archive["history/participants"].sum())
    assert results.trials["uplink_bytes"][0] == clients * 4 * (parameters + 1)  # one number more: the weight
    assert results.trials["downlink_bytes"][0] == clients * 4 * parameters


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "digits_fedavg", "--rounds", "-3"], "rounds = -3 should be greater than or equal to 1"),
        (["run", "digits_fedavg", "--client.lrr", "3"], "unknown key client.lrr. Perhaps you meant lr."),
        (["run", "digits_privacy_utility"], "fljax sweep digits_privacy_utility"),
        (["sweep", "digits_fedavg"], "fljax run digits_fedavg"),
        (["run", "no_such"], "experiment='no_such' to be one of"),
        (["trian"], "command 'trian' to be one of run, sweep"),
        (["report", "no/such/folder"], "no/such/folder"),
        (
            [
                "privacy",
                "epsilon",
                "--rounds",
                "10",
                "--noise-multiplier",
                "1",
                "--sampling-rate",
                "2",
                "--delta",
                "1e-5",
            ],
            "Expected sampling_rate=2",
        ),
    ],
)
def test_mistakes_are_one_line_with_exit_code_2(capsys, arguments, says):
    code, out, err = call(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert says in err
    assert err.count("\n") == 1
    assert "Traceback" not in err


def test_a_truncated_file_is_one_line_and_writes_nothing(capsys, tmp_path):
    folder = tmp_path / "mnist"
    folder.mkdir()
    for name in ("train-labels-idx1-ubyte.gz", "t10k-labels-idx1-ubyte.gz", "t10k-images-idx3-ubyte.gz"):
        (folder / name).write_bytes(gzip.compress(b"\0\0\x08\x01\0\0\0\0"))
    header = b"\0\0\x08\x03" + (60000).to_bytes(4, "big") + (28).to_bytes(4, "big") * 2
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + bytes(100)))
    out = tmp_path / "out"
    code, _, err = call(
        capsys, "run", "digits_fedavg", "--data.name", "mnist", "--data-dir", tmp_path, "--out", out, *QUICK
    )
    assert code == 2
    assert err.count("\n") == 1
    assert "train-images-idx3-ubyte.gz" in err
    assert not out.exists()


def test_the_checkpoint_of_another_experiment_is_refused_and_kept(capsys, finished):
    out, _ = finished
    before = snapshot(out)
    for arguments in (
        ["digits_fedavg", "--client.lr", "0.1", "--resume"],
        ["digits_dp_fedavg", "--resume"],
        ["digits_dp_fedavg"],
    ):
        code, _, err = call(capsys, "run", *arguments, "--out", out, *QUICK)
        assert code == 2
        assert err.count("\n") == 1
        assert "another experiment" in err or "results of 'digits_fedavg'" in err or "Choose another folder" in err
        assert snapshot(out) == before


def test_a_damaged_checkpoint_is_one_line(capsys, finished, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    whole = (finished[0] / ".checkpoint.npz").read_bytes()
    (out / ".checkpoint.npz").write_bytes(whole[: len(whole) // 2])
    code, _, err = call(capsys, "run", "digits_fedavg", "--resume", "--out", out, "--quiet")
    assert code == 2
    assert err.count("\n") == 1
    assert ".checkpoint.npz" in err


@pytest.mark.slow  # three starts of the command; test_sim_run kills a run in every session
def test_a_killed_run_resumes_to_bit_identical_parameters_and_history(tmp_path):
    command = [sys.executable, "-m", "fljax", "run", "digits_dp_fedavg", "--quiet", "--json"]
    command += ["--rounds", "600", "--eval-every", "100", "--perf.rounds-per-call", "5"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    subprocess.run([*command, "--out", str(whole)], check=True, capture_output=True)
    checkpoint = cut / ".checkpoint.npz"
    process = subprocess.Popen([*command, "--out", str(cut)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.01)
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run was over before it was killed"
    with np.load(checkpoint) as archive:
        done = json.loads(archive["header"].tobytes())["done"]
    assert 0 < done < 600
    subprocess.run([*command, "--out", str(cut), "--resume"], check=True, capture_output=True)
    with np.load(whole / ".checkpoint.npz") as a, np.load(checkpoint) as b:
        assert a.files == b.files
        for name in a.files:
            assert a[name].tobytes() == b[name].tobytes(), name
    assert open_results(whole).trials["epsilon"] == open_results(cut).trials["epsilon"]


def test_sweep_writes_tables_figures_and_page(capsys, tmp_path):
    out = tmp_path / "out"
    code, text, _ = call(capsys, "sweep", "digits_privacy_utility", "--fast", "--quiet", "--json", "--out", out)
    assert code == 0
    said = json.loads(text)
    assert said["trials"] == 16
    assert len(said["programs"]) == 2
    results = open_results(out)
    assert results.axes == ["privacy.epsilon", "dropout.keep_rate", "dropout.source"]
    private = np.isfinite(results.trials["privacy.epsilon"])
    assert np.all(results.trials["epsilon"][private] <= results.trials["privacy.epsilon"][private])
    assert set(results.trials["privacy_status"][private]) == {"valid"}
    assert set(results.trials["privacy_status"][~private]) == {"none"}
    assert np.all(np.isnan(results.trials["epsilon"][~private]))
    assert (out / "figures" / "main.svg").exists()
    assert "tabular" in (out / "table.tex").read_text()
    assert "FisherDropout" in (out / "report.html").read_text()
    code, text, _ = call(capsys, "report", out, "--json")
    assert code == 0
    assert json.loads(text)["page"] == str(out / "report.html")


def test_dry_run_shows_trials_and_programs_and_runs_nothing(capsys, tmp_path):
    code, text, _ = call(
        capsys, "sweep", "digits_privacy_utility", "--dry-run", "--no-measure", "--json", "--out", tmp_path / "no"
    )
    plan = json.loads(text)
    assert code == 0
    assert plan["trials"] == 200
    assert [p["trials"] for p in plan["programs"]] == [100, 100]
    assert len(plan["privacy"]) == 5
    promised = [text for cell, text in plan["privacy"].items() if "epsilon=inf" not in cell]
    assert len(promised) == 4
    assert all(text.startswith("(ε = ") for text in promised)
    assert not (tmp_path / "no").exists()


def test_privacy_epsilon_and_calibrate(capsys):
    common = ["--delta", "1e-5", "--rounds", "1000", "--sampling-rate", "0.01", "--json"]
    code, text, _ = call(capsys, "privacy", "epsilon", "--noise-multiplier", "1", *common)
    assert code == 0
    said = json.loads(text)
    assert said["epsilon"] == pytest.approx(1.8282, abs=1e-3)
    assert "unchecked" in said["delta_check"]
    common = ["--delta", "1e-3", "--rounds", "100", "--sampling-rate", "0.1", "--json"]
    code, text, _ = call(capsys, "privacy", "calibrate", "--epsilon", "2", *common)
    said = json.loads(text)
    assert code == 0
    assert said["noise_multiplier"] == pytest.approx(1.674, rel=5e-3)
    assert said["epsilon"] <= 2


def test_without_noise_json_has_null_and_stays_strict(capsys):
    arguments = ["--noise-multiplier", "0", "--delta", "1e-5", "--rounds", "10", "--sampling-rate", "0.1", "--json"]
    code, text, _ = call(capsys, "privacy", "epsilon", *arguments)
    assert code == 0
    assert json.loads(text, parse_constant=lambda name: pytest.fail(name))["epsilon"] is None


def test_list_doctor_version_and_help(capsys):
    code, text, _ = call(capsys, "list", "--json")
    known = json.loads(text)
    assert code == 0
    assert "digits_privacy_utility" in known["experiments"]
    assert all(known["experiments"].values()), "every experiment has a title"
    assert {"digits", "mnist"} <= set(known["datasets"])
    code, text, _ = call(capsys, "doctor", "--json")
    assert code == 0
    assert json.loads(text)["compiles"] is True
    code, text, _ = call(capsys, "--version")
    assert code == 0
    code, text, _ = call(capsys)
    assert code == 0
    assert "calibrate" in text or "privacy" in text
