"""What to cite: well-formed references, one for every method, and nothing that an experiment did not use."""

import re
from pathlib import Path
from typing import get_args

import pytest
import yaml

import fljax
from fljax.data import DATASETS
from fljax.report.citation import (
    ALGORITHMS,
    ATTACKS,
    DATA,
    MASKS,
    MECHANISMS,
    RULES,
    SOURCES,
    citation,
    references,
    works,
)
from fljax.sections import AttackConfig, ClientConfig, DropoutConfig, PrivacyConfig, RobustConfig, SecureConfig
from fljax.sections.robust import Before

ROOT = Path(__file__).parents[2]
WITHOUT = {
    "source": {"none", "public", "paid", "self_released"},  # own ways to choose neurons, and none
    "data": {"npz", "npy", "hf", "tff"},  # one's own data
}

BYZANTINE = {"blanchard2017machine", "baruch2019little"}


def options(section, field):
    return set(get_args(section.model_fields[field].annotation))


def keys_of(table):
    return {key for keys in table.values() for key in ([keys] if isinstance(keys, str) else keys)}


def test_references_are_well_formed():
    entries = references()
    assert len(entries) > 35
    for key, text in entries.items():
        assert text.count("{") == text.count("}"), key
        for field in ("title", "author", "year"):
            assert re.search(rf"^  {field} +=", text, re.MULTILINE), f"{key} has no {field}"
        year = re.search(r"year +=\s*\{(\d{4})\}", text)
        assert year and year[1] in key, f"{key} is of another year"
        first = re.search(r"author +=\s*\{([^,]+),", text)[1]
        assert key.startswith(re.sub(r"[^a-z]", "", first.lower())), f"{key} is of another author"
        assert re.search(r"booktitle|journal|eprint|institution|howpublished", text), f"{key} has no place"


def test_tables_name_known_works_and_every_method():
    known = set(references())
    for table in (ALGORITHMS, MECHANISMS, SOURCES, MASKS, RULES, ATTACKS, DATA):
        assert keys_of(table) <= known
    assert set(ALGORITHMS) == options(ClientConfig, "algorithm")
    assert set(MECHANISMS) == options(PrivacyConfig, "mechanism")
    assert set(SOURCES) | WITHOUT["source"] == options(DropoutConfig, "source")
    assert set(MASKS) | {"none", "clear", "shared_key"} == options(SecureConfig, "masking")
    before = set(get_args(Before)) | {"groups"}
    assert set(RULES) | {"none", "mean"} == options(RobustConfig, "rule") | before
    assert set(ATTACKS) | {"none", "sign_flip", "gaussian"} == options(AttackConfig, "kind")
    assert set(DATA) | WITHOUT["data"] >= set(DATASETS)


@pytest.mark.parametrize(
    ("name", "fields", "expected"),
    [
        ("digits_fedavg", {}, {"mcmahan2017communication", "alpaydin1998optical"}),
        ("digits_scaffold", {"server.momentum": 0.0}, {"karimireddy2020scaffold"}),
        ("digits_dp_fedavg", {"server.momentum": 0.0}, {"mcmahan2018learning", "doroshenko2022connect"}),
        ("digits_adaptive_clip", {}, {"andrew2021differentially"}),
        ("digits_byzantine", {"sweep": None, "robust.rule": "krum", "attack.kind": "alie"}, BYZANTINE),
        ("digits_distributed_dp", {}, {"kairouz2021distributed", "mironov2017renyi"}),
        ("digits_quantised", {}, {"alistarh2017qsgd"}),
        ("digits_secagg", {}, {"bonawitz2017practical", "bell2020secure"}),
        ("digits_topk", {}, {"stich2018sparsified"}),
        ("digits_fedadam", {}, {"reddi2021adaptive"}),
    ],
)
def test_experiments_cite_what_they_use(name, fields, expected):
    experiment = fljax.load(name).replace(**fields)
    found = set(works(experiment))
    assert expected <= found
    if name == "digits_dp_fedavg":
        assert found == expected | {"mcmahan2017communication", "alpaydin1998optical"}


def test_sweeps_cite_every_method_they_cross():
    found = works(fljax.load("digits_privacy_utility"))
    assert {"wang2024lightweight", "caldas2018expanding", "papernot2022hyperparameter"} <= set(found)
    assert len(found) == len(set(found))


def test_citation_is_bibtex():
    text = citation(fljax.load("digits_dp_fedavg"))
    assert text.startswith("@software{fljax,") and f"version = {{{fljax.__version__}}}" in text
    assert text.count("{") == text.count("}") and "@inproceedings{mcmahan2018learning," in text


def test_one_version_everywhere():
    """The package, the citation file, the README and the change log speak of the same version."""
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cff["cff-version"] == "1.2.0" and cff["license"] == "Apache-2.0" and cff["authors"]
    assert cff["version"] == fljax.__version__
    assert f"version = {{{fljax.__version__}}}" in (ROOT / "README.md").read_text()
    assert fljax.__version__ in (ROOT / "CHANGELOG.md").read_text()
