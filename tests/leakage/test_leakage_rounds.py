"""Attacks on real rounds: what they must recover, and what stops them."""

import json
import re
from dataclasses import replace
from functools import cache

import jax
import numpy as np
import pytest

from fljax.cli import main
from fljax.config import Experiment, validate
from fljax.core.check import FljaxError
from fljax.dropout.sources import random_per_client
from fljax.leakage import declared, leakage, visible
from fljax.leakage.run import attack
from fljax.leakage.scene import all_cohorts, make_view, set_scene, single_uploads, upload_masks
from fljax.leakage.views import ADVERSARIES, DEFENCES, ITEMS
from fljax.report.leakage import leakage_section
from fljax.sweep.store import check_target

TREE = {
    "name": "small",
    "rounds": 4,
    "data": {"name": "digits", "examples_per_client": 1},
    "model": {"hidden": [32]},
    "client": {"steps": 1, "lr": 0.3},
    "sampler": {"kind": "fixed_size", "cohort": 10},
}
PRIVATE = {"privacy.mechanism": "central_gaussian", "privacy.clip": 0.25, "privacy.noise_multiplier": 1.0}
MASKED = {"dropout.source": "random", "dropout.keep_rate": 0.5}
FOUR = {"data.examples_per_client": 4}
ROUND = PRIVATE | MASKED | FOUR
"""One round for most tests: masks, clip and noise of the server, four examples a client; compiled once."""


def small(**fields) -> Experiment:
    return validate(TREE).replace(**fields)


@cache
def scene_of(**fields):
    """A round 0 with ten clients; a final model is no part of it."""
    return set_scene(small(**dict(sorted(fields.items()))), 0, 10, False)[0]


def attacked(*attacks: str, assume=(), **fields):
    return attack(scene_of(**fields), None, "server", assume, attacks).found


# ---- views -----------------------------------------------------------------------------------------------------------


def test_defences_hide_only_what_there_is_from_those_there_are():
    for name, defence in DEFENCES.items():
        assert set(defence.hides) <= set(ADVERSARIES) and defence.says, name
        assert {item for items in defence.hides.values() for item in items} <= set(ITEMS), name


def test_more_defences_never_show_more():
    for adversary in ADVERSARIES:
        for name in DEFENCES:
            both = visible(adversary, [name, "secure_sum", "channel"])
            assert set(both) <= set(visible(adversary, [name])) <= set(visible(adversary, ["plain"]))


def test_positions_are_seen_where_they_are_told():
    """The server of a secure sum reads no upload; it reads positions in clear, and not those of a union."""
    assert visible("server", ["secure_sum_of_positions"])[0] == "positions"
    assert not {"uploads", "positions"} & set(visible("server", ["secure_sum", "client_masks"]))


SUMMED = {
    "dropout.source": "exact",
    "dropout.keep_rate": 0.5,
    "secure.masking": "otp",
    "secure.value_range": 1.0,
}


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({}, ["plain"]),
        (PRIVATE | MASKED, ["central_noise", "shared_masks"]),
        ({**PRIVATE, "compress.sparsify": "topk", "compress.keep": 0.5}, ["central_noise", "compression"]),
        ({**PRIVATE, "privacy.mechanism": "local_gaussian"}, ["local_noise"]),
        ({"dropout.source": "exact", "dropout.keep_rate": 0.5}, ["client_masks"]),
        ({"dropout.source": "random_per_client", "dropout.keep_rate": 0.5}, ["server_masks"]),
        (SUMMED, ["client_masks", "one_time_pads"]),
        ({**SUMMED, "secure.positions": "union"}, ["client_masks", "one_time_pads"]),
        ({**SUMMED, "secure.positions": "public"}, ["client_masks", "one_time_pads_of_positions"]),
        ({**SUMMED, "dropout.source": "random_per_client"}, ["server_masks", "one_time_pads_of_positions"]),
        ({**SUMMED, "secure.masking": "clear"}, ["client_masks", "words"]),
        ({"client.shared": ["dense_0"]}, ["partial_sharing"]),
        ({**PRIVATE, "privacy.noise_multiplier": 0.0}, ["plain"]),
    ],
)
def test_an_experiment_declares_its_defences(fields, names):
    assert declared(small(**fields)) == names


