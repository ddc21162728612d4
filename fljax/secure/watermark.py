"""What survives averaging: payloads in a bit plane of their own, and keyed marks spread over many values.

A payload survives a sum only if the reader's statistic is linear in the updates. The lowest bit of a float is not:
after FedAvg of ten clients it is a coin. Two ways are:

- a **bit plane**: words are shifted up by p bits and the payload is put below. The sums of payloads and of values are
  both exact, so that counters, votes and contribution counts travel inside masked words.
- a **spread-spectrum mark**: every bit is a pseudo-random vector of signs added to L values with a small amplitude; who
  has the key reads it from the average by correlation.

Both are ways to mark and to count. Neither hides that something is there from somebody who looks for it.

Source of the error law: spread spectrum as in Hitaj et al., "FedComm: federated learning as a medium for covert
communication", 2022.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from fljax.core.check import FljaxError, in_range, positive
from fljax.core.types import Array, Key

# ---- a bit plane -----------------------------------------------------------------------------------------------------


def plane_bits(cohort: int, most: int) -> int:
    """p, the bits that hold every sum of payloads: ``ceil(log2(cohort most + 1))``.

    Args:
      cohort: clients at the most. most: the largest payload of a value.
    """
    positive(cohort=cohort, most=most)
    return (cohort * most).bit_length()


def add_plane(words: Array, payload: Array, plane: int) -> Array:
    """Words with a payload below them: ``words 2^plane + payload``, uint32.

    Args:
      words: uint32 or int32, whose sum must fit into 32 - plane bits. payload: like words, 0 .. most. plane: bits.
    """
    in_range(1, 31, plane=plane)
    return jnp.left_shift(words.astype(jnp.uint32), plane) + payload.astype(jnp.uint32)


def split_plane(total: Array, plane: int, bits: int) -> tuple[Array, Array]:
    """The sum of such words modulo 2^bits -> (sum of the words, int32; sum of the payloads, uint32). Both are exact.

    Args:
      total: uint32. plane: as it was added. bits: k, of a word with its plane.

    Raises:
      FljaxError: no bits are left for the words.
    """
    in_range(1, 31, plane=plane)
    if not plane < bits <= 32:
        raise FljaxError(f"Expected bits={bits} in {plane + 1} .. 32: a plane of {plane} bits lies below the words.")
    payload = total & jnp.uint32(2**plane - 1)
    signed = jnp.right_shift(jnp.left_shift(total.astype(jnp.uint32), 32 - bits).astype(jnp.int32), 32 - bits)
    return jnp.right_shift(signed, plane), payload


# ---- spread spectrum -------------------------------------------------------------------------------------------------


def embed_mark(key: Key, update: Array, bits: Array, amplitude: Array) -> Array:
    """An update with a keyed mark: bit j adds ``+-amplitude * signs`` to the values that belong to it.

    Args:
      key: secret, of the mark. update: [P]. bits: [B] 0 or 1; every bit gets L = P // B values.
      amplitude: of one value; the norm grows by ``sqrt(1 + alpha^2)`` for alpha = amplitude / std of the values.

    Returns:
      float32 [P].
    """
    signs, length = _chips(key, update.shape[0], bits.shape[0])
    carried = jnp.repeat(2.0 * bits.astype(jnp.float32) - 1.0, length, total_repeat_length=signs.shape[0])
    placed = (
        jnp.zeros(update.shape[0], jnp.float32).at[_order(key, update.shape[0])[: signs.shape[0]]].set(signs * carried)
    )
    return update.astype(jnp.float32) + amplitude * placed


def detect_mark(key: Key, update: Array, count: int) -> tuple[Array, Array]:
    """Reads a mark from an update, an average of updates or a difference of models.

    Args:
      key: as it was embedded. update: [P]. count: B, number of bits.

    Returns:
      (bits [B] int32, scores [B]): a score is the correlation in standard deviations of what chance gives; the sign of
      it is the bit. Without a mark scores are standard normal.
    """
    signs, length = _chips(key, update.shape[0], count)
    values = update.astype(jnp.float32)[_order(key, update.shape[0])[: signs.shape[0]]]
    scores = jnp.sum((values * signs).reshape(count, length), axis=1)
    noise = jnp.sqrt(jnp.sum(jnp.square(values.reshape(count, length)), axis=1))
    scores = scores / jnp.maximum(noise, jnp.finfo(jnp.float32).tiny)
    return (scores > 0).astype(jnp.int32), scores


def bit_error_rate(alpha: float, length: int, cohort: int = 1) -> float:
    """How often a bit is misread in the mean of a cohort of which ONE client marks: ``Q(alpha sqrt(L / n))``.

    Args:
      alpha: amplitude / standard deviation of the values of one update. length: L, values a bit. cohort: n.
    """
    positive(length=length, cohort=cohort)
    return 0.5 * math.erfc(alpha * math.sqrt(length / cohort) / math.sqrt(2))


def _chips(key: Key, size: int, count: int) -> tuple[Array, int]:
    """(signs [B L], L)."""
    if not 0 < count <= size:
        raise FljaxError(f"Expected {count} bits to fit into {size} values. Use fewer bits.")
    length = size // count
    bits = jax.random.bits(jax.random.fold_in(key, 0), (count * length,), jnp.uint8)
    return jnp.where(bits < 128, 1.0, -1.0), length


def _order(key: Key, size: int) -> Array:
    """Which values belong together: a secret permutation, so that no layer carries a bit alone."""
    return jax.random.permutation(jax.random.fold_in(key, 1), size)
