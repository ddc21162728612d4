"""SCAFFOLD: control variates take the clients' drift out of local training.

Reference: Karimireddy, Kale, Mohri, Reddi, Stich, Suresh, "SCAFFOLD: stochastic controlled averaging for federated
learning", ICML 2020, algorithm 1 with option II.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fljax.client.sgd import Training, client_rate, difference, share_all, train
from fljax.core import tree
from fljax.core.check import positive
from fljax.core.tree import zero_unless
from fljax.core.types import LocalUpdate


def scaffold_update(training: Training, population: int) -> LocalUpdate:
    """Local SGD with gradients corrected by c - c_k; the clients' c_k stay with them, their changes travel.

    ``c_k' = c_k - c + (w - w_k) / (K lr)`` (option II, K local steps), server ``c <- c + sum_k (c_k' - c_k) / N``,
    computed as E|cohort| / N times the average. So it is exact where the average divides by E|cohort|, and where the
    cohort has a fixed size; with a realised denominator and cohorts of random size c moves by the mean change of those
    who came, at the rate E|cohort| / N. With all control variates at zero the first round is FedAvg's.

    Args:
      training: how a client trains; option II assumes plain SGD.
      population: N, a public constant of the server's step for c.
    """
    training.check()
    positive(population=population)

    def init(key, params, hparams):
        del key, hparams
        zero = jax.tree.map(jnp.zeros_like, params)
        return zero, zero

    def run(key, ctx, broadcast, own, shard):
        start = tree.keep(broadcast.params, broadcast.mask)
        drift = jax.tree.map(jnp.subtract, broadcast.algorithm, own)
        trained, loss, steps = train(
            key, ctx, training, start, shard, mask=broadcast.mask, correction=lambda params: drift
        )
        per_step = 1.0 / (jnp.maximum(steps, 1) * client_rate(ctx))
        change = jax.tree.map(lambda w, w_k, c: (w - w_k) * per_step - c, start, trained, broadcast.algorithm)
        change = zero_unless(jnp.asarray(steps) > 0, change)  # a client without data changes nothing
        payload = difference(trained, start, shard) | {"control": tree.keep(change, broadcast.mask)}
        new = jax.tree.map(jnp.add, own, payload["control"])
        return payload, new, {"loss": loss, "steps": jnp.float32(steps)}

    def absorb(ctx, control, total):
        share = ctx.expected / population
        return jax.tree.map(lambda c, change: c + share * change, control, total["control"])

    return LocalUpdate(share_all, init, run, absorb, parts=("update", "weight", "control"))
