"""Every row of the threat model is measured by something that exists."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs/threat_model.md"
HEADS = ["", "adversary", "at stake", "defence", "measured by", "not covered"]
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.read_text().splitlines()
    if line.startswith("| **T")
]


def test_the_table_is_found_and_whole():
    assert "| " + " | ".join(HEADS[1:]) + " |" in PAGE.read_text()
    assert len(ROWS) >= 5 and len({row[0] for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].strip("*"))
def test_a_row_says_everything_and_is_measured(row):
    assert len(row) == len(HEADS) and all(row), "a cell is missing or empty"
    links = re.findall(r"\]\(([^)#\s]+)", row[HEADS.index("measured by")])
    assert any("/tests/" in link or "/experiments/" in link for link in links), "no test and no experiment"
    for link in links:
        assert (PAGE.parent / link).resolve().is_file(), f"{link} does not exist"
