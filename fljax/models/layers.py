"""Layers in the form that is fast when every client has its own weights.

Under ``vmap`` over per-client weights XLA turns a convolution into a grouped convolution, which is 20-40x slower on CPU
than the same arithmetic as a matrix product; inside ``lax.scan`` even a single convolution loses its threads there.
``conv_matmul`` therefore writes a convolution as shifted slices and one matrix product.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from fljax.core.check import FljaxError
from fljax.core.types import Array

Padding = str | Sequence[tuple[int, int]]


def conv_matmul(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: Padding,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    out_sharding: Any = None,
) -> Array:
    """A convolution as shifted slices, concatenated on the channels, times the kernel as one matrix.

    ``out[b, p, o] = sum_{t, c} lhs[b, stride * p + dilation * t - pad, c] * rhs[t, c, o]``

    It takes the place of ``lax.conv_general_dilated`` in ``nnx.Conv(..., conv_general_dilated=conv_matmul)`` and in its
    linen twin. The derivatives are matrix products, slices and pads too, in reverse and in forward mode.

    Args:
      lhs: inputs ``[B, *spatial, c]``, channels last, any number of spatial axes.
      rhs: kernel ``[*window, c, o]``.
      window_strides: one stride per spatial axis.
      padding: ``VALID``, ``SAME``, ``SAME_LOWER`` or one ``(low, high)`` pair per spatial axis.
      rhs_dilation: one kernel dilation per spatial axis (None = 1).
      dimension_numbers: None or any form that means channels last (NHWC, HWIO, NHWC in two dimensions). Unlike in
        ``lax``, None means channels last too.
      precision, preferred_element_type: as in ``lax.dot_general``.
      lhs_dilation, feature_group_count, batch_group_count, out_sharding: accepted because flax passes them; only their
        neutral values are supported.

    Returns:
      ``[B, *spatial_out, o]``; equal to ``lax.conv_general_dilated`` up to the order of summation.

    Raises:
      FljaxError: for dilated inputs, grouped (depthwise) convolutions, other layouts, or a window that does not fit.

    Source: the matrix form of convolutions ("im2col") of Chellapilla, Puri and Simard, "High Performance Convolutional
    Neural Networks for Document Processing", 2006.
    """
    _refuse_unsupported(lhs, rhs, lhs_dilation, dimension_numbers, feature_group_count, batch_group_count, out_sharding)
    window, features = rhs.shape[:-2], rhs.shape[-1]
    dilation = tuple(rhs_dilation) if rhs_dilation is not None else (1,) * len(window)
    lhs = _pad(lhs, window, window_strides, padding, dilation)
    patches = _patches(lhs, window, window_strides, dilation)
    # Two-dimensional operands: XLA's CPU matrix product is faster on them than on [B, H, W, c] x [c, o].
    rows = patches.reshape(-1, patches.shape[-1])
    out = jnp.matmul(
        rows, rhs.reshape(-1, features), precision=precision, preferred_element_type=preferred_element_type
    )
    return out.reshape(*patches.shape[:-1], features)


def _refuse_unsupported(
    lhs: Array,
    rhs: Array,
    lhs_dilation: Sequence[int] | None,
    dimension_numbers: Any,
    feature_group_count: int,
    batch_group_count: int,
    out_sharding: Any,
) -> None:
    use_lax = "Use jax.lax.conv_general_dilated for this layer."
    if lhs_dilation is not None and any(d != 1 for d in lhs_dilation):
        raise FljaxError(f"Expected input_dilation={tuple(lhs_dilation)} to be 1 in conv_matmul. {use_lax}")
    if feature_group_count != 1:
        raise FljaxError(f"Expected feature_group_count={feature_group_count} to be 1 in conv_matmul. {use_lax}")
    if batch_group_count != 1:
        raise FljaxError(f"Expected batch_group_count={batch_group_count} to be 1 in conv_matmul. {use_lax}")
    if out_sharding is not None:
        raise FljaxError(f"Expected out_sharding={out_sharding!r} to be None in conv_matmul. {use_lax}")
    if dimension_numbers is not None:
        n = lhs.ndim
        given = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
        channels_last = (0, n - 1, *range(1, n - 1))
        if tuple(given) != (channels_last, (n - 1, n - 2, *range(n - 2)), channels_last):
            raise FljaxError(
                f"Expected dimension_numbers={dimension_numbers!r} to mean channels last "
                "(NHWC, HWIO, NHWC) in conv_matmul. Transpose the input and the kernel."
            )


def _pad(lhs: Array, window: Sequence[int], strides: Sequence[int], padding: Padding, dilation: Sequence[int]) -> Array:
    """lhs with its spatial axes padded by zeros (negative explicit padding crops)."""
    reach = [(k - 1) * d + 1 for k, d in zip(window, dilation, strict=True)]
    spatial = lhs.shape[1:-1]
    pads = lax.padtype_to_pads(spatial, reach, strides, padding) if isinstance(padding, str) else list(padding)
    padded = [n + low + high for n, (low, high) in zip(spatial, pads, strict=True)]
    if any(n < r for n, r in zip(padded, reach, strict=True)):
        raise FljaxError(
            f"Expected the window {tuple(reach)} to fit into the padded input {tuple(padded)}. "
            "Use SAME padding, a smaller kernel or a larger input."
        )
    if all(pad == (0, 0) for pad in map(tuple, pads)):
        return lhs
    return lax.pad(lhs, jnp.zeros((), lhs.dtype), [(0, 0, 0), *((low, high, 0) for low, high in pads), (0, 0, 0)])


def _patches(lhs: Array, window: Sequence[int], strides: Sequence[int], dilation: Sequence[int]) -> Array:
    """``[B, *spatial_out, prod(window) * c]``: what the kernel sees at each place, channel fastest as in it."""
    taps = _taps(lhs, window, strides, dilation)
    return jnp.concatenate(taps, axis=-1) if len(taps) > 1 else taps[0]


def _taps(lhs: Array, window: Sequence[int], strides: Sequence[int], dilation: Sequence[int]) -> list[Array]:
    """Per element of the window ``[B, *spatial_out, c]``: what it sees at each place, in the window's C order."""
    spatial = lhs.shape[1:-1]
    reach = [(k - 1) * d for k, d in zip(window, dilation, strict=True)]
    taps = []
    for tap in itertools.product(*map(range, window)):
        start = [t * d for t, d in zip(tap, dilation, strict=True)]
        stop = [n - r + s for n, r, s in zip(spatial, reach, start, strict=True)]
        taps.append(lax.slice(lhs, (0, *start, 0), (lhs.shape[0], *stop, lhs.shape[-1]), (1, *map(int, strides), 1)))
    return taps


