"""The product of a dense layer, whose weight gradient is a sum of outer products where the batch is small.

The gradient of ``y = x W`` by the weights is ``x^T g``: as large as the weights, and with no more terms to add up than
a batch has examples. XLA's CPU products are slowest there, above all where every client of a batch has weights of its
own. Written out as ``sum_b x_b g_b^T`` it is one pass over the weights, which XLA fuses with the step of SGD, so that
the gradient never lies in memory.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from fljax.core.types import Array

MOST_ROWS = 32
"""Examples of a batch up to which the sum of outer products was the faster one."""


def dense_product(
    x: Array,
    w: Array,
    dimension_numbers: Any = None,
    precision: Any = None,
    preferred_element_type: Any = None,
    out_sharding: Any = None,
) -> Array:
    """``x W`` over the last axis of x and the first of W.

    It takes the place of ``lax.dot_general`` in ``nnx.Linear(..., dot_general=dense_product)`` and in its linen twin.
    On a CPU, in single or double precision, for a batch ``[B, D]`` of at most 32 examples, the gradient by the weights
    is ``sum_b x_b g_b^T``, added up example after example; elsewhere it is a product like any other. The value is that
    of ``x @ w`` bit by bit, its derivatives, of any order, forward and reverse, up to rounding; a column of g or x that
    is zero makes exact zeros.

    Args:
      x: inputs [..., D]. w: weights [D, n].
      dimension_numbers, precision, preferred_element_type, out_sharding: as of ``lax.dot_general``, by default those of
        ``x @ w``; where any of them says something else, it is ``lax.dot_general``.

    Returns:
      [..., n].

    Source: ``python -m benchmarks.dense``; its table is in docs/performance.md.
    """
    usual = (((x.ndim - 1,), (0,)), ((), ()))
    asked = usual if dimension_numbers is None else dimension_numbers
    plain = asked == usual and precision is None and preferred_element_type in (None, x.dtype) and out_sharding is None
    precise = x.dtype == w.dtype and w.dtype in (jnp.float32, jnp.float64)
    if plain and precise and x.ndim == 2 and sums(x.shape[0]):
        return summed_product(x, w)
    return lax.dot_general(x, w, asked, precision, preferred_element_type, out_sharding=out_sharding)


def sums(rows: int) -> bool:
    """Are outer products faster for a batch of so many examples, on this backend?"""
    return rows <= MOST_ROWS and jax.default_backend() == "cpu"


@jax.custom_jvp
def summed_product(x: Array, w: Array) -> Array:
    """``x @ w`` for x [B, D], w [D, n], with a gradient by the weights that is written out, whatever B is."""
    return x @ w


def _tangent(primals: tuple[Array, Array], tangents: tuple[Any, Any]) -> tuple[Array, Array]:
    """Forward mode pays for it with a pass over the weights for each example; reverse mode only ever transposes it."""
    (x, w), (dx, dw) = primals, tangents
    out = summed_product(x, w)
    terms = []
    if not isinstance(dx, SymbolicZero):
        terms.append(summed_product(dx, w))
    if not isinstance(dw, SymbolicZero):
        terms.append(jnp.stack([jnp.sum(row[:, None] * dw, axis=0) for row in x]))
    return out, sum(terms[1:], start=terms[0])  # one of them is there: no rule is asked without a tangent


summed_product.defjvp(_tangent, symbolic_zeros=True)
