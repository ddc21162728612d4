"""Sparsification: a client sends k of the n values of its update.

The share k / n is ``hparams.compress_rate``, traced: a sweep over it is one program. k counts over the whole update,
all leaves together, and only over ``ctx.support`` where neurons are dropped by one mask for all clients.

A client's choice of positions by magnitude is a function of its data. Epsilon holds beside it where the noise covers
all coordinates, as central noise does; noise on the kept coordinates alone would tell the positions.

References: Aji and Heafield, EMNLP 2017 (top k); Stich, Cordonnier, Jaggi, "Sparsified SGD with memory", NeurIPS 2018;
Konecny et al., "Federated learning: strategies for improving communication efficiency", 2016 (random masks).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from fljax.core import tree
from fljax.core.keys import stream
from fljax.core.transform import UpdateTransform, Wire, no_claim, pass_decode, stateless
from fljax.core.types import Array, Bounds, Ctx, Key, PyTree

SEED_BITS = 64
"""Bits of the seed from which a client's own random positions are made again."""


def kept_count(rate: Array, n: Array | int) -> Array:
    """k = clip(round(rate n), 1, n), () int32: how many of n values are sent; half to even, 0 where n is 0."""
    return jnp.minimum(jnp.maximum(jnp.round(rate * n), 1), n).astype(jnp.int32)


def position_bits(n: Array | int, k: Array) -> Array:
    """Bits that tell which k of n values are sent, () int32: ``min(n, k ceil(log2 n))``, the shorter of a bitmap and a
    list of indices; 0 where all are sent."""
    index = 32 - jax.lax.clz(jnp.asarray(n, jnp.int32) - 1)
    return jnp.where(k < n, jnp.minimum(n, k * index), 0).astype(jnp.int32)


def kth_largest(scores: Array, k: Array) -> Array:
    """The k-th largest of scores [n] int32 >= 0, for a traced k >= 1; the largest int32 for k = 0.

    The answer is built bit by bit, from the highest: 31 passes over the scores instead of a sort.
    """

    def one_bit(i, low):
        trial = low + jnp.left_shift(jnp.int32(1), 30 - i)
        return jnp.where(jnp.sum(scores >= trial, dtype=jnp.int32) >= k, trial, low)

    return jax.lax.fori_loop(0, 31, one_bit, jnp.int32(0))


def largest(scores: Array, k: Array) -> Array:
    """[n] bool with exactly k True: the k largest of scores [n] int32 >= 0; of equal ones, those of lowest index."""
    n = scores.size
    least = kth_largest(scores, k)
    above = scores > least
    place = jnp.where(scores == least, n - jnp.arange(n, dtype=jnp.int32), 0)
    last = kth_largest(place, k - jnp.sum(above, dtype=jnp.int32))
    return above | (place >= jnp.maximum(last, 1))


def on_support(ctx: Ctx, like: PyTree) -> PyTree:
    """Bool tree like ``like``: the coordinates that may be sent; all of them where there is no support."""
    if ctx.support is None:
        return jax.tree.map(lambda x: jnp.ones(x.shape, bool), like)
    return jax.tree.map(lambda m: m > 0, ctx.support)


def grow(bounds: Bounds, factor: Array) -> Bounds:
    """The bounds after the update has grown by at most a factor >= 1.

    Where one bound covers several parts together (after a clip), all of it grows, which is never too little.
    """
    covering = {"update", "payload"} & set(bounds) or set(bounds)
    return {name: b * factor if name in covering else b for name, b in bounds.items()}


def _choose(scores: Array, ctx: Ctx, like: PyTree) -> tuple[Array, Array, Array]:
    """(kept [P] bool, n candidates, k of them) by scores [P] int32 >= 0."""
    candidates, _ = ravel_pytree(on_support(ctx, like))
    n = jnp.sum(candidates, dtype=jnp.int32)
    k = kept_count(ctx.hparams.compress_rate, n)
    return largest(jnp.where(candidates, scores + 1, 0), k), n, k


