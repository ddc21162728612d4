"""The ledger: what was spent after every round, continued exactly, and refused where it was changed."""

import json

import numpy as np
import pytest

from fljax.core.check import FljaxError
from fljax.core.transform import Noise
from fljax.core.types import SamplingLaw
from fljax.privacy import make_event
from fljax.privacy.accounting import stated_epsilon
from fljax.privacy.ledger import Ledger, open_ledger

NOISE = Noise("gaussian", 2.0)
DETAIL = (("dimension", 64.0), ("l2", 1003.0), ("l1", 8024.0), ("unit", 1000.0), ("shares", 10.0))
LAWS = [
    (SamplingLaw("poisson", 0.1, 100), NOISE, "RDP"),
    (SamplingLaw("truncated_poisson", 0.1, 100, 26), NOISE, "PLD"),
    (SamplingLaw("fixed_size", 0.1, 100), NOISE, "PLD"),
    (SamplingLaw("cyclic", 0.1, 100), NOISE, "RDP"),
    (SamplingLaw("cyclic_poisson", 0.2, 100, None, 2), NOISE, "RDP"),
    (SamplingLaw("cyclic", 0.1, 100), Noise("tree", 5.0, "central", (("epoch", 10.0),)), "RDP"),
    (SamplingLaw("poisson", 0.1, 100), Noise("gaussian", 40.0, "local"), "RDP"),
    (SamplingLaw("poisson", 0.1, 100), Noise("pure", 10.0, "local"), "PLD"),
    (SamplingLaw("fixed_size", 0.1, 100), Noise("skellam", 2.0, "distributed", DETAIL), "RDP"),
]


@pytest.mark.parametrize(("law", "noise", "label"), LAWS, ids=lambda v: getattr(v, "kind", v))
def test_spending_never_falls_and_ends_at_or_above_what_is_reported(law, noise, label):
    ledger = open_ledger(law, noise, 25, 1e-3)
    assert ledger.label == label and ledger.spent.shape == (25,) and ledger.spent[0] > 0
    assert np.all(np.diff(ledger.spent) >= 0)
    for rounds in (1, 25):
        assert ledger.spent[rounds - 1] >= stated_epsilon(law, noise, rounds, 1e-3) * (1 - 1e-12)


def test_an_entry_says_what_was_spent():
    law = LAWS[0][0]
    ledger = open_ledger(law, NOISE, 25, 1e-3)
    entry = ledger.entry(11)
    assert entry == {"event": make_event(law, NOISE, 25).key, "rounds": 11, "epsilon": float(ledger.spent[10])}
    ledger.check(json.loads(json.dumps(entry)), 11, "a file")  # as it comes back from a checkpoint
    assert Ledger().entry(3) == {"event": "", "rounds": 3, "epsilon": None}
    Ledger().check(Ledger().entry(3), 3, "a file")


TAMPERED = [
    {"rounds": 10},
    {"rounds": 12},
    {"event": "SelfComposed(Gaussian(9.0), 25)"},
    {"event": ""},
    {"epsilon": 0.1},
    {"epsilon": None},
    None,
    [],
    {"more": 1},
]


@pytest.mark.parametrize("change", TAMPERED, ids=str)
def test_any_other_entry_is_refused_in_one_line(change):
    ledger = open_ledger(LAWS[0][0], NOISE, 25, 1e-3)
    entry = ledger.entry(11) | change if isinstance(change, dict) else change
    with pytest.raises(
        FljaxError, match=r"a file: expected its privacy ledger .* to be 11 rounds of SelfComposed"
    ) as no:
        ledger.check(entry, 11, "a file")
    assert "\n" not in str(no.value) and "--out" in str(no.value)


def test_an_entry_of_a_private_run_is_refused_without_noise():
    entry = open_ledger(LAWS[0][0], NOISE, 25, 1e-3).entry(11)
    with pytest.raises(FljaxError, match=r"11 rounds of SelfComposed.*to be 11 rounds of no noise"):
        Ledger().check(entry, 11, "a file")
