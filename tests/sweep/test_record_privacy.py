"""What a results folder says about choosing the best trial: once for every event, for as many trials as share it."""

import pytest

from fljax.core.types import SamplingLaw
from fljax.privacy import PrivacyStatement, selection_epsilon, state_privacy
from fljax.report.page import privacy_section
from fljax.report.text import SELECTION, selection
from fljax.sweep import record
from fljax.sweep.record import selection_prices

LAW, FIXED = SamplingLaw("poisson", 0.1, 100), SamplingLaw("fixed_size", 0.1, 100)


@pytest.fixture(scope="module")
def statements():
    """Three trials at z = 2, two at z = 3 (one statement each), one alone, one without noise, one refused."""
    two, three = state_privacy(LAW, 2.0, 10, 1e-3), state_privacy(FIXED, 3.0, 10, 1e-3)
    alone, none = state_privacy(LAW, 4.0, 10, 1e-3), state_privacy(LAW, 0.0, 10, 1e-3)
    refused = state_privacy(LAW, 2.0, 10, 1e-3, ["The mask is private."])
    again = state_privacy(LAW, 2.0, 10, 1e-3)  # equal, not the same object
    return [two, three, two, alone, none, refused, again, three]


def test_prices_count_the_trials_that_share_an_event(statements):
    prices = selection_prices(statements)
    for index, law, z, trials in [(0, LAW, 2.0, 3), (1, FIXED, 3.0, 2)]:
        assert set(prices[index]) == set(SELECTION) and prices[index]["selection_trials"] == trials
        assert prices[index]["epsilon_selection"] == selection_epsilon(law, z, 10, 1e-3, trials)
        assert prices[index]["epsilon_selection"] > statements[index].epsilon
    assert prices[0] == prices[2] == prices[6] and prices[1] == prices[7]
    assert prices[3:6] == [{}, {}, {}]


def test_every_event_is_asked_about_once(statements, monkeypatch):
    asked = []
    monkeypatch.setattr(record, "select_event", lambda *a: asked.append(a) or 1.0)
    selection_prices(statements)
    assert [trials for _, _, trials in asked] == [3, 2]


def test_another_delta_is_another_choice():
    both = [state_privacy(LAW, 2.0, 10, 1e-3), state_privacy(LAW, 2.0, 10, 2e-3)]
    assert selection_prices(both) == [{}, {}]


def test_values_only_has_no_price():
    said = state_privacy(LAW, 2.0, 10, 1e-3, values_only="bounds the values.")
    assert said.status == "values_only" and selection_prices([said, said]) == [{}, {}]


class Kept:
    """Results of which only the statements count."""

    def __init__(self, statements):
        self.privacy = [
            s.to_dict() | p | {"cell": {}} for s, p in zip(statements, selection_prices(statements), strict=True)
        ]


def test_the_page_names_the_price_and_what_it_covers(statements):
    section = privacy_section(Kept([statements[0], statements[2], statements[3]]))
    assert sum("does not cover a plain best of a fixed grid" in caveat for caveat in section["caveats"]) == 1
    remarks = [" ".join(row["remarks"]) for row in section["rows"]]
    assert sum("best of 2 expected trials: epsilon_selection = " in text for text in remarks) == 1
    assert not any(key in text for text in remarks for key in ("selection_trials", "selection_procedure"))


def test_a_statement_without_a_price_says_nothing():
    assert selection(PrivacyStatement("none", "no noise").to_dict()) == []
    assert selection({"selection_trials": 3, "epsilon_selection": float("inf")}) == []
    assert selection({"selection_trials": 3, "epsilon_selection": 2.00001}) == [
        "releasing only the best of 3 expected trials: epsilon_selection = 2.001"
    ]
