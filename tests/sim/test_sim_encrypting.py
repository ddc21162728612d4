"""Homomorphic encryption in runs: real rounds agree with the plain sum, and exact mode agrees with the model."""

import numpy as np
import pytest
import small_run

from fljax.core.check import FljaxError
from fljax.core.types import Cohort
from fljax.secure.encrypted import Choice
from fljax.server.state import Transcript
from fljax.sim import encrypting
from fljax.sim.build import build, resolve
from fljax.sim.encrypting import he_exchange
from fljax.sim.hosted import Seen
from fljax.sim.run import run

DENSE = {"dropout.source": "none", "dropout.keep_rate": 1.0, "dropout.warmup_rounds": 0, "dropout.refresh_rounds": 0}
CHEAP = {"model": {"name": "logistic"}, "privacy": {"mechanism": "none"}, "data.client_test_fraction": 0.0, "rounds": 3}
HE = {"he": {"kind": "ckks", "degree": 4096, "verify_rounds": 2}}
CIPHERTEXT = 65_676


def experiment(**fields):
    return small_run.experiment(**{**DENSE, **CHEAP, **fields})


@pytest.fixture(scope="module")
def exact():
    """Every sum really encrypted, over a channel that carries the ciphertexts."""
    pytest.importorskip("tenseal", reason="needs fljax[he]")
    pytest.importorskip("cryptography", reason="needs fljax[secure]")
    he = {"kind": "ckks", "degree": 4096, "mode": "exact", "share": 0.4}
    return run(experiment(he=he, channel={"kind": "aes_gcm", "verify_rounds": 2}), quiet=True)


def test_every_sum_was_really_encrypted(exact):
    told = exact.summary()["encryption"]["he"]
    assert told["verified_rounds"] == 3 and 0 < told["largest_error"] < 1e-6
    assert told["ciphertext_bytes"] == pytest.approx(CIPHERTEXT, rel=0.01)
    assert any("colludes" in c or "together with the server" in c for c in told["caveats"])
    assert told["caveats"] == list(exact.statement.caveats[: len(told["caveats"])])


def test_the_channel_carried_the_ciphertexts_both_ways(exact):
    """12 parameters, 15 numbers with the biases: all of them encrypted in round 0, 6 from then on."""
    h, told = exact.history, exact.encryption["channel"]
    assert told["verified_rounds"] == 2
    np.testing.assert_allclose(h["encrypted_share"], [1.0, 0.4, 0.4])
    answered, clear = h["answered"].astype(int), np.array([0, 36, 36])
    assert exact.communication["uplink_bytes"] == np.sum(answered * (CIPHERTEXT + clear + 28))
    assert exact.communication["downlink_bytes"] == np.sum(h["contacted"] * (CIPHERTEXT + clear + 28))
    assert told["bytes"] == pytest.approx(2 * np.sum((answered * (CIPHERTEXT + clear + 28))[[0, 2]]), rel=0.01)


@pytest.mark.slow
def test_exact_and_modelled_runs_agree_within_the_error(exact):
    """The model draws other errors of the same size, about 1e-9: training moves by no more than rounding does."""
    pytest.importorskip("tenseal", reason="needs fljax[he]")
    modelled = run(experiment(he={"kind": "ckks", "degree": 4096, "share": 0.4, "verify_rounds": 2}), quiet=True)
    for name in ("test_loss", "update_norm"):
        np.testing.assert_allclose(modelled.history[name], exact.history[name], rtol=1e-4, err_msg=name)
    assert modelled.encryption["he"]["verified_rounds"] == 2
    assert modelled.encryption["he"]["largest_error"] < 1e-6


