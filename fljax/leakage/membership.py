"""Attacks: was this example trained on, from the final model; was this client in the round, from what was released.

Examples: Yeom et al., "Privacy risk in machine learning", CSF 2018 (a threshold on the loss); Watson et al., "On the
importance of difficulty calibration in membership inference attacks", ICLR 2022, and Carlini et al., "Membership
inference attacks from first principles", S&P 2022 (how hard an example is, from shadow models; the offline variant).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fljax.core.types import Array, Key, Params, PyTree
from fljax.leakage.inversion import misfit
from fljax.leakage.protocol import Protocol
from fljax.leakage.views import AdversaryView

RATE = 0.01
BATCH = 64


class Pool(NamedTuple):
    """Examples x [n, ...] with labels y [n]."""

    x: Array
    y: Array


def losses(protocol: Protocol, params: Params, pool: Pool) -> Array:
    """Loss of every example [n]."""
    return protocol.loss.per_example(protocol.model.apply(params, pool.x), pool.y)


def loss_scores(view: AdversaryView, candidates: Pool) -> np.ndarray:
    """Minus the loss under the final model: high for members. [n]"""
    return -np.asarray(jax.jit(lambda p: losses(view.protocol, p, candidates))(view.need("final")))


def calibrated_scores(
    key: Key, view: AdversaryView, candidates: Pool, own: Pool, shadows: int = 16, steps: int = 300
) -> np.ndarray:
    """How much lower the loss is than under models that never saw the example, in their standard deviations. [n]

    ``score = (mean_s l_s(x) - l(x)) / (std_s l_s(x) + 0.1)`` over shadow models s, each trained by Adam on a random
    half of the adversary's own examples. The 0.1 nats keep examples that all shadows agree on from deciding everything.

    Args:
      key: of halves, starts and batches. candidates: to be judged; none of them may be in ``own``.
      own: examples of the adversary. shadows, steps: how many models, how many steps each.
    """
    half = max(own.y.shape[0] // 2, 1)

    def shadow(key: Key) -> Array:
        start, pick, draw = jax.random.split(key, 3)
        rows = jax.random.permutation(pick, own.y.shape[0])[:half]
        params = _trained(draw, view.protocol, view.protocol.model.init(start), Pool(own.x[rows], own.y[rows]), steps)
        return losses(view.protocol, params, candidates)

    others = np.asarray(jax.jit(jax.vmap(shadow))(jax.random.split(key, shadows)), np.float64)
    return (others.mean(0) + loss_scores(view, candidates)) / (others.std(0) + 0.1)


def _trained(key: Key, protocol: Protocol, params: Params, pool: Pool, steps: int) -> Params:
    """A model trained on the pool by Adam, on batches drawn with replacement."""
    adam = optax.adam(RATE)

    def step(carry, key):
        params, state = carry
        rows = jax.random.randint(key, (min(BATCH, pool.y.shape[0]),), 0, pool.y.shape[0])
        batch = Pool(pool.x[rows], pool.y[rows])
        change, state = adam.update(jax.grad(lambda p: jnp.mean(losses(protocol, p, batch)))(params), state)
        return (optax.apply_updates(params, change), state), None

    return jax.lax.scan(step, (params, adam.init(params)), jax.random.split(key, steps))[0][0]


def round_scores(view: AdversaryView, update_of: Callable[[Array], PyTree], ids: Array) -> np.ndarray:
    """How much of each client's update is in what was released: cosines [n]. A strong adversary: it knows the data of
    the clients that it asks about, and so what they would have sent.

    Args:
      update_of: (id) -> the update that a client would send in the round. ids: [n] of the clients asked about.
    """
    released = view.need("released")

    def one(client: Array) -> Array:
        return 1.0 - misfit(update_of(client), released)

    return np.asarray(jax.jit(lambda ids: jax.lax.map(one, ids))(ids))
