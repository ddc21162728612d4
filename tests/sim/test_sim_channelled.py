"""Real messages of real rounds: written in the bytes that a round counts, sealed, opened, and read back."""

from dataclasses import replace

import jax
import numpy as np
import pytest
import small_run

from fljax.core.check import FljaxError
from fljax.core.types import Cohort
from fljax.secure import channel
from fljax.server.state import Transcript
from fljax.sim import channelled, messages
from fljax.sim.channelled import channel_check
from fljax.sim.hosted import Check, Exchange, Host, Seen, relative
from fljax.sim.run import run

pytest.importorskip("cryptography", reason="needs fljax[secure]")

SEALED = {"channel.kind": "aes_gcm", "channel.verify_rounds": 2}
DENSE = {"dropout.source": "none", "dropout.keep_rate": 1.0, "dropout.warmup_rounds": 0, "dropout.refresh_rounds": 0}


@pytest.fixture(scope="module")
def sealed():
    """A run over the channel, looked at in rounds 0, 2, 4 and 6."""
    cheap = {"model": {"name": "logistic"}, "privacy": {"mechanism": "none"}, "data.client_test_fraction": 0.0}
    return run(small_run.experiment(**SEALED, **DENSE, **cheap), quiet=True)


def test_a_channel_costs_28_bytes_a_message(sealed):
    h, sent = sealed.history, sealed.communication
    assert sent["uplink_bytes"] == np.sum(h["answered"] * (4 * h["uplink_values"] + 28))
    assert sent["downlink_bytes"] == np.sum(h["contacted"] * (4 * h["downlink_values"] + 28))


def test_the_messages_of_every_second_round_were_really_sent(sealed):
    told, history = sealed.summary()["encryption"]["channel"], sealed.history
    due = slice(None, None, 2)
    assert told["verified_rounds"] == 4 and told["refused"] == 8
    assert told["messages"] == history["answered"][due].sum() + history["contacted"][due].sum()
    total = sum(1024 * history[f"{x}_kib"] + history[f"{x}_rest"] for x in ("uplink", "downlink"))
    assert told["bytes"] == total[due].sum()
    assert told["gb_per_s"] > 0.01