def test_a_check_looks_at_random_blocks_of_what_is_encrypted():
    """5,000 numbers of three clients, of which two answered: of the three blocks of a ciphertext two are looked at."""
    pytest.importorskip("tenseal", reason="needs fljax[he]")
    e = experiment(he=HE["he"] | {"verify_blocks": 2, "share": 0.9, "warmup_rounds": 0})
    payloads = {"update": {"w": np.random.default_rng(0).normal(size=(3, 50, 100)).astype(np.float32)}}
    total = {"update": {"w": payloads["update"]["w"][:2].sum(axis=0)}}
    cohort = Cohort(np.arange(3), np.ones(3, bool))
    transcript = Transcript(cohort, np.array([True, True, False]), payloads, total, {"support": None}, None)
    mask = {"w": (np.arange(5000).reshape(50, 100) % 10 > 0).astype(np.float32)}
    check = encrypting.he_check(e)
    check.look(Seen(4, transcript, (), (), ((), Choice(mask, mask, mask))))
    told = check.told()
    assert (check.every, told["verified_rounds"]) == (2, 1) and 0 < told["largest_error"] < 1e-6
    places = encrypting._places(e, Seen(4, transcript, (), (), ((), Choice(mask, mask, mask))))
    np.testing.assert_array_equal(places, np.flatnonzero(np.arange(5000) % 10))


def test_a_sum_that_is_off_is_told(monkeypatch):
    pytest.importorskip("tenseal", reason="needs fljax[he]")
    good, scheme = encrypting.encrypted_total, encrypting.scheme_of(experiment(**HE).he)
    args = experiment(**HE), scheme, encrypting.open_cipher(scheme), np.ones((3, 5)), 7
    told = {"measured": []}
    encrypting._compare(*args, told)
    assert len(told["measured"]) == 1
    monkeypatch.setattr(encrypting, "encrypted_total", lambda *a: good(*a)._replace(total=good(*a).total + 2e-6))
    with pytest.raises(FljaxError, match=r"round 7 within he\.tolerance=1e-06, found 2.*e-06\. Raise"):
        encrypting._compare(*args, told)


def test_values_beyond_the_range_of_the_scheme_are_refused():
    pytest.importorskip("tenseal", reason="needs fljax[he]")
    scheme, rows = encrypting.scheme_of(experiment(**HE).he), np.full((3, 5), 2.0**18)
    cipher = encrypting.open_cipher(scheme)
    with pytest.raises(FljaxError, match=r"below 5\.24e"):
        encrypting._compare(experiment(**HE), scheme, cipher, rows, 0, {"measured": []})


def test_exact_mode_is_for_small_models():
    with pytest.raises(FljaxError, match="mode = 'model'"):
        he_exchange(experiment(**HE), 10**6)


def test_noise_is_split_and_its_epsilon_is_that_of_local_noise():
    """The same epsilon as local noise on everything; the statement says what it assumes."""
    noise = {"mechanism": "local_gaussian", "noise_multiplier": 4.0, "clip": 0.5}
    fields = {"privacy": noise, "sampler": {"kind": "fixed_size", "cohort": 6}}
    split = experiment(he={"kind": "ckks", "degree": 4096, "share": 0.4, "least": 4}, **fields)
    whole = experiment(**fields)
    said = [resolve(e, build(e))[1] for e in (split, whole)]
    assert said[0].status == said[1].status == "valid"
    assert said[0].epsilon == said[1].epsilon
    assert any("shares of the noise" in c for c in said[0].caveats)
    assert any("CKKS is not secure" in c for c in said[0].caveats)
    assert any("40 % of the coordinates is no defence" in c for c in said[0].caveats)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"he": {"share": 0.5}}, 'need kind = "ckks"'),
        ({"he": {"kind": "ckks", "rest": "dropped"}}, "share < 1"),
        ({"he": {"kind": "ckks"}, "compress.quantise": "stochastic"}, "leave out compress"),
        ({"he": {"kind": "ckks"}, "dropout": {"source": "exact"}}, "public mask"),
        ({"he": {"kind": "ckks", "share": 0.5}, "dropout": {"source": "fisher"}}, "one of them"),
        ({"he": {"kind": "ckks", "least": 3}}, "he.least belongs"),
        (
            {
                "he": {"kind": "ckks", "share": 0.5},
                "privacy": {"mechanism": "local_gaussian", "noise_multiplier": 1.0, "clip": 1.0},
            },
            "sampler.kind",
        ),
        (
            {"he": {"kind": "ckks"}, "privacy": {"mechanism": "local_duchi", "upload_epsilon": 1.0, "clip": 1.0}},
            "local_gaussian",
        ),
    ],
)
def test_what_does_not_go_together_is_one_line_with_the_remedy(fields, message):
    with pytest.raises(FljaxError, match=message) as error:
        experiment(**fields)
    assert "\n" not in str(error.value)
