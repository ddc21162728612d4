"""Tables: by hand, as text, CSV and LaTeX, in the terminal."""

from __future__ import annotations

import csv
import io
import math
import re

import numpy as np
import pytest
from sample_results import EPS, KEEP, SOURCE, make_sweep

from fljax.core.check import FljaxError
from fljax.report import text
from fljax.report.page import render
from fljax.report.tables import half_width, print_summary, print_table, run_summary, summarise
from fljax.sweep.store import open_results, write_results


def test_summarise_by_hand(sweep):
    table = summarise(sweep)
    assert table.row_values == (2.0, 8.0, math.inf)
    assert table.column_values == ((0.5, "fisher"), (0.5, "random"), (1.0, "fisher"), (1.0, "random"))
    # Cell (8, 0.5, random) is the sixth: 0.55, 0.57, 0.59 over its three seeds.
    np.testing.assert_allclose(table.mean[1, 1], 0.57)
    np.testing.assert_allclose(table.std[1, 1], 0.02)
    assert table.count[1, 1] == 3
    np.testing.assert_allclose(table.half_width[1, 1], 4.30265 * 0.02 / math.sqrt(3), rtol=1e-4)
    assert table.best == [3, 3, 3]
    assert table.text(1, 1) == "57.0 ± 2.0"
    assert table.row_labels == ["2", "8", "none"]
    assert table.headers == [
        ("keep rate", [("0.5", 2), ("1", 2)]),
        ("source", [("fisher", 1), ("random", 1), ("fisher", 1), ("random", 1)]),
    ]
    assert summarise(sweep, "test_loss").best == [3, 3, 3]  # the lowest loss
    assert summarise(sweep, "uplink_bytes").best == [0, 0, 0]


def test_student_quantiles():
    stats = pytest.importorskip("scipy.stats")
    for n in (2, 3, 5, 10, 31, 32, 60, 1000):
        expected = stats.t.ppf(0.975, n - 1) / math.sqrt(n)
        np.testing.assert_allclose(half_width(1.0, n), expected, rtol=2e-4)
    assert math.isnan(half_width(1.0, 1))


def test_cells_never_mix_anything_but_seeds(sweep):
    with pytest.raises(FljaxError, match=SOURCE):
        summarise(sweep, columns=[KEEP])
    fixed = summarise(sweep, columns=[KEEP], where={SOURCE: "fisher"})
    np.testing.assert_allclose(fixed.mean[0], [0.52, 0.54])
    with pytest.raises(FljaxError, match="Perhaps you meant 'test_accuracy'"):
        summarise(sweep, "test_acuracy")
    with pytest.raises(FljaxError, match="leave some trials"):
        summarise(sweep, where={SOURCE: "nobody"})


def test_missing_values_are_counted(tmp_path):
    trials = {"trial": np.arange(3), "lr": [0.1, 0.1, 0.2], "test_accuracy": [0.5, math.nan, math.nan]}
    manifest = {"name": "x", "kind": "sweep", "axes": ["lr"]}
    curves = {"trial": np.arange(3), "round": np.ones(3, int), "test_accuracy": np.zeros(3)}
    write_results(tmp_path, manifest=manifest, trials=trials, curves=curves)
    table = summarise(open_results(tmp_path))
    assert table.count.tolist() == [[1], [0]]
    assert table.missing.tolist() == [[1], [1]]
    assert table.text(1, 0) == "—"
    assert any(note.startswith("2 trials without") for note in table.notes)
    assert "No trial" not in render(open_results(tmp_path), {})


def test_csv(sweep):
    rows = list(csv.DictReader(io.StringIO(summarise(sweep).to_csv())))
    assert len(rows) == 12
    assert rows[-1][EPS] == "inf" and rows[0][SOURCE] == "fisher"
    assert float(rows[5]["mean"]) == pytest.approx(0.57)
    assert rows[0]["n"] == "3" and rows[0]["epsilon_refused"] == "False"


def test_latex(sweep):
    latex = summarise(sweep).to_latex()
    assert latex.count(r"\\") == 5
    assert r"\textbf{54.0" not in latex and r"\textbf{55.0 $\pm$ 2.0}" in latex
    assert r"$\varepsilon$ = none" in latex and r"\multicolumn{2}{c}{0.5}" in latex
    assert not re.search(r"(?<!\\)%[^ ]", latex)


@pytest.mark.parametrize("width", [40, 60, 120])
def test_terminal_table_loses_nothing(sweep, width):
    from rich.console import Console

    console = Console(width=width, file=io.StringIO(), record=True)
    print_table(summarise(sweep), console)
    print_summary(sweep, console)
    shown = console.export_text()
    assert "…" not in shown
    for mean in ("52.0", "57.0", "63.0"):
        assert mean in shown


def test_summary_of_a_run(tmp_path):
    results = make_sweep(tmp_path, {}, seeds=1)
    pairs = dict(run_summary(results))
    assert pairs["test accuracy (%)"] == "50.0" and pairs["uplink"] == "1 MB" and pairs["rounds"] == "30"
    table = summarise(results)
    assert table.text(0, 0) == "50.0" and "test accuracy" in table.to_latex()
    print_summary(results)


def test_numbers_for_people():
    assert [text.byte_text(n) for n in (0, 999, 1500, 4.66e8, 2e12)] == ["0 B", "999 B", "1.5 kB", "466 MB", "2 TB"]
    assert [text.duration_text(s) for s in (0.04, 8.25, 125, 12000)] == ["40 ms", "8.25 s", "2 min 5 s", "3 h 20 min"]
    assert [text.small_text(v) for v in (1e-5, 1.1e-4, 0.05, 100.0, math.inf)] == ["1e-5", "1.1e-4", "0.05", "100", "∞"]
    # An ε is never rounded down: that would claim more than was derived.
    assert [text.epsilon_text({"status": "valid", "epsilon": e}) for e in (1.9991, 3.99001, 0.0123401)] == [
        "2",
        "3.991",
        "0.01235",
    ]


def test_a_table_of_searched_points_has_a_line_for_each_point(tmp_path):
    """Two numbers that no two of the 20 points share are no grid of 400 cells."""
    from rich.console import Console

    points = {"client.lr": [0.01 * k for k in range(1, 21)], "privacy.clip": [0.5 + 0.01 * k for k in range(20)]}
    rows = {"trial": list(range(20)), **points, "run.seed": [0] * 20, "test_accuracy": [0.5] * 20}
    curves = {"trial": [0], "round": [1], "test_accuracy": [0.5]}
    write_results(
        tmp_path, manifest={"name": "drawn", "kind": "sweep", "axes": list(points)}, trials=rows, curves=curves
    )
    console = Console(width=60, file=io.StringIO(), record=True)
    print_table(summarise(open_results(tmp_path)), console)
    assert len(re.findall(r"^ +0\.\d+ +0\.\d+", console.export_text(), re.MULTILINE)) == 20
