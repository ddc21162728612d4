"""Layers that hold no parameters, in the form that is fast when every client has its own weights."""

from __future__ import annotations

import math

import jax.numpy as jnp

from fljax.core.types import Array


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
