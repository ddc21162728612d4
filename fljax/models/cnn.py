"""Convolutional networks of the federated-learning benchmarks. Images are [B, H, W, c], channels last."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import jax
from flax import nnx

from fljax.core.check import FljaxError, positive
from fljax.core.types import Array
from fljax.models.convolution import conv_matmul
from fljax.models.layers import flatten, max_pool_2x2
from fljax.models.linear import XAVIER, num_features
from fljax.models.model import Model, from_nnx
from fljax.models.neurons import Axis, NeuronGroups, conv_leaves, dense_leaves
from fljax.models.product import dense_product


class CNN(nnx.Module):
    """(conv - ReLU) for each convolution, with pools in between or at the end - flatten - dense - ReLU - dense."""

    def __init__(
        self,
        channels: Sequence[int],
        flat: int,
        hidden: int,
        num_classes: int,
        *,
        kernel: int,
        padding: str,
        pool_each: bool,
        dropout: bool,
        rngs: nnx.Rngs,
    ) -> None:
        self.convolutions, self.pool_each = len(channels) - 1, pool_each
        for i, (inputs, outputs) in enumerate(pairwise(channels)):
            conv = nnx.Conv(
                inputs,
                outputs,
                (kernel, kernel),
                padding=padding,
                kernel_init=XAVIER,
                conv_general_dilated=conv_matmul,
                rngs=rngs,
            )
            setattr(self, f"conv_{i}", conv)
        self.dense_0 = nnx.Linear(flat, hidden, kernel_init=XAVIER, dot_general=dense_product, rngs=rngs)
        self.dense_1 = nnx.Linear(hidden, num_classes, kernel_init=XAVIER, dot_general=dense_product, rngs=rngs)
        self.dropout_0 = nnx.Dropout(0.25 if dropout else 0.0, rngs=rngs)
        self.dropout_1 = nnx.Dropout(0.5 if dropout else 0.0, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        for i in range(self.convolutions):
            x = jax.nn.relu(getattr(self, f"conv_{i}")(x))
            if self.pool_each or i == self.convolutions - 1:
                x = max_pool_2x2(x)
        x = self.dropout_0(x)
        x = jax.nn.relu(self.dense_0(flatten(x)))
        return self.dense_1(self.dropout_1(x))


def cnn(
    input_shape: Sequence[int],
    num_classes: int,
    channels: Sequence[int] = (32, 64),
    hidden: int = 128,
    dropout: bool = False,
) -> Model:
    """The small CNN of the CIFAR-10 and EMNIST benchmarks of federated learning.

    Conv3x3(32) - ReLU - Conv3x3(64) - ReLU - MaxPool2 - [Dropout 1/4] - Flatten - Dense 128 - ReLU - [Dropout 1/2] -
    Dense K; VALID padding, Xavier-uniform weights, zero biases. 1,626,442 parameters for 32x32x3 and 10 classes,
    1,206,590 for 28x28x1 and 62 classes.

    Args:
      input_shape: (H, W, c).
      num_classes: K.
      channels: output channels of each convolution; the groups are conv_0, conv_1, ... and dense_0.
      hidden: units of the hidden dense layer.
      dropout: whether the two drop-out layers are active in training.

    Raises:
      FljaxError: for an input that is not an image or is too small.

    Source: Reddi et al., "Adaptive Federated Optimization", 2021; apple/pfl-research, ``simple_cnn``.
    """
    height, width, _ = image_shape(input_shape)
    shrink = 2 * len(channels)
    pooled = ((height - shrink) // 2, (width - shrink) // 2)
    return _build("cnn", input_shape, num_classes, channels, hidden, pooled, dropout=dropout, kernel=3, padding="VALID")


def leaf_cnn(
    input_shape: Sequence[int], num_classes: int, channels: Sequence[int] = (32, 64), hidden: int = 2048
) -> Model:
    """The CNN of the LEAF benchmark's FEMNIST task.

    (Conv5x5 - ReLU - MaxPool2) with 32 and 64 channels, SAME padding - Flatten - Dense 2048 - ReLU - Dense K.
    6,603,710 parameters for 28x28x1 and 62 classes. Args, raises: as cnn.

    Source: Caldas et al., "LEAF: A Benchmark for Federated Settings", 2018.
    """
    height, width, _ = image_shape(input_shape)
    scale = 2 ** len(channels)
    pooled = (height // scale, width // scale)
    return _build(
        "leaf_cnn", input_shape, num_classes, channels, hidden, pooled, kernel=5, padding="SAME", pool_each=True
    )


def image_shape(input_shape: Sequence[int]) -> tuple[int, ...]:
    """(height, width, channels). Raises FljaxError for anything else."""
    num_features(input_shape)
    if len(input_shape) != 3:
        raise FljaxError(
            f"Expected input_shape={tuple(input_shape)} to be (height, width, channels). "
            "Add a channel axis of length 1 to grey images."
        )
    return tuple(input_shape)


def _build(
    name: str,
    input_shape: Sequence[int],
    num_classes: int,
    channels: Sequence[int],
    hidden: int,
    pooled: tuple[int, int],
    *,
    kernel: int,
    padding: str,
    pool_each: bool = False,
    dropout: bool = False,
) -> Model:
    """The model with its groups; pooled is the height and width of what is flattened."""
    if not isinstance(hidden, int):
        raise FljaxError(f"Expected hidden={hidden} of {name} to be one number: it has one hidden dense layer.")
    positive(num_classes=num_classes, hidden=hidden, number_of_convolutions=len(channels))
    for i, n in enumerate(channels):
        positive("", **{f"channels[{i}]": n})
    if min(pooled) < 1:
        raise FljaxError(
            f"Expected input_shape={tuple(input_shape)} to be larger: nothing is left of it after {len(channels)} "
            f"convolutions {kernel}x{kernel} and pooling. Use fewer channels=... entries or an mlp."
        )

    def make(rngs: nnx.Rngs) -> CNN:
        widths, flat = (input_shape[-1], *channels), math.prod(pooled) * channels[-1]
        options = {"kernel": kernel, "padding": padding, "pool_each": pool_each, "dropout": dropout}
        return CNN(widths, flat, hidden, num_classes, rngs=rngs, **options)

    return from_nnx(make, input_shape, _groups(channels, hidden, math.prod(pooled)), name=name)


def _groups(channels: Sequence[int], hidden: int, pixels: int) -> NeuronGroups:
    """Groups conv_0, ..., dense_0. The first convolution keeps half of its channels: they are few and general."""
    names = [f"conv_{i}" for i in range(len(channels))]
    leaves = {}
    for source, group in zip([None, *names[:-1]], names, strict=True):
        leaves |= conv_leaves(group, Axis(source) if source else None, group)
    leaves |= dense_leaves("dense_0", Axis(names[-1], pixels), "dense_0")
    leaves |= dense_leaves("dense_1", Axis("dense_0"), None)
    sizes = dict(zip(names, channels, strict=True)) | {"dense_0": hidden}
    return NeuronGroups(sizes, leaves, min_keep={"conv_0": math.ceil(channels[0] / 2)})
