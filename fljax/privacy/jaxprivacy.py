"""The one place that touches ``jax_privacy``: banded strategies and clipped per-example gradients.

The package is optional, and imported when one of these functions is called. Only what was tested is used: its
per-example clipping (arXiv 2411.04205 for padding) and its optimiser of banded Toeplitz strategies (Choquette-Choo et
al., arXiv 2306.08153).
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax.numpy as jnp
import numpy as np

from fljax.core.check import FljaxError
from fljax.core.types import Array, Key, Params, PyTree


def _module(name: str) -> Any:
    """A module of jax_privacy, or one line that says how to get it."""
    try:
        return importlib.import_module(f"jax_privacy.{name}")
    except ModuleNotFoundError as error:
        package = (error.name or name).split(".")[0]
        raise FljaxError(
            f"Expected package {package!r} to be installed for this mechanism. Run: pip install fljax[dp]"
        ) from None


def installed() -> str:
    """The version of jax_privacy, or ``none``."""
    try:
        return version("jax-privacy")
    except PackageNotFoundError:
        return "none"


def banded_coefficients(rounds: int, bands: int) -> np.ndarray:
    """Coefficients of the banded Toeplitz strategy C with the smallest mean squared error of T prefix sums.

    Args:
      rounds: T. bands: b <= T.

    Returns:
      [b] float64, the first column of C, of L2 norm 1. Takes seconds.

    Raises:
      FljaxError: jax_privacy is not installed.
    """
    toeplitz = _module("matrix_factorization.toeplitz")
    found = np.asarray(toeplitz.optimize_banded_toeplitz(n=rounds, bands=bands), np.float64)
    return found / np.linalg.norm(found)


def clipped_sum(
    loss: Callable[..., Array], params: Params, batch: Any, key: Key, clip: Array, prepare: Callable[[PyTree], PyTree]
) -> tuple[PyTree, Array]:
    """Sum over the examples of a batch of their gradients, each clipped to a global L2 norm of S.

    Args:
      loss: (params, x [1, ...], y [1, ...], key) -> () loss of one example.
      params: where the gradients are taken.
      batch: x [B, ...], y [B, ...], mask [B]; what mask leaves out counts as exactly zero.
      key: divided among the examples (drop-out layers).
      clip: () S, may be traced; inf clips nothing.
      prepare: what is done to the gradient of one example before it is clipped.

    Returns:
      (sum in float32, a tree like params; [B] losses).

    Raises:
      FljaxError: jax_privacy is not installed.
    """
    gradient = _module("clipping").clipped_grad(
        loss,
        l2_clip_norm=clip,  # type: ignore[arg-type]
        batch_argnums=(1, 2),
        prng_argnum=3,
        return_values=True,
        pre_clipping_transform=prepare,
        dtype=jnp.float32,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "optax.global_norm", DeprecationWarning)  # its business, not our callers'
        total, seen = gradient(params, batch.x, batch.y, key, is_padding_example=batch.mask == 0)
    return total, seen.values
