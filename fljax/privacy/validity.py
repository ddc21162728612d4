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
    "exact": "the client's private data",
}
"""What masks may be computed from. All but ``exact`` are public, post-processing, or paid for."""

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
    if trust == "record" and source in ("exact", "paid"):
        return Claim(
            reason=f"at record level the noise is in the training steps, and does not cover {source!r} masks; "
            "take the masks from what was released, or from public data"
        )
    if source != "exact" or support == "dense":
        return Claim()
    if trust == "local":
        return Claim(values_only=VALUES_ONLY)
    return Claim(
        reason="the noise covers only what private masks kept, so that its support tells them; "
        "noise all coordinates (support = dense) or take the masks from what was released"
    )
