"""Chosen cells: the best of each epsilon, and the front that no other cell beats, against brute force."""

from __future__ import annotations

import csv
import io
import itertools
import math

import numpy as np
import pytest
from sample_results import EPS, KEEP, SOURCE, make_sweep

from fljax.report.choice import best_records, cell_records, heads, is_grid, pareto_records, rows, varying
from fljax.report.details import clip_table, controls_table
from fljax.report.page import render, write_report
from fljax.report.round_figures import clip_curves, clip_figure
from fljax.report.tradeoff_figures import GREY, pareto_figure, search_figure
from fljax.sweep.store import open_results, write_results


def point(mean, epsilon, uplink, seconds, metric="test_accuracy"):
    costs = {"epsilon": epsilon, "uplink_bytes": uplink, "simulated_s": seconds}
    return {"metric": metric, "mean": mean, "epsilon_refused": False, **costs}


def test_front_against_brute_force():
    """Random cells on a coarse grid (so that there are ties), with an unclaimed ε among them; both directions."""
    rng = np.random.default_rng(0)
    names = ("epsilon", "uplink_bytes", "simulated_s")
    for metric, sign in (("test_accuracy", 1), ("test_loss", -1)):
        levels = [1.0, 2.0, math.inf]
        cells = [
            point(rng.integers(5) / 10, levels[rng.integers(3)], *rng.integers(1, 4, 2).astype(float), metric)
            for _ in range(60)
        ]
        expected = []
        for a in cells:
            beaten = False
            for b in cells:
                no_worse = sign * b["mean"] >= sign * a["mean"] and all(b[n] <= a[n] for n in names)
                beaten |= no_worse and (sign * b["mean"] > sign * a["mean"] or any(b[n] < a[n] for n in names))
            if not beaten:
                expected.append(a)
        front = pareto_records(cells)
        assert 0 < len(front) < len(cells)
        assert all(r in expected for r in front) and len(front) == len(expected)


def test_costs_are_compared_to_three_digits():
    """Two calibrations of the same target differ in the fourth digit; that makes no trade-off."""
    same = [point(0.8, 1.9988, 1e6, math.nan), point(0.9, 1.9991, 1e6, math.nan)]
    assert varying(same) == []
    assert pareto_records(same) == [same[1]]
    assert len(pareto_records([same[0], point(0.9, 2.02, 1e6, math.nan)])) == 2


def test_cost_that_some_cells_lack_is_left_out():
    cells = [point(0.8, 1.0, 1e6, math.nan), point(0.9, 1.0, 1e6, 3.0)]
    assert varying(cells) == [] and pareto_records(cells) == [cells[1]]


def test_best_and_front_of_a_sweep(sweep):
    """The accuracy of the sample rises by cell, and the uplink with the keep rate: the last cell of each ε is best."""
    records = cell_records(sweep, "test_accuracy")
    assert len(records) == 12 and records[5]["mean"] == pytest.approx(0.57) and records[5]["n"] == 3
    assert [r["epsilon"] for r in records[::4]] == [2.0, 8.0, math.inf]
    best = best_records(sweep, "test_accuracy")
    assert [(r[EPS], r[KEEP], r[SOURCE]) for r in best] == [(e, 1.0, "random") for e in (2.0, 8.0, math.inf)]
    assert [(r[EPS], r[KEEP], r[SOURCE]) for r in best_records(sweep, "test_loss")] == [
        (e, 1.0, "random") for e in (2.0, 8.0, math.inf)
    ]
    front = pareto_records(records)
    assert varying(records) == ["epsilon", "uplink_bytes"]
    assert [(r[EPS], r[KEEP], r[SOURCE]) for r in front] == [
        (e, k, "random") for e, k in itertools.product((2.0, 8.0, math.inf), (0.5, 1.0))
    ]


def test_tables_of_chosen_cells_are_files(sweep, page):
    read = list(csv.DictReader(io.StringIO((sweep.folder / "pareto.csv").read_text())))
    assert len(read) == 6 and read[-1]["epsilon"] == "inf" and float(read[0]["uplink_bytes"]) == 5e5
    latex = (sweep.folder / "best.tex").read_text()
    assert latex.startswith("% demo: mean") and latex.count(r"\\") == 4
    assert r"8 & 1 & random & 59.0 $\pm$ 2.0 & 8 & 1 MB \\" in latex
    assert 'id="tradeoffs"' in page and "Time is left out" in page


def test_long_tables_are_cut_on_the_page_alone(no_png, tmp_path):
    make_sweep(tmp_path, {"client.lr": [0.01 * k for k in range(1, 51)]}, seeds=1)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "and 10 more in <code>best.csv</code>" in page
    assert len((tmp_path / "best.csv").read_text().splitlines()) == 51


def test_refused_epsilon_is_no_cost_that_wins(tmp_path):
    """A cell whose ε was refused counts as one without a claim, and no number stands for it."""
    results = make_sweep(tmp_path, {EPS: [2.0, 8.0], KEEP: [0.5, 1.0]}, refuse=lambda cell: cell[KEEP] < 1)
    records = cell_records(results, "test_accuracy")
    assert [r["epsilon"] for r in records] == [math.inf, 2.0, math.inf, 8.0]
    shown = rows(results.axes, "test_accuracy", records)
    assert [r[heads(results.axes, "test_accuracy", records).index("ε claimed")] for r in shown] == [
        "† refused",
        "2",
        "† refused",
        "8",
    ]


