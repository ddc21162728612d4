"""What notebooks show: escaped, well-formed, with the right numbers; and the live view of a run."""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ET
from types import SimpleNamespace

import numpy as np
import pytest
from sample_results import EPS, KEEP, make_sweep

import fljax
from fljax.config import Experiment
from fljax.core import html
from fljax.privacy.statement import PrivacyStatement
from fljax.sim import live, progress
from fljax.sim.engine import Timing
from fljax.sim.outcome import Outcome
from fljax.sweep.grid import expand
from fljax.sweep.run import GroupTiming, SweepOutcome

EVIL = "<script>alert('x')</script>"


def well_formed(markup):
    """The markup as a tree: every tag is closed, every ampersand escaped."""
    return ET.fromstring(f"<div>{markup}</div>")


def test_everything_is_escaped():
    parts = [
        html.paragraph(EVIL),
        html.pairs([(EVIL, EVIL)]),
        html.grid([EVIL], [[EVIL]]),
        html.progress_bar(1, 2, EVIL),
    ]
    parts += [html.bars([1.0], EVIL), html.curves({EVIL: ([1, 2], [0.0, 1.0])}, EVIL), html.details(EVIL, "")]
    markup = html.card(EVIL, *parts, note=EVIL)
    assert not [node for node in well_formed(markup).iter() if node.tag.endswith("script")]
    assert markup.count("&lt;script&gt;") >= 10
    assert html.Html(markup)._repr_html_() == markup


def test_curve_is_drawn_to_scale():
    """Ends of a curve touch the ends of the axes; NaN is left out; a constant does not divide by zero."""
    markup = html.curves({"a": ([1, 2, 3, 4], [0.0, 5.0, np.nan, 10.0])}, "t", width=360, height=150)
    line = re.search(r'<polyline points="([^"]+)"', markup)[1]
    points = np.array([pair.split(",") for pair in line.split()], float)
    np.testing.assert_allclose(points, [[46, 116], [46 + 304 / 3, 69], [350, 22]], atol=0.06)
    assert ">10<" in markup and ">0<" in markup and ">4<" in markup
    well_formed(html.curves({"a": ([1.0], [3.0])}, "t"))
    assert html.curves({"a": ([1, 2], [np.nan, np.nan])}, "t") == ""


def test_bars_are_drawn_to_scale():
    heights = [float(h) for h in re.findall(r'height="([\d.]+)" fill', html.bars([4.0, 2.0, 0.0], "t"))]
    assert heights[1] == pytest.approx(heights[0] / 2, abs=0.05) and heights[2] == 0
    assert html.bars(np.arange(1000.0), "t", most=50).count("<rect") == 50


def test_long_tables_are_cut():
    markup = html.grid(["n"], [[i] for i in range(50)], most=40)
    assert markup.count("<tr>") == 41 and "and 10 more" in markup


def test_data_set_shows_its_clients():
    data = fljax.load_dataset("digits", partition="dirichlet", alpha=0.3)
    markup = data._repr_html_()
    well_formed(markup)
    assert "143 clients, 1430 examples" in markup and markup.count("<svg") == 2
    assert "empty clients" in markup and "CC BY 4.0" in markup
    well_formed(data.summary()._repr_html_())
    assert "143 clients" in data.train._repr_html_()


def test_experiment_shows_what_was_set_and_what_is_traced():
    markup = fljax.load("digits_dp_fedavg").replace(title=EVIL)._repr_html_()
    well_formed(markup)
    assert "epsilon = 8" in markup and "hidden = [32]" in markup and "&lt;script&gt;" in markup
    traced = re.search("Never recompiled when changed: ([^<]+)", markup)[1]
    assert "privacy.clip" in traced and "client.steps" not in traced
    well_formed(Experiment()._repr_html_())
    assert "privacy.epsilon = [2, 4, 8, 16, inf]" in fljax.load("digits_privacy_utility")._repr_html_()


def statement(status="valid"):
    claim = {"epsilon": 3.99123, "delta": 1e-5} if status == "valid" else {"reason": "The mask is private."}
    return PrivacyStatement(
        status, **claim, relation="add_or_remove_one", sampler="Poisson", accountant="PLD", rounds=4
    )


