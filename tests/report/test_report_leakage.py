"""What a page says of leakage: every attack in words, pictures made of rectangles, and nothing without the file."""

import json
import re

import pytest

from fljax.core.check import FljaxError
from fljax.report.leakage import leakage_section, pictures_svg
from fljax.sweep.store import LEAKAGE, check_target

RECOVERY = {"psnr": 20.0, "share": 0.4, "ssim": 0.9}
BASE = {"psnr": 11.0, "share": 0.0, "ssim": None}
ROC = {"auc": 0.52, "auc_error": 0.02, "tpr": 0.03}
FOUND = {
    "adversary": "key_holder",
    "views": {"key_holder": ["uploads", "final"]},
    "defences": {"central_noise": "says"},
    "round": 3,
    "victims": 5,
    "examples_per_victim": 10.0,
    "labels": {"f1": 0.9, "share": 0.8, "chance": {"f1": 0.2}, "no_defence": {"f1": 0.95}},
    "inversion": RECOVERY
    | {"ignoring_masks": BASE, "no_defence": RECOVERY, "base_lines": {"mean_image": BASE, "other_images": BASE}},
    "positions": {"skipped": "no neurons are dropped"},
    "membership": {"loss": ROC, "calibrated": ROC, "fpr": 0.01},
    "participation": {"told": True},
    "exposure": {"clients": 2, "rounds": 9},
    "privacy": {"audited": {"epsilon_estimate": 3.0, "epsilon_lower": 1.0}},
    "pictures": {"original": [[[[0.0], [0.0], [1.0]], [[1.0], [0.5], [0.5]]]], "seen": [[[[1.0]] * 3] * 2]},
}  # fmt: skip


def test_every_attack_is_told(tmp_path):
    assert leakage_section(tmp_path) is None
    (tmp_path / LEAKAGE).write_text(json.dumps(FOUND))
    section = leakage_section(tmp_path)
    lines = dict(section["lines"])
    assert lines["labels"] == ["F1 0.90, 80% of the labels", "F1 0.20", "F1 0.95"]
    assert lines["inversion"][0] == "20.0 dB, 40% recovered, SSIM 0.90" and lines["inversion"][1].startswith("11.0 dB")
    assert lines["inversion, ignoring the masks"][0] == "11.0 dB, 0% recovered"
    assert lines["membership, loss"][0] == "AUC 0.520 ± 0.020, TPR 3.0% at FPR 1%"
    assert lines["participation"][0] == "told" and lines["exposure"][0] == "2 clients after 9 rounds"
    assert section["skipped"] == ["positions: no neurons are dropped"]
    assert ("adversary", "key holder") in section["facts"] and ("audited ε", "3, certified 1") in section["facts"]
    assert "geiping2020inverting" in section["works"] and "phong2018privacy" not in section["works"]


def test_pictures_are_rectangles_and_equal_neighbours_are_one():
    svg = pictures_svg(FOUND["pictures"], cell=4)
    first = re.findall(r'<rect x="(\d+)" y="(\d+)" width="(\d+)" height="4" fill="(#\w+)"/>', svg)[:4]
    assert first == [
        ("0", "16", "8", "#000"),
        ("8", "16", "4", "#fff"),
        ("0", "20", "4", "#fff"),
        ("4", "20", "8", "#888"),
    ]
    assert len(re.findall("<rect", svg)) == 6 and "<image" not in svg


def test_a_damaged_file_is_one_line(tmp_path):
    (tmp_path / LEAKAGE).write_text("{")
    with pytest.raises(FljaxError, match="valid JSON"):
        leakage_section(tmp_path)


def test_attacks_alone_do_not_make_a_folder_of_results(tmp_path):
    (tmp_path / LEAKAGE).write_text(json.dumps(FOUND))
    check_target(tmp_path, "any")
