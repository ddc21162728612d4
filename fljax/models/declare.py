"""Models out of one declaration of their parameters: shapes, initial values and neuron groups come from the same lines.

``{"ffn/kernel": (64, Axis("ffn")), "ffn/bias": (Axis("ffn"),)}`` with ``sizes={"ffn": 256}`` says that the kernel is
[64, 256], that its columns and the bias belong to the neurons of group ``ffn``, and that the 64 rows are never cut.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fljax.core.types import Array, Key, Params
from fljax.models.model import Model, from_functions
from fljax.models.neurons import Axis, Leaf, NeuronGroups

Dim = int | Axis
"""Length of an axis: a number, where it is never cut, or the neurons that it runs over."""
Spec = dict[str, tuple[Dim, ...]]
"""Path of each parameter -> its axes. The last axis, where it runs over neurons, is the one that they are scored by."""
Initializer = Callable[[Key, tuple[int, ...]], Array]

INITIALIZERS: dict[str, Initializer] = {
    "kernel": jax.nn.initializers.glorot_uniform(),
    "recurrent": jax.nn.initializers.glorot_uniform(),
    "table": jax.nn.initializers.normal(1.0),
    "scale": jax.nn.initializers.ones,
    "bias": jax.nn.initializers.zeros,
}
"""By the last step of a path. The defaults; a model may replace some."""


def dense_spec(layer: str, inputs: Dim, outputs: Dim) -> Spec:
    """A dense layer: kernel [inputs, outputs], bias [outputs]."""
    return {f"{layer}/kernel": (inputs, outputs), f"{layer}/bias": (outputs,)}


def conv_spec(layer: str, size: int, inputs: Dim, outputs: Dim) -> Spec:
    """A convolution without a bias, as in front of a normalisation: kernel [size, size, inputs, outputs]."""
    return {f"{layer}/kernel": (size, size, inputs, outputs)}


def depthwise_spec(layer: str, size: int, channels: Dim) -> Spec:
    """A depthwise convolution: kernel [size, size, 1, channels]; its neurons are those of its input."""
    return {f"{layer}/kernel": (size, size, 1, channels)}


def norm_spec(layer: str, channels: Dim) -> Spec:
    """A normalisation: scale and bias [channels] belong to the neurons that they follow."""
    return {f"{layer}/scale": (channels,), f"{layer}/bias": (channels,)}


def embedding_spec(layer: str, vocabulary: int, dims: Dim) -> Spec:
    """An embedding: table [vocabulary, dims]. Dimensions may be dropped, tokens never."""
    return {f"{layer}/table": (vocabulary, dims)}


def recurrent_spec(layer: str, gates: int, inputs: Dim, group: str) -> Spec:
    """A recurrent layer (4 gates: LSTM, 3: GRU): kernel [inputs, gates * n], recurrent [n, gates * n], bias."""
    out = Axis(group, gates)
    return {f"{layer}/kernel": (inputs, out), f"{layer}/recurrent": (Axis(group), out), f"{layer}/bias": (out,)}


def attention_spec(layer: str, width: int, heads: Axis) -> Spec:
    """Self-attention on a stream of that width: query, key, value and out; heads has block = width of a head."""
    spec = dense_spec(f"{layer}/out", heads, width)
    for name in ("query", "key", "value"):
        spec |= dense_spec(f"{layer}/{name}", width, heads)
    return spec


def declared(
    name: str,
    spec: Spec,
    sizes: Mapping[str, int],
    apply: Callable[..., Array],
    input_shape: Sequence[int],
    *,
    input_dtype: Any = jnp.float32,
    min_keep: Mapping[str, int] | None = None,
    initializers: Mapping[str, Initializer] | None = None,
) -> Model:
    """The model of a declaration.

    Args:
      name: for reports.
      spec: path -> axes, for every parameter.
      sizes: group -> n, its number of neurons.
      apply: (params, x [B, ...]) -> outputs; reads every size off the shapes of the parameters.
      input_shape, input_dtype: of one example.
      min_keep: group -> least number of neurons to keep, where not a tenth.
      initializers: by the last step of a path, in place of INITIALIZERS.

    Raises:
      FljaxError: as NeuronGroups and from_functions.
    """
    rules = INITIALIZERS | dict(initializers or {})

    def length(dim: Dim) -> int:
        return dim.length(sizes[dim.group]) if isinstance(dim, Axis) else dim

    def init(key: Key) -> Params:
        params: dict[str, Any] = {}
        for own, (path, axes) in zip(jax.random.split(key, len(spec)), spec.items(), strict=True):
            *parents, last = path.split("/")
            node = params
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = rules[last](own, tuple(map(length, axes)))
        return params

    groups = NeuronGroups(sizes, {path: _leaf(axes) for path, axes in spec.items()}, min_keep or {})
    return from_functions(init, apply, groups, name=name, input_shape=input_shape, input_dtype=input_dtype)


def _leaf(axes: tuple[Dim, ...]) -> Leaf:
    cut = tuple(dim if isinstance(dim, Axis) else None for dim in axes)
    return Leaf(cut, None if cut[-1] is None else cut[-1].group)
