"""Fisher information of parameters and of neurons.

| name | of parameter j or neuron c |
|---|---|
| diagonal | ``1/n sum_i (d_j log p(y_i | x_i))^2``, for a neuron summed over its incoming weights and bias |
| gate | ``1/n sum_i (sum_{j in c} w_j d_j L_i)^2``: of a gate on the neuron's input, by Euler's identity |

With the labels of the data it is the *empirical* information; with labels drawn from the model (``sample_labels``) the
*true* one, ``E_x E_{y ~ p(.|x)}``, which needs inputs alone.

The empirical information is not the true one where the model is wrong or certain (Kunstner, Hennig, Balles,
"Limitations of the empirical Fisher approximation", NeurIPS 2019). The gate's (Theis et al., 2018; Liu et al., "Group
Fisher pruning", ICML 2021) has one number a neuron and an example, and adds within a neuron before it squares.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fljax.core.types import Array, Key, Params, PyTree

Scores = dict[str, Array]


class Learner(NamedTuple):
    """What is needed to differentiate a model. apply: (params, x [B, ...], key) -> outputs. loss: with ``per_example``.

    groups: neuron groups of the model.
    """

    apply: Callable
    loss: Any
    groups: Any


def mean_of_examples(
    learner: Learner, params: Params, x: Array, y: Array, mask: Array, value: Callable[[PyTree], PyTree]
) -> PyTree:
    """Mean over the valid examples of a function of one example's gradient, one example after another.

    Args:
      x, y: [B, ...] examples. mask: [B], 0 on padding. value: gradient tree -> tree.

    Memory is that of one gradient, not of B.
    """

    def loss(p: Params, one_x: Array, one_y: Array) -> Array:
        return learner.loss.per_example(learner.apply(p, one_x[None], None), one_y[None])[0]

    def add(total: PyTree, example: tuple) -> tuple[PyTree, None]:
        one_x, one_y, valid = example
        seen = value(jax.grad(loss)(params, one_x, one_y))
        return jax.tree.map(lambda t, s: t + jnp.where(valid > 0, s, 0.0), total, seen), None

    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(value, params))
    total, _ = jax.lax.scan(add, zero, (x, y, mask))
    return jax.tree.map(lambda t: t / jnp.maximum(jnp.sum(mask), 1.0), total)


def empirical_fisher(learner: Learner, params: Params, x: Array, y: Array, mask: Array) -> PyTree:
    """Empirical diagonal Fisher information, a tree like params. Args as ``mean_of_examples``."""
    return mean_of_examples(learner, params, x, y, mask, lambda g: jax.tree.map(jnp.square, g))


def neuron_fisher(learner: Learner, params: Params, x: Array, y: Array, mask: Array) -> Scores:
    """Diagonal information of every neuron, {group: [n]}: the sum over its incoming weights and bias."""
    return learner.groups.scores(empirical_fisher(learner, params, x, y, mask))


def gate_fisher(learner: Learner, params: Params, x: Array, y: Array, mask: Array) -> Scores:
    """Fisher information of a gate on every neuron, {group: [n]}. Args as ``mean_of_examples``.

    A gate z_c that multiplies the neuron's pre-activation (1 in the model itself) has the gradient
    ``sum_j w_j d_j L`` over its incoming weights and bias, summed over all places of an image by the chain rule.
    """

    def squared(gradient: PyTree) -> Scores:
        moved = jax.tree.map(jnp.multiply, params, gradient)
        return {g: jnp.square(s) for g, s in learner.groups.scores(moved).items()}

    return mean_of_examples(learner, params, x, y, mask, squared)


def sample_labels(key: Key, learner: Learner, params: Params, x: Array) -> Array:
    """Labels [B] int32 drawn from a classifier's own predictions; they turn the empirical information into the true."""
    return jax.random.categorical(key, learner.apply(params, x, None), axis=-1)


INFORMATION = {"gate": gate_fisher, "diagonal": neuron_fisher}
"""Information of neurons by name: (learner, params, x, y, mask) -> {group: [n]}."""


def unit_scores(scores: Scores) -> Scores:
    """Scores as one query: roots, each layer divided by its norm, all by sqrt(L). The joint L2 norm is at most 1.

    So one client moves the sum of all clients' scores by at most 1 whatever its data are, and every layer weighs alike.
    Layers without any information, and values that are not finite, count as zeros.
    """

    def unit(s: Array) -> Array:
        root = jnp.sqrt(jnp.maximum(jnp.where(jnp.isfinite(s), s, 0.0), 0.0))
        norm = jnp.sqrt(jnp.sum(jnp.square(root)))
        sound = jnp.isfinite(norm) & (norm > 0)
        return jnp.where(sound, root / jnp.where(sound, norm, 1.0), 0.0) / jnp.sqrt(float(len(scores)))

    return {g: unit(s) for g, s in scores.items()}
