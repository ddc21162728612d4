"""Quantisation: fewer bits for each value that is sent, and one float32 scale for each leaf of the update.

References: Alistarh et al., "QSGD: communication-efficient SGD via gradient quantization and encoding", NIPS 2017
(stochastic rounding; here scaled by the largest value); Bernstein et al., "signSGD", ICML 2018; Karimireddy et al.,
"Error feedback fixes signSGD", ICML 2019 (signs scaled by the mean magnitude).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from fljax.compress.sparsify import grow, on_support
from fljax.core import tree
from fljax.core.check import FljaxError, in_range, positive
from fljax.core.transform import UpdateTransform, Wire, no_claim, pass_decode
from fljax.core.types import Array, Key, PyTree

MOST_BITS = 16


def top_level(bits: int) -> int:
    """s = 2^(bits - 1) - 1: levels above zero of a signed value of so many bits."""
    return 2 ** (bits - 1) - 1


def stochastic_levels(key: Key, x: Array, bits: int) -> tuple[Array, Array]:
    """Rounds an array at random to the nearest two of ``2 s + 1`` evenly spaced levels, without bias.

    Returns:
      (levels like x, int32 in -s .. s; () float32 step): ``E[levels * step] = x``, and 0 stays 0.

    The step is max|x| / s. Where max|x| is 0 or subnormal all levels are 0.
    """
    s = top_level(bits)
    most = jnp.max(jnp.abs(x), initial=0.0)
    sound = most >= jnp.finfo(jnp.float32).tiny
    height = jnp.abs(x) / jnp.where(sound, most, 1.0) * s
    low = jnp.floor(height)
    up = jax.random.uniform(key, x.shape) < height - low
    levels = jnp.sign(x) * jnp.minimum(low + up, s)
    return jnp.where(sound, levels, 0.0).astype(jnp.int32), jnp.where(sound, most * np.float32(1 / s), 0.0)


def signs(x: Array, sent: Array) -> tuple[Array, Array]:
    """Signs of an array where it is sent, and their scale.

    Args:
      x: any shape. sent: bool like x.

    Returns:
      (+1 or -1 where sent, else 0, int32 like x; () float32 mean of |x| over what is sent); 0 counts as +1.
    """
    scale = jnp.sum(jnp.where(sent, jnp.abs(x), 0.0)) / jnp.maximum(jnp.sum(sent), 1)
    return jnp.where(sent, jnp.where(x < 0, -1, 1), 0), scale


def largest_growth(size: int, bits: int) -> float:
    """How much stochastic quantisation can raise the L2 norm of a leaf of ``size`` values, at the most.

    A value just above level l may become l + 1. With one value at level s, the worst is that all others lie just above
    one and the same l: ``max_l sqrt((s^2 + (size - 1) (l + 1)^2) / (s^2 + (size - 1) l^2))`` over l = 0 .. s - 1.
    """
    s = float(top_level(bits))
    low = np.arange(top_level(bits), dtype=np.float64)
    others = max(size - 1, 0)
    return float(np.sqrt(np.max((s**2 + others * (low + 1) ** 2) / (s**2 + others * low**2))))


def _check_leaves(params: PyTree, leaves: int) -> None:
    found = len(jax.tree.leaves(params))
    if found != leaves:
        raise FljaxError(f"Expected leaves={leaves} to be the number of arrays of the update, {found}. Set it to that.")


def _sound(payload) -> list[Array]:
    """Leaves of the update in float32, all zero if any of them is not finite."""
    update = jax.tree.map(lambda x: x.astype(jnp.float32), payload["update"])
    return jax.tree.leaves(tree.zero_unless(jnp.isfinite(tree.squared_norm(update)), update))


def _wire(leaves: int, bits: int):
    def wire(ctx, wires):
        del ctx
        old = wires["update"]
        return {**wires, "update": Wire(old.values, jnp.int32(bits), old.extra + 32 * leaves)}

    return wire


def quantise(bits: int, leaves: int) -> UpdateTransform:
    """Writes every value of the update with so many bits: its level, rounded at random without bias.

    Each leaf has a step of its own, max|x| / s with s = 2^(bits - 1) - 1, sent as a float32. Put it to the right of
    sparsification (zeros stay zero) and to the left of a clip: the clip multiplies all levels by one number, which the
    steps take up, and keeps its bound S. To the right of a clip the bound grows (see ``largest_growth``).

    Args:
      bits: of one value, 2 to 16. leaves: number of arrays of the update, for counting bytes.

    Guarantees:
      E[sent] = update. An update that is not finite is sent as zeros.

    Raises:
      FljaxError: bits out of range; an update with another number of leaves.
    """
    in_range(2, MOST_BITS, bits=bits)
    positive(leaves=leaves)

    def init(params, hparams):
        del hparams
        _check_leaves(params, leaves)
        return jnp.float32(max(largest_growth(x.size, bits) for x in jax.tree.leaves(params))), ()

    def encode(key, ctx, payload, growth, client_state):
        del ctx, growth
        sent = []
        for i, x in enumerate(_sound(payload)):
            levels, step = stochastic_levels(jax.random.fold_in(key, i), x, bits)
            sent.append(levels * step)
        update = jax.tree.unflatten(jax.tree.structure(payload["update"]), sent)
        return {**payload, "update": update}, client_state, {}

    def bound(ctx, growth, bounds):
        del ctx
        return grow(bounds, growth)

    return UpdateTransform("quantise", init, encode, pass_decode, bound, claim=no_claim, wire=_wire(leaves, bits))


def sign_quantise(leaves: int, sparse: bool = False) -> UpdateTransform:
    """Sends one bit a value: its sign, times the mean magnitude of the leaf's values, which is sent as a float32.

    It is biased; wrap it in ``error_feedback`` (EF-signSGD).

    Args:
      leaves: number of arrays of the update, for counting bytes.
      sparse: True to the right of sparsification: zeros are values that are not sent, and stay zero. Else every
        coordinate of the support is sent, and a zero becomes plus.

    Guarantees:
      The L2 norm never grows: ``sqrt(m) mean|x| <= ||x||``. The bound passes. An update that is not finite is sent as
      zeros.

    Raises:
      FljaxError: an update with another number of leaves.
    """
    positive(leaves=leaves)

    def init(params, hparams):
        del hparams
        _check_leaves(params, leaves)
        return (), ()

    def encode(key, ctx, payload, server_state, client_state):
        del key, server_state
        supports = jax.tree.leaves(on_support(ctx, payload["update"]))
        sent = []
        for x, support in zip(_sound(payload), supports, strict=True):
            sign, scale = signs(x, support & (x != 0) if sparse else support)
            sent.append(sign * scale)
        update = jax.tree.unflatten(jax.tree.structure(payload["update"]), sent)
        return {**payload, "update": update}, client_state, {}

    return UpdateTransform("sign", init, encode, pass_decode, claim=no_claim, wire=_wire(leaves, 1))
