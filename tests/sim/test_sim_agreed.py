"""Runs whose sums come from the real protocol: the same bits as those of ideal sums, drop-outs and aborts included."""

import jax
import numpy as np
import pytest
import small_run

from fljax.core.check import FljaxError
from fljax.core.types import Cohort, Hparams
from fljax.server.sampler import fixed_size
from fljax.server.state import Transcript
from fljax.sim import agreed
from fljax.sim.hosted import Seen
from fljax.sim.run import run

pytest.importorskip("cryptography", reason="needs fljax[secure]")

CHEAP = {
    "dropout.source": "none",
    "dropout.keep_rate": 1.0,
    "dropout.warmup_rounds": 0,
    "dropout.refresh_rounds": 0,
    "model": {"name": "logistic"},
    "privacy": {"mechanism": "none"},
    "data.client_test_fraction": 0.0,
    "server.weights": "examples",
    "server.denominator": "realised",
    "sampler": {"kind": "fixed_size", "cohort": 8, "availability": 0.7},
    "rounds": 6,
}
SECURE = {"masking": "double_mask", "value_range": 1.0, "dropout": 0.5, "threshold": 3}
LEAVES = {"leave_before_keys": 0.4, "leave_after_upload": 0.3}


def experiment(mode: str, **fields):
    return small_run.experiment(**{**CHEAP, "secure": SECURE | LEAVES | {"mode": mode}, **fields})


@pytest.fixture(scope="module")
def real():
    """Six rounds by the protocol, their messages over a channel."""
    return run(experiment("protocol", channel={"kind": "aes_gcm", "verify_rounds": 3}), quiet=True)


def test_the_protocol_gives_the_bits_of_ideal_sums_with_drop_outs_and_aborts(real):
    ideal = run(experiment("ideal"), quiet=True)
    bytes_of = {"uplink_kib", "uplink_rest", "downlink_kib", "downlink_rest"}  # the channel adds 28 to each message
    assert real.history.keys() == ideal.history.keys()
    for name in ideal.history.keys() - bytes_of:
        assert real.history[name].tobytes() == ideal.history[name].tobytes(), name
    pairs = zip(jax.tree.leaves(real.params), jax.tree.leaves(ideal.params), strict=True)
    assert all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)
    aborted = ideal.history["secure_aborted"]
    assert 0 < aborted.sum() < 6, "rounds of both kinds are seen"


def test_what_the_protocol_did_is_told(real):
    told, history = real.summary()["encryption"]["secure"], real.history
    lives = history["secure_aborted"] == 0
    assert (told["mode"], told["rounds"], told["aborted"]) == ("protocol", 6, int((~lives).sum()))
    assert told["seeds_recovered"] == history["answered"][lives].sum()
    assert told["pad_keys_recovered"] == (history["secure_members"] - history["answered"])[lives].sum() > 0
    assert told["bytes_per_client"]["advertise"] == 32 + 32 + 32 + 64
    assert real.encryption["channel"]["verified_rounds"] == 2


def test_a_sum_that_differs_in_a_bit_is_told(monkeypatch):
    e, key = experiment("protocol"), jax.random.key(0)
    sampler, rng = fixed_size(10, 8), np.random.default_rng(0)
    words = {
        "update": {"w": rng.integers(-1000, 1000, (8, 3, 4)), "b": rng.integers(-9, 9, (8, 3))},
        "weight": np.ones(8),
    }
    alive = np.arange(8) < 6
    words = jax.tree.map(lambda x: (x.T * alive).T.astype(np.int32).view(np.uint32), words)
    total = jax.tree.map(lambda x: x.sum(axis=0, dtype=np.uint32), words)
    transcript = Transcript(Cohort(np.arange(8), np.ones(8, bool)), alive, words, total, {}, None)
    seen, numbers = Seen(0, transcript, (), (), ()), Hparams().arrays()
    exchange = agreed.protocol_exchange(e, sampler, 15, key, numbers)
    plain = exchange.sum(seen)  # nobody leaves early or late
    assert exchange.told()["rounds"] == 1
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(seen.transcript.pre_noise), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    good = agreed.secure_sum
    monkeypatch.setattr(agreed, "secure_sum", lambda *a: good(*a)._replace(total=good(*a).total ^ np.uint32(1)))
    with pytest.raises(FljaxError, match="bits of the plain one"):
        exchange.sum(seen)
    monkeypatch.setattr(agreed, "secure_sum", lambda *a: good(*a)._replace(total=None))
    with pytest.raises(FljaxError, match="end as the simulated one"):
        exchange.sum(seen)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"masking": "otp", "mode": "protocol", "value_range": 1.0}, "double_mask"),
        (SECURE | {"mode": "protocol", "degree": 4}, "leave out degree"),
        (SECURE | {"mode": "protocol", "overflow": "count", "bits": 17}, "overflow"),
    ],
)
def test_what_the_protocol_cannot_do_is_refused_with_the_remedy(fields, message):
    with pytest.raises(FljaxError, match=message):
        small_run.experiment(**{**CHEAP, "secure": fields})


def test_large_cohorts_and_large_models_are_refused():
    e, key, numbers = experiment("protocol"), jax.random.key(0), Hparams().arrays()
    many = fixed_size(40, 33)
    with pytest.raises(FljaxError, match=r"at most 32 clients.*found 33\. Set secure\.mode = 'masked'"):
        agreed.protocol_exchange(e, many, 15, key, numbers)
    with pytest.raises(FljaxError, match="at most 1048576 words"):
        agreed.protocol_exchange(e, fixed_size(10, 8), 2**20 + 1, key, numbers)


@pytest.mark.parametrize(
    "fields", [{"he": {"kind": "ckks", "mode": "exact"}}, {"secure": SECURE | {"mode": "protocol"}}]
)
def test_sweeps_have_no_host(fields):
    with pytest.raises(FljaxError, match="for single runs"):
        small_run.experiment(**{**CHEAP, **fields, "sweep": {"seeds": 2}})
