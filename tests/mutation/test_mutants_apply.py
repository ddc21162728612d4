"""Every mutant still fits the code: its text is there once, and its test exists. `make mutation` runs them."""

import ast
from collections import Counter
from pathlib import Path

import pytest
from mutants import CLASSES, MUTANTS, NOT_PLANTED
from run import mutated

ROOT = Path(__file__).parents[2]


def functions(path: Path) -> set[str]:
    """Names of the functions at the top of a file."""
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def test_every_mutant_applies_and_is_still_python():
    broken = []
    for mutant in MUTANTS:
        text = (ROOT / mutant.file).read_text()
        if text.count(mutant.old) != 1:
            broken.append(f"{mutant.name}: found its text {text.count(mutant.old)} times in {mutant.file}")
        else:
            ast.parse(mutated(text, mutant))
    assert not broken, "\n".join(broken)


def test_every_named_test_exists():
    broken = []
    for mutant in MUTANTS:
        file, _, name = mutant.test.partition("::")
        if not (ROOT / file).exists() or name.split("[")[0] not in functions(ROOT / file):
            broken.append(f"{mutant.name}: there is no {mutant.test}")
    assert not broken, "\n".join(broken)


def test_names_are_unique_and_every_class_is_planted_or_explained():
    assert max(Counter(m.name for m in MUTANTS).values()) == 1
    assert {m.bug_class for m in MUTANTS} == set(CLASSES)
    assert set(CLASSES) | set(NOT_PLANTED) >= set(range(1, 33)) and not set(CLASSES) & set(NOT_PLANTED)


def test_a_text_that_is_not_there_once_is_refused():
    mutant = MUTANTS[0]
    for text in ("", mutant.old * 2):
        with pytest.raises(ValueError, match=mutant.name):
            mutated(text, mutant)
