"""The proof by numbers that neuron groups are right: the masked model against the one that is physically cut out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fljax.core.check import FljaxError
from fljax.core.types import Array, Params, PyTree
from fljax.models.neurons import NeuronGroups

TOLERANCE = 1e-4
"""Of a difference, relative to the largest number."""
RUN_ONCE = {"xla_backend_optimization_level": 0}
"""A program that runs once should compile fast rather than run fast."""


def verify(model: Any, x: Array, seed: int = 0) -> None:
    """Checks that a model without some neurons is the model with their parameters set to zero.

    Half of the neurons of every group, chosen at random, are dropped from parameters that are random everywhere, biases
    included: once by masks and once by cutting them out. Outputs and gradients must be the same. Use it for models
    whose groups you declare yourself.

    Args:
      model: with ``shapes``, ``apply`` and ``groups``.
      x: [B, ...] some inputs, in the form that the model takes.
      seed: of the random parameters and the choice of neurons.

    Raises:
      FljaxError: if the model has no groups, they do not fit its parameters, ``apply`` does not accept the smaller
        parameters, or the results differ; the message names the group.
    """
    groups, shapes, rng = model.groups, model.shapes(), np.random.default_rng(seed)
    if groups is None:
        raise FljaxError(f"Expected model {model.name!r} to have neuron groups. Declare NeuronGroups beside it.")
    groups.check(shapes)
    params = jax.tree.map(lambda p: _random(rng, p.shape), shapes)
    problem = mismatch(model.apply, params, groups, x, seed)
    if problem:
        single = (group for group, _ in groups.sizes if mismatch(model.apply, params, groups, x, seed, only=group))
        group = next(single, None)
        where = "each group alone is right, together they are not" if group is None else f"group {group!r} is wrong"
        raise FljaxError(f"Expected the masked model {model.name!r} to equal the extracted one, but {where}: {problem}")


def _random(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Random numbers of a sensible size; biases and scales too, which zeros and ones would not tell apart."""
    if len(shape) < 2:
        return jnp.asarray(rng.uniform(0.5, 1.5, shape), jnp.float32)
    return jnp.asarray(rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1])), jnp.float32)


def mismatch(
    apply: Callable[..., Array], params: Params, groups: NeuronGroups, x: Array, seed: int, only: str | None = None
) -> str:
    """What is wrong with the groups, as the rest of a sentence, or nothing.

    Args:
      apply: (params, x) -> outputs.
      params, x: at which it is looked.
      seed: of the choice of neurons.
      only: the one group that loses neurons; None: all of them.
    """
    rng = np.random.default_rng(seed)
    dropped = {group: n // 2 if only in (None, group) else 0 for group, n in groups.sizes}
    kept = {group: np.sort(rng.permutation(n)[dropped[group] :]) for group, n in groups.sizes}
    neuron_masks = {group: jnp.asarray(np.isin(np.arange(n), kept[group])) for group, n in groups.sizes}

    def results(params: Params, x: Array) -> tuple[Array, Params]:
        """Outputs, and the gradient of a weighted sum of them."""
        outputs, pull_back = jax.vjp(lambda p: apply(p, x), params)
        return outputs, pull_back(jnp.cos(jnp.arange(outputs.size, dtype=outputs.dtype)).reshape(outputs.shape))[0]

    def masked(params: Params, x: Array) -> tuple[Array, Params]:
        outputs, gradient = results(jax.tree.map(jnp.multiply, params, groups.masks(params, neuron_masks)), x)
        return outputs, groups.extract(gradient, kept)

    expected = jax.jit(masked, compiler_options=RUN_ONCE)(params, x)
    try:
        small = jax.jit(lambda p, x: results(groups.extract(p, kept), x), compiler_options=RUN_ONCE)
        found = small(params, x)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        return f"the smaller parameters are refused ({type(error).__name__}: {reason}). Read sizes off their shapes."
    if found[0].shape != expected[0].shape:
        return f"outputs have shapes {found[0].shape} and {expected[0].shape}. Never cut inputs or outputs."
    for what, a, b in zip(("outputs", "gradients"), found, expected, strict=True):
        gap = _gap(a, b)
        if not gap <= TOLERANCE:
            return (
                f"{what} differ by {gap:.1g} of the largest. Check axes, repeats, block, and what normalises over them."
            )
    return ""


def _gap(found: PyTree, expected: PyTree) -> float:
    """The largest difference of two trees, relative to the largest number expected."""
    found, expected = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]) for tree in (found, expected))
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-30))
