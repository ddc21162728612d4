"""Every block of code in the documentation: Python runs, settings are valid. (Commands are parsed in ``test_docs``.)"""

import re
import tomllib
from pathlib import Path

import matplotlib
import numpy as np
import pytest

import fljax
from fljax.config import validate
from fljax.sim.engine import use_compilation_cache
from fljax.sweep.record import record_run
from fljax.sweep.store import write_results

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "experiments/README.md"]
SLOW = ("docs/audit.md",)
"""Pages whose code takes long: an audit of a hundred rounds."""
RUN = ("python", "toml")
READ = ("bash", "text", "bibtex", "")
"""Languages that are run or validated here, and those that are not code or are parsed elsewhere."""


def name(path):
    return str(path.relative_to(ROOT))


def blocks(path, language):
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)


def pages(language):
    chosen = [path for path in PAGES if blocks(path, language)]
    marks = {path: [pytest.mark.slow] if name(path) in SLOW else [] for path in chosen}
    return [pytest.param(path, id=name(path), marks=marks[path]) for path in chosen]


@pytest.fixture(scope="module")
def look(tmp_path_factory):
    """A folder in which the results lie that the pages read: ``results/look``, of six rounds, and the main job.

    Programs are kept for the session: ``docs/howto.md`` runs the same one again.
    """
    use_compilation_cache()
    folder = tmp_path_factory.mktemp("reader")
    experiment = fljax.load("digits_dp_fedavg").replace(rounds=6, eval_every=3)
    record_run(folder / "results/look", fljax.run(experiment, quiet=True))
    write_main_job(folder / "results/digits_privacy_utility")
    return folder


def write_main_job(folder):
    """Results in the form of the main job: four budgets and five seeds, with made-up accuracies."""
    budgets, numbers = np.repeat([2.0, 4.0, 8.0, 16.0], 5), np.arange(20)
    trials = {
        "trial": numbers,
        "privacy.epsilon": budgets,
        "run.seed": numbers % 5,
        "test_accuracy": 0.9 + numbers / 400,
    }
    curves = {"trial": numbers, "round": np.full(20, 100), "test_accuracy": trials["test_accuracy"]}
    manifest = {"name": "digits_privacy_utility", "kind": "sweep", "axes": ["privacy.epsilon"]}
    write_results(folder, manifest=manifest, trials=trials, curves=curves)


@pytest.mark.parametrize("path", pages("python"))
def test_python_runs(path, look, monkeypatch, capsys):
    """All blocks of a page, in one namespace and in their order, as a reader would type them."""
    matplotlib.use("agg")
    monkeypatch.chdir(look)
    space = {"fljax": fljax}
    for block in blocks(path, "python"):
        exec(compile(block, name(path), "exec"), space)
    printed = capsys.readouterr().out
    if path.name == "README.md":
        lines = blocks(path, "python")[0].splitlines()
        assert len([line for line in lines if line.strip()]) == 12  # as the README says
        assert float(space["info"].participants) > 0 and np.isfinite(float(space["info"].client["loss"]))
        assert space["outcome"].final["test_accuracy"] > 0.9
        assert "test accuracy" in printed
    if path.name == "howto.md":
        assert " True\n" in printed and "-DP per user" in printed and "@software{fljax" in printed
        assert (look / "curves.pdf").read_bytes()[:5] == b"%PDF-"
        assert space["mine"].data.name == "npz"


@pytest.mark.parametrize("path", pages("toml"))
def test_settings_are_valid(path):
    """Blocks of settings are parts of an experiment: known fields, valid values."""
    for block in blocks(path, "toml"):
        validate(tomllib.loads(block), name(path))


def test_every_block_is_looked_at():
    """A block in another language would be code that nobody runs."""
    for path in PAGES:
        for language in re.findall(r"^```(\S*)\n(?:.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE):
            assert language in (*RUN, *READ), f"{name(path)}: {language}"
    assert {name(p.values[0]) for p in pages("python")} >= {"README.md", "docs/howto.md", *SLOW}
