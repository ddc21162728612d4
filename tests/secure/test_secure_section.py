"""The section of secure sums: what goes together, what a run says of itself, and bytes by formula."""

import dataclasses
import hashlib
from functools import cache

import jax
import numpy as np
import pytest

from fljax.config import Experiment, validate
from fljax.core.check import FljaxError
from fljax.report.page import render
from fljax.secure.ledger import expansion, key_traffic
from fljax.server.sampler import fixed_size, full
from fljax.sim.run import run
from fljax.sim.secure import round_graph, secure_stages, word_lanes
from fljax.sweep.record import record_run
from fljax.sweep.store import open_results

BASE = {
    "rounds": 2,
    "eval_every": 2,
    "data": {"name": "digits", "clients": 12, "examples_per_client": 8},
    "model": {"name": "linear"},
    "server": {"denominator": "realised", "weights": "examples", "momentum": 0.9},
    "sampler": {"kind": "full", "availability": 0.8},
    "secure": {"masking": "double_mask", "mode": "masked", "value_range": 1.0, "dropout": 0.4, "prf": "counter"},
}


def experiment(**fields) -> Experiment:
    return validate(BASE).replace(**fields)


@cache
def outcome(masking, mode="masked"):
    return run(experiment(**{"secure.masking": masking, "secure.mode": mode}), quiet=True)


@pytest.mark.slow  # three programs
def test_a_run_under_masks_ends_in_the_same_bits_as_its_words_in_clear():
    """By the parameters, by the digest that --json prints, and by the metrics; bytes do not depend on the mode."""
    masked, ideal, clear = outcome("double_mask"), outcome("double_mask", "ideal"), outcome("clear", "ideal")
    assert (masked.history["answered"] < 12).any() and not masked.history["secure_aborted"].any()
    whole = b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(masked.params))
    digests = {o.secure["params_sha256"] for o in (masked, ideal, clear)}
    assert digests == {hashlib.sha256(whole).hexdigest()} and np.abs(np.frombuffer(whole, np.float32)).max() > 0
    assert masked.final == ideal.final == clear.final and masked.communication == ideal.communication


def test_a_run_tells_its_words_its_graph_and_its_cost():
    """12 clients of 650 parameters: 16-bit values need 20 bits (12 x 2 x 32767), 11 neighbours, keys by hand."""
    told = outcome("double_mask").summary()["secure"]
    assert (told["bits"], told["values"], told["degree"], told["threshold"]) == (20, 650, 11, 2)
    assert (told["aborted_rounds"], told["wrong_values"], told["saturated"]) == (0, 0, 0.0)
    keys = 2 * 12 * 256 + (5 * 12 - 4) * 256
    assert told["key_bytes"] == keys // 8 and told["expansion"] == pytest.approx((650 * 20 + keys) / (650 * 32))
    assert "simulation" in told["pads"] and "neighbours" in told["who_reads"]
    masked = outcome("double_mask")
    plain = masked.experiment.replace(**{"secure.masking": "clear", "secure.mode": "ideal"})
    clear = dataclasses.replace(masked, experiment=plain).secure
    assert "degree" not in clear and clear["expansion"] == 20 / 32
    assert clear["params_sha256"] == told["params_sha256"]


def test_the_published_expansions():
    """1.73 for 2^10 clients of 2^20 values and 1.98 for 2^14 of 2^24, by sums of n 16-bit numbers."""
    for log_n, log_m, published in [(10, 20, 1.73), (14, 24, 1.98)]:
        bits = (2**log_n * (2**16 - 1)).bit_length()
        assert expansion("double_mask", 2**log_m, bits, 2**log_n - 1, 16) == pytest.approx(published, abs=5e-3)


def test_both_directions_are_the_formula_and_simple_masks_cost_less():
    for n in (2, 13, 1024):
        assert key_traffic("double_mask", n - 1).total == 2 * n * 256 + (5 * n - 4) * 256
        assert key_traffic("pairwise", n - 1).total < key_traffic("double_mask", n - 1).total
    assert key_traffic("otp").total == 512 and key_traffic("flashe").total == key_traffic("shared_key").total == 0
    with pytest.raises(FljaxError, match="Expected masking='aes' to be one of"):
        key_traffic("aes")