def depthwise_taps(lhs: Array, rhs: Array, window_strides: Sequence[int], padding: Padding) -> Array:
    """A depthwise convolution, each channel with a window of its own, as shifted slices times weights, added up.

    ``out[b, p, c] = sum_t lhs[b, stride * p + t - pad, c] * rhs[t, 0, c]``

    Args:
      lhs: inputs ``[B, *spatial, c]``.
      rhs: kernel ``[*window, 1, c]``.
      window_strides, padding: as in conv_matmul.

    Returns:
      ``[B, *spatial_out, c]``; equal to ``lax.conv_general_dilated`` with ``feature_group_count=c``.

    Raises:
      FljaxError: for a window that does not fit.
    """
    window, ones = rhs.shape[:-2], (1,) * (rhs.ndim - 2)
    taps = _taps(_pad(lhs, window, window_strides, padding, ones), window, window_strides, ones)
    weights = rhs.reshape(len(taps), *ones, 1, rhs.shape[-1])
    return sum(tap * weight for tap, weight in zip(taps[1:], weights[1:], strict=True)) + taps[0] * weights[0]


def max_pool_2x2(x: Array) -> Array:
    """The maximum over 2x2 windows with stride 2.

    Written as the maximum of four strided slices: the gradient of XLA's window reduction (select-and-scatter) costs
    half as much again per step of a small network on CPU.

    Args:
      x: ``[B, H, W, c]``.

    Returns:
      ``[B, H // 2, W // 2, c]``. An odd last row or column is dropped, as by ``nn.max_pool`` with VALID padding. The
      gradient at a tie is split among the tied inputs (XLA's goes to the first one); after a ReLU this makes no
      difference, since its own gradient is zero at zero.
    """
    h, w = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    top = jnp.maximum(x[:, 0:h:2, 0:w:2], x[:, 0:h:2, 1:w:2])
    bottom = jnp.maximum(x[:, 1:h:2, 0:w:2], x[:, 1:h:2, 1:w:2])
    return jnp.maximum(top, bottom)


def flatten(x: Array) -> Array:
    """``[B, ...]`` as ``[B, D]``, in C order: for images the channel is the fastest index."""
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))
