"""One sweep and its page, shared by the tests of the report."""

from __future__ import annotations

import pytest
from sample_results import GRID, make_sweep

from fljax.report import style
from fljax.report.page import write_report


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return make_sweep(tmp_path_factory.mktemp("sweep"), GRID)


@pytest.fixture(scope="module")
def page(sweep):
    return write_report(sweep.folder).read_text(encoding="utf-8")


@pytest.fixture
def no_png(monkeypatch):
    """Leaves out PNG and PDF, most of the time of a report, where a test does not look at them."""
    monkeypatch.setattr(style, "png_bytes", lambda figure: b"")
    monkeypatch.setattr(style, "pdf_bytes", lambda figure: b"")