def test_stages_follow_the_section():
    """Names of the stages, bits and sizes for what composes."""

    def stages(**fields):
        e = experiment(**fields)
        return [s.name for s in secure_stages(e, full(12), 100, 8)], word_lanes(e, full(12), 100)

    assert stages()[0] == ["fixed_point", "secure"] and stages()[1].bits == 20
    assert stages(**{"secure.masking": "none", "secure.mode": "ideal"})[0] == []
    assert stages(**{"secure.masking": "clear", "secure.mode": "ideal"})[0] == ["fixed_point"]
    scaffold = {"client.algorithm": "scaffold", "client.steps": 1, "server.weights": "uniform"}
    assert stages(**scaffold)[1].size == 200
    noisy = {"privacy.mechanism": "distributed_skellam", "privacy.clip": 1.0, "privacy.noise_multiplier": 1.0}
    noisy |= {"server.denominator": "expected", "server.weights": "uniform", "secure.value_range": None}
    names, lanes = stages(**noisy)
    assert names == ["secure"] and (lanes.bits, lanes.size) == (16, 128)
    chosen = round_graph(experiment(**{"secure.degree": 4, "secure.threshold": 3}), fixed_size(100, 12))
    assert (chosen.degree, chosen.threshold) == (4, 3)
    numbers = experiment(**{"secure.value_range": None, "privacy.mechanism": "central_gaussian", "privacy.clip": 0.5,
                            "server.denominator": "expected", "server.weights": "uniform"}).hparams()  # fmt: skip
    assert numbers.extra["value_range"] == 0.5  # the clip


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"secure.value_range": None}, "needs secure.value_range, to which values are clipped"),
        ({"secure.masking": "clear"}, 'mode = "masked" needs masking'),
        ({"secure.masking": "otp", "secure.degree": 4}, 'degree and threshold need masking = "double_mask"'),
        ({"secure.overflow": "count"}, 'overflow = "count" needs bits'),
        ({"secure.dropout": 0.1}, "secure.dropout=0.1 expects fewer clients to drop out .* set secure.dropout = 0.26"),
        ({"perf.dropout": "compact"}, 'set perf.dropout = "masked"'),
        ({"secure.value_bits": 25}, "secure.value_bits = 25 should be less than or equal to 24"),
        (
            {"dropout.source": "gumbel", "dropout.warmup_rounds": 1, "privacy.mechanism": "central_gaussian",
             "privacy.clip": 1.0, "server.denominator": "expected", "server.weights": "uniform"},
            'dropout.source = "gumbel" asks clients for scores',
        ),
        (
            {"privacy.mechanism": "local_gaussian", "privacy.clip": 1.0, "secure.value_range": None,
             "server.denominator": "expected", "server.weights": "uniform"},
            "secure.value_range is needed: values may exceed privacy.clip under local noise",
        ),
        (
            {"privacy.mechanism": "distributed_skellam", "privacy.clip": 1.0, "server.denominator": "expected",
             "server.weights": "uniform"},
            "distributed mechanisms have privacy.bits; leave out secure.bits and secure.value_range",
        ),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_one_line_with_the_remedy(fields, message):
    with pytest.raises(FljaxError, match=message) as error:
        experiment(**fields)
    assert "\n" not in str(error.value)


def test_too_few_bits_are_told_with_enough_of_them():
    with pytest.raises(FljaxError, match=r"Expected bits=19 >= 20: sums of 12 clients overflow\. Set bits = 20"):
        secure_stages(experiment(**{"secure.bits": 19}), full(12), 10, 1)
    assert secure_stages(experiment(**{"secure.bits": 19, "secure.overflow": "count"}), full(12), 10, 1)


def test_the_page_of_a_run_has_the_same_numbers(tmp_path):
    record_run(tmp_path, outcome("double_mask"))
    page = render(open_results(tmp_path), {})
    section = page[page.index('id="secure"') : page.index('id="configuration"')]
    for told in (
        "double_mask",
        "nobody reads an upload",
        "<dt>threshold</dt><dd>2</dd>",
        "<dt>aborted rounds</dt><dd>0</dd>",
    ):
        assert told in section
    record_run(tmp_path / "floats", dataclasses.replace(outcome("double_mask"), experiment=Experiment(rounds=2)))
    assert 'id="secure"' not in render(open_results(tmp_path / "floats"), {})
