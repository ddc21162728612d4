"""The experiment of four hospitals, from files to the page: on small files made here, and on the real ones."""

import os
from pathlib import Path

import numpy as np
import pytest
import tiny_files

from fljax.cli.arguments import load_experiment
from fljax.core.check import FljaxError
from fljax.report.page import write_report
from fljax.sim.run import run
from fljax.sweep.record import record_run

pytest.importorskip("cryptography", reason="needs fljax[secure]")


@pytest.fixture
def files(tmp_path):
    """Four files in the original format, of 12 to 30 patients."""
    folder = tmp_path / "heart_disease"
    folder.mkdir()
    for name, n in (("cleveland", 30), ("hungarian", 25), ("switzerland", 12), ("va", 20)):
        (folder / f"processed.{name}.data").write_text(tiny_files.patients(n))
    return tmp_path


def experiment(folder: Path, rounds: int):
    return load_experiment("hospitals_secure").replace(
        **{"data.dir": str(folder), "rounds": rounds, "eval_every": rounds, "controls": {}, "channel.verify_rounds": 2}
    )


@pytest.mark.slow
def test_four_hospitals_from_files_to_page(files, tmp_path):
    outcome = run(experiment(files, 3), quiet=True)
    told = outcome.encryption
    assert (told["secure"]["rounds"], told["secure"]["aborted"], told["secure"]["seeds_recovered"]) == (3, 0, 12)
    assert told["channel"]["verified_rounds"] == 2 and told["channel"]["messages"] == 16
    assert outcome.communication["uplink_bytes"] == 3 * 4 * 919
    record_run(tmp_path / "out", outcome)
    page = write_report(tmp_path / "out", endings=()).read_text()
    for text in ("AES-256-GCM", "Secure sum by real cryptography", "pad keys recovered"):
        assert text in page


def test_what_the_experiment_promises_holds_in_its_settings():
    """All others have to help to open a mask, the first layer alone is shared, and data come from files."""
    e = load_experiment("hospitals_secure")
    assert (e.secure.mode, e.secure.threshold, e.client.shared, e.channel.kind) == (
        "protocol",
        3,
        ("dense_0",),
        "aes_gcm",
    )


def test_missing_files_are_one_line(tmp_path):
    with pytest.raises(FljaxError, match=r"processed\.cleveland\.data") as error:
        run(experiment(tmp_path, 1), quiet=True)
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.skipif(
    not Path(os.environ.get("FLJAX_DATA", "/nowhere"), "heart_disease").is_dir(),
    reason="needs the heart disease files in FLJAX_DATA",
)
def test_the_numbers_of_the_experiment_on_the_real_files():
    e = load_experiment("hospitals_secure").replace(**{"secure.mode": "ideal", "controls": {}})
    outcome = run(e, quiet=True)
    assert np.isclose(outcome.final["client_accuracy_mean"], 0.839, atol=0.02)
