"""Real numbers as words modulo 2^k, whose sum is decoded: the encoding of keyed masks and secure sums.

    client:  x -> clip to +-C -> times L / C -> round at random to an integer in -L .. L -> two's complement
    server:  sum modulo 2^k -> sign -> times C / L

with ``L = 2^(value_bits - 1) - 1``. The words of a sum are those of the sum, so that adding pads and taking them off
again changes nothing. Whether k bits hold every possible sum is proved before anything runs: ``smallest_bits``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fljax.core import tree
from fljax.core.check import FljaxError, in_range, one_of, positive
from fljax.core.transform import UpdateTransform, Wire, no_claim
from fljax.core.types import Array, Ctx, Key, PyTree
from fljax.secure.positions import COUNTS, count_bits
from fljax.secure.prf import hashed

RANGED = ("update", "control")
"""Parts of a payload whose values are clipped to the value range; all others lie in -1 .. 1, but for the weight."""
RANGE = "value_range"
"""Name of C in ``Hparams.extra``."""


def top_word(value_bits: int) -> int:
    """L = 2^(b - 1) - 1, the largest word of one value."""
    return 2 ** (value_bits - 1) - 1


def smallest_modulus(top: int, cohort: int, weight: float = 1, noise_tail: float = 0.0) -> int:
    """The number of different sums: ``2 cohort weight L + 2 noise_tail + 1``.

    Args:
      top: L. cohort: clients at the most. weight: the largest weight, a whole number by which a client multiplies its
        words; 1 where weights are normalised. noise_tail: what integer noise adds to the sum at the most.

    Raises:
      FljaxError: a weight that is not whole.
    """
    positive(top=top, cohort=cohort, weight=weight)
    if weight != int(weight):
        raise FljaxError(f"Expected weight={weight!r} to be a whole number. Divide weights by the largest: weight=1.")
    return 2 * cohort * int(weight) * top + 2 * math.ceil(noise_tail) + 1


def smallest_bits(
    value_bits: int, cohort: int, weight: float = 1, noise_tail: float = 0.0, bits: int | None = None
) -> int:
    """The smallest k for which no sum can leave the range of its words: ``ceil(log2(smallest_modulus))``.

    Args:
      value_bits: b, of one value with its sign. cohort, weight, noise_tail: as for ``smallest_modulus``.
      bits: what somebody wants to use, or None.

    Raises:
      FljaxError: ``bits`` are too few, or no word of 32 bits is enough; it names the smallest k.
    """
    in_range(2, 32, value_bits=value_bits)
    needed = (smallest_modulus(top_word(value_bits), cohort, weight, noise_tail) - 1).bit_length()
    if needed > 32:
        raise FljaxError(
            f"Expected value_bits={value_bits} to fit into words of 32 bits: sums of {cohort} clients of weight up to "
            f"{weight:g} need {needed}. Use fewer value_bits{', or weights divided by the largest' * (weight > 1)}."
        )
    if bits is not None and bits < needed:
        raise FljaxError(f"Expected bits={bits} >= {needed}: sums of {cohort} clients overflow. Set bits = {needed}.")
    return needed


def encode(key: Key, x: Array, unit: Array, top: int) -> Array:
    """Rounds an array at random, without bias, to whole multiples of a unit, and writes them as words.

    Args:
      key: consumed. x: any shape, float32. unit: () > 0, what a word of 1 is worth. top: L.

    Returns:
      uint32 like x: two's complement of an integer in -L .. L, with ``E[integer unit] = clip(x, +-L unit)``.

    Guarantees:
      The error of one value is below a unit within the range; 0 becomes 0, and NaN becomes 0.
    """
    scaled = jnp.clip(x.astype(jnp.float32) / (unit * top), -1.0, 1.0) * top
    scaled = jnp.where(jnp.isnan(scaled), 0.0, scaled)
    low = jnp.floor(scaled)
    coins = hashed(jax.random.key_data(key), jax.lax.iota(jnp.uint32, x.size)).reshape(x.shape)
    up = (coins >> 8).astype(jnp.float32) * jnp.float32(2**-24) < scaled - low  # coins decide fairly, and hide nothing
    return (low.astype(jnp.int32) + up).astype(jnp.uint32)


def decode(words: Array, unit: Array, bits: int) -> Array:
    """Words modulo 2^bits -> real numbers, float32: the sign from the highest of the bits, times the unit."""
    return signed(words, bits).astype(jnp.float32) * unit


def signed(words: Array, bits: int) -> Array:
    """The integers in ``-2^(bits - 1) .. 2^(bits - 1) - 1`` that the lower bits of words stand for, int32."""
    unused = 32 - bits
    return jnp.right_shift(jnp.left_shift(words.astype(jnp.uint32), unused).astype(jnp.int32), unused)


class Codec(NamedTuple):
    """The numbers of an encoding; static, but for C.

    value_bits: b. bits: k. largest_weight: of a client, by which updates arrive multiplied; their range is C times it.
    """

    value_bits: int
    bits: int
    largest_weight: float = 1.0

    @property
    def top(self) -> int:
        """L."""
        return top_word(self.value_bits)

    def unit(self, name: str, value_range: Array) -> Array:
        """What a word of 1 is worth in a part of a payload.

        Weights that are whole numbers up to L are written exactly.
        """
        if name == COUNTS:
            return jnp.float32(1.0)
        if name == "weight":
            return jnp.float32(max(1.0, self.largest_weight / self.top))
        if name in RANGED:
            return jnp.asarray(value_range, jnp.float32) * jnp.float32(self.largest_weight / self.top)
        return jnp.float32(1.0 / self.top)


def fixed_point(
    value_bits: int,
    cohort: int,
    size: int,
    bits: int | None = None,
    largest_weight: float = 1.0,
    overflow: str = "raise",
) -> UpdateTransform:
    """Writes a payload as words modulo 2^k whose sum decodes to the sum: the last stage before a mask.

    Every part becomes words of one width, the weight too: what a client weighs is never sent beside them. A part
    ``count`` of whole numbers 0 and 1 is written exactly, in words that hold the number of clients. The value
    range C is ``hparams.extra["value_range"]``, traced; other parts than updates lie in -1 .. 1.

    Args:
      value_bits: b, of one value with its sign, 2 to 24.
      cohort: clients whose words are added at the most.
      size: P, values of one client beside its weight, of all parts together.
      bits: k, default the smallest that proves that no sum overflows.
      largest_weight: of a client, where an average to the left multiplies by weights.
      overflow: ``raise`` refuses fewer bits than the proof needs; ``count`` runs with them, and the metric
        ``overflow`` counts the values of the sum that came out wrong (which only the simulator can know).

    Guarantees:
      E[decoded sum] = sum of the clipped updates. A client can move the sum further than before it was rounded: the
      bound of every part grows by ``sqrt(P) unit``.

    Info: ``saturated``, the share of a client's values that the range cuts off; ``overflow`` on the server.

    Raises:
      FljaxError: numbers out of range, or too few bits, here; a payload of another size, when it is traced.
    """
    in_range(2, 24, value_bits=value_bits)
    one_of(["raise", "count"], overflow=overflow)
    positive(size=size, largest_weight=largest_weight)
    enough = smallest_bits(value_bits, cohort, bits=bits if overflow == "raise" else None)
    in_range(value_bits, 32, bits=enough if bits is None else bits)
    it = _FixedPoint(Codec(value_bits, bits or enough, largest_weight), size, cohort)
    return UpdateTransform("fixed_point", it.init, it.encode, it.decode, it.bound, claim=it.claim, wire=it.wire)


class _FixedPoint(NamedTuple):
    """The static numbers of the stage; its methods are the stage's functions."""

    codec: Codec
    size: int
    cohort: int

    def init(self, params, hparams):
        del params, hparams
        return (), ()

    def encode(self, key, ctx, payload, state, client_state):
        del state
        values = {name: part for name, part in payload.items() if name != "weight"}
        found = tree.num_elements(values)
        if found != self.size:
            raise FljaxError(f"Expected size={self.size!r} to be {found}, the number of values that clients send.")
        words, cut = {}, jnp.float32(0.0)
        for i, name in enumerate(sorted(payload)):
            if name == COUNTS:
                words[name] = jax.tree.map(lambda x: x.astype(jnp.uint32), payload[name])
                continue
            unit = self.codec.unit(name, _range(ctx))
            words[name] = _encode_part(jax.random.fold_in(key, i), payload[name], unit, self.codec.top)
            if name != "weight":
                limit = unit * self.codec.top
                cut += sum(jnp.sum(jnp.abs(x) > limit, dtype=jnp.float32) for x in jax.tree.leaves(payload[name]))
        return words, client_state, {"saturated": cut / self.size}

    def decode(self, key, ctx, total, alive, state):
        del key, alive
        bits, wrong = self.codec.bits, jnp.int32(0)
        for x in jax.tree.leaves(total):  # the simulator adds whole words; what travels are their lower bits
            wrong += jnp.sum(signed(x, bits) != x.astype(jnp.int32), dtype=jnp.int32)
        parts = {}
        for name, part in total.items():
            unit = self.codec.unit(name, _range(ctx))
            parts[name] = jax.tree.map(lambda x, u=unit: decode(x, u, bits), part)
        return parts, state, {"overflow": wrong.astype(jnp.float32)}

    def bound(self, ctx, state, bounds):
        del state
        unit = {n: self.codec.unit("update" if n == "payload" else n, _range(ctx)) for n in bounds}
        return {n: b + unit[n] * jnp.float32(1.0 if n == "weight" else self.size**0.5) for n, b in bounds.items()}

    def claim(self, hparams):
        value_range = float(hparams.extra.get(RANGE, 0.0))
        if not 0 < value_range < math.inf:
            raise FljaxError(f"Expected value_range={value_range:g} to be positive and finite. Set secure.value_range.")
        return no_claim(hparams)

    def wire(self, ctx, wires):
        del ctx
        bits, counted = jnp.int32(self.codec.bits), jnp.int32(count_bits(self.cohort))
        return {name: Wire(w.values, counted if name == COUNTS else bits, w.extra) for name, w in wires.items()}


def _range(ctx: Ctx) -> Array:
    """C; NaN where nobody gave one, so that nothing is sent."""
    return jnp.asarray(ctx.hparams.extra.get(RANGE, jnp.nan), jnp.float32)


def _encode_part(key: Key, part: PyTree, unit: Array, top: int) -> PyTree:
    leaves, structure = jax.tree.flatten(part)
    words = [encode(jax.random.fold_in(key, i), x, unit, top) for i, x in enumerate(leaves)]
    return jax.tree.unflatten(structure, words)
