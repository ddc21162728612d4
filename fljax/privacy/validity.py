"""Which masks an epsilon may stand beside: trust model x source of the masks x where the noise lives.

A mask that is computed from private data and can be seen by the adversary is a message of its own, without noise: no
finite epsilon covers it. The table says which combinations are covered, and why the others are not.
"""

from __future__ import annotations

from fljax.core.check import one_of
from fljax.core.transform import Claim

SOURCES = {
    "released": "the noised aggregates that were released before",
    "self_released": "the client's own earlier noised uploads",
    "public": "public data, or synthetic inputs to the released model",
    "random": "public random numbers",
    "ordered": "a fixed or rolling order of the neurons",
    "paid": "a noised query of its own, whose cost is in the accounting",
    "votes": "private choices of the exponential mechanism, whose cost is in the accounting",
    "reported": "the client's private data, by randomised response whose cost is in the accounting",
    "exact": "the client's private data",
}
"""What masks may be computed from. All but ``exact`` are public, post-processing, or paid for."""

ROUTES = {
    "released": "post-processing, at no cost",
    "self_released": "post-processing, at no cost",
    "public": "post-processing, at no cost",
    "random": "independent of the data",
    "ordered": "independent of the data",
    "paid": "paid for, within this epsilon",
    "votes": "paid for, within this epsilon",
    "reported": "paid for, within this epsilon",
    "exact": "private; see the status and where the noise lives",
}
"""Why an epsilon may stand beside masks of each source, in words for a statement."""


def mask_route(source: str) -> str:
    """One line that belongs to an epsilon: what the masks follow from, and what that costs."""
    return f"Masks follow from {SOURCES[source]}: {ROUTES[source]}."


SUPPORTS = ("mask", "dense")
"""Where the noise lives: on the kept coordinates alone, or on all of them."""

VALUES_ONLY = (
    "bounds the perturbed values conditional on the transmitted mask; the mask and keep rate are functions of private "
    "data and are NOT covered; no (ε,δ)-DP guarantee holds for the round."
)


def judge(trust: str, source: str, support: str) -> Claim:
    """What may be claimed of a round with masks.

    Args:
      trust: ``central`` | ``local`` | ``distributed`` | ``record``.
      source: a key of ``SOURCES``.
      support: ``mask`` or ``dense``.

    Returns:
      An empty claim where epsilon holds; ``values_only`` for masks that clients compute from private data and send
      beside values that are noised on the kept coordinates alone (the source paper's scheme); ``reason`` where the
      server would noise only what such masks kept, and at record level, where nothing noises what is computed from
      the data outside of the training steps.
    """
    one_of(("central", "local", "distributed", "record"), trust=trust)
    one_of(SOURCES, source=source)
    one_of(SUPPORTS, support=support)
    if trust == "record" and source in ("exact", "reported", "paid", "votes"):
        return Claim(
            reason=f"at record level the noise is in the training steps, and does not cover {source!r} masks; "
            "take the masks from what was released, or from public data"
        )
    if source == "votes" and trust != "central":
        return Claim(reason="the neurons are chosen by a server that sees the sum of the votes; trust it (central)")
    if source != "exact" or support == "dense":
        return Claim()
    if trust == "local":
        return Claim(values_only=VALUES_ONLY)
    return Claim(
        reason="the noise covers only what private masks kept, so that its support tells them; "
        "noise all coordinates (support = dense) or take the masks from what was released"
    )


def judge_positions(trust: str, union: bool, least: int) -> Claim:
    """What may be claimed of a round whose clients agree on positions before they upload.

    Args:
      trust: as for ``judge``. union: the counts of a union are told. least: coordinates of fewer clients are left out.

    Returns:
      An empty claim where nothing but the noised sum, or what is computed from noised uploads, depends on who came.
      The reason otherwise: a coordinate that is left out for want of clients takes the values of the others with it,
      so that one client more moves the sum by more than its own bound; the counts of a union are a release without
      noise, to a server that is not trusted.
    """
    one_of(("central", "local", "distributed", "record"), trust=trust)
    if union and trust != "central":
        return Claim(
            reason="the union of the masks is told by counts without noise, to a server that is not trusted; "
            "set secure.positions = dense"
        )
    if least > 1 and trust in ("central", "distributed"):
        return Claim(
            reason=f"coordinates of fewer than {least} clients are left out, which depends on who came and is not "
            "covered by noise; set secure.min_contributors = 1 or secure.positions = dense"
        )
    return Claim()


RATES = ("public", "private", "paid")
"""What keep rates of single clients may follow from: public devices and sizes, private data, or a noised report."""


def judge_rates(trust: str, chosen_by: str) -> Claim:
    """What may be claimed of a round whose clients keep different shares.

    Args:
      trust: as for ``judge``. chosen_by: one of ``RATES``.

    Returns:
      An empty claim for public and paid rates. Private ones are covered by a server's noise, as private masks within a
      public support are: whatever a client keeps, its update is a function of its own data with the same bound, and the
      noise lives on the widest mask. Refused where nobody noises the sum before it is seen, since the length of an
      upload tells the rate.
    """
    one_of(("central", "local", "distributed", "record"), trust=trust)
    one_of(RATES, chosen_by=chosen_by)
    if chosen_by != "private" or trust in ("central", "distributed"):
        return Claim()
    return Claim(
        reason="keep rates follow from private data, and the length of an upload tells them; declare the data public "
        "(dropout.tier_data = public), pay for a report (dropout.report_epsilon) or use classes of devices"
    )