def test_only_a_valid_epsilon_is_a_claim(tmp_path):
    """The ε of values alone, or of a status that nobody knows, is no cost of a cell and is never drawn."""
    results = make_sweep(tmp_path, {EPS: [2.0, 8.0]}, seeds=2, masks=("clip_fraction", "epsilon_spent"))
    assert [r["epsilon"] for r in cell_records(results, "test_accuracy")] == [2.0, 8.0]
    assert "epsilon_spent" in clip_curves(results)
    results.trials["privacy_status"] = np.array(["valid", "valid", "valid", "values_only"])
    assert [r["epsilon"] for r in cell_records(results, "test_accuracy")] == [2.0, math.inf]
    assert "epsilon_spent" not in clip_curves(results)
    results.trials["privacy_status"] = np.array(["valid", "valid", "new word", "new word"])
    assert [r["epsilon"] for r in cell_records(results, "test_accuracy")] == [2.0, math.inf]


def test_pareto_figure_has_a_panel_a_cost(sweep):
    figure = pareto_figure(sweep, wide=True)
    assert [axes.get_xlabel() for axes in figure.axes] == ["ε claimed, log scale", "uplink of a trial (MB)"]
    grey, *coloured = figure.axes[1].lines
    assert grey.get_color() == GREY and len(grey.get_xdata()) == 6
    np.testing.assert_allclose(sorted(np.concatenate([line.get_xdata() for line in coloured])), [0.5] * 3 + [1.0] * 3)
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["2", "8", "none"]


def test_a_front_of_drawn_points_has_one_colour_and_an_axis_of_few_labels(tmp_path):
    """Fourteen budgets are places on a log axis, not fourteen colours and labels upon each other."""
    budgets = [1.1 * 1.3**k for k in range(14)]
    figure = pareto_figure(make_sweep(tmp_path, {EPS: budgets}, seeds=1))
    (axes,) = figure.axes
    grey, front = axes.lines
    assert len(grey.get_xdata()) == 0 and front.get_linestyle() == "None" and not figure.legends
    np.testing.assert_allclose(front.get_xdata(), budgets)
    figure.canvas.draw()
    labels = [t.get_text() for t in axes.get_xticklabels() if budgets[0] <= t.get_position()[0] <= budgets[-1]]
    assert axes.get_xscale() == "log" and labels == ["2", "5", "10", "20"]


CLIPPED = ("clip_fraction", "clip_norm", "noise_std")


def test_clip_statistics(no_png, tmp_path):
    """The sample's curves are the accuracy times round / 30: mean share over rounds, first and last norm."""
    experiment = {"privacy": {"clip": 0.25, "clipping": "flat"}}
    results = make_sweep(tmp_path, {EPS: [2.0, 8.0]}, seeds=1, masks=CLIPPED, experiment=experiment)
    heads_of, lines = clip_table(results, "test_accuracy")
    assert heads_of == ["clipping norm S", "clients clipped", "norm before the clip", "noise std on the sum"]
    assert lines[1] == ("ε 8", ["0.25", f"{100 * 0.51 * 2 / 3:.1f} %", "0.17 → 0.51", "0.51"])
    figure = clip_figure(results)
    assert len(figure.axes) == len(clip_curves(results)) == 2
    np.testing.assert_allclose(figure.axes[0].lines[1].get_ydata(), 0.51 * np.array([1, 2, 3]) / 3, rtol=1e-6)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert 'id="clipping"' in page and "noise std on the sum" in page


def test_nothing_clipped_says_nothing(sweep):
    assert clip_table(sweep, "test_accuracy") == ([], []) and clip_curves(sweep) == []


def test_controls_stand_beside_the_run(tmp_path):
    controls = {"dense": {"test_accuracy": 0.75, "uplink_bytes": 2e6, "uplink_saved": 0.5}}
    make_sweep(tmp_path, {}, seeds=1, controls=controls)
    results = open_results(tmp_path)
    assert controls_table(results) == (
        ["test accuracy (%)", "uplink"],
        [("this run", ["50.0", "1 MB"]), ("dense", ["75.0", "2 MB"])],
    )
    assert "Beside its controls" in render(results, {})


def test_searched_points_are_listed_and_not_tabled(no_png, tmp_path):
    """Forty points that share no value: no table of forty by forty, but the best of them, and a panel an axis."""
    rng = np.random.default_rng(1)
    points = {"client.lr": 10.0 ** rng.uniform(-2, 0, 40), "privacy.clip": rng.uniform(0.1, 1.0, 40)}
    accuracy = rng.uniform(0.2, 0.9, 40)
    trials = {"trial": np.arange(40), **points, "test_accuracy": accuracy, "uplink_bytes": np.full(40, 1e6)}
    curves = {"trial": np.arange(40), "round": np.full(40, 5), "test_accuracy": accuracy}
    manifest = {"name": "searched", "kind": "sweep", "axes": list(points)}
    write_results(tmp_path, manifest=manifest, trials=trials, curves=curves)
    results = open_results(tmp_path)
    assert not is_grid(results)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    best = int(accuracy.argmax())
    assert f"The best test accuracy is {100 * accuracy[best]:.1f} % with lr {points['client.lr'][best]:.6g}" in page
    assert (tmp_path / "figures/search.svg").exists() and not (tmp_path / "figures/heat_map.svg").exists()
    assert len((tmp_path / "table.csv").read_text().splitlines()) == 41
    figure = search_figure(results, wide=True)
    assert [axes.get_xlabel() for axes in figure.axes] == ["lr", "clip"]
    np.testing.assert_allclose(figure.axes[1].lines[1].get_xdata(), [points["privacy.clip"][best]])


def test_grids_are_grids(sweep):
    assert is_grid(sweep)
