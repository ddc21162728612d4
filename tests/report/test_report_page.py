"""The page: self-contained, escaped, honest about refused privacy."""

from __future__ import annotations

import math
import re
import sys
from html.parser import HTMLParser

import pytest
from sample_results import EPS, KEEP, SOURCE, make_sweep, statement

from fljax.core.check import FljaxError
from fljax.report.page import describe_cells, readable_pairs, render, to_toml, write_report
from fljax.report.tables import run_summary, summarise
from fljax.sweep.store import open_results


class Reader(HTMLParser):
    """Collects tags, addresses and ids; checks that tags are closed in order."""

    VOID = frozenset({"meta", "br", "link", "img", "input"})

    def __init__(self, page):
        super().__init__()
        self.stack, self.tags, self.links, self.ids = [], [], [], []
        self.feed(page)
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self._see(tag, attrs)
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self._see(tag, attrs)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def _see(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href", "action", "data", "srcset")]
        self.ids += [v for k, v in attrs if k == "id"]


def test_page_is_self_contained(page):
    reader = Reader(page)
    assert not {"script", "link", "img", "iframe", "object"} & set(reader.tags)
    assert all(link.startswith("#") and link[1:] in reader.ids for link in reader.links)
    assert len(reader.ids) == len(set(reader.ids))
    assert "@import" not in page
    assert all(address.startswith("#") for address in re.findall(r"url\(([^)]*)\)", page))
    # The only addresses left are the names of XML namespaces, which nobody loads.
    assert set(re.findall(r"https?://[^\"'\s<]+", page)) <= {
        "http://www.w3.org/1999/xlink",
        "http://www.w3.org/2000/svg",
    }


def test_page_says_what_it_should(page, sweep):
    assert "The best test accuracy is 59.0 ± 2.0 % with ε 8, keep rate 1, random" in page
    assert "63.0 ± 2.0 % with no noise" in page
    for part in (
        "57.0 ± 2.0",
        "<li>The search for hyper-parameters",
        '<td class="reason">Of this ε.',
        "add or remove one",
        "1.25",
        "rounds = 30",
        "1 min 15 s",
    ):
        assert part in page
    assert page.count('class="best"') >= 3
    assert (sweep.folder / "table.csv").read_text() == summarise(sweep).to_csv()
    assert not list(sweep.folder.glob(".fljax-*"))


def test_page_is_reproducible(no_png, page, sweep):
    assert write_report(sweep.folder).read_text(encoding="utf-8") == page


def test_everything_is_escaped(no_png, tmp_path):
    evil = "<script>alert('x')</script>"
    axes = {SOURCE: [evil, "b"], "a.<i>": [1.0, 2.0]}
    extra = {"title": evil, "name": evil, "fljax": evil, "experiment": {evil: {"a": evil}}}
    extra |= {"provenance": {evil: evil}, "timing": {evil: evil}, "privacy": [statement(1.0) | {"unit": evil}]}
    make_sweep(tmp_path, axes, seeds=1, **extra)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "script" not in Reader(page).tags and "i" not in Reader(page).tags
    assert "&lt;script&gt;" in page


def test_page_of_a_run(no_png, tmp_path):
    make_sweep(tmp_path, {}, seeds=1, privacy=[statement(3.991)])
    page = write_report(tmp_path).read_text(encoding="utf-8")
    Reader(page)
    assert "The test accuracy is 50.0 %, with ε = 3.991 at δ = 1e-5." in page
    assert "one run" in page and "± " not in page
    assert not (tmp_path / "figures/main.svg").exists()


def test_refused_run_shows_no_number(tmp_path):
    make_sweep(tmp_path, {}, seeds=1, privacy=[statement(3.991, refused=True)], refuse=lambda cell: True)
    page = render(open_results(tmp_path), {})
    assert "(no ε is claimed)" in page
    assert "The mask is private &lt;b&gt;&amp;&lt;/b&gt; its noise is not." in page
    section = page[page.index('id="privacy"') : page.index('id="communication"')]
    assert ">refused<" in section and "carries <b>no ε</b>" in section
    assert "3.99" not in page and "1e-5" not in page


def test_refused_cells_of_a_sweep_are_marked(tmp_path):
    results = make_sweep(tmp_path, {EPS: [2.0, 8.0], KEEP: [0.5, 1.0]}, refuse=lambda cell: cell[KEEP] < 1)
    table = summarise(results)
    assert table.refused.tolist() == [[True, False], [True, False]]
    assert table.row_name == "target ε" and table.text(0, 0).endswith("†")
    page = render(open_results(tmp_path), {})
    section = page[page.index('id="privacy"') : page.index('id="communication"')]
    assert '<td>keep rate 0.5</td><td><span class="badge refused">' in section  # one statement for both targets
    assert "<td>ε 2, keep rate 1</td>" in section and '<th scope="col">target ε</th>' in page
    assert "† No ε is claimed" in page
    assert describe_cells([{EPS: 2.0}], [{EPS: 2.0}, {EPS: 8.0}], refused=True) == "target ε 2"


def test_values_only_is_no_guarantee(tmp_path):
    said = statement(3.25) | {"status": "values_only", "reason": "The mask is not covered."}
    results = make_sweep(tmp_path, {}, seeds=1, privacy=[said])
    page = render(open_results(tmp_path), {})
    assert "values only" in page and "The mask is not covered." in page and "3.25" not in page
    assert dict(run_summary(results))["ε"] == "values only: The mask is not covered."


def test_without_statements_nothing_is_claimed(tmp_path):
    make_sweep(tmp_path, {}, seeds=1, privacy=[])
    assert "nothing is claimed" in render(open_results(tmp_path), {})


def test_cells_in_words():
    cells = [{EPS: e, KEEP: k} for e in (2.0, 8.0) for k in (0.5, 1.0)]
    assert describe_cells(cells, cells) == "all cells"
    assert describe_cells(cells[:2], cells) == "ε 2"
    assert describe_cells([cells[0], cells[2]], cells) == "keep rate 0.5"
    assert describe_cells([cells[0], cells[3]], cells) == "ε 2, keep rate 0.5; ε 8, keep rate 1"


def test_timing_of_programs_is_one_line_each():
    timing = {"total_s": 75.0, "programs": [{"label": "cnn", "trials": 8, "compile_s": 3.25}, {"steady_s": 0.5}]}
    pairs = [("total", "1 min 15 s"), ("cnn", "trials 8, compile 3.25 s"), ("programs 2", "steady 500 ms")]
    assert readable_pairs(timing, timing=True) == pairs


def test_configuration_reads_like_toml():
    tomllib = pytest.importorskip("tomllib")
    config = {"name": 'a"b', "run": {"rounds": 3, "deep": {"x y": [1.0, math.inf], "b": True}, "none": None}}
    shown = to_toml(config)
    assert "# none is not set" in shown
    read = tomllib.loads(shown)
    del config["run"]["none"]
    assert read == config


def test_damaged_folder_is_one_line(tmp_path):
    with pytest.raises(FljaxError) as error:
        write_report(tmp_path)
    assert "\n" not in str(error.value)


def test_import_is_cheap():
    import subprocess

    code = (
        "import sys, fljax.sweep.store, fljax.report.page, fljax.report.figures, fljax.report.tables;"
        "print([m for m in ('duckdb', 'matplotlib', 'jinja2', 'rich', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