def test_the_server_sees_uploads_unless_a_secure_sum_hides_them():
    assert "uploads" in visible("server", ["central_noise"])
    assert "uploads" not in visible("server", ["distributed_noise"])
    assert visible("server", ["secure_sum"]) == ("cohorts", "sum", "released", "models", "final")
    assert "uploads" in visible("key_holder", ["one_time_pads"]) and "uploads" in visible("server", ["shared_key"])
    assert visible("eavesdropper", ["channel"]) == ("cohorts", "final")
    assert visible("client", ["plain"]) == ("released", "models", "final")


def test_a_view_holds_what_is_visible_and_nothing_else():
    scene = scene_of(**ROUND)
    server, outsider = (make_view(scene, who, ["central_noise"]) for who in ("server", "outsider"))
    assert server.uploads.sizes.shape == (10, 1)
    assert outsider.model is outsider.uploads is outsider.neurons is outsider.cohorts is outsider.released is None
    with pytest.raises(FljaxError, match="'outsider' to see uploads"):
        outsider.need("uploads")
    summed = make_view(scene, "server", ["secure_sum"])
    np.testing.assert_allclose(
        summed.uploads.update["dense_0"]["bias"][0],
        scene.transcript.payloads["update"]["dense_0"]["bias"].sum(0),
        rtol=1e-4,
        atol=1e-7,
    )
    # Clients see the noised average, the server the sum before its own noise.
    client = make_view(scene, "client", ["central_noise"])
    released = scene.transcript.released["update"]["dense_0"]["bias"]
    np.testing.assert_array_equal(client.uploads.update["dense_0"]["bias"][0], released)
    # Masks are those of the round: what is sent lies within them.
    for mask, upload in zip(*(jax.tree.leaves(f(scene)) for f in (upload_masks, single_uploads)), strict=True):
        assert not np.any(np.asarray(upload)[np.asarray(mask) == 0])
    assert np.mean(np.asarray(upload_masks(scene)["dense_0"]["kernel"])) == 0.5


@pytest.mark.slow
def test_cohorts_are_those_of_the_rounds():
    scene, _ = set_scene(small(**{"sampler.availability": 0.5}), 2, 4, False)
    cohorts, seen = all_cohorts(scene), scene.transcript
    assert cohorts.shape == (4, scene.program.sampler.population)
    alive = np.asarray(seen.cohort.ids)[np.asarray(seen.alive)]
    assert np.flatnonzero(cohorts[2]).tolist() == sorted(alive.tolist())
    assert 0 < len(alive) < 10


# ---- attacks ---------------------------------------------------------------------------------------------------------


def test_images_come_back_and_masks_hide_them_only_from_who_ignores_masks():
    """Half of the neurons, a clip and a trusted server's noise: most images come back from single uploads."""
    found = attacked("labels", "analytic", "inversion", **ROUND)
    labels, images = found["labels"], found["inversion"]
    assert labels["f1"] > 0.95 > 0.6 > labels["chance"]["f1"]
    assert found["analytic"]["share"] >= 0.3
    assert images["no_defence"]["share"] >= 0.7 and images["share"] >= 0.5
    assert images["ignoring_masks"]["share"] <= 0.1
    mean = images["base_lines"]["mean_image"]["psnr"]
    assert images["psnr"] > mean + 12 and images["ignoring_masks"]["psnr"] < mean + 3
    assert images["leakage_reduction"] < 0.5


def test_a_sum_of_ten_clients_is_not_inverted():
    """The same round, the sum alone: no image comes back, and no guess beats that of public images."""
    images = attacked("inversion", assume=("secure_sum",), **ROUND)["inversion"]
    assert images["together"] and images["no_defence"]["share"] >= 0.7
    assert images["share"] <= 0.05
    assert images["psnr"] < max(line["psnr"] for line in images["base_lines"].values()) + 1
    assert images["leakage_reduction"] > 0.9


