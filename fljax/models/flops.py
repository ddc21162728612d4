"""How much arithmetic a forward pass is: the matrix products and convolutions in its program, counted exactly."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from fljax.core.check import FljaxError
from fljax.models.convolution import convolutions_by


def model_flops(
    model: Any, input_shape: Sequence[int], counts: Mapping[str, int] | None = None, input_dtype: Any = jnp.float32
) -> int:
    """Floating-point operations of one forward pass for one example, in evaluation.

    A product of [m, k] and [k, n] counts as ``2 m k n``, and a convolution as the product of its patches, whichever
    way it is computed here; a look-up in a table counts nothing. What works element by element (activations,
    normalisation, depthwise windows) is left out, as is usual. A training step costs about three times as much.

    Args:
      model: with ``shapes``, ``apply`` and ``groups``.
      input_shape, input_dtype: of one example.
      counts: group -> neurons kept, for a sub-model (``model.groups.counts(keep_rate)``); None for the whole model.
    """
    params = model.shapes() if counts is None else model.groups.shapes(model.shapes(), counts)
    return matmul_flops(model.apply, params, jax.ShapeDtypeStruct((1, *input_shape), input_dtype))


def matmul_flops(function: Callable, *args: Any) -> int:
    """Floating-point operations of the matrix products and convolutions of ``function(*args)``; computes nothing.

    Loops count as often as they run, of branches the most expensive one.

    Raises:
      FljaxError: for a product inside a loop whose length is not known before it runs.
    """
    with convolutions_by((1, 1)):
        # A function of its own: traces are remembered by function, and this one is of another kind.
        return _count(jax.make_jaxpr(lambda *args: function(*args))(*args).jaxpr)


def _count(jaxpr: core.Jaxpr) -> int:
    return sum(_of(equation) for equation in jaxpr.eqns)


def _of(equation: Any) -> int:
    kind, params = equation.primitive.name, equation.params
    if params.get("name") == "one_hot_rows":
        return 0
    if kind == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2 * equation.outvars[0].aval.size * math.prod(equation.invars[0].aval.shape[i] for i in contracted)
    if kind == "conv_general_dilated":
        kernel = equation.invars[1].aval
        features = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
        return 2 * equation.outvars[0].aval.size * kernel.size // features
    inner = [_count(jaxpr) for value in params.values() for jaxpr in _jaxprs(value)]
    if kind == "while" and any(inner):
        raise FljaxError("Expected matrix products inside loops of known length. Use lax.scan for this loop.")
    if kind == "cond":
        return max(inner)
    return params["length"] * sum(inner) if kind == "scan" else sum(inner)


def _jaxprs(value: Any) -> Iterator[core.Jaxpr]:
    """The programs inside of a parameter of an operation."""
    if isinstance(value, core.ClosedJaxpr):
        yield value.jaxpr
    elif isinstance(value, core.Jaxpr):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _jaxprs(item)
