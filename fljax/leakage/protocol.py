"""What everybody may know: the code. How a client turns examples into an update, and how the model reads its input."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fljax.core import tree
from fljax.core.types import Array, Broadcast, Ctx, LocalUpdate, Params, PyTree
from fljax.data.federated import Shard
from fljax.models import Loss, Model


class Code(NamedTuple):
    """The hashable part of a protocol, a static argument of compiled attacks: equal code is compiled once. Fields as in
    ``Protocol``."""

    simulate: Callable[[Params, PyTree, Array, Array, Array], PyTree]
    input_shape: tuple[int, ...]
    image: tuple[int, int, int] | None
    low: float
    high: float
    at_once: int


class Protocol(NamedTuple):
    """The public part of an experiment, as an adversary can run it itself.

    simulate: (params, mask, x [M, ...], y [M], size ()) -> update of ONE client that holds the first ``size`` examples.
    model, loss: of the experiment. input_shape: of one example. image: (H, W, c) of one example, or None.
    low, high: the range of the inputs. public_x, public_y: examples that anybody may have. num_classes: K.
    at_once: clients that are simulated at the same time; a matter of speed alone.
    """

    simulate: Callable[[Params, PyTree, Array, Array, Array], PyTree]
    model: Model
    loss: Loss
    input_shape: tuple[int, ...]
    image: tuple[int, int, int] | None
    low: float
    high: float
    public_x: Array
    public_y: Array
    num_classes: int
    at_once: int

    @property
    def code(self) -> Code:
        """What compiled attacks depend on beside arrays."""
        return Code(self.simulate, self.input_shape, self.image, self.low, self.high, self.at_once)


def client_simulator(local: LocalUpdate, ctx: Ctx, algorithm: PyTree, client_state: PyTree, in_forward: bool):
    """The client's own algorithm as a differentiable function of its data.

    Args:
      local: the clients' algorithm. ctx: of the round, on the server. algorithm: server-side state, sent to clients.
      client_state: what an adversary takes a client's private state for: its initial one.
      in_forward: clients train within their mask (else they train all and send the mask's part).

    Returns:
      ``Protocol.simulate``. Shuffling and drop-out use a key of the adversary: it cannot know the client's.
    """
    key = jax.random.key(0)

    def simulate(params: Params, mask: PyTree, x: Array, y: Array, size: Array) -> PyTree:
        count = x.shape[0]  # one length for all, so that loops have a static length and can be differentiated
        shard = Shard(x, y, jnp.int32(0), size, count, count)
        broadcast = Broadcast(params, algorithm, mask if in_forward else None)
        payload, *_ = local.run(key, ctx, broadcast, client_state, shard)
        return tree.keep(payload["update"], mask)

    return simulate


def last_layer(protocol: Protocol, params: Params) -> tuple[str, str] | None:
    """(kernel, bias) of the dense layer that makes the logits, its bias found by moving it; None without one."""
    x, classes = jnp.zeros((1, *protocol.input_shape)), protocol.num_classes
    step, leaves = jnp.arange(1.0, classes + 1), tree.named_leaves(params)
    for bias, leaf in leaves.items():
        kernel = bias.removesuffix("bias") + "kernel"
        if leaf.shape != (classes,) or kernel not in leaves or leaves[kernel].ndim != 2:
            continue
        moved = _replaced(params, bias, lambda b: b + step)
        change = protocol.model.apply(moved, x) - protocol.model.apply(params, x)
        if np.allclose(change, step.reshape(1, -1), rtol=1e-3, atol=1e-3):
            return kernel, bias
    return None


def first_layer(protocol: Protocol, params: Params) -> tuple[str, str] | None:
    """(kernel, bias) of a dense layer that reads the raw input, found by what it must keep: moving all inputs by d and
    the bias by ``-W'd`` changes nothing. None where the first layer is of another kind."""
    model, input_shape = protocol.model, protocol.input_shape
    features, leaves = int(np.prod(input_shape)), tree.named_leaves(params)
    x = jnp.linspace(0.0, 1.0, features).reshape(1, *input_shape)
    shift = 0.1 * jnp.cos(jnp.arange(features, dtype=jnp.float32))
    for path, kernel in leaves.items():
        bias = path.removesuffix("kernel") + "bias"
        if not path.endswith("kernel") or kernel.ndim != 2 or kernel.shape[0] != features or bias not in leaves:
            continue
        moved = _replaced(params, bias, lambda leaf, w=kernel: leaf - shift @ w)
        same = model.apply(params, x), model.apply(moved, x + shift.reshape(1, *input_shape))
        if np.allclose(*same, rtol=1e-3, atol=1e-3):
            return path, bias
    return None


def _replaced(params: Params, path: str, change: Callable[[Array], Array]) -> Params:
    return jax.tree_util.tree_map_with_path(lambda p, x: change(x) if tree.path_name(p) == path else x, params)
