"""How informative a neuron is, from nothing but what the server has already released.

The released update is ``u~ = u + N(0, tau^2)`` on its support, tau public. Its square overstates the signal by tau^2
on average, so the noise-corrected energy ``u~^2 - tau^2`` is an unbiased estimate of u^2. A moving average of it,
summed over a neuron's incoming weights and bias, estimates the diagonal Fisher information of that neuron at user
level (squared gradients), and is post-processing of a private release: it costs no privacy.

Grouping by neuron is what makes it work under noise: the signal-to-noise ratio of the sum over n weights grows with
sqrt(n).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fljax.core.types import Array, Params, PyTree


class Energy(NamedTuple):
    """Moving average of the noise-corrected squared update. mean, weight: trees like the parameters.

    weight is how much has been averaged so far, per coordinate: coordinates off the support are not observed, and
    their average stays as it is. noise: () the variance tau^2 of the noise in the last released update,
    averaged over coordinates.
    """

    mean: PyTree
    weight: PyTree
    noise: Array


def no_energy(params: Params) -> Energy:
    """Nothing observed yet."""
    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
    return Energy(zeros, zeros, jnp.float32(0.0))


def observe_energy(energy: Energy, update: PyTree, support: PyTree, std: Array, decay: Array) -> Energy:
    """One step of the moving average on the support: ``a <- decay a + (1 - decay) (u~^2 - tau^2)``.

    Args:
      update: released update. support: 0/1 tree. decay: in [0, 1).
      std: () tau of every coordinate of the released update, or a tree of them.
    """
    stds = std if jax.tree.structure(std) == jax.tree.structure(update) else jax.tree.map(lambda u: std, update)

    def average(mean, seen, u, on, tau):
        rate = (1.0 - decay) * on
        return mean + rate * (u**2 - tau**2 - mean), seen + rate * (1.0 - seen)

    pairs = jax.tree.map(average, energy.mean, energy.weight, update, support, stds)
    outer = jax.tree.structure(update)
    mean, weight = jax.tree.transpose(outer, jax.tree.structure((0, 0)), pairs)
    return Energy(mean, weight, _mean_square(stds))


def _mean_square(values: PyTree) -> Array:
    leaves = [jnp.square(jnp.ravel(jnp.asarray(x))) for x in jax.tree.leaves(values)]
    return jnp.mean(jnp.concatenate(leaves))


def noise_floor(energy: Energy, groups: Any) -> dict[str, Array]:
    """Energy of the noise in every neuron, {group: [n]}: ``n_g tau^2`` for n_g incoming weights and a bias.

    A neuron whose ``||u_g||^2`` is below this adds more noise than signal to the released update.
    """
    ones = jax.tree.map(jnp.ones_like, energy.mean)
    return {g: n * energy.noise for g, n in groups.scores(ones).items()}


def neuron_scores(energy: Energy, groups: Any) -> dict[str, Array]:
    """Score of every neuron, {group: [n]}: bias-corrected energy summed over incoming weights and bias.

    May be negative where the noise outweighs the signal; only the ranking within a layer is used.
    """
    corrected = jax.tree.map(lambda m, w: m / jnp.maximum(w, 1e-6), energy.mean, energy.weight)
    return groups.scores(corrected)
