"""Convolutions as matrix products, the form that is fast when every client has its own weights.

Under ``vmap`` over per-client weights XLA turns a convolution into a grouped convolution, which is 20-40x slower on CPU
than the same arithmetic as a matrix product; inside ``lax.scan`` even a single convolution loses its threads there.
``conv_matmul`` therefore writes a convolution in one of two ways, and ``tile_of`` says in which:

- **patches**: what the kernel sees at each place, side by side in one row, times the kernel as one matrix ("im2col").
- **tiles**: along an axis, ``m`` neighbouring outputs of a window of ``r`` places from ``m + r - 1`` products instead
  of ``m r`` (minimal filtering, Winograd's algorithm). What is laid out in memory before the products is smaller, too:
  4.5 times the inputs where patches of a 3x3 window are 9 times.

Both are sums and products of slices: their derivatives, reverse and forward, are of the same kind, and an input or
output channel whose weights are all zero stays exactly zero.

Memory: what is laid out is bounded by ``MOST`` for each convolution of one client (a batch of clients, an axis that
nobody sees from here, multiplies it). Where a batch of images would need more, and more than its outputs, the images
are computed in blocks, and the backward pass lays each block out again; the least block is one image. Accelerators lay
out anew in every backward pass, so that inputs and kernel are all that is kept there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fljax.core.check import FljaxError
from fljax.core.types import Array
from fljax.models.filtering import MOST_PRODUCTS, minimal_filter
from fljax.models.windows import Padding, pad, patches

Tile = tuple[int, ...]
"""Neighbouring outputs that are computed together, per spatial axis; 1 means patches along that axis."""
LEAST_CHANNELS = 16
"""Inputs and outputs from which on tiles are worth their layout."""
MIB = 2**20
MOST = {"cpu": (24 * MIB, 2 * MIB), "accelerator": (64 * MIB, 64 * MIB)}
"""Bytes that one convolution of one client may lay out at once, and those of a block where it would lay out more.