def _wire(ctx: Ctx, wires: dict[str, Wire], positions) -> dict[str, Wire]:
    """The update's wire with k values, and the bits of their positions."""
    full = wires["update"]
    k = kept_count(ctx.hparams.compress_rate, full.values)
    return {**wires, "update": Wire(k, full.bits, full.extra + positions(full.values, k))}


def top_k() -> UpdateTransform:
    """Sends the k values of largest magnitude of the whole update, k = round(``hparams.compress_rate`` n), at least 1.

    Exactly k positions are sent, also where values are equal or zero: the first ones are taken. Only ``update`` is
    sparsified; other parts travel whole. It is biased; wrap it in ``error_feedback``. An update that is not finite is
    sent as zeros.

    Guarantees:
      The L2 norm never grows, so that the bound passes. On the wire: k values and ``position_bits``.
    """

    def encode(key, ctx, payload, server_state, client_state):
        del key, server_state
        update = tree.zero_unless(jnp.isfinite(tree.squared_norm(payload["update"])), payload["update"])
        flat, unravel = ravel_pytree(update)
        # floats that are not negative are ordered as the integers of the same bits
        magnitude = jax.lax.bitcast_convert_type(jnp.abs(flat.astype(jnp.float32)), jnp.int32)
        kept, _, _ = _choose(magnitude, ctx, update)
        return {**payload, "update": unravel(jnp.where(kept, flat, 0))}, client_state, {}

    def wire(ctx, wires):
        return _wire(ctx, wires, position_bits)

    return UpdateTransform("top_k", stateless, encode, pass_decode, claim=no_claim, wire=wire)


def rand_k(shared: bool = True, rescale: bool = True) -> UpdateTransform:
    """Sends k values at uniformly random positions, k = round(``hparams.compress_rate`` n), at least 1.

    Args:
      shared: one set of positions for all clients of a round, from its public key: nothing is sent about them, and the
        server sets the released total to zero elsewhere, noise included (with clip and central noise this is Fed-SMP,
        Hu, Guo, Gong, IEEE TMC 2023). Else every client draws its own, and sends their seed.
      rescale: multiply by n / k, so that the update is unbiased. Use it to the left of a clip; to the right of one it
        raises the bound, and the noise with it. Leave it out under ``error_feedback``.

    Guarantees:
      Exactly k positions, uniform among all sets of k; independent of the clients' data, and hence private. The bound
      grows by P / k with ``rescale`` (n / k is capped there, for supports of other sizes), else it passes.
    """

    def init(params, hparams):
        del hparams
        return jnp.int32(tree.num_elements(params)), ()

    def chosen(key: Key, ctx: Ctx, like: PyTree):
        if shared:
            key = stream(ctx.round_key, "encode")
        size = tree.num_elements(like)
        return _choose(jax.random.randint(key, (size,), 0, 2**31 - 1), ctx, like)

    def growth(ctx: Ctx, size: Array) -> Array:
        return size.astype(jnp.float32) / kept_count(ctx.hparams.compress_rate, size)

    def encode(key, ctx, payload, size, client_state):
        update = tree.zero_unless(jnp.isfinite(tree.squared_norm(payload["update"])), payload["update"])
        flat, unravel = ravel_pytree(update)
        kept, n, k = chosen(key, ctx, update)
        factor = jnp.minimum(n.astype(jnp.float32) / jnp.maximum(k, 1), growth(ctx, size)) if rescale else 1.0
        return {**payload, "update": unravel(jnp.where(kept, factor * flat, 0))}, client_state, {}

    def decode(key, ctx, total, alive, size):
        del alive
        if not shared:
            return total, size, {}
        flat, unravel = ravel_pytree(total["update"])
        kept, _, _ = chosen(key, ctx, total["update"])
        return {**total, "update": unravel(jnp.where(kept, flat, 0))}, size, {}

    def bound(ctx, size, bounds):
        return grow(bounds, growth(ctx, size)) if rescale else bounds

    def wire(ctx, wires):
        return _wire(ctx, wires, lambda n, k: jnp.where(k < n, 0 if shared else SEED_BITS, 0))

    return UpdateTransform("rand_k", init, encode, decode, bound, claim=no_claim, wire=wire)
