"""docs/performance.md holds what the stored files say."""

import pytest

from benchmarks import page, tables


def test_page_agrees_with_the_stored_files():
    text = page.PAGE.read_text()
    assert page.written(text, page.stored()) == text


def test_page_has_every_table_once():
    text = page.PAGE.read_text()
    assert all(text.count(f"<!-- table: {name} -->") == 1 for name in page.TABLES)
    assert text.count("<!-- table: ") == text.count("<!-- end -->") == len(page.TABLES)


def test_every_stored_file_has_its_command():
    measured = {path.stem.removesuffix("_cpu") for path in page.RESULTS.glob("*_cpu.json")}
    assert measured - {"leakage_digits", "leakage_fashion_mnist"} <= set(page.SOURCES)  # those are in docs/leakage.md


def test_tables_are_written_from_the_files():
    row = {"steady_s_per_round": 0.05, "fastest_s_per_round": 0.04, "slowest_s_per_round": 2.0}
    peer = {"versions": {"torch": "9"}, "setting": {"threads": 1}, "over_fljax": 2.5, "difference": 4e-7}
    files = {"vs_tiny_mlp": {"peers": {"pytorch": row | peer, "pfl": {"error": "no wheel"}}}}
    lines = tables.others(files, "vs_tiny_mlp").splitlines()
    assert lines[2] == "| pytorch | 9 | 50 ms (40 ms to 2 s) | 2.50 | 4e-07 | threads 1 |"
    assert "no wheel" in lines[3]
    assert tables.others({}, "vs_tiny_mlp") == ""


@pytest.mark.parametrize("name", page.SOURCES)
def test_commands_name_benchmarks_that_exist(name):
    module = page.SOURCES[name].split()[0]
    assert (page.ROOT / f"benchmarks/{module}.py").exists() or (page.ROOT / f"benchmarks/{module}/__main__.py").exists()
