"""Local training by DP-SGD: every step is private for each single example, whoever sees what the client sends.

Reference: Abadi, Chu, Goodfellow, McMahan, Mironov, Talwar, Zhang, "Deep learning with differential privacy", CCS 2016.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from fljax.client.sgd import Training, client_rate, difference, keep_algorithm, share_all
from fljax.core import tree
from fljax.core.check import FljaxError, positive
from fljax.core.keys import stream
from fljax.core.transform import Claim, Noise
from fljax.core.types import Array, Hparams, Key, LocalUpdate

PrivateGradient = Callable
"""(key, loss, params, batch, clip, multiplier, mask) -> (noised sum of clipped gradients, [B] losses)."""


def batch_slots(batch_size: int) -> int:
    """Slots of a Poisson batch of B expected examples: ``ceil(B + 8 sqrt(B) + 8)``.

    Whatever the client's size, more examples than that are drawn in a step with probability below 2e-15 (the tail of a
    Poisson law of mean B). What is left is in the accounting.
    """
    return math.ceil(batch_size + 8 * math.sqrt(batch_size) + 8)


def poisson_batch(key: Key, size: Array, batch_size: int, slots: int, longest: int) -> tuple[Array, Array]:
    """Every example of a client is in independently with probability ``q = min(1, B / n)``.

    Each example draws a uniform score and is in if it is below q. If more are in than there are slots, those with the
    smallest scores stay, a uniformly random subset.

    Args:
      key: consumed. size: () n, examples of the client. batch_size: B, expected examples. slots: of the batch, static.
      longest: examples of the largest client, static, >= slots.

    Returns:
      (positions [slots] within the shard, valid [slots] bool).
    """
    scores = jnp.where(jnp.arange(longest) < size, jax.random.uniform(key, (longest,)), 2.0)
    lowest, positions = jax.lax.top_k(-scores, slots)
    return positions, -lowest < jnp.minimum(1.0, batch_size / jnp.maximum(size, 1))


def dpsgd_update(training: Training, gradient: PrivateGradient) -> LocalUpdate:
    """Model aggregation with local DP-SGD: ``w <- w - lr (sum_i clip_S(g_i) + N(0, (z S)^2)) / B`` in every step.

    S = ``hparams.clip``, z = ``hparams.noise_multiplier``; the local optimiser may be any. Batches are Poisson samples
    of the client's own examples with rate ``min(1, B / n_k)``; n_k counts as public. A client with fewer examples than
    B uses all of them in every step, and its sum is divided by B like any other. What comes after the steps (averages,
    weights by n_k, who came) is post-processing; control variates and proximal terms are not offered.

    Args:
      training: with ``steps`` (the same public number for all clients) and ``batch_size`` B, the expected batch.
      gradient: clips and noises, ``privacy.record.private_gradient``.

    Claim: Gaussian noise at record level, with batch B, steps and slots of a batch.

    Raises:
      FljaxError: no steps, or no batch size.
    """
    training.check()
    if training.steps is None:
        raise FljaxError(
            f"Expected epochs={training.epochs} to be None for record-level privacy. Set client.steps, a public number."
        )
    if training.batch_size is None:
        raise FljaxError("Expected batch_size=None to be a number for record-level privacy. Set client.batch_size.")
    positive(batch_size=training.batch_size)
    steps, size = training.steps, training.batch_size

    def run(key, ctx, broadcast, client_state, shard):
        h, start = ctx.hparams, tree.keep(broadcast.params, broadcast.mask)
        optimiser, slots = training.optimiser(client_rate(ctx)), min(batch_slots(size), shard.max_size)

        def loss(params, x, y, k):
            return training.loss.per_example(training.model.apply(params, x, k), y)[0]

        def step(i, carry):
            params, opt_state, seen = carry
            drawn = poisson_batch(jax.random.fold_in(stream(key, "sample"), i), shard.size, size, slots, shard.max_size)
            batch = shard.batch(*drawn)
            total, losses = gradient(
                jax.random.fold_in(key, i), loss, params, batch, h.clip, h.noise_multiplier, broadcast.mask
            )
            grads = jax.tree.map(lambda g: g / size, total)
            updates, opt_state = optimiser.update(grads, opt_state, params)
            value = jnp.sum(jnp.where(batch.mask > 0, losses, 0.0)) / jnp.maximum(jnp.sum(batch.mask), 1.0)
            return tree.where(broadcast.mask, optax.apply_updates(params, updates), params), opt_state, seen + value

        carry = (start, optimiser.init(start), jnp.float32(0.0))
        trained, _, seen = jax.lax.fori_loop(0, steps, step, carry)
        info = {"loss": seen / steps, "steps": jnp.float32(steps)}
        return difference(trained, start, shard), client_state, info

    def claim(hparams: Hparams) -> Claim:
        z, clip = float(hparams.noise_multiplier), float(hparams.clip)
        if z > 0 and not math.isfinite(clip):
            return Claim(reason="nothing bounds the gradient of one example; set privacy.clip")
        detail = (("batch", float(size)), ("steps", float(steps)), ("capacity", float(batch_slots(size))))
        return Claim(Noise("gaussian", z, "record", detail))

    return LocalUpdate(share_all, lambda key, params, hparams: ((), {}), run, keep_algorithm, claim=claim)
