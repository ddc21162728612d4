"""A model as two pure functions, and the adapters that make one from flax nnx, flax linen or any pair of functions."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from fljax.core.check import FljaxError
from fljax.core.tree import named_leaves, num_elements
from fljax.core.types import Array, Key, Params
from fljax.models.derive import derive_groups
from fljax.models.neurons import NeuronGroups

Groups = NeuronGroups | Literal["derive"] | None
"""Neuron groups as a builder takes them; ``derive`` finds those of a plain sequential network (``derive_groups``)."""


@dataclass(frozen=True, eq=False)
class Model:
    """A model as the engine sees it. Compared and hashed by identity, so that it can be a static argument of ``jit``.

    Attributes:
      name: for reports.
      init: key -> nested dict of float32 arrays; works under ``jit`` and under ``vmap`` over keys.
      apply: (params, x [B, ...], key=None) -> outputs [B, ...]. With a key the model trains (drop-out layers are active
        and draw from that key only), without one it is evaluated. Pure: nothing is stored between two calls.
      groups: which leaves belong to which hidden neuron; None where there is nothing that may be dropped.
    """

    name: str
    init: Callable[[Key], Params]
    apply: Callable[..., Array]
    groups: NeuronGroups | None = None

    def shapes(self) -> Params:
        """The parameters as ShapeDtypeStructs; computes nothing."""
        return jax.eval_shape(self.init, jax.random.key(0))

    def num_params(self) -> int:
        """P, how many numbers the parameters are."""
        return num_elements(self.shapes())

    def describe(self) -> str:
        """One line per parameter array (path, shape, count), then one per group of neurons."""
        lines = [f"{self.name}: {self.num_params():,} parameters"]
        lines += [f"  {path:<24} {x.shape!s:<20} {x.size:>12,}" for path, x in named_leaves(self.shapes()).items()]
        if self.groups is not None:
            kept = dict(self.groups.min_keep)
            lines += [f"  neurons of {group}: {n}, at least {kept[group]} kept" for group, n in self.groups.sizes]
        return "\n".join(lines)


def from_functions(
    init: Callable[[Key], Params],
    apply: Callable[..., Array],
    groups: Groups = None,
    *,
    name: str = "functions",
    input_shape: Sequence[int] | None = None,
    input_dtype: Any = jnp.float32,
) -> Model:
    """A Model from any pair of functions.

    Args:
      init: key -> tree of float32 arrays.
      apply: (params, x) -> outputs; an argument called ``key`` is passed too, None in evaluation.
      groups: the neuron groups, checked against the shapes of init, or ``derive``.
      name: for reports.
      input_shape, input_dtype: of one example; where given, apply is traced once to find errors early.

    Raises:
      FljaxError: if a parameter is not float32, the groups do not fit, or apply refuses such an input.
    """
    takes_key = "key" in inspect.signature(apply).parameters

    def apply_with_key(params: Params, x: Array, key: Key | None = None) -> Array:
        return apply(params, x, key=key) if takes_key else apply(params, x)

    return _checked(Model(name, init, apply_with_key), groups, input_shape, input_dtype)


def from_nnx(
    make: Callable[[nnx.Rngs], nnx.Module],
    input_shape: Sequence[int],
    groups: Groups = None,
    *,
    name: str | None = None,
    input_dtype: Any = jnp.float32,
) -> Model:
    """A Model from a function that builds a flax nnx module.

    The module is taken apart once into its static graph, its ``nnx.Param`` and its random streams. ``apply`` puts a
    fresh module together from the parameters it is given, so nothing that the module writes survives the call. Streams
    for parameters and for drop-out are separate: a drop-out layer more or less leaves the initial weights unchanged.

    Args:
      make: rngs -> module; ``module(x)`` takes the batch. Drop-out layers are built with ``rngs=rngs``.
      input_shape: shape of one example, without the batch axis.
      groups: the neuron groups, checked against the parameters, or ``derive``.
      name: for reports; by default the class of the module.
      input_dtype: dtype of the examples.

    Raises:
      FljaxError: for mutable state (batch-norm statistics, caches, plain arrays), parameters that are not float32,
        groups that do not fit, or an input that the module refuses.
    """
    module = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    graphs = {}
    module.train()
    graphs[True], params, rest = nnx.split(module, nnx.Param, ...)
    module.eval()
    graphs[False] = nnx.graphdef(module)
    paths = [path for path, _ in nnx.to_flat_state(params)]
    streams = nnx.to_flat_state(rest)
    _refuse_nnx_state(streams)

    def init(key: Key) -> Params:
        default, weights, dropout = jax.random.split(key, 3)
        built = make(nnx.Rngs(default, params=weights, dropout=dropout))
        return _text_keys(nnx.to_pure_dict(nnx.state(built, nnx.Param)))

    def apply(params: Params, x: Array, key: Key | None = None) -> Array:
        weights = nnx.from_flat_state([(path, _at(params, path)) for path in paths])
        random = nnx.from_flat_state(_random_state(streams, jax.random.key(0) if key is None else key))
        return nnx.merge(graphs[key is not None], weights, random)(x)

    return _checked(Model(name or type(module).__name__, init, apply), groups, input_shape, input_dtype)


def from_linen(
    module: Any,
    input_shape: Sequence[int],
    groups: Groups = None,
    *,
    name: str | None = None,
    input_dtype: Any = jnp.float32,
) -> Model:
    """A Model from a flax linen module.

    Where ``module.__call__`` has an argument ``deterministic``, ``train``, ``training`` or ``is_training``, it is set
    by whether ``apply`` is given a key; drop-out layers draw from that key.

    Args, raises: as from_nnx; a collection other than ``params`` is mutable state.
    """
    from flax import linen

    arguments = inspect.signature(type(module).__call__).parameters
    example = jnp.zeros((1, *input_shape), input_dtype)

    def mode(training: bool) -> dict[str, bool]:
        on = {argument: training for argument in ("train", "training", "is_training") if argument in arguments}
        return on | ({"deterministic": not training} if "deterministic" in arguments else {})

    def variables(key: Key) -> dict[str, Any]:
        weights, dropout = jax.random.split(key)
        return module.init({"params": weights, "dropout": dropout}, example, **mode(False))

    for collection, leaves in jax.eval_shape(variables, jax.random.key(0)).items():
        if collection != "params":
            _refuse_state(collection, next(iter(named_leaves(leaves)), collection))

    def init(key: Key) -> Params:
        return linen.unbox(variables(key)).get("params", {})

    def apply(params: Params, x: Array, key: Key | None = None) -> Array:
        rngs = None if key is None else {"dropout": key}
        return module.apply({"params": params}, x, rngs=rngs, **mode(key is not None))

    return _checked(Model(name or type(module).__name__, init, apply), groups, input_shape, input_dtype)


def _checked(model: Model, groups: Groups, input_shape: Sequence[int] | None, input_dtype: Any) -> Model:
    """The model with its groups, after a look at its shapes: errors of the user appear here, not inside a round."""
    shapes = model.shapes()
    for path, leaf in named_leaves(shapes).items():
        if leaf.dtype != jnp.float32:
            raise FljaxError(
                f"Expected parameter {path!r} of dtype {leaf.dtype} to be float32. "
                "Keep the parameters in float32 and compute in a lower precision inside the layers."
            )
    if isinstance(groups, NeuronGroups):
        groups.check(shapes)
    if input_shape is not None:
        x = jax.ShapeDtypeStruct((2, *input_shape), input_dtype)
        for key in (None, jax.random.key(0)):
            _trace(model, shapes, x, key)
    if groups == "derive":
        if input_shape is None:
            raise FljaxError("Expected input_shape for groups='derive': the groups are found by running the model.")
        groups = derive_groups(model.apply, shapes, input_shape)
    return replace(model, groups=groups)


def _trace(model: Model, shapes: Params, x: jax.ShapeDtypeStruct, key: Key | None) -> None:
    try:
        outputs = jax.eval_shape(model.apply, shapes, x, key)
    except FljaxError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise FljaxError(
            f"Expected model {model.name!r} to accept input_shape={tuple(x.shape[1:])} in "
            f"{'evaluation' if key is None else 'training'}, but it raised {type(error).__name__}: {reason}"
        ) from error
    if getattr(outputs, "shape", ())[:1] != x.shape[:1]:
        raise FljaxError(
            f"Expected model {model.name!r} to return one array with the batch as its first axis, got {outputs}. "
            "Return the logits alone and keep the batch axis."
        )


def _refuse_state(kind: str, path: str) -> None:
    raise FljaxError(
        f"Expected a module without mutable state, found {kind} at {path!r}. Use GroupNorm or LayerNorm instead of "
        "BatchNorm: running statistics would leave the client without clipping and noise."
    )


def _refuse_nnx_state(streams: Any) -> None:
    for path, variable in streams:
        if not isinstance(variable, nnx.RngState):
            kind = type(variable).__name__ if isinstance(variable, nnx.Variable) else "a plain array"
            _refuse_state(kind, "/".join(map(str, path)))


def _random_state(streams: Any, key: Key) -> list[tuple[tuple, Array]]:
    """Values for the module's random streams: one key per stream, counters at zero."""
    state = []
    for number, (path, variable) in enumerate(streams):
        if isinstance(variable, nnx.RngKey):
            own = jax.random.fold_in(key, number)
            state.append((path, jax.random.split(own, variable.shape) if variable.shape else own))
        else:
            state.append((path, jnp.zeros(variable.shape, variable.dtype)))
    return state


def _text_keys(tree: Any) -> Any:
    """nnx numbers the members of its lists: turns those keys into text, so that every parameter has a path name."""
    return {str(k): _text_keys(v) for k, v in tree.items()} if isinstance(tree, dict) else tree


def _at(params: Params, path: tuple) -> Array:
    for step in path:
        params = params[str(step)]
    return params
