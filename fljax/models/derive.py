"""Neuron groups found by experiment, for networks whose layers follow one another.

A unit is silenced: its incoming weights and its bias become zero. A weight that only multiplies its output then has a
gradient of exactly zero, and no other weight has: these are its outgoing weights. Residual streams, gates and layers
whose activation is not zero at zero show no such weights, and are left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fljax.core.check import FljaxError
from fljax.core.tree import named_leaves, path_name
from fljax.core.types import Array, Params
from fljax.models.neurons import Axis, Leaf, NeuronGroups
from fljax.models.verify import RUN_ONCE, mismatch

BATCH = 4
DECLARE = "Declare NeuronGroups beside the model."


def derive_groups(apply: Callable[..., Array], params: Params, input_shape: Sequence[int]) -> NeuronGroups:
    """The neuron groups of a plain network of dense layers, convolutions, ReLUs, pooling and flattening.

    Every layer with a ``kernel`` [..., inputs, n] (and a ``bias`` [n]) whose units have outgoing weights becomes a
    group that is called like the layer. The result is proved: the masked model is compared with the extracted one.

    Args:
      apply: (params, x [B, ...]) -> outputs, which reads its sizes off the parameters (flax nnx does, linen does not).
      params: the parameters or their ShapeDtypeStructs; only the shapes matter.
      input_shape: of one example, float32.

    Raises:
      FljaxError: if there is no such layer, two layers claim the same weights, or the proof fails.
    """
    rng = np.random.default_rng(0)
    # Positive weights and inputs: every ReLU is open, so that no gradient is zero by chance.
    params = jax.tree.map(lambda p: _positive(rng, p.shape), params)
    x = jnp.asarray(rng.uniform(0.5, 1.5, (BATCH, *input_shape)), jnp.float32)
    weights = jnp.asarray(rng.uniform(0.5, 1.5, jax.eval_shape(apply, params, x).shape), jnp.float32)
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(apply(p, x) * weights)), compiler_options=RUN_ONCE)

    def silence(layer: str, unit: int) -> dict[str, np.ndarray]:
        """path -> where the gradient is zero because of the silence."""
        return {path: z & ~zero[path] for path, z in _zeros(gradient(_silenced(params, layer, unit))).items()}

    zero = _zeros(gradient(params))
    sizes, claims, refusal = {}, [], ""
    for layer, n in _layers(params):
        units = sorted({0, n // 2, n - 1})
        found = _outgoing(layer, n, {unit: silence(layer, unit) for unit in units}) if n > 1 else []
        if found:
            found += [(path, -1, Axis(layer)) for path in _own(params, layer)]
            refused = _refusal(apply, params, _groups(params, {layer: n}, found), x)
            refusal = refused or refusal
            if not refused:
                sizes[layer], claims = n, claims + found
    if not sizes:
        reason = f": {refusal}" if refusal else "."
        raise FljaxError(
            f"Expected a layer whose units have outgoing weights of their own, found none{reason} {DECLARE}"
        )
    groups = _groups(params, sizes, claims)
    problem = mismatch(apply, params, groups, x, 0)
    if problem:
        raise FljaxError(f"Expected the groups found ({', '.join(sizes)}) to be right, but {problem} {DECLARE}")
    return groups


def _groups(params: Params, sizes: dict[str, int], claims: list[tuple[str, int, Axis]]) -> NeuronGroups:
    """The groups of some layers, out of (path, i, axis): axis i of a parameter follows a layer."""
    axes: dict[str, list[Axis | None]] = {path: [None] * p.ndim for path, p in named_leaves(params).items()}
    for path, i, axis in claims:
        other = axes[path][i]
        if other is not None:
            both = f"{other.group!r} and {axis.group!r}"
            raise FljaxError(f"Expected axis {i} of {path!r} to follow one layer, found {both}. {DECLARE}")
        axes[path][i] = axis
    owners = {path: layer for layer in sizes for path in _own(params, layer)}
    return NeuronGroups(sizes, {path: Leaf(tuple(of), owners.get(path)) for path, of in axes.items() if any(of)})


def _refusal(apply: Callable[..., Array], params: Params, groups: NeuronGroups, x: Array) -> str:
    """Why the model does not run with one neuron less (as on a residual stream), or nothing; computes nothing."""
    try:
        jax.eval_shape(apply, groups.shapes(params, {group: n - 1 for group, n in groups.sizes}), x)
    except Exception as error:
        return f"{groups.sizes[0][0]!r} cannot be smaller ({' '.join(str(error).split())[:150]})."
    return ""


def _positive(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Random weights that keep the size of what passes through."""
    scale = 1.0 / max(int(np.prod(shape[:-1])), 1)
    return jnp.asarray(rng.uniform(0.5, 1.5, shape) * scale, jnp.float32)


def _zeros(gradients: Params) -> dict[str, np.ndarray]:
    return {path: np.asarray(g) == 0 for path, g in named_leaves(gradients).items()}


def _layers(params: Params) -> list[tuple[str, int]]:
    """(layer, units) of every ``kernel`` with two axes or more."""
    named = named_leaves(params)
    return [(p.removesuffix("/kernel"), k.shape[-1]) for p, k in named.items() if p.endswith("/kernel") and k.ndim > 1]


def _own(params: Params, layer: str) -> list[str]:
    return [path for path in named_leaves(params) if path in (f"{layer}/kernel", f"{layer}/bias")]


def _silenced(params: Params, layer: str, unit: int) -> Params:
    own = _own(params, layer)
    cut = lambda path, p: p.at[..., unit].set(0.0) if path_name(path) in own else p  # noqa: E731
    return jax.tree_util.tree_map_with_path(cut, params)


def _outgoing(layer: str, n: int, silences: dict[int, dict[str, np.ndarray]]) -> list[tuple[str, int, Axis]]:
    """(path, i, axis) of the parameters whose axis i holds outgoing weights of every silenced unit."""
    found = []
    for path, first in silences[0].items():
        for i, length in enumerate(first.shape if path not in (f"{layer}/kernel", f"{layer}/bias") else ()):
            each = length // n  # entries of one unit
            layouts = [Axis(layer, each // block, block) for block in range(1, each + 1) if each % block == 0]
            fits = [a for a in layouts if all(_only(z[path], i, a, unit, n) for unit, z in silences.items())]
            found += [(path, i, axis) for axis in fits[:1]]
    return found


def _only(zero: np.ndarray, i: int, axis: Axis, unit: int, n: int) -> bool:
    """Whether exactly the entries of this unit along axis i are zero."""
    lines = np.moveaxis(zero, i, 0).reshape(zero.shape[i], -1)
    entries = np.isin(np.arange(zero.shape[i]), axis.entries(np.array([unit]), n))
    return bool(lines[entries].all() and not lines[~entries].any())