@pytest.mark.slow
def test_one_example_is_read_off_the_first_layer():
    """One example a client, any number of local steps: quotients are the image, labels are certain."""
    found = attacked("labels", "analytic", **{"client.steps": 5}, **PRIVATE)
    assert found["labels"]["f1"] == found["labels"]["by_rule"]["f1"] == 1.0
    assert found["analytic"]["share"] == 1.0 and found["analytic"]["psnr"] > 50


@pytest.mark.slow
def test_local_noise_stops_inversion():
    found = attacked("analytic", "inversion", **{**PRIVATE, "privacy.mechanism": "local_gaussian"})
    assert found["analytic"]["share"] == found["inversion"]["share"] == 0.0
    assert found["inversion"]["leakage_reduction"] > 0.8


@pytest.mark.slow
def test_the_outsider_has_the_final_model_alone():
    found = leakage(small(), adversary="outsider").found
    assert "skipped" not in found["membership"]
    assert all("skipped" in found[name] for name in found if name != "membership")


@pytest.mark.slow
def test_positions_tell_labels_only_where_they_follow_from_private_data():
    """400 clients of few labels. Masks from private data give the most frequent label away, random ones do not.

    A random guess is right for a tenth, with a standard deviation of 1.5 %; 1.3 times chance is at least four of them.
    """
    fields = {"data.examples_per_client": None, "data.clients": 400, "data.partition": "dirichlet", "data.alpha": 0.1}
    scene = scene_of(**fields, **{"dropout.source": "exact", "dropout.keep_rate": 0.5})
    told = attack(scene, None, "server", (), ["positions"]).found["positions"]
    assert told["times_chance"] > 3 and told["clients"] > 300
    seeded = replace(scene.program, submodel=random_per_client(scene.program.model.groups))
    blind = attack(scene._replace(program=seeded), None, "server", (), ["positions"]).found["positions"]
    assert blind["times_chance"] <= 1.3
    hidden = attack(scene, None, "server", ("secure_sum",), ["positions"]).found["positions"]
    assert "does not see positions" in hidden["skipped"]


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--adversary", "servr"], "Perhaps you meant 'server'"),
        (["--assume", "secure"], "assume='secure'"),
        (["--round", "100"], r"round=100 in \[0, 100\)"),
        (["--victims", "0"], "victims=0 > 0"),
        (["--data.streamed", "true"], "streamed"),
    ],
)
def test_mistakes_are_one_line(words, message, capsys, tmp_path):
    assert main(["leakage", "digits_fedavg", "--quiet", "--out", str(tmp_path / "x"), *words]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and re.search(message, said.err), said.err


@pytest.mark.slow
def test_the_command_keeps_what_was_found_and_the_page_shows_it(tmp_path, capsys):
    words = ["digits_fedavg", "--data.examples_per_client", "1", "--client.steps", "1", "--iterations", "20"]
    out = tmp_path / "digits_fedavg"
    attacks = ["--attacks", "inversion", "positions", "exposure"]
    assert main(["leakage", *words, *attacks, "--victims", "3", "--json", "--quiet", "--out", str(out)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["views"]["outsider"] == ["final"] and found["defences"].keys() == {"plain"}
    assert found["inversion"]["base_lines"].keys() == {"mean_image", "other_images"}
    check_target(out, "another")  # attacks alone do not make it somebody's results
    section = leakage_section(out)
    assert [line[0] for line in section["lines"]] == ["inversion", "exposure"]
    assert section["skipped"] == ["positions: no neurons are dropped"]
    assert section["pictures"].count("<rect") > 100 and "<image" not in section["pictures"]
    assert leakage_section(tmp_path) is None


def test_what_was_found_is_json_and_text():
    """Also for attacks that had nothing to go by."""
    found = attack(scene_of(**ROUND), None, "server", (), ["positions", "participation", "exposure"])
    said = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert said["exposure"]["rounds"] == 4 and said["exposure"]["rank"] == 4 and said["participation"]["told"]
    assert said["privacy"]["epsilon"] == found.statement.epsilon and found.leakage_reduction is None
    assert "tell nothing new" in said["positions"]["skipped"] and "it is told who took part" in found.text()
