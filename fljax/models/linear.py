"""Linear models: multinomial logistic regression and linear regression. No hidden neurons, hence no groups."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
from flax import nnx

from fljax.core.check import FljaxError, positive
from fljax.core.types import Array
from fljax.models.layers import flatten
from fljax.models.model import Model, from_nnx
from fljax.models.product import dense_product

XAVIER = jax.nn.initializers.glorot_uniform()


class Linear(nnx.Module):
    """flatten - dense"""

    def __init__(self, features: int, outputs: int, rngs: nnx.Rngs) -> None:
        self.dense_0 = nnx.Linear(features, outputs, kernel_init=XAVIER, dot_general=dense_product, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.dense_0(flatten(x))


def num_features(input_shape: Sequence[int]) -> int:
    """D, the numbers of one example. Raises FljaxError for a shape that is empty or not positive."""
    if not isinstance(input_shape, Sequence) or not input_shape or any(n < 1 for n in input_shape):
        raise FljaxError(f"Expected input_shape={input_shape!r} to be a tuple of numbers >= 1, such as (28, 28, 1).")
    return math.prod(input_shape)


def logistic(input_shape: Sequence[int], num_classes: int) -> Model:
    """Multinomial logistic regression: logits = W x + b, with Xavier-uniform W and b = 0.

    Args:
      input_shape: shape of one example; images are flattened.
      num_classes: K.
    """
    positive(num_classes=num_classes)
    features = num_features(input_shape)
    return from_nnx(lambda rngs: Linear(features, num_classes, rngs), input_shape, name="logistic")


def linear(input_shape: Sequence[int], outputs: int = 1) -> Model:
    """Linear regression: outputs [B, o] = W x + b, with Xavier-uniform W and b = 0. Args: as logistic."""
    positive(outputs=outputs)
    features = num_features(input_shape)
    return from_nnx(lambda rngs: Linear(features, outputs, rngs), input_shape, name="linear")
