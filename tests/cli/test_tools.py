"""init, schema, doctor and data inspect; and what a stopped command says."""

import json
import shlex
import signal
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from fljax.cli import main
from fljax.cli.arguments import overridden, shipped
from fljax.cli.files import TEMPLATE
from fljax.config import load
from fljax.sim.run import run

ROOT = Path(__file__).parents[2]


def call(capsys, *words):
    """(exit code, stdout, stderr) of a command."""
    code = main([str(word) for word in words])
    said = capsys.readouterr()
    return code, said.out, said.err


# ---- init ------------------------------------------------------------------------------------------------------------


def test_a_new_experiment_is_found_by_its_name_and_never_overwritten(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = call(capsys, "init", "my_first", "--json")
    file = tmp_path / "experiments/my_first.toml"
    said = json.loads(out)
    assert code == 0 and said["file"] == "experiments/my_first.toml" and said["command"] == "fljax run my_first"
    experiment = load(file)
    assert experiment.name == "my_first" and experiment.title == "my first"
    assert experiment.privacy.epsilon == 8.0 and experiment.sweep is None
    before = file.read_bytes()
    code, out, err = call(capsys, "init", "my_first")
    assert code == 2 and out == "" and "is not overwritten" in err and err.count("\n") == 1
    assert file.read_bytes() == before and [p.name for p in file.parent.iterdir()] == ["my_first.toml"]


def test_all_that_the_template_suggests_is_valid(tmp_path):
    """With every commented field and section switched on: the file is still an experiment."""
    text = TEMPLATE.format(title="t", name="t", called="t")
    body = text[text.index("title =") :]
    (tmp_path / "t.toml").write_text(
        "\n".join(line.removeprefix("# ") for line in body.splitlines() if "With a" not in line)
    )
    experiment = load(tmp_path / "t.toml")
    assert experiment.dropout.keep_rate == 0.5 and experiment.sweep.grid["privacy.epsilon"] == (2.0, 8.0, float("inf"))
    assert experiment.data.partition == "dirichlet" and experiment.client.batch_size == 10


# ---- schema ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def schema():
    from fljax.cli.fields import schema

    return json.loads(json.dumps(schema(), allow_nan=False))


def test_the_schema_knows_every_field_with_text_unit_and_choices(schema):
    server = schema["$defs"]["ServerConfig"]["properties"]
    assert server["optimizer"]["enum"] == ["sgd", "adam", "yogi", "adagrad"]
    assert server["lr"]["description"] == "server learning rate" and server["lr"]["exclusiveMinimum"] == 0
    assert schema["properties"]["rounds"]["x-unit"] == "rounds"
    assert schema["$defs"]["DevicesConfig"]["properties"]["uplink"]["x-unit"] == "Mbit/s"
    assert schema["additionalProperties"] is False


def test_shipped_experiments_fit_the_schema_and_a_mistake_does_not(schema):
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    validator = jsonschema.Draft202012Validator(schema)
    for path in shipped().values():
        assert list(validator.iter_errors(tomllib.loads(path.read_text()))) == [], path
    for wrong in ({"round": 3}, {"client": {"lrr": 1}}, {"rounds": 0}, {"server": {"optimizer": "sdg"}}):
        assert not validator.is_valid(wrong), wrong
    assert validator.is_valid({"devices": {"uplink": 3, "downlink": [1, 2], "compute": 1.5}})


def test_the_schema_is_printed_or_written(capsys, tmp_path):
    code, out, _ = call(capsys, "schema")
    assert code == 0 and json.loads(out)["title"] == "Experiment"
    code, said, _ = call(capsys, "schema", "--out", tmp_path / "a/fljax.json")
    assert code == 0 and (tmp_path / "a/fljax.json").read_text() == out and "fljax.json" in said
    (tmp_path / "file").write_text("")
    code, _, err = call(capsys, "schema", "--out", tmp_path / "file/x.json")
    assert code == 2 and err.count("\n") == 1


# ---- doctor ----------------------------------------------------------------------------------------------------------


def test_doctor_tells_versions_memory_cache_and_data(capsys, tmp_path, monkeypatch):
    (tmp_path / "cache/xla").mkdir(parents=True)
    (tmp_path / "cache/xla/a").write_bytes(bytes(3 * 2**20))
    (tmp_path / "npz").mkdir()
    (tmp_path / "shakespeare").mkdir()
    (tmp_path / "shakespeare/shakespeare_lines.tsv.gz").write_bytes(b"")
    monkeypatch.setenv("FLJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FLJAX_DATA", str(tmp_path))
    code, out, err = call(capsys, "doctor", "--json")
    said = json.loads(out)
    assert code == 0 and err == "" and said["compiles"] is True
    assert said["versions"]["jax"] == __import__("jax").__version__ and said["python"] == sys.version.split()[0]
    assert said["cache"] | {"disk_free_gib": 0} == {
        "folder": str(tmp_path / "cache"), "files": 1, "size_gib": 0.003, "disk_free_gib": 0, "writable": True
    }  # fmt: skip
    assert said["memory_gib"] > said["memory_free_gib"] > 0 and len(said["devices"]) == 2
    assert said["data"]["shakespeare"] == "found" and said["data"]["mnist"].startswith("missing train-images")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert said["extras"].keys() <= project.keys()


def test_doctor_without_data_says_so(capsys, monkeypatch):
    monkeypatch.delenv("FLJAX_DATA", raising=False)
    code, out, _ = call(capsys, "doctor")
    assert code == 0 and "FLJAX_DATA is not set" in out and "data: none" in out


# ---- data inspect ----------------------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path):
    """Three clients of 2, 4 and 6 examples; client k has label k only, but for one example."""
    owner = np.repeat([0, 1, 2], [2, 4, 6])
    y = owner.copy()
    y[-1] = 0
    path = tmp_path / "own.npz"
    np.savez(
        path, x=np.zeros((12, 3), np.float32), y=y, client_id=owner, test_x=np.zeros((1, 3), np.float32), test_y=[0]
    )
    return path


def test_inspect_counts_sizes_and_labels(capsys, own, tmp_path):
    figure = tmp_path / "deep/figure.svg"
    code, out, _ = call(capsys, "data", "inspect", "npz", "--data-dir", own, "--json", "--figure", figure)
    said = json.loads(out)
    assert code == 0 and said["sizes"] == [2, 4, 6] and said["clients"] == 3 and said["examples"] == 12
    assert said["label_counts"] == [[2, 0, 0], [0, 4, 0], [1, 0, 5]]
    assert (said["size_min"], said["size_median"], said["size_max"]) == (2, 4, 6)
    assert "<svg" in figure.read_text()


def test_inspect_draws_labels_for_people(capsys, own):
    code, out, _ = call(capsys, "data", "inspect", "npz", "--data-dir", own)
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert ["0", "25.0", "%", "█" * 24] in lines and ["2", "41.7", "%", "█" * 40] in lines
    assert [line for line in out.splitlines() if "|" in line] == [
        "       0        2  |█  |",
        "       1        4  | █ |",
        "       2        6  |░ █|",
    ]


def test_inspect_takes_the_fields_of_a_run_and_the_data_of_an_experiment(capsys):
    words = ["--data.clients", "5", "--data.partition", "shards", "--json"]
    code, out, _ = call(capsys, "data", "inspect", "digits_fedavg", *words)
    said = json.loads(out)
    assert code == 0 and said["clients"] == 5 and "5 clients by shards" in said["description"]
    assert all(np.count_nonzero(row) <= 4 for row in said["label_counts"]) and sum(said["sizes"]) == 1430


# ---- running and stopping --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A folder with a new experiment, and the words that run it for six rounds."""
    folder = tmp_path_factory.mktemp("begun")
    assert main(["init", str(folder / "mine.toml")]) == 0
    noise = ["--privacy.epsilon", "None", "--privacy.noise-multiplier", "1.5"]
    return folder, ["run", str(folder / "mine.toml"), "--rounds", "6", *noise, "--json", "--quiet"]


def test_a_folder_that_cannot_be_made_is_one_line_before_compiling(capsys, monkeypatch, tmp_path, begun):
    monkeypatch.setattr("fljax.sim.run.compile_call", lambda *args: pytest.fail("compiled"))
    (tmp_path / "file").write_text("kept")
    code, out, err = call(capsys, *begun[1], "--out", tmp_path / "file/out")
    assert (code, out) == (2, "") and err.count("\n") == 1 and "Choose another folder" in err
    assert (tmp_path / "file").read_text() == "kept"


def test_a_disk_that_is_full_is_one_line(capsys, monkeypatch, tmp_path):
    def full(*args):
        raise OSError(28, "No space left on device", "results/x")

    monkeypatch.setattr("fljax.cli.fields.schema", full)
    code, out, err = call(capsys, "schema")
    assert (code, out) == (2, "") and err == "fljax: results/x: No space left on device. Nothing more was written.\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_says_how_it_goes_on(capsys, monkeypatch, begun, number, code):
    from fljax.sim import checkpoint

    save = checkpoint.save

    def save_and_signal(path, running, header):
        save(path, running, header)
        signal.raise_signal(number)

    monkeypatch.setattr(checkpoint, "save", save_and_signal)
    folder, words = begun
    out = folder / f"stopped {number.value}"
    found, said, err = call(capsys, *words, "--out", out)
    assert found == code and said == "" and err.count("\n") == 1
    assert "after 1 of 6 rounds, kept in" in err
    assert f"Continue with: fljax {shlex.join(words)} --out '{out}' --resume" in err
    assert checkpoint.read_header(out / ".checkpoint.npz")["done"] == 1


def test_a_new_experiment_runs_to_its_end(begun):
    folder, words = begun
    experiment = overridden(words[1], words[2:-2])
    outcome = run(experiment, out=folder / f"stopped {signal.SIGINT.value}", resume=True, quiet=True)
    assert len(outcome.history["participants"]) == 6 and outcome.statement.status == "valid"
    assert 0 < outcome.final["test_accuracy"] < 1
