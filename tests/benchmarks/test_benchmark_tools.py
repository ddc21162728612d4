"""Each benchmark runs in a small version and writes JSON with what it promises."""

import importlib
import json
import sys

import pytest

from benchmarks.report import compared

SMALL = ["--clients", "4", "--cohort", "2"]


def run(monkeypatch, capsys, module, *flags):
    monkeypatch.setattr(sys, "argv", [module, *flags, "--json"])
    importlib.import_module(f"benchmarks.{module}").main()
    return json.loads(capsys.readouterr().out)  # one document, whatever is told on the way


def check_origin(result):
    assert {"commit", "jax", "python", "cpu", "cores", "device"} <= result["provenance"].keys()
    assert len(result["load"]["before"]) == 3


def check_round(row):
    assert 0 < row["fastest_s_per_round"] <= row["steady_s_per_round"] <= row["slowest_s_per_round"]
    assert row["compile_s"] > 0
    assert row["flop_per_s"] == pytest.approx(row["flop_per_round"] / row["steady_s_per_round"])
    assert row["share_of_matmul_peak"] > 0


def test_round_of_ragged_clients_and_comparison_with_a_baseline(monkeypatch, capsys, tmp_path):
    flags = ["--workload", "long_tailed_mlp", "--calls", "1", "--peak-size", "64", "--clients", "4", "--cohort", "4"]
    first = run(monkeypatch, capsys, "round", *flags, "--out", str(tmp_path))
    check_origin(first)
    check_round(first["round"])
    assert first["round_over_equal"] > 0
    assert 0 < first["padding"]["share_of_batches"] < 0.5
    assert first["padding"]["steps_executed_over_needed"] >= 1
    stored = json.loads((tmp_path / "long_tailed_mlp_cpu.json").read_text())
    rows = compared({**stored, "round": {"steady_s_per_round": 3 * stored["round"]["steady_s_per_round"]}}, stored)
    assert rows["round.steady_s_per_round"]["ratio"] == pytest.approx(3)
    with pytest.raises(ValueError, match="Expected a baseline with workload=other"):
        compared({**stored, "workload": "other"}, stored)


def test_ways_of_a_convolution_agree_and_are_all_timed():
    from benchmarks.convolutions import TINY, error, measure, ways

    strided = TINY[1]
    assert set(ways(strided)) == {"patches", "shifted products", "the backend's"}
    assert set(measure(strided, 4, 1, 1)) == set(ways(strided))
    assert {"2x1", "4x2"} < set(ways(TINY[0]))
    assert all(error(conv, TINY[0]) < 2e-6 for conv in ways(TINY[0]).values())


def test_layers_and_large_batches(monkeypatch, capsys):
    result = run(monkeypatch, capsys, "layers", "--tiny", "--together", "1", "2", "--steps", "2", "--calls", "1")
    check_origin(result)
    assert [set(row["clients"]["2"]) - {"ours"} for row in result["layers"]] == [
        {"window reduction"},
        {"flax", "grouped axes"},
        {"one-hot product"},
    ]
    assert min(s for row in result["layers"] for ways in row["clients"].values() for s in ways.values()) > 0
    (large,) = result["large"]
    assert large["in blocks"]["temporary_bytes"] < large["at once"]["temporary_bytes"] / 2


