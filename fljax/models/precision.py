"""The number format in which a model computes; its parameters stay in float32."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import jax
import jax.numpy as jnp

from fljax.core.types import Array, Key, Params, PyTree
from fljax.models.model import Model

Precision = Literal["float32", "bfloat16"]
"""Of the products and activations of local training."""


def compute_in(model: Model, precision: Precision) -> Model:
    """The same model, computing in another format: ``f(bf16(params), bf16(x))``, the outputs in float32 again.

    Parameters, gradients, optimiser states, clipping and noise stay in float32: the gradient passes backwards through
    the cast, and what is added to the parameters is not rounded to 8 bits. Sums inside of normalisation, attention
    weights and losses are float32 as well.

    Args:
      model: any model whose apply follows the dtype of its parameters.
      precision: ``bfloat16`` halves the memory of activations and uses the matrix units of accelerators; a CPU without
        such units emulates it and gets slower. ``float32`` returns the model itself.

    Source: Micikevicius et al., "Mixed precision training", ICLR 2018 (master weights); bfloat16 needs no loss scaling,
    since its exponent is that of float32.
    """
    if precision == "float32":
        return model

    def cast(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda x: x.astype(jnp.bfloat16) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)

    def apply(params: Params, x: Array, key: Key | None = None) -> Array:
        return model.apply(cast(params), cast(x), key).astype(jnp.float32)

    return replace(model, apply=apply)
