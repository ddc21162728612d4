"""A simulated adversary in the round: what malicious clients send in place of what they computed, and who is caught.

The honest parts of the round do not know of it. Data are poisoned where a client reads them (``server.clients``);
payloads are replaced between the clients and the aggregator.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fljax.core import tree
from fljax.core.transform import Aggregator
from fljax.core.types import Adversary, Array, Crowd, Ctx, Key, PyTree
from fljax.server.execute import Collected, Slots

APART = ("weight", "count")
"""Parts of a payload that malicious clients do not forge."""


def forge(
    adversary: Adversary, key: Key, ctx: Ctx, seen: Collected, slots: Slots, aggregator: Aggregator, state: PyTree
) -> Collected:
    """The collected payloads with those of the malicious clients replaced.

    Args:
      key: consumed. ctx: of the server. seen: stacked payloads. slots: the cohort. aggregator, state: what an
        adversary that knows the rule may try its payloads on.

    Guarantees: what is not finite is exactly zero and counts as not sent; nothing is written off the public support.
    """
    assert adversary.forge is not None and slots.malicious is not None
    malicious, sent = slots.alive & slots.malicious, seen.info["sent"]
    apart = {name: part for name, part in seen.payload.items() if name in APART}
    own = {name: part for name, part in seen.payload.items() if name not in APART}

    def aggregate(payloads: PyTree) -> PyTree:
        came = sent | malicious
        if aggregator.collect == "sum":
            return jax.tree.map(lambda x: jnp.sum(x, axis=0), payloads)
        return aggregator.reduce(key, ctx._replace(id=slots.ids), payloads, came, state)[0]

    crowd = Crowd(own, sent & ~malicious, malicious, slots.ids, aggregate)
    forged = adversary.forge(key, ctx, crowd)
    if ctx.support is not None and "update" in forged:
        forged["update"] = jax.vmap(lambda u: tree.keep(u, ctx.support))(forged["update"])
    finite = jnp.isfinite(jax.vmap(tree.squared_norm)(forged))
    sent = jnp.where(malicious, finite, sent)
    kept = jax.tree.map(lambda f, o: jnp.where(_rows(malicious, o), f, o), forged, own)
    kept = jax.tree.map(lambda x: jnp.where(_rows(sent, x), x, jnp.zeros_like(x)), {**kept, **apart})
    return seen._replace(payload=kept, info={**seen.info, "sent": sent})


def who_was_caught(share: Array | None, slots: Slots, sent: Array) -> dict[str, Array]:
    """How well a rule told malicious clients apart in one round: {name: () float32}.

    A client is rejected where it counts less than half of its part in a plain mean.

    Args:
      share: [C] what each client counts relative to its part in a plain mean, or None for a rule that weighs none.
      slots: the cohort. sent: [C] bool, whose payloads the rule saw.

    Returns:
      ``malicious_seen``: malicious clients among those seen. With shares also ``rejected``: clients rejected, and
      ``rejected_malicious``: malicious ones among them. {} where there is neither an adversary nor a share.
    """
    seen = {}
    malicious = jnp.zeros_like(sent) if slots.malicious is None else slots.malicious & sent
    if slots.malicious is not None:
        seen["malicious_seen"] = jnp.sum(malicious).astype(jnp.float32)
    if share is not None:
        rejected = sent & (share < 0.5)
        seen["rejected"] = jnp.sum(rejected).astype(jnp.float32)
        seen["rejected_malicious"] = jnp.sum(rejected & malicious).astype(jnp.float32)
    return seen


def _rows(mask: Array, like: Array) -> Array:
    """A mask [C] in the rank of an array [C, ...]."""
    return mask.reshape(mask.shape + (1,) * (like.ndim - 1))