def test_other_ways_of_a_layer_agree():
    import jax
    import numpy as np

    from benchmarks.layers import TINY, drawn, loop

    for layer in TINY[0]:
        results = [jax.jit(loop(way, 2, 2))(*drawn(layer, 2, 2)) for way in layer.ways.values()]
        for other in results[1:]:
            for a, b in zip(jax.tree.leaves(results[0]), jax.tree.leaves(other), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_ways_of_a_dense_layer_are_timed(monkeypatch, capsys):
    flags = ["--models", "784-10", "--rows", "2", "--together", "2", "--calls", "1"]
    result = run(monkeypatch, capsys, "dense", *flags)
    check_origin(result)
    (row,) = result["rows"]
    assert row["chosen"] == "outer products" and set(row["clients"]) == {"2"}
    assert min(row["clients"]["2"].values()) > 0


def test_steps_by_clients_at_a_time(monkeypatch, capsys):
    flags = ["--models", "64-10", "--cohort", "2", "--calls", "1"]
    (row,) = run(monkeypatch, capsys, "widths", *flags)["rows"]
    assert row["parameters"] == 650 and row["chosen"] == 2
    assert set(row["seconds"]) == {"1", "2"} and min(row["seconds"].values()) > 0


@pytest.mark.slow  # four runs
def test_streamed_data_next_to_resident_data(monkeypatch, capsys):
    flags = ["--clients", "6", "--cohort", "2", "--rounds", "2", "--rounds-per-call", "1", "--turns", "1"]
    result = run(monkeypatch, capsys, "streaming", *flags)
    check_origin(result)
    times = [result[way]["steady_s_per_round"] for way in ("streamed", "resident")]
    assert result["streamed_over_resident"] == pytest.approx(times[0] / times[1])
    assert result["resident"]["data_bytes"] == 6 * 50 * 28 * 28 * 4


@pytest.mark.slow  # compiles five programs
def test_trials_in_one_program(monkeypatch, capsys):
    result = run(monkeypatch, capsys, "trials", *SMALL, "--trials", "3", "--rounds", "2", "--calls", "1")
    check_origin(result)
    assert (result["sweep"]["trials"], result["sweep"]["programs"]) == (3, 1)
    ratio = result["sweep"]["per_trial_steady_s_per_round"] / result["single"]["steady_s_per_round"]
    assert result["per_trial_over_single"] == pytest.approx(ratio)


def test_grid_of_three_hundred_cells():
    from benchmarks.trials import cells

    points = [tuple(cell.values()) for cell in cells("w3", 32)]
    assert len(points) == len(set(points)) == 300


def test_long_run_evaluates_as_often_as_it_says(monkeypatch, capsys):
    flags = [
        "--workload",
        "tiny_mlp",
        *SMALL,
        "--rounds",
        "4",
        "--rounds-per-call",
        "2",
        "--every",
        "2",
        "--test",
        "20",
    ]
    monkeypatch.setattr(sys, "argv", ["long_run", *flags, "--tell", "--json"])
    importlib.import_module("benchmarks.long_run").main()
    half, result = map(json.loads, capsys.readouterr().out.splitlines())
    assert half["unfinished"] and (half["run"]["rounds"], half["run"]["evaluations"]) == (2, 1)
    assert half["run"]["run_s"] < result["run"]["run_s"] and "unfinished" not in result
    check_origin(result)
    assert (result["run"]["rounds"], result["run"]["evaluations"]) == (4, 2)
    assert result["run"]["client_steps_per_s"] == pytest.approx(4 * 2 * 10 / result["run"]["run_s"])


def test_profile_sees_the_matrix_products(monkeypatch, capsys):
    flags = ["--workload", "tiny_mlp", *SMALL, "--calls", "1", "--peak-size", "64", "--megabytes", "1", "--rounds", "1"]
    result = run(monkeypatch, capsys, "profile", *flags)
    check_round(result["round"])
    assert result["operations_per_round"] > 10
    assert any("dot" in row["name"] or "ynn" in row["name"] for row in result["longest"])  # XLA's names of them
    assert sum(result["verdict"]["shares"].values()) == pytest.approx(1)


def test_verdict_names_the_largest_share_of_a_round():
    from benchmarks.profile import verdict

    products, passes, short = (
        {"sm90_xmma_gemm": (10, 0.6)},
        {"input_convert_fusion": (50, 0.1)},
        {"add": (10_000, 0.02)},
    )
    found = verdict(products | passes | short, seconds=1.0)
    assert found["shares"] == pytest.approx({"launches": 0.3, "bandwidth": 0.1, "matrix units": 0.6})
    assert (found["bound_by"], found["idle"]) == ("matrix units", pytest.approx(0.28))
    shares = "launches 30 %, bandwidth 10 %, matrix units 60 % of the round"
    assert found["line"] == f"bound by matrix units: {shares}; the device is idle for 28 %"
    assert verdict(passes | short, seconds=0.13)["bound_by"] == "bandwidth"
    assert verdict(products | short, seconds=2.0)["bound_by"] == "launches"
    assert verdict({"gemm_fusion_dot": (1000, 0.003)}, seconds=0.003)["bound_by"] == "launches"  # 3 us each
    beside = verdict({"conv_0": (2, 2.0), "copy": (2, 1.0)}, seconds=1.5)  # on two streams
    assert beside["shares"]["matrix units"] == pytest.approx(2 / 3) and beside["idle"] == 0


@pytest.mark.slow  # compiles four programs
def test_round_in_bfloat16_says_so(monkeypatch, capsys, tmp_path):
    flags = ["--workload", "tiny_mlp", *SMALL, "--calls", "1", "--peak-size", "64", "--precision", "bfloat16"]
    result = run(monkeypatch, capsys, "round", *flags, "--out", str(tmp_path))
    check_round(result["round"])
    assert result["precision"] == "bfloat16" and result["round_over_plain"] > 0
    assert json.loads((tmp_path / "tiny_mlp_bfloat16_cpu.json").read_text())["round"] == result["round"]


def test_bfloat16_is_not_compared_with_a_file_from_before_there_was_a_choice():
    old = {"workload": "tiny_mlp", "round": {"steady_s_per_round": 2.0}}
    with pytest.raises(ValueError, match="Expected a baseline with precision=bfloat16, found float32"):
        compared(old | {"precision": "bfloat16"}, old)
    assert compared(old | {"precision": "float32"}, old)["round.steady_s_per_round"]["ratio"] == 1


@pytest.mark.slow
def test_scaling(monkeypatch, capsys):
    result = run(monkeypatch, capsys, "scaling", "--tiny", "--axes", "cohort", "--calls", "1")
    check_origin(result)
    rows = result["axes"]["cohort"]
    assert [row["value"] for row in rows] == [4, 8]
    for row in rows:
        check_round(row)
    assert rows[1]["growth"] == pytest.approx(rows[1]["steady_s_per_round"] / rows[0]["steady_s_per_round"])


@pytest.mark.slow
def test_compile_time(monkeypatch, capsys):
    result = run(monkeypatch, capsys, "compile_time", "--workload", "tiny_mlp", "--clients", "4", "--starts", "1")
    assert result["warm"]["compile_s"] < result["cold"]["compile_s"]
    assert result["import"]["import_s"] > 0


@pytest.mark.slow
def test_devices_have_processes_of_their_own(monkeypatch, capsys):
    flags = ["--tiny", "--axes", "devices", "--devices", "1", "2", "--calls", "1"]
    rows = run(monkeypatch, capsys, "scaling", *flags)["axes"]["devices"]
    assert [row["value"] for row in rows] == [1, 2]
    assert rows[0]["speedup"] == 1.0


def test_robust_rules(monkeypatch, capsys):
    flags = ["--clients", "7", "--parameters", "2000", "--calls", "1", "--rules", "median", "krum"]
    result = run(monkeypatch, capsys, "robust", *flags)
    check_origin(result)
    assert set(result["rules"]) == {"median", "krum"} and result["settings"]["f"] == 1
    assert result["update_bytes"] == pytest.approx(7 * 4 * 2000, rel=0.01)
    for row in result["rules"].values():
        assert 0 < row["fastest_s"] <= row["steady_s"] and row["compile_s"] > 0 and row["temporary_bytes"] > 0