def outcome(status="valid"):
    """A finished run of four rounds, two of them evaluated."""
    history = {n: np.array([3, 4, 3, 5], np.int32) for n in ("participants", "uplink_kib", "downlink_kib")}
    history |= {n: np.zeros(4, np.int32) for n in ("uplink_rest", "downlink_rest")}
    history |= {"test_accuracy": np.array([np.nan, 0.5, np.nan, 0.75]), "loss": np.array([4.0, 3.0, 2.0, 1.0])}
    experiment = fljax.load("digits_dp_fedavg").replace(rounds=4)
    return Outcome(experiment, None, statement(status), {}, history, Timing(1.25, 0.1, 0.4))


def test_run_shows_result_claim_and_curves():
    markup = outcome()._repr_html_()
    well_formed(markup)
    for part in ("0.75", "ε = 3.992", "0.01536 MB", "compiled in", "what this does not cover"):
        assert part in markup
    assert markup.count("<polyline") == 2
    refused = outcome("refused")._repr_html_()
    assert "The mask is private." in refused and "3.99" not in refused


def test_sweep_shows_cells_and_claims():
    budgets = {"privacy.epsilon": [2.0, 4.0], "privacy.clip": [0.25, 0.5]}
    sweep = {"seeds": 2, "zip": budgets}
    experiment = fljax.load("digits_dp_fedavg").replace(sweep=sweep, **{"privacy.epsilon": None})
    trials = expand(experiment)
    history = {"test_accuracy": np.array([[0.1, 0.6], [0.1, 0.8], [0.1, 0.9], [0.1, np.nan]])}
    values_only = PrivacyStatement("values_only", "of the values alone", epsilon=3.25, delta=1e-5)
    said = [statement(), statement(), statement("refused"), values_only]
    timings = [GroupTiming("all trials", 4, Timing(1.0, 0.1, 2.0))]
    markup = SweepOutcome(experiment, list(trials), said, history, timings)._repr_html_()
    cells = [[td.text for td in tr] for tr in well_formed(markup).iter("tr")][1:3]
    assert cells == [["2", "0.7000 ± 0.1414", "3.992", "2"], ["4", "0.9000", "refused / values only", "2"]]
    assert "4 trials, compiled in 1.0 s" in markup and "3.25" not in markup


def test_results_show_cells_and_never_a_refused_epsilon(tmp_path):
    results = make_sweep(tmp_path, {EPS: [2.0, 8.0], KEEP: [0.5, 1.0]}, seeds=2, refuse=lambda cell: cell[KEEP] < 1)
    rows = [[td.text for td in tr] for tr in well_formed(results._repr_html_()).iter("tr")]
    assert rows[0] == [EPS, KEEP, "test_accuracy", "test_loss", "ε claimed", "trials"]
    assert rows[1] == ["2", "0.5", "0.5100 ± 0.0141", "0.4900 ± 0.0141", "refused", "2"]
    assert rows[4][4] == "8.000"


@pytest.fixture
def notebook(monkeypatch):
    """A stand-in for a Jupyter kernel: collects what every display shows, one after the other."""
    displays = []

    def display(thing, display_id):
        assert display_id
        displays.append([thing.text])
        return SimpleNamespace(update=lambda new: displays[-1].append(new.text))

    shell = SimpleNamespace(kernel=None)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    return displays


def test_progress_updates_one_display(notebook, capsys):
    history = {"test_accuracy": np.array([0.1, np.nan, 0.3]), "loss": np.array([3.0, 2.0, 1.0])}
    with progress.Progress(4, "demo") as bar:
        bar.update(3, "epsilon 1.50", history)
        bar.update(4, "epsilon 2.00", history)
    assert len(notebook) == 1 and len(notebook[0]) == 3
    assert "demo: 3/4" in notebook[0][1] and "epsilon 1.50" in notebook[0][1] and notebook[0][1].count("<polyline") == 2
    assert "width:75.0%" in notebook[0][1] and "done in" in notebook[0][2]
    for markup in notebook[0]:
        well_formed(markup)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_said_and_quiet_in_a_notebook(notebook):
    with progress.said("compiling"):
        pass
    assert re.search(r"compiling \.\.\. [\d.]+ s", notebook[0][-1])
    with progress.Progress(4, "demo", quiet=True) as bar, progress.said("compiling", quiet=True):
        bar.update(4)
    assert len(notebook) == 1


def test_a_terminal_is_no_notebook(monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: SimpleNamespace()))
    assert not live.in_notebook()
    monkeypatch.delitem(sys.modules, "IPython")
    assert not live.in_notebook()
