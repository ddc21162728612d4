"""Which parameters belong to which hidden neuron: masks, scores and extraction of sub-models.

A *group* is the neurons of one layer: what is dropped or kept as one. A neuron is a unit of a dense or recurrent layer,
a channel of a convolution, a dimension of an embedding, a whole attention head, or all the channels that group
normalisation treats together. Dropping a neuron removes its incoming weights, its bias and its outgoing weights. Inputs
and output logits are never dropped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fljax.core.check import FljaxError, in_range, one_of
from fljax.core.tree import named_leaves, path_name
from fljax.core.types import Array, Params, PyTree


class Axis(NamedTuple):
    """One axis of a parameter array that runs over the n neurons of a group.

    ``index = (r * n + c) * block + b`` belongs to neuron c, for r < repeats and b < block; the axis has
    ``repeats * n * block`` entries.

    group: the group.
    repeats: how often the whole group is repeated: H * W where a channels-last image is flattened, 4 for the gates of
      an LSTM, else 1.
    block: how many neighbouring entries are one neuron: the width of an attention head, the channels of a norm group,
      else 1.
    """

    group: str
    repeats: int = 1
    block: int = 1

    def length(self, n: int) -> int:
        """Entries of the axis for n neurons."""
        return self.repeats * n * self.block

    def spread(self, values: Array) -> Array:
        """One value per neuron [n] -> one per entry of the axis."""
        return jnp.broadcast_to(values.reshape(1, -1, 1), (self.repeats, values.shape[0], self.block)).reshape(-1)

    def fold(self, values: Array, n: int) -> Array:
        """One value per entry of the axis -> their sums per neuron [n]."""
        return values.reshape(self.repeats, n, self.block).sum((0, 2))

    def entries(self, neurons: Any, n: int) -> Any:
        """Neurons [k] -> their entries of the axis [repeats * k * block], in the order that the axis itself has."""
        r = np.arange(self.repeats, dtype=np.int32).reshape(-1, 1, 1)
        b = np.arange(self.block, dtype=np.int32).reshape(1, 1, -1)
        return ((r * n + neurons.reshape(1, -1, 1)) * self.block + b).reshape(-1)


class Leaf(NamedTuple):
    """One parameter array.

    axes: per axis the neurons it runs over, None for an axis that is never cut.
    owner: the group that this array's last axis is scored for (incoming weights and biases); None for the output layer.
      Every array has at most one owner, so the scores of two groups never share a parameter.
    """

    axes: tuple[Axis | None, ...]
    owner: str | None = None


def dense_leaves(layer: str, inputs: Axis | None, group: str | None) -> dict[str, Leaf]:
    """The leaves of a dense layer: kernel ``[inputs, n]``, bias ``[n]``. group None: the output layer."""
    return _layer_leaves(layer, (inputs,), group)


def conv_leaves(layer: str, inputs: Axis | None, group: str | None) -> dict[str, Leaf]:
    """The leaves of a two-dimensional convolution: kernel ``[kh, kw, inputs, n]``, bias ``[n]``."""
    return _layer_leaves(layer, (None, None, inputs), group)


def _layer_leaves(layer: str, incoming: tuple[Axis | None, ...], group: str | None) -> dict[str, Leaf]:
    out = None if group is None else Axis(group)
    return {f"{layer}/kernel": Leaf((*incoming, out), group), f"{layer}/bias": Leaf((out,), group)}


@dataclass(frozen=True)
class NeuronGroups:
    """The neuron groups of a model. Hashable; every field may be given as a dict and is stored as a tuple of pairs.

    Attributes:
      sizes: group -> n, its number of neurons.
      leaves: path (``dense_0/kernel``) -> Leaf. Parameters that are not listed are never cut.
      min_keep: group -> how many neurons every mask has to keep; ``max(1, ceil(n / 10))`` where not given.

    Raises:
      FljaxError: for unknown groups, a group without incoming weights, or min_keep outside of [1, n].
    """

    sizes: Any  # Mapping[str, int] or its pairs; stored as tuple[tuple[str, int], ...]
    leaves: Any  # Mapping[str, Leaf] or its pairs
    min_keep: Any = ()  # Mapping[str, int] or its pairs

    def __post_init__(self) -> None:
        sizes, given = dict(self.sizes), dict(self.min_keep)
        least = {group: given.get(group, max(1, math.ceil(n / 10))) for group, n in sizes.items()}
        # The dataclass is frozen, hence this way of normalising its fields.
        object.__setattr__(self, "sizes", tuple(sizes.items()))
        object.__setattr__(self, "leaves", tuple(dict(self.leaves).items()))
        object.__setattr__(self, "min_keep", tuple(least.items()))
        for group in given:
            one_of(sizes, group=group)
        for group, n in sizes.items():
            if not 1 <= least[group] <= n:
                raise FljaxError(f"Expected min_keep={least[group]} of group {group!r} in [1, {n}], its neurons.")
        self._check_leaves()

    def _check_leaves(self) -> None:
        sizes = dict(self.sizes)
        for path, leaf in self.leaves:
            for axis in filter(None, leaf.axes):
                one_of(sizes, **{f"group of {path}": axis.group})
                if min(axis.repeats, axis.block) < 1:
                    raise FljaxError(f"Expected repeats={axis.repeats} and block={axis.block} of {path!r} >= 1.")
            if leaf.owner is not None and (not leaf.axes or leaf.axes[-1] is None or leaf.axes[-1].group != leaf.owner):
                raise FljaxError(f"Expected the last axis of {path!r} to run over its owner {leaf.owner!r}.")
        owners = {leaf.owner for _, leaf in self.leaves}
        for group in sizes:
            if group not in owners:
                raise FljaxError(f"Expected group {group!r} to own a leaf. Name the layer that computes its neurons.")

    def check(self, params: Params) -> None:
        """Raises FljaxError unless every path exists in params and every axis has ``repeats * n * block`` entries."""
        shapes = {path: tuple(x.shape) for path, x in named_leaves(params).items()}
        sizes = dict(self.sizes)
        for path, leaf in self.leaves:
            one_of(shapes, leaf=path)
            shape = shapes[path]
            if len(leaf.axes) != len(shape):
                raise FljaxError(
                    f"Expected {path!r} of shape {shape} to have {len(leaf.axes)} axes, as its groups say."
                )
            for i, axis in enumerate(leaf.axes):
                if axis is not None and shape[i] != axis.length(sizes[axis.group]):
                    blocks = f" x {axis.block}" if axis.block > 1 else ""
                    raise FljaxError(
                        f"Expected axis {i} of {path!r} with shape {shape} to have length {axis.repeats} x "
                        f"{sizes[axis.group]}{blocks}, the neurons of group {axis.group!r}. Fix sizes, repeats or "
                        "block."
                    )

    def counts(self, keep_rate: float) -> dict[str, int]:
        """group -> how many neurons a mask with this keep rate keeps: ``clip(round(keep_rate n), min_keep, n)``.

        The rounding is that of masks with a traced keep rate: float32, halves to even. No layer is ever emptied.

        Raises:
          FljaxError: for a keep rate outside of (0, 1].
        """
        in_range(0, 1, closed="right", keep_rate=keep_rate)
        least = dict(self.min_keep)
        return {g: int(np.clip(np.round(np.float32(keep_rate) * np.float32(n)), least[g], n)) for g, n in self.sizes}

    def masks(self, params_like: Params, neuron_masks: Mapping[str, Array]) -> PyTree:
        """The parameters that belong to kept neurons only.

        ``mask(leaf) = product over its axes of (the neuron mask of the axis' group, spread over the axis)``

        Args:
          params_like: the parameters or their ShapeDtypeStructs.
          neuron_masks: group -> [n], 1 for kept neurons and 0 for dropped ones; may be traced.

        Returns:
          A tree like params_like with 0/1 float32 leaves; ones for leaves that no group touches.

        Raises:
          FljaxError: if a group has no mask, or a mask the wrong shape.
        """
        for group, n in self.sizes:
            _check_mask(group, n, neuron_masks)

        def leaf_mask(x: Array, axes: tuple[Axis | None, ...]) -> Array:
            mask = jnp.ones(x.shape, jnp.float32)
            for i, axis in enumerate(axes):
                if axis is not None:
                    mask = mask * _along(i, axis.spread(jnp.asarray(neuron_masks[axis.group], jnp.float32)), len(axes))
            return mask

        return self._map(leaf_mask, params_like)

    def cells(self, mask: PyTree) -> dict[str, Array]:
        """A mask of parameters in its shortest form: one number for each set of neurons that parameters belong to.

        With one hidden layer these are its neurons, and one number for the parameters that are never dropped; a weight
        between two hidden layers belongs to a pair of neurons, which has a number of its own.

        Returns:
          names of the groups, joined by ``*`` in the order of the axes -> an array with one axis for each; "" -> 1, for
          the parameters that are never dropped.
        """
        found: dict[str, Array] = {"": jnp.ones(())}
        sizes = dict(self.sizes)
        for path, x in named_leaves(mask).items():
            axes = self._axes(path, x)
            name = _cell(axes)
            if name not in found:
                places = (0 if a is None else slice(0, sizes[a.group] * a.block, a.block) for a in axes)
                found[name] = x[tuple(places)]
        return found

    @property
    def num_cells(self) -> int:
        """How many numbers ``cells`` has."""
        sizes, named = dict(self.sizes), {_cell(leaf.axes): leaf.axes for _, leaf in self.leaves}
        each = {name: math.prod(sizes[a.group] for a in axes if a is not None) for name, axes in named.items()}
        return sum((each | {"": 1}).values())

    def spread_cells(self, params_like: Params, cells: Mapping[str, Array]) -> PyTree:
        """A tree like params_like with the numbers of ``cells``: the way back."""
        sizes = dict(self.sizes)

        def leaf(x: Array, axes: tuple[Axis | None, ...]) -> Array:
            values, i = cells[_cell(axes)], 0
            for a in axes:
                if a is not None:
                    which = np.arange(a.length(sizes[a.group])) // a.block % sizes[a.group]
                    values, i = jnp.take(values, which, axis=i), i + 1
            return jnp.broadcast_to(
                values.reshape([1 if a is None else n for a, n in zip(axes, x.shape, strict=True)]), x.shape
            )

        return self._map(leaf, params_like)

    def scores(self, tree: PyTree) -> dict[str, Array]:
        """Per neuron the sum of the tree's values over its incoming weights and bias.

        Args:
          tree: values in the shape of the parameters (squared gradients, Fisher information, update energies, ...).

        Returns:
          group -> [n] float32. The groups are disjoint: no parameter is counted twice, outgoing weights are scored for
          the neuron that they lead to.
        """
        values, sizes = named_leaves(tree), dict(self.sizes)
        totals = {group: jnp.zeros(n, jnp.float32) for group, n in self.sizes}
        for path, leaf in self.leaves:
            if leaf.owner is not None:
                per_entry = values[path].astype(jnp.float32).sum(tuple(range(len(leaf.axes) - 1)))
                totals[leaf.owner] += leaf.axes[-1].fold(per_entry, sizes[leaf.owner])
        return totals

    def extract(self, params: Params, kept: Mapping[str, Any]) -> Params:
        """The physically smaller parameter tree of the kept neurons.

        The model's own ``apply`` computes with it what it computes with the masked parameters.

        Args:
          params: the parameters, or any tree of arrays like them.
          kept: as in NumPy's indexing, per group either integers [k], the distinct indices of the kept neurons, or a
            0/1 mask [n] (float or bool). Indices may be traced: k fixes the shapes, the neurons are data. A mask fixes
            the shapes by its values and so has to be concrete.

        Raises:
          FljaxError: for a group that is missing or left without neurons, indices that are out of range or occur twice
            (where they are concrete), a mask of the wrong shape or a traced one.
        """
        neurons, sizes = self._neurons(kept), dict(self.sizes)

        def cut(x: Array, axes: tuple[Axis | None, ...]) -> Array:
            for i, axis in enumerate(axes):
                if axis is not None:
                    x = jnp.take(x, axis.entries(neurons[axis.group], sizes[axis.group]), axis=i)
            return x

        return self._map(cut, jax.tree.map(jnp.asarray, params))

    def insert(self, params: Params, small: Params, kept: Mapping[str, Any]) -> Params:
        """A copy of params whose kept neurons have the values of small: the way back from ``extract``.

        Into zeros, it makes a full-sized update out of that of a sub-model. Args, raises: as ``extract``.
        """
        neurons, values, sizes = self._neurons(kept), named_leaves(small), dict(self.sizes)
        # Where each neuron is in the small model; n, which is beyond all of them, for those that are not in it.
        places = {g: jnp.full(n, n).at[neurons[g]].set(jnp.arange(len(neurons[g]))) for g, n in self.sizes}

        def put(path: tuple, x: Array) -> Array:
            inserted, inside = jnp.asarray(values[path_name(path)]), jnp.ones((1,) * x.ndim, bool)
            for i, axis in enumerate(self._axes(path_name(path), x)):
                if axis is not None:
                    n, k = sizes[axis.group], len(neurons[axis.group])
                    is_in = axis.spread(places[axis.group] < n)
                    source = jnp.where(is_in, axis.entries(places[axis.group], k), 0)
                    inserted, inside = jnp.take(inserted, source, axis=i), inside & _along(i, is_in, x.ndim)
            return jnp.where(inside, inserted, x)

        return jax.tree_util.tree_map_with_path(put, jax.tree.map(jnp.asarray, params))

    def shapes(self, params_like: Params, counts: Mapping[str, int]) -> Params:
        """The ShapeDtypeStructs of a sub-model with so many neurons per group; computes nothing."""
        some = {group: jax.ShapeDtypeStruct((count,), jnp.int32) for group, count in counts.items()}
        return jax.eval_shape(self.extract, params_like, some)

    def _neurons(self, kept: Mapping[str, Any]) -> dict[str, Any]:
        """group -> indices [k] of its kept neurons, out of indices or a concrete mask."""
        return {group: _indices(group, n, kept) for group, n in self.sizes}

    def _axes(self, path: str, x: Array) -> tuple[Axis | None, ...]:
        leaf = dict(self.leaves).get(path)
        return (None,) * len(x.shape) if leaf is None else leaf.axes

    def _map(self, function: Callable[[Array, tuple[Axis | None, ...]], Any], tree: PyTree) -> PyTree:
        return jax.tree_util.tree_map_with_path(lambda path, x: function(x, self._axes(path_name(path), x)), tree)


def _cell(axes: tuple[Axis | None, ...]) -> str:
    return "*".join(axis.group for axis in axes if axis is not None)


def _along(axis: int, values: Array, ndim: int) -> Array:
    """values [m] shaped to broadcast along one axis of an array with ndim axes."""
    return values.reshape([-1 if i == axis else 1 for i in range(ndim)])


def _given(group: str, values: Mapping[str, Any]) -> Any:
    if group not in values:
        raise FljaxError(f"Expected a mask for group {group!r}, got {sorted(values)}. Use ones to keep all.")
    return values[group]


def _check_mask(group: str, n: int, masks: Mapping[str, Any]) -> None:
    shape = np.shape(_given(group, masks))
    if shape != (n,):
        raise FljaxError(
            f"Expected the mask of group {group!r} with shape {shape} to have shape ({n},), one number per neuron. "
            "Use vmap for masks of several clients."
        )


def _indices(group: str, n: int, kept: Mapping[str, Any]) -> Any:
    """The kept neurons of one group as indices [k]; raises as ``NeuronGroups.extract`` says."""
    value = _given(group, kept)
    traced = isinstance(value, jax.core.Tracer)
    if not traced:
        value = np.asarray(value)
    if not jnp.issubdtype(value.dtype, jnp.integer):
        _check_mask(group, n, kept)
        if traced:
            raise FljaxError(f"Expected a concrete mask of group {group!r}. Use the indices of its kept neurons.")
        value = np.flatnonzero(value)
    if value.ndim != 1 or value.size == 0:
        raise FljaxError(f"Expected group {group!r} to keep at least one neuron, found shape {value.shape}.")
    if not traced and (len(np.unique(value)) != value.size or value.min() < 0 or value.max() >= n):
        raise FljaxError(f"Expected the kept neurons of group {group!r} to be distinct indices below {n}.")
    return value
