"""Attack: examples whose simulated update looks like the one that was seen, by gradient descent on the examples.

The adversary runs the client's own algorithm on made-up examples and moves these until the update points the same way:
``min_x 1 - cos(update(x, y), seen) + tv TV(x)`` with Adam within the range of the inputs. It knows masks, local steps
and learning rates, and looks only at coordinates that were sent. Zhu, Liu, Han, "Deep leakage from gradients", NeurIPS
2019; Geiping et al., "Inverting gradients: how easy is it to break privacy in federated learning?", NeurIPS 2020.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fljax.core import tree
from fljax.core.types import Array, Key, Params, PyTree
from fljax.leakage.protocol import Code
from fljax.leakage.views import AdversaryView, Uploads


class Effort(NamedTuple):
    """How hard the adversary tries. iterations: of Adam. restarts: from other random examples, the best of which by the
    adversary's own objective is kept. rate: of Adam, a tenth of it after each of 3/8, 5/8 and 7/8 of the iterations.
    smooth: weight of total variation."""

    iterations: int = 400
    restarts: int = 1
    rate: float = 0.1
    smooth: float = 1e-3


def total_variation(x: Array, image: tuple[int, int, int] | None) -> Array:
    """Mean absolute difference of neighbouring pixels, over a batch [M, ...]: (); 0 where examples are no images."""
    if image is None:
        return jnp.float32(0.0)
    pixels = x.reshape(-1, *image)
    down, right = jnp.diff(pixels, axis=1), jnp.diff(pixels, axis=2)
    return jnp.mean(jnp.abs(down)) + jnp.mean(jnp.abs(right))


def misfit(guess: PyTree, seen: PyTree) -> Array:
    """``1 - cos`` of two trees: () float32, in [0, 2]; no factor on either changes it."""
    pairs = zip(jax.tree.leaves(guess), jax.tree.leaves(seen), strict=True)
    inner = sum((jnp.sum(a * b) for a, b in pairs), jnp.float32(0.0))
    size = jnp.sqrt(tree.squared_norm(guess) * tree.squared_norm(seen) + 1e-20)
    return 1.0 - inner / size


def invert(key: Key, view: AdversaryView, labels: Array | np.ndarray, effort: Effort = Effort()) -> tuple[Array, Array]:
    """Reconstructs the examples behind every update of the view.

    Args:
      key: for starting points. view: with model and uploads. labels: [U, G * M], of ``infer_labels``: those of the
        examples come first.
      effort: how hard to try.

    Returns:
      (examples [U, G * M, ...], the objective that was reached [U]). Client g's examples stand at g M .. g M + size.
    """
    uploads = view.need("uploads")
    count = labels.shape[0]
    keys = jax.random.split(key, count)
    y = jax.vmap(_in_place)(jnp.asarray(labels), uploads.sizes)
    return _solve(view.need("model"), keys, uploads, y, code=view.protocol.code, effort=effort)


def real_examples(sizes: Array, most: int) -> Array:
    """Which of G * most places hold an example: sizes [G] -> [G * most] bool."""
    return (jnp.arange(most).reshape(1, -1) < sizes.reshape(-1, 1)).reshape(-1)


def _in_place(labels: Array, sizes: Array) -> Array:
    """Labels [G * M], those of examples first -> the same at the places of examples, class 0 elsewhere."""
    real = real_examples(sizes, labels.shape[0] // sizes.shape[0])
    return jnp.where(real, labels[jnp.maximum(jnp.cumsum(real) - 1, 0)], 0)


@partial(jax.jit, static_argnames=("code", "effort"))
def _solve(model: Params, keys: Key, uploads: Uploads, labels: Array, *, code: Code, effort: Effort):
    """The compiled attack: keys [U], labels [U, G * M] -> (examples, objective)."""

    def one(args):
        key, update, mask, sizes, y = args
        starts = jax.random.split(key, effort.restarts)
        tried, reached = jax.vmap(lambda k: _descend(k, code, effort, model, update, mask, sizes, y))(starts)
        best = jnp.argmin(jnp.where(jnp.isfinite(reached), reached, jnp.inf))
        return tried[best], reached[best]

    args = (keys, uploads.update, uploads.mask, uploads.sizes, labels)
    return jax.lax.map(one, args, batch_size=min(code.at_once, keys.shape[0]))


def _descend(
    key: Key, code: Code, effort: Effort, model: Params, seen: PyTree, mask: PyTree, sizes: Array, y: Array
) -> tuple[Array, Array]:
    """One attempt at one update: (examples [G * M, ...], objective)."""
    clients, low, high = sizes.shape[0], code.low, code.high
    total, shape = y.shape[0], code.input_shape
    seen = tree.keep(seen, mask)

    def simulated(x: Array) -> PyTree:
        each = (x.reshape(clients, total // clients, *shape), y.reshape(clients, -1), sizes)
        if clients == 1:
            return code.simulate(model, mask, *(part[0] for part in each))
        updates = jax.vmap(partial(code.simulate, model, mask))(*each)
        return jax.tree.map(lambda u: jnp.sum(u, axis=0), updates)

    def objective(x: Array) -> Array:
        return misfit(simulated(x), seen) + effort.smooth * total_variation(x, code.image) / (high - low)

    drops = [effort.iterations * k // 8 for k in (3, 5, 7)]
    adam = optax.adam(optax.piecewise_constant_schedule(effort.rate * (high - low), dict.fromkeys(drops, 0.1)))
    x = low + (high - low) * jax.random.uniform(key, (total, *shape))

    def step(carry, _):
        x, state = carry
        change, state = adam.update(jax.grad(objective)(x), state)
        return (jnp.clip(x + jnp.asarray(change), low, high), state), None

    (x, _), _ = jax.lax.scan(step, (x, adam.init(x)), length=effort.iterations)
    return x, objective(x)
