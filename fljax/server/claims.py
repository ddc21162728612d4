"""What all parts of a round promise to the accountant together: the noise, and every reason to refuse an epsilon."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fljax.core.transform import Claim, Noise, join_claims, total_bound
from fljax.core.types import Array, Bounds, Ctx, Hparams, Params, SubModel
from fljax.privacy.validity import judge, judge_positions, judge_rates
from fljax.server.clients import Parts, Tiers
from fljax.server.sampler import Sampler


def round_claim(sampler: Sampler, parts: Parts, hparams: Hparams, params: Params) -> Claim:
    """Joins the claims of all stages, with concrete numbers.

    Where clients already noise their own training steps (record level), everything after that is post-processing, and
    nothing else has to be bounded.
    """
    joined = [parts.transform.claim(hparams)]
    if joined[0].noise is None or joined[0].noise.trust != "local":  # what follows local noise is post-processing
        joined.append(parts.aggregator.claim(hparams))
    sub, local = parts.submodel, parts.local
    if local.claim is not None:
        own = local.claim(hparams)
        if any(c.noise is not None for c in joined):
            reason = "clients noise their own steps and a stage adds noise as well; use one of them"
            return own._replace(reason=reason)
        # What looks at data beside the steps is no post-processing.
        masks = [] if sub is None else [judge("record", sub.source, sub.support), _rates("record", parts.tiers)]
        return join_claims([own, *masks])._replace(masks=None if sub is None else sub.source)
    joined.append(_bounded(sampler, parts, hparams, params))
    noise = next((c.noise for c in joined if c.noise is not None), None)
    if noise is None or sub is None:
        return join_claims(joined)
    own = sub.own is not None and noise.trust == "local"
    shared = sub.own is None  # a server noises all that its clients may have chosen
    support = sub.support if own or shared else "dense"
    agreed = parts.agreement
    told = Claim() if agreed is None else judge_positions(noise.trust, agreed.union, agreed.least)
    claim = join_claims([*joined, judge(noise.trust, sub.source, support), told, _rates(noise.trust, parts.tiers)])
    beside = _beside(sub, parts.tiers, hparams)
    return claim._replace(noise=_with(noise, beside), masks=sub.source)


def unbounded(parts: Parts) -> Bounds:
    """The bounds of a payload's parts before any stage: infinite, but for a query, which bounds itself."""
    bounds: dict[str, Array] = {part: jnp.float32(jnp.inf) for part in parts.local.parts}
    if parts.submodel is not None and parts.submodel.query is not None and parts.submodel.release is None:
        bounds["query"] = jnp.float32(1.0)
    return bounds


def _rates(trust: str, tiers: Tiers | None) -> Claim:
    return Claim() if tiers is None else judge_rates(trust, tiers.chosen_by)


def _beside(sub: SubModel, tiers: Tiers | None, hparams: Hparams) -> dict[str, float]:
    """What is released beside the update without the noise of the stages, for the accountant."""
    spent = {} if sub.spends is None else sub.spends(hparams)
    if tiers is not None and tiers.report_epsilon is not None:
        spent = spent | {"report_epsilon": tiers.report_epsilon}
    return spent


def _with(noise: Noise, detail: dict[str, float]) -> Noise:
    return noise._replace(detail=(*noise.detail, *detail.items()))


def _bounded(sampler: Sampler, parts: Parts, hparams: Hparams, params: Params) -> Claim:
    """Refuses a round in which nothing bounds one client, or whose noise is not finite."""
    numbers = hparams.arrays()
    state, _ = parts.transform.init(parts.local.split(params)[0], numbers)
    expected = jnp.asarray(sampler.expected(numbers), jnp.float32)
    ctx = Ctx(jnp.int32(0), numbers, jax.random.key(0), jnp.int32(-1), jnp.int32(-1), expected, numbers.keep_rate)
    ctx = ctx._replace(bounds=parts.transform.bound(ctx, state, unbounded(parts)))
    if not jnp.isfinite(total_bound(ctx.bounds or {})):
        return Claim(reason="nothing bounds what one client sends; add a clip stage or set privacy.clip")
    if not jnp.isfinite(parts.transform.noise(ctx, state, jnp.float32(0.0))):
        return Claim(reason="the budget of the noise leaves nothing for the update; use more noise on clip_bit_noise")
    return Claim()
