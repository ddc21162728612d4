"""Which masks an epsilon may stand beside: the whole table, written out by hand."""

import pytest

from fljax.core.check import FljaxError
from fljax.core.transform import Claim
from fljax.privacy.validity import SOURCES, SUPPORTS, judge

PUBLIC = ("released", "self_released", "public", "random", "ordered")
VALID, REFUSED, VALUES_ONLY = "valid", "refused", "values_only"

# trust -> (exact masks with noise on the kept coordinates, exact masks with noise on all of them)
EXACT = {
    "central": (REFUSED, VALID),
    "distributed": (REFUSED, VALID),
    "local": (VALUES_ONLY, VALID),
    "record": (REFUSED, REFUSED),  # the noise is in the steps, the mask is computed beside them
}
TABLE = [(trust, source, support, VALID) for trust in EXACT for source in PUBLIC for support in ("mask", "dense")]
TABLE += [
    (trust, source, support, VALID)
    for trust in ("central", "distributed", "local")
    for source in ("paid", "reported")
    for support in ("mask", "dense")
]
TABLE += [  # nobody noises the query, nor the report
    ("record", source, support, REFUSED) for source in ("paid", "reported") for support in ("mask", "dense")
]
TABLE += [  # a server that sees the sum of the votes picks
    (trust, "votes", support, VALID if trust == "central" else REFUSED) for trust in EXACT for support in SUPPORTS
]
TABLE += [(trust, "exact", "mask", kept) for trust, (kept, _) in EXACT.items()]
TABLE += [(trust, "exact", "dense", dense) for trust, (_, dense) in EXACT.items()]

LABEL = (
    "bounds the perturbed values conditional on the transmitted mask; the mask and keep rate are functions of private "
    "data and are NOT covered; no (ε,δ)-DP guarantee holds for the round."
)


def test_the_table_is_whole():
    assert {(t, s, u) for t, s, u, _ in TABLE} == {(t, s, u) for t in EXACT for s in SOURCES for u in SUPPORTS}
    assert len(TABLE) == 4 * 9 * 2


@pytest.mark.parametrize(("trust", "source", "support", "verdict"), TABLE)
def test_judge(trust, source, support, verdict):
    claim = judge(trust, source, support)
    if verdict == VALID:
        assert claim == Claim()
    elif verdict == VALUES_ONLY:
        assert claim == Claim(values_only=LABEL)
    else:
        assert claim == Claim(reason=claim.reason)
        says = {"votes": "sees the sum of the votes"}.get(source, "private masks kept")
        assert ("record level" if trust == "record" else says) in claim.reason


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("centrl", "exact", "mask"), "trust='centrl'.*'central'"),
        (("central", "exct", "mask"), "source='exct'.*'exact'"),
        (("central", "exact", "kept"), "support='kept'"),
    ],
)
def test_unknown_words_are_one_line(arguments, says):
    with pytest.raises(FljaxError, match=says) as caught:
        judge(*arguments)
    assert "\n" not in str(caught.value)
