"""Attacks on real rounds: what they must recover, and what stops them."""

from functools import cache

import jax
import numpy as np
import pytest

from fljax.config import Experiment, validate
from fljax.core.check import FljaxError
from fljax.leakage import declared, leakage, visible
from fljax.leakage.run import attack
from fljax.leakage.scene import all_cohorts, make_view, set_scene, single_uploads, upload_masks
from fljax.leakage.views import ADVERSARIES, DEFENCES, ITEMS

TREE = {
    "name": "small",
    "rounds": 4,
    "data": {"name": "digits", "examples_per_client": 1},
    "model": {"hidden": [32]},
    "client": {"steps": 1, "lr": 0.3},
    "sampler": {"kind": "fixed_size", "cohort": 10},
}
PRIVATE = {"privacy.mechanism": "central_gaussian", "privacy.clip": 0.25, "privacy.noise_multiplier": 1.0}
MASKED = {"dropout.source": "random", "dropout.keep_rate": 0.25}


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
        (SUMMED, ["secure_sum", "client_masks"]),
        ({**SUMMED, "secure.positions": "union"}, ["secure_sum", "client_masks"]),
        ({**SUMMED, "secure.positions": "public"}, ["secure_sum_of_positions", "client_masks"]),
        ({**SUMMED, "dropout.source": "random_per_client"}, ["secure_sum_of_positions", "server_masks"]),
        ({**SUMMED, "secure.masking": "clear"}, ["client_masks"]),
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
    assert visible("eavesdropper", ["channel"]) == ("cohorts", "final")
    assert visible("client", ["plain"]) == ("released", "models", "final")


def test_a_view_holds_what_is_visible_and_nothing_else():
    scene = scene_of(**PRIVATE, **MASKED)
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
    assert np.mean(np.asarray(upload_masks(scene)["dense_0"]["kernel"])) == 0.25


@pytest.mark.slow
def test_cohorts_are_those_of_the_rounds():
    scene, _ = set_scene(small(**{"sampler.availability": 0.5}), 2, 4, False)
    cohorts, seen = all_cohorts(scene), scene.transcript
    assert cohorts.shape == (4, scene.program.sampler.population)
    alive = np.asarray(seen.cohort.ids)[np.asarray(seen.alive)]
    assert np.flatnonzero(cohorts[2]).tolist() == sorted(alive.tolist())
    assert 0 < len(alive) < 10


# ---- attacks ---------------------------------------------------------------------------------------------------------

FOUR = {"data.examples_per_client": 4}


def test_images_come_back_without_a_defence_and_not_from_a_sum_of_ten():
    """Four examples a client, one step: most come back from single uploads, none from the sum of ten clients."""
    alone, together = (
        attacked("labels", "analytic", "inversion", **FOUR),
        attacked("inversion", assume=("secure_sum",), **FOUR),
    )
    assert alone["labels"]["f1"] > 0.95
    images, line = alone["inversion"], alone["inversion"]["base_lines"]["mean_image"]
    assert images["share"] >= 0.7 and images["psnr"] > line["psnr"] + 12
    assert alone["analytic"]["share"] >= 0.3
    summed = together["inversion"]
    assert summed["together"] and summed["share"] <= 0.05
    assert summed["psnr"] < max(v["psnr"] for v in summed["base_lines"].values()) + 1
    assert summed["leakage_reduction"] > 0.9


def test_masks_lower_leakage_only_for_who_ignores_them():
    """One example a client, a clip, a quarter of the neurons: nothing of it hides an image."""
    found = attacked("labels", "analytic", "inversion", **PRIVATE, **MASKED)
    assert found["labels"]["f1"] == found["labels"]["by_rule"]["f1"] == 1.0
    assert found["analytic"]["psnr"] > 50, "the quotient is the image"
    images = found["inversion"]
    assert images["share"] >= 0.7 and images["ignoring_masks"]["share"] <= 0.2
    assert images["leakage_reduction"] < 0.4


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
