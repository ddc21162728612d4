"""Figures of dropout: what a source reaches for its bytes, and how its masks lie."""

import numpy as np
import pytest
from sample_results import EPS, KEEP, SOURCE, make_sweep

from fljax.report import text
from fljax.report.dropout_figures import sources_figure
from fljax.report.page import cost_table, write_report
from fljax.report.round_figures import mask_curves, masks_figure
from fljax.report.style import LINES

AXES = {EPS: [2.0, 8.0], KEEP: [0.25, 0.5, 1.0], SOURCE: ["fisher", "random"]}
SEEDS = 3


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return make_sweep(tmp_path_factory.mktemp("dropout"), AXES, SEEDS, masks=("kept_energy", "mask_overlap"))


def rows(results, **cell):
    named = {EPS: cell.get("eps"), KEEP: cell.get("keep"), SOURCE: cell.get("source")}
    picked = [results.trials[axis] == value for axis, value in named.items() if value is not None]
    return np.all(picked, axis=0)


def test_sources_are_lines_over_keep_rates(results):
    """At the best epsilon, mean accuracy against megabytes; the random control is dashed and hollow."""
    axes = sources_figure(results).axes[0]
    lines = [line for line in axes.lines if len(line.get_xdata()) == 3 and line.get_linestyle() != "None"]
    for line, source in zip(lines, ("fisher", "random"), strict=True):
        expected = [
            results.trials["test_accuracy"][rows(results, eps=8.0, keep=keep, source=source)].mean()
            for keep in AXES[KEEP]
        ]
        np.testing.assert_allclose(line.get_xdata(), AXES[KEEP])  # 1 MB at a keep rate of 1
        np.testing.assert_allclose(line.get_ydata(), expected)
    assert lines[0].get_linestyle() == LINES[0] and lines[1].get_linestyle() == "--"
    assert len(axes.containers) == 2  # intervals over seeds


def test_masks_are_panels_over_rounds(results):
    """The panels hold the mean over seeds of each source at the smallest keep rate and the best epsilon."""
    assert mask_curves(results) == ["kept_energy", "mask_overlap"]
    figure = masks_figure(results)
    assert [axes.get_title() for axes in figure.axes] == [text.metric_label(n) for n in mask_curves(results)]
    for axes in figure.axes:
        for line, source in zip(axes.lines, ("fisher", "random"), strict=True):
            inside = rows(results, eps=8.0, keep=0.25, source=source)
            level = results.trials["test_accuracy"][inside].mean()
            np.testing.assert_allclose(line.get_xdata(), [10, 20, 30])
            np.testing.assert_allclose(line.get_ydata(), level * np.array([1, 2, 3]) / 3, rtol=1e-6)


def test_a_page_shows_costs_with_their_units(no_png, tmp_path):
    results = make_sweep(tmp_path, {SOURCE: ["fisher", "random"]}, seeds=1, masks=("coverage",))
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "Dropout of neurons" in page and (tmp_path / "figures/masks.svg").exists()
    assert "simulated" not in page
    results.trials["simulated_s"] = np.array([90.0, 3.0])
    results.trials["simulated_flops"] = np.array([2.5e12, 1e9])
    assert cost_table(results) == [
        ("fisher", ["1 MB", "2 MB", "1 min 30 s", "2.5 TFLOP"]),
        ("random", ["1 MB", "2 MB", "3 s", "1 GFLOP"]),
    ]