@pytest.mark.parametrize("sparsify", ["none", "topk", "randk"])
@pytest.mark.parametrize("quantise", ["none", "stochastic", "sign"])
def test_compressed_messages_have_the_bytes_of_the_documentation_and_are_read_back(sparsify, quantise):
    """Two clients with 20 and 7 values, of which 5 are sent; whole multiples of a step, times a weight of 3 or 1."""
    fields = {"compress.sparsify": sparsify, "compress.quantise": quantise, "compress.bits": 5}
    fields |= {"compress.keep": 0.2} if sparsify != "none" else {}
    feedback = sparsify != "none" or quantise == "sign"
    e = small_run.experiment(**DENSE, **fields, **{"compress.error_feedback": feedback})
    rng, n = np.random.default_rng(1), 27
    levels = {"none": rng.normal(size=(2, n)), "sign": rng.choice([-1, 1], (2, n))}.get(quantise)
    levels = rng.integers(-15, 16, (2, n)) if levels is None else levels
    levels[:, [0, 20]] = 15 if quantise == "stochastic" else levels[:, [0, 20]]
    sent = np.isin(np.arange(n), [0, 3, 9, 20, 26] if sparsify != "none" else np.arange(n))
    update = (levels * sent * np.float32(0.037) * np.array([[3], [1]])).astype(np.float32)
    payloads = {"update": {"a": update[:, :20].reshape(2, 4, 5), "b": update[:, 20:]}, "weight": np.float32([3, 1])}
    written = messages.uplink_messages(e, payloads, None)
    bits = {"none": 32, "stochastic": 5, "sign": 1}[quantise]
    extra = {"none": 0, "topk": 5 * 5, "randk": 0}[sparsify] + (64 if bits < 32 else 0)
    for one, row, weight in zip(written, update, (3, 1), strict=True):
        assert len(one.message) == -(-(sent.sum() * bits + extra) // 8) + 4
        np.testing.assert_allclose(one.values[:-1], row, rtol=1e-6)
        assert one.values[-1] == weight


def test_wrong_bytes_and_wrong_values_are_told(monkeypatch):
    """A check that is given a round with other payloads than the one it counted, and a writer that loses a digit."""
    e = small_run.experiment(**SEALED)
    check, seen = channel_check(e, 12), one_round()
    check.look(seen)
    assert check.told()["verified_rounds"] == 1
    for broken, why in (
        (seen._replace(uplink=seen.uplink + 1), "up of round 3"),
        (seen._replace(downlink=0), "down of"),
    ):
        with pytest.raises(FljaxError, match=why):
            channel_check(e, 12).look(broken)
    monkeypatch.setattr(messages, "_floats", lambda v: messages.Written(v.tobytes(), np.round(v, 4), v))
    with pytest.raises(FljaxError, match="to be read as it was sent"):
        channel_check(e, 12).look(seen)


def test_a_channel_that_lets_changed_messages_pass_is_found_out(monkeypatch):
    def careless(secret):
        end = channel.open_endpoint(secret)
        return end._replace(open=lambda place, sealed: sealed[12:-16], seal=lambda place, m: bytes(12) + m + bytes(16))

    monkeypatch.setattr(channelled, "open_endpoint", careless)
    with pytest.raises(FljaxError, match="to be refused"):
        channel_check(small_run.experiment(**SEALED), 12).look(one_round())


def one_round() -> Seen:
    """A round of three clients, of which two answered, as the host sees it."""
    rng = np.random.default_rng(0)
    update = {"a": rng.normal(size=(3, 4)).astype(np.float32), "b": rng.normal(size=(3, 2, 2)).astype(np.float32)}
    support = {"a": np.ones(4, np.float32), "b": np.eye(2, dtype=np.float32)}
    payloads = {"update": jax.tree.map(lambda x, m: x * m, update, support)}
    cohort = Cohort(np.array([7, 2, 5]), np.array([True, True, True]))
    transcript = Transcript(cohort, np.array([True, True, False]), payloads, None, {"support": support}, None)
    params = jax.tree.map(lambda x: x[0], update)
    return Seen(3, transcript, params, (), (), uplink=2 * (6 * 4 + 28), downlink=3 * (6 * 4 + 28))


@pytest.mark.parametrize("bits", [2, 7, 16, 31])
def test_whole_numbers_keep_their_sign_in_any_number_of_bits(bits):
    top = 2 ** (bits - 1)
    values = np.random.default_rng(bits).integers(-top, top, 101).astype(np.int32)
    values[:2] = -top, top - 1
    written = messages.whole_numbers(values, bits)
    assert len(written.message) == -(-101 * bits // 8)
    np.testing.assert_array_equal(written.values, values)
    number = int.from_bytes(written.message, "little")  # oracle: lanes of one long integer
    assert [(number >> (bits * i)) % 2**bits for i in range(101)] == [int(v) % 2**bits for v in values]


def test_what_differs_is_told():
    x = np.array([1.0, -4.0])
    assert relative(x, x) == 0 and relative(x + np.array([0, 2]), x) == 0.5
    assert relative(x[:1], x) == np.inf


def test_a_host_looks_at_its_rounds_alone_and_an_exchange_has_calls_of_one():
    check = Check("a", 3, lambda seen: None, dict)
    assert [Host([check]).room(done) for done in (0, 1, 2, 3)] == [3, 2, 1, 3]
    assert Host([check, check._replace(every=2)]).room(4) == 2
    assert Host([check], Exchange("b", lambda seen: None, dict)).room(0) == 1
    assert Host().idle and Host().room(5) > 2**30


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"privacy": {"mechanism": "local_duchi", "upload_epsilon": 1.0, "clip": 1.0}, **DENSE}, "local_duchi"),
        ({"dropout.source": "exact"}, "differ by client"),
        ({"dropout.tiers": (1.0, 0.5)}, "differ by client"),
    ],
)
def test_uploads_that_cannot_be_written_are_refused_with_the_remedy(fields, message):
    with pytest.raises(FljaxError, match=f"{message}.*verify_rounds = 0"):
        small_run.experiment(**SEALED, **fields)
    small_run.experiment(**SEALED | {"channel.verify_rounds": 0}, **fields)


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(FljaxError, match="one process"):
        channel_check(small_run.experiment(**SEALED), 12)


def test_an_outcome_without_encryption_says_nothing_of_it(sealed):
    assert "encryption" not in replace(sealed, encryption={}).summary()
