"""Figures: files, reproducible, adapting to the axes of the sweep."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from types import SimpleNamespace

import pytest
from sample_results import EPS, KEEP, SOURCE, make_sweep

from fljax.report.figures import _looks, axis_ticks, curves_figure, metric_figure
from fljax.report.files import write_figures
from fljax.report.page import write_report
from fljax.report.plan import caption, make_plan
from fljax.report.style import pdf_bytes, svg_text


def test_figures_are_files(sweep):
    drawn = write_figures(sweep, sweep.folder / "figures")
    assert list(drawn) == ["main", "curves", "communication", "heat_map", "pareto", "sources"]
    for name in drawn:
        for stem in (name, f"{name}-wide"):
            svg = sweep.folder / "figures" / f"{stem}.svg"
            assert ET.parse(svg).getroot().tag.endswith("svg")
            png = svg.with_suffix(".png").read_bytes()
            assert png[:8] == b"\x89PNG\r\n\x1a\n" and len(png) > 10_000
            assert svg.with_suffix(".pdf").read_bytes()[:5] == b"%PDF-"


def test_other_formats_are_written_where_they_are_asked_for(tmp_path):
    """A sweep that ends needs the page alone; files of an earlier report that are not written anew go."""
    results = make_sweep(tmp_path, {}, seeds=1)
    write_report(tmp_path)
    assert {p.name for p in (tmp_path / "figures").iterdir() if p.stem == "curves"} == {
        "curves.svg",
        "curves.pdf",
        "curves.png",
    }
    write_figures(results, tmp_path / "figures", endings=())
    assert sorted(p.name for p in (tmp_path / "figures").iterdir()) == ["curves-wide.svg", "curves.svg"]


def test_figures_are_reproducible(sweep):
    first, second = (svg_text(metric_figure(sweep)) for _ in range(2))
    assert first == second
    assert svg_text(curves_figure(sweep, wide=True)) == svg_text(curves_figure(sweep, wide=True))
    assert "<dc:date" not in first
    assert len({pdf_bytes(metric_figure(sweep)) for _ in range(2)}) == 1


def test_settings_of_matplotlib_are_left_alone(sweep):
    import matplotlib

    before = dict(matplotlib.rcParams)
    metric_figure(sweep)
    assert dict(matplotlib.rcParams) == before


def test_no_noise_stands_apart_on_a_log_axis():
    ticks = axis_ticks(EPS, (2.0, 4.0, 16.0, math.inf))
    assert ticks.at.tolist() == [1, 2, 4, 5] and ticks.labels[-1] == "none"
    assert ticks.joined.tolist() == [True, True, True, False] and ticks.log
    assert axis_ticks("lr", (0.1, 0.2)).at.tolist() == [0.1, 0.2]
    assert not axis_ticks("rule", ("mean", "median")).joined.any()


def test_small_print(sweep):
    line = caption(sweep)
    for part in ("95 %", "3 seeds", "δ\u00a0=\u00a01e-5", "unit: user", "add or remove one", "Poisson", "PLD"):
        assert part in line


@pytest.mark.parametrize(
    ("axes", "names"),
    [
        ({}, ["curves"]),
        ({EPS: [1.0, math.inf]}, ["main", "curves", "communication", "pareto"]),
        ({EPS: [math.inf]}, ["main", "curves", "communication"]),
        ({EPS: ["2.0", "none"]}, ["main", "curves", "communication"]),
        ({"client.lr": [0.01, 0.1, 1.0]}, ["main", "curves", "communication"]),
        ({"robust.rule": ["mean", "median"], "robust.attack": ["none", "flip"]}, 4),
        ({EPS: [1.0, 2.0], KEEP: [0.5, 1.0], SOURCE: ["a", "b"], "client.lr": [0.1, 1.0]}, 6),
    ],
)
def test_report_adapts_to_the_axes(no_png, tmp_path, axes, names):
    results = make_sweep(tmp_path, axes, seeds=2)
    plan = make_plan(results, "test_accuracy")
    page = write_report(tmp_path).read_text(encoding="utf-8")
    every = ("main", "curves", "communication", "heat_map", "pareto", "sources", "masks", "clipping")
    drawn = [n for n in every if (tmp_path / f"figures/{n}.svg").exists()]
    assert drawn == names or len(drawn) == names
    assert page.count("<svg") == 2 * len(drawn)
    if len(axes) == 4:  # one axis too many to draw: fixed at its best value, and said
        assert plan.where == {"client.lr": 1.0}
        assert "best setting of the other axes: lr 1" in caption(results, where=plan.where)


def test_figures_of_an_earlier_report_go(no_png, tmp_path):
    (tmp_path / "heat_map-wide.png").write_bytes(b"old")
    (tmp_path / "mine.png").write_bytes(b"not ours")
    results = make_sweep(tmp_path / "results", {}, seeds=1)
    write_figures(results, tmp_path)
    assert sorted(p.name for p in tmp_path.glob("*.png")) == ["curves-wide.png", "curves.png", "mine.png"]


def test_colours_that_come_again_have_another_line():
    """Sixteen series, seven colours: no two look alike."""
    plan, table = SimpleNamespace(series=["x"]), SimpleNamespace(column_values=[(i,) for i in range(16)])
    assert len(set(_looks(plan, table))) == 16
