"""The plan of the GPU script is seen to run before there is a GPU: every command parses, and the first parts fit."""

import argparse
import importlib
import json
import sys

import pytest

from benchmarks import gpu
from benchmarks.workloads import WORKLOADS

BUDGET_S = 570


class Parsed(Exception):
    """Raised in place of the measurement."""


@pytest.fixture
def parse(monkeypatch):
    """words after the interpreter -> what the benchmark's own parser makes of them, before anything is measured."""
    real = argparse.ArgumentParser.parse_args

    def only(parser):
        raise Parsed(real(parser))

    def parsed(words):
        assert words[0] == "-m" and words[-1] == "--json"
        module = importlib.import_module(words[1] if words[1] != "benchmarks.vs" else "benchmarks.vs.__main__")
        monkeypatch.setattr(sys, "argv", words[1:])
        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", only)
        with pytest.raises(Parsed) as stop:
            module.main()
        return stop.value.args[0]

    return parsed


@pytest.mark.parametrize("tiny", [False, True], ids=["full", "tiny"])
@pytest.mark.parametrize("part", gpu.PARTS, ids=lambda part: part.name)
def test_command_of_every_part_parses(parse, part, tiny):
    args = parse(gpu.command(part, tiny, "cuda"))
    assert args.json and args.tell
    assert getattr(args, "workload", "tiny_mlp") in WORKLOADS
    if part.module == "vs":
        assert args.no_build and args.device == ("cpu" if tiny else "cuda")


def test_a_typo_in_a_part_is_found(parse):
    for flags in ("--workload cohort_cn", "--wrkload cohort_cnn"):
        with pytest.raises(SystemExit):
            parse(gpu.command(gpu.Part("typo", "round", flags, 1), False, "cuda"))


def test_first_parts_fit_the_budget_and_cover_what_counts():
    assert sum(part.limit_s for part in gpu.FIRST) <= BUDGET_S < 600
    names = [part.name for part in gpu.PARTS]
    assert len(set(names)) == len(names)
    modules = [part.module for part in gpu.FIRST]
    assert modules == ["round", "round", "vs", "trials", "profile", "scaling", "long_run"]
    others = " ".join(part.flags for part in gpu.PARTS if part.module == "round")
    assert all(flag in others for flag in ("--precision bfloat16", "--chunk 0", "--chunk 1 ", "--chunk 10"))


def started(monkeypatch, tmp_path, *flags):
    """The script's exit status and gpu.json."""
    monkeypatch.setattr(sys, "argv", ["gpu", "--out", str(tmp_path), *flags])
    with pytest.raises(SystemExit) as stop:
        gpu.main()
    return stop.value.code, json.loads((tmp_path / "gpu.json").read_text())


def test_what_a_part_told_before_its_limit_is_kept(monkeypatch):
    code = """
import json, time
print(json.dumps({"rounds": 100}), flush=True); print(json.dumps({"rounds": 200}), flush=True)
print("some text"); print('{"rounds": 3', end="", flush=True); time.sleep(60)
"""
    found = gpu.measured(["-c", code], 3)
    assert found["rounds"] == 200 and found["unfinished"] == "ended after 3 s" and "error" not in found
    found = gpu.measured(["-c", "import time; time.sleep(60)"], 1)
    assert found["error"] == "told nothing in 1 s"
    found = gpu.measured(["-c", "print('{\"peers\": {}}'); raise SystemExit('no device')"], 20)
    assert found["error"] == "no device" and found["peers"] == {}


def test_what_there_was_no_time_for_is_named_with_its_command(monkeypatch, tmp_path, capsys):
    verdict = {"line": "bound by launches"}
    monkeypatch.setattr(gpu, "measured", lambda words, limit_s: {"took_s": limit_s, "verdict": verdict})
    status, result = started(monkeypatch, tmp_path, "--budget", "59", "--parts", "profile_cohort_cnn", "w1", "compile")
    assert not status and set(result["parts"]) == {"profile_cohort_cnn", "w1", "compile"}  # nothing took real time
    assert "    bound by launches" in capsys.readouterr().out
    status, result = started(monkeypatch, tmp_path, "--budget", "40", "--parts", "profile_cohort_cnn", "w1")
    assert [row["part"] for row in result["missing"]] == ["w1"]
    assert result["missing"][0]["command"] == "python -m benchmarks.long_run --rounds 1500 --tell --json"
    assert "  w1: no time was left\n    python -m benchmarks.long_run" in capsys.readouterr().out


def test_an_absent_simulator_is_told_of():
    found = {"peers": {"fljax": {"turns": [1.0]}, "pfl": {"error": "Expected an environment of pfl"}}}
    assert gpu.notes(found) == ["pfl: Expected an environment of pfl"]


@pytest.mark.slow
def test_script_in_its_tiny_version(monkeypatch, tmp_path):
    names = ("w1", "profile_cohort_cnn", "vs_cohort_cnn")
    monkeypatch.delenv("JAX_NUMPY_RANK_PROMOTION")  # plain code broadcasts
    status, result = started(monkeypatch, tmp_path, "--tiny", "--parts", *names)
    assert not status and not result["missing"]
    assert set(result["parts"]) == set(names)
    assert result["parts"]["w1"]["run"]["rounds"] == 2
    assert "unfinished" not in result["parts"]["w1"]
    assert result["parts"]["vs_cohort_cnn"]["peers"]["jax"]["difference"] < 1e-5
