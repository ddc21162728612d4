"""How masks lie: the energy they keep, how much two of them overlap, and what some client of a round trains."""

from __future__ import annotations

import string
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fljax.core import tree
from fljax.core.types import Array, Params, PyTree


def jaccard(a: dict[str, Array], b: dict[str, Array]) -> Array:
    """|A and B| / |A or B| of two masks {group: [n]}, over the neurons of all groups: () float32, 1 for two empty."""
    both = sum(jnp.sum(a[g] * b[g]) for g in a)
    any_of = sum(jnp.sum(jnp.maximum(a[g], b[g])) for g in a)
    return jnp.where(any_of > 0, both / jnp.maximum(any_of, 1.0), 1.0)


def pair_overlap(neurons: dict[str, Array], alive: Array) -> Array:
    """Mean Jaccard overlap over all pairs of living clients: () float32, 1 where there is no pair.

    Args:
      neurons: {group: [C, n]}. alive: [C] bool.
    """
    flat = jnp.concatenate([m.astype(jnp.float32) for m in neurons.values()], axis=1)
    both, size = flat @ flat.T, jnp.sum(flat, axis=1)
    any_of = size[:, None] + size[None, :] - both
    pair = alive[:, None] & alive[None, :] & ~jnp.eye(alive.shape[0], dtype=bool)
    overlap = jnp.where(any_of > 0, both / jnp.maximum(any_of, 1.0), 1.0)
    count = jnp.sum(pair)
    return jnp.where(count > 0, jnp.sum(jnp.where(pair, overlap, 0.0)) / jnp.maximum(count, 1), 1.0)


def covered_share(groups: Any, params: Params, neurons: dict[str, Array], alive: Array) -> Array:
    """Share of the parameters that lie in the mask of some living client: () float32.

    Args:
      groups: neuron groups. params: shapes alone count. neurons: {group: [C, n]}. alive: [C] bool.

    A parameter is in a client's mask if the neurons of all its axes are. For an array that runs over several groups the
    clients that hold a pair of neurons are counted by one product of masks, [n, C] with [C, m].
    """
    leaves, there = dict(groups.leaves), alive.astype(jnp.float32)
    total = jnp.float32(0.0)
    for path, x in tree.named_leaves(params).items():
        axes = leaves[path].axes if path in leaves else (None,) * x.ndim
        cut = [(axis.group, n) for axis, n in zip(axes, x.shape, strict=True) if axis is not None]
        masks = [neurons[g].astype(jnp.float32) for g, _ in cut]
        letters = string.ascii_lowercase[: len(masks)]
        holders = jnp.einsum(",".join(["Z", *(f"Z{a}" for a in letters)]) + f"->{letters}", there, *masks)
        each = x.size // int(np.prod([m.shape[1] for m in masks], initial=1))  # parameters of one tuple of neurons
        total += each * jnp.sum(holders > 0)
    return total / tree.num_elements(params)


def kept_share(mask: PyTree) -> Array:
    """k / P, the share of the parameters that lie on a mask: () float32. E_m P / k is the gain in signal to noise."""
    return tree.squared_norm(mask) / tree.num_elements(mask)


def kept_energy(update: PyTree, mask: PyTree) -> Array:
    """E_m = ||m * u||^2 / ||u||^2, the share of an update's energy that lies on a mask: () float32, 1 for u = 0."""
    pairs = list(zip(jax.tree.leaves(update), jax.tree.leaves(mask), strict=True))
    squares = [jnp.square(u.astype(jnp.float32)) for u, _ in pairs]
    whole = sum((jnp.sum(s) for s in squares), jnp.float32(0.0))
    kept = sum((jnp.sum(s * m) for s, (_, m) in zip(squares, pairs, strict=True)), jnp.float32(0.0))
    return jnp.where(whole > 0, kept / jnp.where(whole > 0, whole, 1.0), 1.0)
