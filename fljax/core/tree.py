"""Helpers for pytrees that optax.tree does not have: guarded zeros, norms in float32, rows of tables, paths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fljax.core.types import Array, PyTree


def zero_unless(keep: Array, tree: PyTree) -> PyTree:
    """The tree where keep is True, exact zeros elsewhere; NaN and inf do not survive (select, not multiplication)."""
    return jax.tree.map(lambda x: jnp.where(keep, x, jnp.zeros_like(x)), tree)


def select(keep: Array, new: PyTree, old: PyTree) -> PyTree:
    """new where keep is True, else old, leaf by leaf."""
    return jax.tree.map(lambda a, b: jnp.where(keep, a, b), new, old)


def keep(tree: PyTree, mask: PyTree | None) -> PyTree:
    """The tree where the 0/1 mask is 1, exact zeros elsewhere; None keeps everything.

    A selection and no product: a product would let XLA fuse it with a following addition into one rounding, and a mask
    of ones would change the last bit.
    """
    if mask is None:
        return tree
    return jax.tree.map(lambda x, m: jnp.where(m > 0, x, jnp.zeros_like(x)), tree, mask)


def where(mask: PyTree | None, new: PyTree, old: PyTree) -> PyTree:
    """new where the 0/1 mask is 1, old elsewhere; None takes new everywhere.

    To be used on the result of a sum and not on a summand, see ``keep``.
    """
    if mask is None:
        return new
    return jax.tree.map(lambda m, a, b: jnp.where(m > 0, a, b), mask, new, old)


def squared_norm(tree: PyTree) -> Array:
    """Sum of squares over all leaves, accumulated in float32 whatever the leaves' precision."""
    return sum((jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(tree)), jnp.float32(0.0))


def norm(tree: PyTree) -> Array:
    """Global L2 norm over all leaves in float32: one norm for the whole tree, never one per leaf."""
    return jnp.sqrt(squared_norm(tree))


def num_elements(tree: PyTree) -> int:
    """How many numbers the tree holds."""
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))


def rows(table: PyTree, ids: Array) -> PyTree:
    """Rows of a table of client states: leaves [N, ...] -> [C, ...]. An id of N (an empty slot) reads the last row."""
    return jax.tree.map(lambda x: jnp.take(x, ids, axis=0, mode="clip"), table)


def put_rows(table: PyTree, ids: Array, values: PyTree) -> PyTree:
    """The table with rows [C, ...] written at ids; out-of-range ids (empty slots) write nothing."""
    return jax.tree.map(lambda t, v: t.at[ids].set(v, mode="drop"), table, values)


def stack(trees: list[PyTree]) -> PyTree:
    """Trees of scalars or arrays -> one tree with a leading axis of length len(trees)."""
    return jax.tree.map(lambda *xs: jnp.stack([jnp.asarray(x) for x in xs]), *trees)


def path_name(path: tuple[Any, ...]) -> str:
    """A key path as text: ``dense_0/kernel``."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """The leaves by path name, in the tree's own order."""
    return {path_name(p): x for p, x in jax.tree_util.tree_leaves_with_path(tree)}


def split_paths(tree: dict[str, Any], selected: Callable[[str], bool]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divides nested dicts by path name into (selected, rest); empty branches are left out of both."""

    def walk(node: dict[str, Any], prefix: str) -> tuple[dict[str, Any], dict[str, Any]]:
        yes, no = {}, {}
        for name, child in node.items():
            path = f"{prefix}{name}"
            if isinstance(child, dict):
                a, b = walk(child, path + "/")
                yes.update({name: a} if a else {})
                no.update({name: b} if b else {})
            else:
                (yes if selected(path) else no)[name] = child
        return yes, no

    return walk(tree, "")


def merge_paths(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """Joins two nested dicts that share no leaf: the inverse of split_paths. Key order is sorted, as in JAX's trees."""
    merged = {}
    for name in sorted({*a, *b}):
        both = name in a and name in b
        merged[name] = merge_paths(a[name], b[name]) if both else a[name] if name in a else b[name]
    return merged
