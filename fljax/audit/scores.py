"""How much of each canary is found in the change of the model.

The score is the t-statistic of a canary in the least-squares regression of the model's change on all canaries. It is
the cosine of canary and change with the other canaries partialled out, in units of its standard deviation under no
signal: canaries do not disturb each other, which plain cosines forgive only if k is far below ``P z^2 / T``.

The directions are Gaussian and, for a canary that never sent anything, independent of the change, whatever else is in
it. Its score follows Student's t with ``d - k`` degrees of freedom exactly, d the number of coordinates that moved.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from fljax.audit.canaries import canary
from fljax.core.check import FljaxError
from fljax.core.types import Array, Key, PyTree

ROOM = 2**25
"""Numbers of one block of canaries."""
SHARE = 4
"""There are at most d / SHARE canaries for d coordinates: they cost a share 1/SHARE of the signal's variance."""
FLOOR = 1e-6
"""Least share of the change that counts as noise: float32 sums know it no better."""


def canary_scores(key: Key, count: int, change: PyTree) -> np.ndarray:
    """Scores of all canaries: [k] float64, standard normal for a canary that is not in the change.

    Args:
      key: of the directions. count: k.
      change: final minus initial parameters. Coordinates that never moved (they were never sent) do not count.

    Raises:
      FljaxError: the change is zero or not finite, or too few coordinates moved for so many canaries.
    """
    flat = jnp.concatenate([jnp.ravel(x).astype(jnp.float32) for x in jax.tree.leaves(change)])
    size = jnp.linalg.norm(flat)
    if not jnp.isfinite(size) or size == 0:
        raise FljaxError(f"Expected the audited model to move by a finite change, found norm {float(size):g}.")
    moved = (flat != 0).astype(jnp.float32)
    dimension = int(np.count_nonzero(np.asarray(moved)))
    check_count(count, dimension)
    gram, dots = _products(key, count, moved, flat / size)
    return regression_scores(gram, dots, dimension)


def check_count(count: int, dimension: int) -> None:
    """Raises FljaxError where there are too many canaries for the coordinates that carry them."""
    if count > dimension // SHARE:
        raise FljaxError(
            f"Expected canaries={count} <= {dimension // SHARE}, a quarter of the {dimension} parameters that move. "
            "Use fewer canaries or a wider model."
        )


def regression_scores(gram: np.ndarray, dots: np.ndarray, dimension: int) -> np.ndarray:
    """t-statistics of a regression on k canaries, mapped to standard normal scores.

    With A = gram and b = dots: ``beta = A^-1 b``, noise variance ``s^2 = (1 - b beta) / (d - k)``,
    ``t_i = beta_i / sqrt(s^2 (A^-1)_ii)``. The map from Student's t to the normal is increasing.

    Args:
      gram: [k, k] inner products of the canaries. dots: [k] their inner products with the change, scaled to norm 1.
      dimension: d.
    """
    inverse = np.linalg.inv(np.asarray(gram, np.float64))
    beta = inverse @ np.asarray(dots, np.float64)
    freedom = dimension - len(beta)
    noise = max(1.0 - float(np.dot(dots, beta)), FLOOR) / freedom
    return normal_scores(beta / np.sqrt(noise * np.diag(inverse)), freedom)


def normal_scores(t: np.ndarray, freedom: int) -> np.ndarray:
    """Student's t with so many degrees of freedom -> the standard normal with the same tail probability.

    Beyond the range of float64 tails the signed root of the deviance ``f log(1 + t^2 / f)`` is taken.
    """
    from scipy import stats

    size = np.abs(t)
    tail = stats.t.sf(size, freedom)
    far = tail < 1e-290
    normal = np.where(far, np.sqrt(freedom * np.log1p(size**2 / freedom)), stats.norm.isf(np.where(far, 0.5, tail)))
    return np.sign(t) * normal


def _products(key: Key, count: int, moved: Array, change: Array) -> tuple[np.ndarray, np.ndarray]:
    """Inner products of all canaries with each other [k, k] and with the change [k], a pair of blocks at a time."""
    rows = int(np.clip(ROOM // len(moved), 1, count))
    starts = range(0, count, rows)
    gram, dots = np.zeros((len(starts) * rows,) * 2), np.zeros(len(starts) * rows)
    for i in starts:
        left = _block(key, jnp.int32(i), moved, rows)
        dots[i : i + rows] = np.asarray(_product(left, change[None]))[:, 0]
        for j in range(i, count, rows):
            right = left if i == j else _block(key, jnp.int32(j), moved, rows)
            part = np.asarray(_product(left, right))
            gram[i : i + rows, j : j + rows] = part
            gram[j : j + rows, i : i + rows] = part.T
    return gram[:count, :count], dots[:count]


@partial(jax.jit, static_argnames="rows")
def _block(key: Key, start: Array, moved: Array, rows: int) -> Array:
    """Canaries start .. start + rows - 1 on the coordinates that moved: [rows, P]."""
    return jax.vmap(lambda index: canary(key, index, len(moved)) * moved)(start + jnp.arange(rows))


@jax.jit
def _product(left: Array, right: Array) -> Array:
    return jnp.matmul(left, right.T, precision="highest")
