"""User-level clipping: one client cannot move the sum by more than S, whatever its data are.

Reference: McMahan, Ramage, Talwar, Zhang, "Learning differentially private recurrent language models", ICLR 2018.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fljax.core import tree
from fljax.core.check import FljaxError
from fljax.core.transform import UpdateTransform, no_claim, pass_decode, stateless, total_bound
from fljax.core.types import Array, Payload, PyTree

APART = ("weight", "query", "count")
"""Parts of a payload that no clip touches: a weight is bounded by its own stage, a query bounds itself, and a count is
the mask itself, which is public or told by the positions that are sent."""


def clip_tree(update: PyTree, clip: Array) -> tuple[PyTree, Array, Array]:
    """Scales a tree to a global L2 norm of at most S: ``u * min(1, S / ||u||)``.

    Args:
      update: any tree of arrays; one norm over all its leaves, computed in float32.
      clip: () S, may be traced; inf leaves every finite update as it is.

    Returns:
      (clipped tree in float32, () norm before clipping, () bool: was it scaled down).

    Guarantees:
      The norm of the result is at most S (1 + 2e-7); rounding it to bfloat16 could exceed S by 0.4 %, hence float32.
      It fails closed: if the norm is not finite (a NaN or inf anywhere, or an overflow of the norm), the whole result
      is exactly zero.
    """
    size = tree.norm(update)
    clipped = size > clip
    scale = jnp.where(clipped, clip / jnp.maximum(size, jnp.finfo(jnp.float32).tiny), 1.0)
    scaled = jax.tree.map(lambda u: u.astype(jnp.float32) * scale, update)
    return tree.zero_unless(jnp.isfinite(size), scaled), size, clipped


def clip_layers(update: dict[str, PyTree], clip: Array) -> tuple[dict[str, PyTree], Array, Array]:
    """Clips every layer (top-level entry) on its own, to ``S / sqrt(L)`` for L layers, so that the whole is below S.

    Returns and guarantees as ``clip_tree``; the flag tells whether any layer was scaled down.
    """
    each = {name: clip_tree(layer, clip / len(update) ** 0.5) for name, layer in update.items()}
    size = jnp.sqrt(sum(jnp.square(norm) for _, norm, _ in each.values()))
    layers = tree.zero_unless(jnp.isfinite(size), {name: layer for name, (layer, _, _) in each.items()})
    return layers, size, jnp.any(jnp.stack([clipped for _, _, clipped in each.values()]))


def clip(per_layer: bool = False) -> UpdateTransform:
    """Clips the payload of a client to ``hparams.clip`` (traced): one joint norm over all its parts but ``APART``.

    The bound of those parts is S together; a weight, if one is sent, stays unbounded and epsilon is refused.

    Args:
      per_layer: clip every layer of every part on its own (see ``clip_layers``); the joint bound is the same S.

    Info: ``norm`` before clipping and ``fraction`` (1 if this client was clipped); the oracle's view only.
    """

    def encode(key, ctx, payload: Payload, server_state, client_state):
        del key, server_state
        parts = {name: part for name, part in payload.items() if name not in APART}
        if per_layer:
            if not all(isinstance(part, dict) for part in parts.values()):
                raise FljaxError(
                    "Expected per_layer clipping of named layers. Give the parameters as a dict of layers."
                )
            layers = {f"{part}/{name}": x for part, layers in parts.items() for name, x in layers.items()}
            layers, size, clipped = clip_layers(layers, ctx.hparams.clip)
            parts = {part: {name: layers[f"{part}/{name}"] for name in inner} for part, inner in parts.items()}
        else:
            parts, size, clipped = clip_tree(parts, ctx.hparams.clip)
        return {**payload, **parts}, client_state, {"norm": size, "fraction": clipped.astype(jnp.float32)}

    def bound(ctx, state, bounds):
        del state
        weight = {name: b for name, b in bounds.items() if name in APART}
        parts = {name: b for name, b in bounds.items() if name not in APART}
        return {"payload": jnp.minimum(ctx.hparams.clip, total_bound(parts)), **weight}

    return UpdateTransform("clip", stateless, encode, pass_decode, bound, claim=no_claim)
