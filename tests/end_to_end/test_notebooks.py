"""The notebooks run from top to bottom, agree with their text form, and are kept without outputs."""

import os
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FIGURES = {
    "01_first_simulation": 3,
    "02_fisher_dropout": 3,
    "03_privacy_utility": 2,
    "04_secure_aggregation": 1,
    "05_attacks_and_defences": 1,
    "06_your_own_parts": 1,
    "07_reading_results": 3,
}
"""Figures of matplotlib that a notebook shows."""
SHOWS = {
    "01_first_simulation": ["a finished run", "a data set"],
    "03_privacy_utility": ["digits_dp_fedavg: 12/12, done in", "a finished run", "a finished sweep of 6 trials"],
    "07_reading_results": ["results of 8 trials"],
}
"""What else it has to show: live progress and objects that are shown as HTML."""

NO_EPSILON = {"04_secure_aggregation"}
"""Notebooks without a private run."""

# A kernel of the interpreter that runs the tests, whatever kernels are installed on this machine; in a process of its
# own, because the sockets of a kernel's client outlive it.
EXECUTE = """
import sys
import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

source, target = sys.argv[1:]
notebook = nbformat.read(source, as_version=4)
specs = KernelSpecManager(kernel_dirs=[], ensure_native_kernel=True)
manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=specs)
NotebookClient(notebook, km=manager, timeout=300).execute()
nbformat.write(notebook, target)
"""


def cells(notebook: nbformat.NotebookNode) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def test_every_notebook_has_its_text_form():
    assert NOTEBOOKS
    assert sorted(p.stem for p in (ROOT / "notebooks").glob("*.py")) == [p.stem for p in NOTEBOOKS]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_pair_agrees_and_outputs_are_stripped(path):
    notebook = nbformat.read(path, as_version=4)
    assert cells(notebook) == cells(jupytext.read(path.with_suffix(".py")))
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_first_cell_reads_the_fast_switch(path):
    code = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert "FLJAX_FAST" in code[0]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_runs(path, tmp_path):
    target = tmp_path / path.name
    environment = {**os.environ, "FLJAX_FAST": "1", "IPYTHONDIR": str(tmp_path)}
    environment.pop("JAX_NUMPY_RANK_PROMOTION", None)  # a reader's own kernel is not that strict
    command = [sys.executable, "-c", EXECUTE, str(path), str(target)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    outputs = [o for cell in nbformat.read(target, as_version=4).cells for o in cell.get("outputs", [])]
    said = "".join(output.get("text", "") for output in outputs)
    assert ("-DP per user" in said) == (path.stem not in NO_EPSILON)
    assert "Warning" not in said
    assert sum("image/png" in output.get("data", {}) for output in outputs) == FIGURES[path.stem]
    shown = "".join(str(output.get("data", {}).get("text/html", "")) for output in outputs)
    for part in SHOWS.get(path.stem, []):
        assert part in shown, part
