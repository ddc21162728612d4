"""Accuracy in bfloat16 is that of float32, up to less than another seed changes."""

import numpy as np
import pytest

from benchmarks import page
from benchmarks.precision import FORMATS, ROWS, accuracies, paired


def test_pairs_are_compared_seed_by_seed():
    float32 = np.array([0.90, 0.94, 0.98])
    found = paired({"float32": float32, "bfloat16": float32 + np.array([0.01, -0.01, 0.015])})
    assert found["difference"] == pytest.approx(0.005)
    assert found["standard_error"] == pytest.approx((0.000175 / 3) ** 0.5)
    assert found["deviation_over_seeds"] == pytest.approx(0.04)
    assert found["within_noise"]


@pytest.mark.parametrize("shift", [[-0.05, -0.05, -0.05], [0.06, -0.06, 0.0]], ids=["worse", "uncertain"])
def test_a_worse_accuracy_and_an_uncertain_one_are_not_within_noise(shift):
    float32 = np.array([0.90, 0.94, 0.98])
    assert not paired({"float32": float32, "bfloat16": float32 + np.array(shift)})["within_noise"]


def test_stored_accuracies_say_what_the_page_says():
    rows = page.stored()["precision"]["rows"]
    assert set(rows) == set(ROWS)
    for row in rows.values():
        accuracy = {name: np.array(row["accuracy"][name]) for name in FORMATS}
        assert len(accuracy["float32"]) >= 5
        again = paired(accuracy)
        assert row["difference"] == pytest.approx(again["difference"])
        assert row["standard_error"] == pytest.approx(again["standard_error"])
        assert row["within_noise"] and again["within_noise"]


@pytest.mark.slow  # two sweeps of five runs for each experiment
@pytest.mark.parametrize(("row", "least"), [("digits_fedavg", 0.96), ("digits_dp_fedavg", 0.94)])
def test_five_seeds_in_both_formats(row, least):
    accuracy = {name: accuracies(row, name, 5, None) for name in FORMATS}
    found = paired(accuracy)
    assert found["mean"]["float32"] > least
    assert abs(found["difference"]) + 2 * found["standard_error"] < 0.01
    if row == "digits_fedavg":  # another format is really computed in
        assert (accuracy["float32"] != accuracy["bfloat16"]).any()
