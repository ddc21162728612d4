"""Residual and depthwise-separable convolutional networks without batch statistics. Images are [B, H, W, c]."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import jax

from fljax.core.check import FljaxError, positive
from fljax.core.types import Array, Params
from fljax.models.cnn import image_shape
from fljax.models.declare import conv_spec, declared, dense_spec, depthwise_spec, norm_spec
from fljax.models.functional import conv, dense, depthwise_conv, group_norm, layer_norm
from fljax.models.model import Model
from fljax.models.neurons import Axis

HE = {"kernel": jax.nn.initializers.he_uniform()}


def resnet(
    input_shape: Sequence[int],
    num_classes: int,
    channels: Sequence[int] = (64, 128, 256, 512),
    blocks: int = 2,
    group_size: int = 8,
) -> Model:
    """ResNet-18 for small images, with group normalisation in the place of batch normalisation.

    Conv3x3 - GN - ReLU, then per stage ``blocks`` blocks of Conv3x3 - GN - ReLU - Conv3x3 - GN - (+ shortcut) - ReLU,
    the first block of each later stage with stride 2 and a Conv1x1 - GN shortcut, then the mean over the image and a
    dense layer. 11,173,962 parameters for 32x32x3 and 10 classes.

    What may be dropped is inside the blocks, in group ``block_i``: the channels between its two convolutions, a norm
    group of ``group_size`` channels being one neuron. The residual stream, which the blocks share, is never cut.

    Args:
      input_shape: (H, W, c).
      num_classes: K.
      channels: width of each stage, multiples of group_size.
      blocks: blocks of each stage.
      group_size: channels of a norm group.

    Raises:
      FljaxError: for an input that is not an image, or channels that norm groups do not divide.

    Source: He et al., "Deep residual learning for image recognition", CVPR 2016; group normalisation in federated
    learning: Hsieh et al., "The non-IID data quagmire of decentralized machine learning", ICML 2020.
    """
    _check(input_shape, num_classes, channels)
    positive(blocks=blocks, group_size=group_size)
    for width in channels:
        if width % group_size:
            raise FljaxError(f"Expected channels={tuple(channels)} to be multiples of group_size={group_size}.")
    widths = [channels[0], *(width for width in channels for _ in range(blocks))]
    strides = [2 if stage and not block else 1 for stage in range(len(channels)) for block in range(blocks)]
    spec = conv_spec("stem", 3, input_shape[-1], channels[0]) | norm_spec("stem_norm", channels[0])
    sizes = {}
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        block, inner = f"block_{i}", Axis(f"block_{i}", block=group_size)
        sizes[block] = outputs // group_size
        spec |= conv_spec(f"{block}/conv_0", 3, inputs, inner) | norm_spec(f"{block}/norm_0", inner)
        spec |= conv_spec(f"{block}/conv_1", 3, inner, outputs) | norm_spec(f"{block}/norm_1", outputs)
        if strides[i] != 1:
            spec |= conv_spec(f"{block}/shortcut", 1, inputs, outputs) | norm_spec(f"{block}/shortcut_norm", outputs)
    spec |= dense_spec("dense_0", channels[-1], num_classes)

    def block_of(p: Params, x: Array, stride: int) -> Array:
        y = jax.nn.relu(group_norm(p["norm_0"], conv(p["conv_0"], x, stride), group_size))
        y = group_norm(p["norm_1"], conv(p["conv_1"], y), group_size)
        if "shortcut" in p:
            x = group_norm(p["shortcut_norm"], conv(p["shortcut"], x, stride), group_size)
        return jax.nn.relu(x + y)

    def apply(params: Params, x: Array) -> Array:
        x = jax.nn.relu(group_norm(params["stem_norm"], conv(params["stem"], x), group_size))
        for i, stride in enumerate(strides):
            x = block_of(params[f"block_{i}"], x, stride)
        return dense(params["dense_0"], x.mean((1, 2)))

    return declared("resnet", spec, sizes, apply, input_shape, initializers=HE)


def mobilenet(
    input_shape: Sequence[int], num_classes: int, channels: Sequence[int] = (32, 64, 128, 128, 256, 256)
) -> Model:
    """A small network of depthwise-separable convolutions.

    Conv3x3 - LN - ReLU, then per further entry of channels: depthwise Conv3x3 - LN - ReLU - Conv1x1 - LN - ReLU, with
    stride 2 wherever the channels grow, then the mean over the image and a dense layer. LN normalises each pixel over
    its kept channels. Group ``conv_i`` holds the output channels of the i-th full convolution; the depthwise one that
    follows it belongs to the same neurons. 136,778 parameters for 32x32x3 and 10 classes.

    Args:
      input_shape: (H, W, c).
      num_classes: K.
      channels: output channels of the first convolution and of each Conv1x1.

    Raises:
      FljaxError: for an input that is not an image.

    Source: Howard et al., "MobileNets", 2017; layer normalisation over channels: Liu et al., "A ConvNet for the 2020s",
    CVPR 2022.
    """
    _check(input_shape, num_classes, channels)
    strides = [2 if outputs > inputs else 1 for inputs, outputs in pairwise(channels)]
    sizes = {f"conv_{i}": width for i, width in enumerate(channels)}
    axes = [Axis(group) for group in sizes]
    spec = conv_spec("conv_0", 3, input_shape[-1], axes[0]) | norm_spec("norm_0", axes[0])
    for i, (inputs, outputs) in enumerate(pairwise(axes), start=1):
        spec |= depthwise_spec(f"depthwise_{i}", 3, inputs) | norm_spec(f"depthwise_norm_{i}", inputs)
        spec |= conv_spec(f"conv_{i}", 1, inputs, outputs) | norm_spec(f"norm_{i}", outputs)
    spec |= dense_spec("dense_0", axes[-1], num_classes)

    def apply(params: Params, x: Array) -> Array:
        x = jax.nn.relu(layer_norm(params["norm_0"], conv(params["conv_0"], x)))
        for i, stride in enumerate(strides, start=1):
            x = depthwise_conv(params[f"depthwise_{i}"], x, stride)
            x = jax.nn.relu(layer_norm(params[f"depthwise_norm_{i}"], x))
            x = jax.nn.relu(layer_norm(params[f"norm_{i}"], conv(params[f"conv_{i}"], x)))
        return dense(params["dense_0"], x.mean((1, 2)))

    least = {"conv_0": -(-channels[0] // 2)}  # as in the other networks: the first channels are few and general
    return declared("mobilenet", spec, sizes, apply, input_shape, min_keep=least, initializers=HE)


def _check(input_shape: Sequence[int], num_classes: int, channels: Sequence[int]) -> None:
    image_shape(input_shape)
    positive(num_classes=num_classes, number_of_channels=len(channels))
    for i, n in enumerate(channels):
        positive("", **{f"channels[{i}]": n})
