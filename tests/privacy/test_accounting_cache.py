"""Answers on disk: identical, without importing the accountant, robust against damage and against company."""

import json
import subprocess
import sys

import pytest

from fljax.core.types import SamplingLaw
from fljax.privacy import accounting, cache, calibrate, epsilon

LAW = SamplingLaw("poisson", 0.1, 100)
CHANGED = ["VALUE:NaN", "VALUE:-1.0", 'VALUE:"3"', "VALUE:true"]
PROGRAM = """
import sys
from fljax.core.types import SamplingLaw
from fljax.privacy import calibrate, epsilon
law = SamplingLaw("poisson", 0.1, 100)
print(repr(epsilon(law, 1.0, 10, 1e-3)), repr(calibrate(law, 2.0, 10, 1e-3)), "dp_accounting" in sys.modules)
"""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FLJAX_CACHE", str(tmp_path))


def _start():
    return subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True)


def _finish(process):
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return output.split()


def test_two_processes_at_once_agree_and_the_third_needs_no_accountant():
    first, second = [_finish(process) for process in (_start(), _start())]
    assert first[:2] == second[:2]
    assert _finish(_start()) == [*first[:2], "False"]
    assert epsilon(LAW, 1.0, 10, 1e-3) == float(first[0])
    files = list(cache.folder().iterdir())
    assert all(file.suffix == ".json" and json.loads(file.read_text())["value"] > 0 for file in files)


def test_a_hit_is_identical_and_does_not_compute(monkeypatch):
    value = epsilon(LAW, 1.0, 10, 1e-3), calibrate(LAW, 3.0, 10, 1e-3)
    monkeypatch.setattr(accounting, "_run_accountant", lambda *_: pytest.fail("computed again"))
    assert (epsilon(LAW, 1.0, 10, 1e-3), calibrate(LAW, 3.0, 10, 1e-3)) == value


@pytest.mark.parametrize(
    "damage",
    ["", "{", "null", "[1]", '{"value": 3.0}', '{"question": "another", "value": 3.0}', "\x00\xff", *CHANGED],
)
def test_a_damaged_entry_is_ignored_and_rewritten(damage, monkeypatch):
    monkeypatch.setattr(accounting, "_run_accountant", lambda *_: 1.25)
    value = epsilon(LAW, 1.0, 10, 1e-3)
    (file,) = cache.folder().iterdir()
    good = file.read_text()
    if damage.startswith("VALUE:"):
        damage = good.replace(json.dumps(value), damage.removeprefix("VALUE:"))
        assert damage != good
    file.write_bytes(damage.encode("latin-1"))
    assert epsilon(LAW, 1.0, 10, 1e-3) == value
    assert file.read_text() == good


def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FLJAX_CACHE", str(tmp_path / "file"))
    assert epsilon(LAW, 1.0, 10, 1e-3) > 0


def test_every_part_of_the_question_is_in_the_key(monkeypatch):
    monkeypatch.setattr(accounting, "_run_accountant", lambda *_: 1.0)

    def ask(law=LAW, z=1.0, rounds=10, delta=1e-3, **options):
        return epsilon(law, z, rounds, delta, **options)

    changes = [{}, {"z": 1.1}, {"rounds": 11}, {"delta": 2e-3}, {"law": LAW._replace(rate=0.2)}, {"accountant": "rdp"}]
    changes += [{"law": SamplingLaw("fixed_size", 0.1, 100)}, {"law": SamplingLaw("cyclic", 0.1, 100)}]
    changes += [{"law": SamplingLaw("truncated_poisson", 0.1, 100, 30)}]
    changes += [{"law": SamplingLaw("full", 1.0, 100), "rounds": 1}]  # one turn of the cyclic order, another relation
    for number, change in enumerate(changes, start=1):
        ask(**change)
        assert len(list(cache.folder().iterdir())) == number, change
    ask(law=LAW._replace(population=50))  # the population alone does not change the answer
    assert len(list(cache.folder().iterdir())) == len(changes)
    monkeypatch.setattr(cache, "_library", lambda: "another version")
    ask()
    assert len(list(cache.folder().iterdir())) == len(changes) + 1


def test_the_default_folder_is_in_the_home(monkeypatch, tmp_path):
    monkeypatch.delenv("FLJAX_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.folder() == tmp_path / ".cache" / "fljax" / "accounting"
