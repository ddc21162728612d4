"""Strategies on disk: computed once, never trusted when damaged, and one line where the package is missing."""

import json
import sys

import numpy as np
import pytest

from fljax.core.check import FljaxError
from fljax.privacy import correlated, jaxprivacy
from fljax.server.sampler import cyclic

COEFFICIENTS = np.array([0.8, 0.5, 0.3, 0.1])


def test_a_strategy_is_computed_once_and_a_damaged_file_is_a_miss(tmp_path, monkeypatch):
    monkeypatch.setenv("FLJAX_CACHE", str(tmp_path))
    calls = []

    def compute(rounds, bands):
        calls.append((rounds, bands))
        return COEFFICIENTS[:bands] / np.linalg.norm(COEFFICIENTS[:bands])

    monkeypatch.setattr(jaxprivacy, "banded_coefficients", compute)
    first = correlated.banded_strategy(30, 3)
    np.testing.assert_array_equal(correlated.banded_strategy(30, 3), first)
    np.testing.assert_allclose(np.linalg.norm(first), 1.0, rtol=1e-12)
    assert calls == [(30, 3)]
    (file,) = (tmp_path / "strategies").iterdir()
    entry = json.loads(file.read_text())
    damaged = [
        "",
        file.read_text()[:-9],
        json.dumps(entry | {"value": [1.0, 2.0]}),
        json.dumps(entry | {"value": [0.0, 1.0, 2.0]}),
        json.dumps(entry | {"value": [1.0, float("nan"), 2.0]}),
        json.dumps(entry | {"value": [1.0, None, "two"]}),
        json.dumps(entry | {"question": entry["question"].replace("30", "31")}),
    ]
    for i, text in enumerate(damaged):
        file.write_text(text)
        np.testing.assert_array_equal(correlated.banded_strategy(30, 3), first)
        assert len(calls) == i + 2
    file.write_text(json.dumps(entry | {"value": [4.0, 2.0, 0.0]}))  # somebody else's, larger: scaled
    np.testing.assert_allclose(np.linalg.norm(correlated.banded_strategy(30, 3)), 1.0, rtol=1e-12)


def test_without_the_package_there_is_one_line_that_names_it(tmp_path, monkeypatch):
    monkeypatch.setenv("FLJAX_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "jax_privacy.matrix_factorization.toeplitz", None)
    with pytest.raises(FljaxError, match=r"'jax_privacy' .*pip install fljax\[dp\]"):
        correlated.banded_noise(10, 2, cyclic(20, 4))
    assert not (tmp_path / "strategies").exists()
    correlated.banded_noise(9, 1, cyclic(9, 3))  # one band needs nothing
