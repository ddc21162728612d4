"""What is released works outside of the repository: the wheel with its data, and the site."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import fljax

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def execute(*command, cwd, **environment):
    """Runs a command outside of the repository, without its path; returns what it printed."""
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "JAX_NUMPY_RANK_PROMOTION")}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=clean | environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built without a look at the network: the build backend is one of the test requirements."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    execute(*pip, "wheel", ROOT, "--no-deps", "--no-build-isolation", "--quiet", "-w", folder, cwd=folder)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """An environment that holds the wheel and sees the packages of this one, but not the repository."""
    folder = tmp_path_factory.mktemp("installed") / "env"
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    site = Path(execute(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    execute(*pip, "install", "--quiet", "--no-deps", "--no-index", "--force-reinstall", wheel, cwd=folder)
    return folder


def test_the_wheel_holds_what_it_needs(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for needed in (
        "report/page.html.j2",
        "report/references.bib",
        "data/digits.npz",
        "_experiments/digits_fedavg.toml",
    ):
        assert f"fljax/{needed}" in names
    assert not [n for n in names if n.startswith(("tests/", "docs/", "notebooks/"))]
    assert wheel.name.startswith(f"fljax-{fljax.__version__}-")


def test_the_installed_command_works_elsewhere(installed, tmp_path):
    place = execute(installed / "bin/python", "-c", "import fljax; print(fljax.__file__)", cwd=tmp_path).strip()
    assert Path(place).is_relative_to(installed)
    command = installed / "bin/fljax"
    assert execute(command, "--version", cwd=tmp_path).strip() == fljax.__version__
    assert "digits_privacy_utility" in execute(command, "list", cwd=tmp_path)
    quick = ("--rounds", "2", "--eval-every", "1", "--quiet", "--out", "here")
    execute(command, "run", "digits_dp_fedavg", *quick, cwd=tmp_path)
    assert "<svg" in (tmp_path / "here/report.html").read_text()


def test_the_site_is_built_without_warnings(tmp_path):
    """Broken links and names that do not exist are warnings, and warnings are errors; notebooks are not executed."""
    pytest.importorskip("myst_nb")
    done = execute(sys.executable, ROOT / "docs/site/build.py", "--out", tmp_path, cwd=tmp_path)
    assert done.strip().endswith("docs/index.html")
    for page in ("docs/index", "docs/reference", "experiments/digits_dp_fedavg", "notebooks/07_reading_results"):
        assert (tmp_path / "html" / f"{page}.html").stat().st_size > 5000
    reference = (tmp_path / "html/docs/reference.html").read_text()
    assert 'id="fljax.recipes.dp_fedavg"' in reference and 'id="fljax.report.citation.citation"' in reference