On a CPU the first is more than any layer here needs for ten images, and the second leaves a block in the caches: large
batches are then faster in blocks. Those of accelerators have not been measured.
"""
_FORCED: ContextVar[Tile | None] = ContextVar("tile", default=None)


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
    """A convolution as matrix products, of patches or of tiles: the module says how, ``tile_of`` says when.

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
      ``[B, *spatial_out, o]``; equal to ``lax.conv_general_dilated`` up to rounding. With tiles of two outputs the
      rounding errors are as large as those of patches, with tiles of four about three times that.

    Raises:
      FljaxError: for dilated inputs, grouped (depthwise) convolutions, other layouts, or a window that does not fit.

    Source: the matrix form of convolutions ("im2col") of Chellapilla, Puri and Simard, "High Performance Convolutional
    Neural Networks for Document Processing", 2006; tiles: ``filtering``.
    """
    _refuse_unsupported(lhs, rhs, lhs_dilation, dimension_numbers, feature_group_count, batch_group_count, out_sharding)
    window = rhs.shape[:-2]
    dilation = tuple(rhs_dilation) if rhs_dilation is not None else (1,) * len(window)
    lhs = pad(lhs, window, window_strides, padding, dilation)
    strides = tuple(map(int, window_strides))
    forced = _FORCED.get()
    tile = tile_of(lhs, rhs, strides, dilation) if forced is None else _fitted(forced, rhs, strides, dilation)
    product = _Product(strides, dilation, {"precision": precision, "preferred_element_type": preferred_element_type})
    return _bounded(product, lhs, rhs, tile)


def tile_of(lhs: Array, rhs: Array, strides: Sequence[int], dilation: Sequence[int]) -> Tile:
    """The tile for a convolution: what was fastest on average, forward and backward, alone and batched over clients.

    On a CPU, in single or double precision, for windows that move by one place and at least 16 channels on both sides:
    along the height as many outputs together (1, 2 or 4) as need the fewest products, along the width patches. A window
    of 3 then needs half as many products, one of 5 three fifths. Elsewhere patches: with fewer channels laying out
    costs more than it saves, half precision has no digits to spare, and accelerators have not been measured.

    Args:
      lhs: inputs [B, H, W, c], padded already. rhs: kernel [h, w, c, o].
      strides, dilation: one per spatial axis.

    Source: ``python -m benchmarks.convolutions``; its table is in docs/performance.md.
    """
    by_patches = (1,) * len(strides)
    precise = rhs.dtype in (jnp.float32, jnp.float64) and lhs.dtype == rhs.dtype
    measured = jax.default_backend() == "cpu" and len(strides) == 2 and min(rhs.shape[-2:]) >= LEAST_CHANNELS
    if not (precise and measured and _filterable(strides, dilation)):
        return by_patches
    taps, length = rhs.shape[0], lhs.shape[1] - rhs.shape[0] + 1
    fitting = [m for m in (1, 2, 4) if m + taps - 1 <= MOST_PRODUCTS] or [1]
    return (min(fitting, key=lambda m: -(-length // m) * (m + taps - 1)), 1)


def _filterable(strides: Sequence[int], dilation: Sequence[int]) -> bool:
    return {*strides, *dilation} == {1}


@contextmanager
def convolutions_by(tile: Tile) -> Iterator[None]:
    """Inside of it every convolution that is traced and can be is computed by this tile; ``(1, 1)`` means patches.

    A program that was traced before stays as it is.

    Example:
      >>> with convolutions_by((1, 1)):
      ...     exact = jax.jit(lambda params, x: model.apply(params, x, None)).lower(params, x).compile()
    """
    token = _FORCED.set(tile)
    try:
        yield
    finally:
        _FORCED.reset(token)


def _fitted(tile: Tile, rhs: Array, strides: Sequence[int], dilation: Sequence[int]) -> Tile:
    """The tile, or patches for a convolution that it cannot compute."""
    able = len(tile) == len(strides) and _filterable(strides, dilation)
    able = able and all(m == 1 or m + k - 1 <= MOST_PRODUCTS for m, k in zip(tile, rhs.shape, strict=False))
    return tile if able else (1,) * len(strides)


class _Product(NamedTuple):
    """What all products of one convolution share. options: of jnp.matmul."""

    strides: tuple[int, ...]
    dilation: tuple[int, ...]
    options: dict[str, Any]


def _by_tiles(product: _Product, lhs: Array, rhs: Array, tile: Tile, axis: int = 0) -> Array:
    """The outputs, by a minimal filter along each axis with a tile above 1, by patches along the others."""
    if axis == len(tile):
        return _by_patches(product, lhs, rhs)
    outputs, taps = tile[axis], rhs.shape[axis]
    if outputs == 1:
        return _by_tiles(product, lhs, rhs, tile, axis + 1)
    length = lhs.shape[axis + 1] - taps + 1
    tiles = -(-length // outputs)
    lhs = _extend(lhs, axis + 1, tiles * outputs - length)
    read = range(outputs + taps - 1)
    places = [lax.slice_in_dim(lhs, i, i + outputs * (tiles - 1) + 1, outputs, axis + 1) for i in read]
    weights = [lax.slice_in_dim(rhs, i, i + 1, axis=axis) for i in range(taps)]
    algorithm = minimal_filter(outputs, taps)
    products = [
        _by_tiles(product, _combine(b, places), _combine(g, weights), tile, axis + 1)
        for b, g in zip(algorithm.b, algorithm.g, strict=True)
    ]
    out = jnp.stack([_combine(a, products) for a in algorithm.a], axis + 2)
    joined = out.reshape(*out.shape[: axis + 1], tiles * outputs, *out.shape[axis + 3 :])
    return lax.slice_in_dim(joined, 0, length, axis=axis + 1)


def _bounded(product: _Product, lhs: Array, rhs: Array, tile: Tile) -> Array:
    """The outputs, without more laid out at once, or kept for the backward pass, than ``MOST`` says."""
    on_cpu, images = jax.default_backend() == "cpu", lhs.shape[0]
    most, block = MOST["cpu" if on_cpu else "accelerator"]
    laid, outputs = _sizes(product, lhs, rhs, tile)
    if laid > max(most, outputs) and images > 1:
        together = max(1, images * block // laid)
        even = (n for n in range(together, together // 2, -1) if images % n == 0)
        return _by_blocks(product, lhs, rhs, tile, next(even, together))
    convolve = partial(_by_tiles, product, tile=tile)
    return convolve(lhs, rhs) if on_cpu or not laid else jax.checkpoint(convolve)(lhs, rhs)


def _sizes(product: _Product, lhs: Array, rhs: Array, tile: Tile) -> tuple[int, int]:
    """Bytes that are laid out before the products (none for a window of one place), and those of the outputs."""
    laid, places = (lhs.shape[-1] if max(rhs.shape[:-2]) > 1 else 0), 1
    axes = zip(lhs.shape[1:-1], rhs.shape, product.strides, product.dilation, tile, strict=False)
    for length, window, stride, dilation, together in axes:
        outputs = (length - (window - 1) * dilation - 1) // stride + 1
        places *= outputs
        laid *= -(-outputs // together) * (together + window - 1)
    each = lhs.shape[0] * lhs.dtype.itemsize
    return each * laid, each * places * rhs.shape[-1]


def _by_blocks(product: _Product, lhs: Array, rhs: Array, tile: Tile, together: int) -> Array:
    """The outputs of so many images after those of so many others; the backward pass lays them out again."""
    # The gradient of a kernel in half precision is added up over the blocks in single precision.
    wide = rhs.astype(jnp.promote_types(rhs.dtype, jnp.float32))

    def one(block: Array) -> Array:
        return _by_tiles(product, block, wide.astype(rhs.dtype), tile)

    # Forward and backward are loops of their own: XLA has nothing to merge, and no barrier is needed.
    whole = lhs.shape[0] // together * together
    out = lax.map(jax.checkpoint(one, prevent_cse=False), lhs[:whole].reshape(-1, together, *lhs.shape[1:]))
    out = out.reshape(whole, *out.shape[2:])
    return out if whole == lhs.shape[0] else jnp.concatenate([out, one(lhs[whole:])])


def _combine(factors: Sequence[float], arrays: Sequence[Array]) -> Array:
    """The sum of arrays times factors, without those times zero."""
    terms = [a if f == 1 else -a if f == -1 else f * a for f, a in zip(factors, arrays, strict=True) if f != 0]
    return sum(terms[1:], start=terms[0])


def _extend(array: Array, axis: int, by: int) -> Array:
    """Zeros behind the last places of an axis."""
    return jnp.pad(array, [(0, by if i == axis else 0) for i in range(array.ndim)]) if by else array


def _by_patches(product: _Product, lhs: Array, rhs: Array) -> Array:
    """What the kernel sees at each place, concatenated on the channels, times the kernel as one matrix."""
    seen = patches(lhs, rhs.shape[:-2], product.strides, product.dilation)
    # Two-dimensional operands: XLA's CPU matrix product is faster on them than on [B, H, W, c] x [c, o].
    rows = seen.reshape(-1, seen.shape[-1])
    out = jnp.matmul(rows, rhs.reshape(-1, rhs.shape[-1]), **product.options)
    return out.reshape(*seen.shape[:-1], rhs.shape[-1])


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
