"""Multi-layer perceptron with ReLU."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import jax
from flax import nnx

from fljax.core.check import positive
from fljax.core.types import Array
from fljax.models.layers import flatten
from fljax.models.linear import XAVIER, num_features
from fljax.models.model import Model, from_nnx
from fljax.models.neurons import Axis, NeuronGroups, dense_leaves
from fljax.models.product import dense_product


class MLP(nnx.Module):
    """flatten - (dense - ReLU) for each hidden layer - dense; the layers are dense_0, dense_1, ..."""

    def __init__(self, widths: Sequence[int], rngs: nnx.Rngs) -> None:
        self.depth = len(widths) - 1
        for i, (inputs, outputs) in enumerate(pairwise(widths)):
            dense = nnx.Linear(inputs, outputs, kernel_init=XAVIER, dot_general=dense_product, rngs=rngs)
            setattr(self, f"dense_{i}", dense)

    def __call__(self, x: Array) -> Array:
        x = flatten(x)
        for i in range(self.depth - 1):
            x = jax.nn.relu(getattr(self, f"dense_{i}")(x))
        return getattr(self, f"dense_{self.depth - 1}")(x)


def mlp(input_shape: Sequence[int], num_classes: int, hidden: Sequence[int] | int = (32,)) -> Model:
    """A multi-layer perceptron. Xavier-uniform weights, zero biases. Each hidden layer is one neuron group.

    Args:
      input_shape: shape of one example; images are flattened.
      num_classes: K, the number of outputs.
      hidden: units per hidden layer, or of the only one; the groups are called dense_0, dense_1, ...

    Raises:
      FljaxError: for a shape or a width below 1.
    """
    hidden = (hidden,) if isinstance(hidden, int) else hidden
    for i, width in enumerate(hidden):
        positive("", **{f"hidden[{i}]": width})
    positive(num_classes=num_classes)
    widths = (num_features(input_shape), *hidden, num_classes)
    return from_nnx(lambda rngs: MLP(widths, rngs), input_shape, _groups(tuple(hidden)), name="mlp")


def _groups(hidden: tuple[int, ...]) -> NeuronGroups | None:
    if not hidden:
        return None
    names = [f"dense_{i}" for i in range(len(hidden))]
    leaves = {}
    for layer, source, group in zip([*names, f"dense_{len(hidden)}"], [None, *names], [*names, None], strict=True):
        leaves |= dense_leaves(layer, Axis(source) if source else None, group)
    return NeuronGroups(dict(zip(names, hidden, strict=True)), leaves)
