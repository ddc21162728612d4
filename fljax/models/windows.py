"""What the window of a convolution sees: padded inputs, shifted slices of them, and patches."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax

from fljax.core.check import FljaxError
from fljax.core.types import Array

Padding = str | Sequence[tuple[int, int]]


def pad(lhs: Array, window: Sequence[int], strides: Sequence[int], padding: Padding, dilation: Sequence[int]) -> Array:
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


def patches(lhs: Array, window: Sequence[int], strides: Sequence[int], dilation: Sequence[int]) -> Array:
    """``[B, *spatial_out, prod(window) * c]``: what the kernel sees at each place, channel fastest as in it."""
    taps = taps_of(lhs, window, strides, dilation)
    return jnp.concatenate(taps, axis=-1) if len(taps) > 1 else taps[0]


def taps_of(lhs: Array, window: Sequence[int], strides: Sequence[int], dilation: Sequence[int]) -> list[Array]:
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
    taps = taps_of(pad(lhs, window, window_strides, padding, ones), window, window_strides, ones)
    weights = rhs.reshape(len(taps), *ones, 1, rhs.shape[-1])
    return sum(tap * weight for tap, weight in zip(taps[1:], weights[1:], strict=True)) + taps[0] * weights[0]
