"""Evaluation inside the scan: the global test set, every client's own, and clients that never trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fljax.core.types import Array, LocalUpdate, Params, PyTree
from fljax.robust.poison import Goal

BATCH = 1024
CLIENTS_AT_ONCE = 64


class Held(NamedTuple):
    """Data of the evaluation, an argument of the compiled program: test examples; per-client data or None."""

    test: Any
    client_test: Any
    unseen: Any


def held_data(dataset: Any) -> Held:
    """What an evaluation needs of a data set."""
    return Held(dataset.test, dataset.client_test, dataset.unseen)


def make_evaluate(
    model: Any, loss: Any, local: LocalUpdate, goal: Goal | None = None
) -> Callable[[Params, PyTree, Held], dict[str, Array]]:
    """Builds (shared params, client states, held data) -> metrics, all () float32.

    ``test_*``: mean over the global test set, of the shared model, where it is whole. ``client_*_mean``,
    ``client_*_p10``: over clients with test data of their own, each with its personal model where it has one.
    ``unseen_*``: the same mean over clients with data that never train, with the shared model.
    ``test_attack_success``: with a goal, the share of the test examples that it is tried on which are taken for its
    target.
    """

    def values(params: Params, x: Array, y: Array) -> dict[str, Array]:
        outputs = model.apply(params, x)
        return {"loss": loss.per_example(outputs, y), **loss.metrics(outputs, y)}

    def evaluate(params: Params, states: PyTree, held: Held) -> dict[str, Array]:
        whole = not local.split(jax.eval_shape(model.init, jax.random.key(0)))[1]
        metrics = {}
        if whole:
            each = _in_batches(lambda x, y: values(params, x, y), held.test.x, held.test.y)
            metrics |= {f"test_{name}": jnp.mean(v) for name, v in each.items()}
        if whole and goal is not None:
            metrics["test_attack_success"] = _success(model, params, held.test, goal)
        if held.client_test is not None:
            if local.personal is None:
                each = _by_client(values, params, held.client_test)
            else:
                each = _personal(values, local, params, states[0], held.client_test)
            for name, v in each.items():
                known = _known(v, held.client_test)
                metrics[f"client_{name}_mean"] = jnp.nanmean(known)
                metrics[f"client_{name}_p10"] = jnp.nanpercentile(known, 10.0)
        if held.unseen is not None and whole:
            each = _by_client(values, params, held.unseen)
            metrics |= {f"unseen_{name}": jnp.nanmean(_known(v, held.unseen)) for name, v in each.items()}
        return metrics

    return evaluate


def _success(model: Any, params: Params, test: Any, goal: Goal) -> Array:
    """Share of the examples that a goal counts which the model takes for its target."""

    def tried(x: Array, y: Array) -> dict[str, Array]:
        counts = goal.counts(y)
        hit = jnp.argmax(model.apply(params, goal.change(x)), axis=-1) == goal.target
        return {"hit": (hit & counts).astype(jnp.float32), "counts": counts.astype(jnp.float32)}

    each = _in_batches(tried, test.x, test.y)
    return jnp.sum(each["hit"]) / jnp.maximum(jnp.sum(each["counts"]), 1.0)


def _in_batches(function: Callable, x: Array, y: Array) -> dict[str, Array]:
    """function(x, y) -> {name: [n]} over n examples, a batch at a time so that memory does not grow with n."""
    n = x.shape[0]
    if n <= BATCH:
        return function(x, y)
    count = -(-n // BATCH)
    rows = jnp.minimum(jnp.arange(count * BATCH), n - 1).reshape(count, BATCH)
    each = jax.lax.map(lambda r: function(x[r], y[r]), rows)
    return jax.tree.map(lambda v: v.reshape(-1)[:n], each)


def _by_client(values: Callable, params: Params, data: Any) -> dict[str, Array]:
    """Means per client [N] of one model: evaluate the packed examples once, then average within clients."""
    each = _in_batches(lambda x, y: values(params, x, y), data.x, data.y)
    n = data.x.shape[0]
    owner = jnp.searchsorted(data.offsets, jnp.arange(n), side="right") - 1
    sizes = jnp.maximum(data.size_of(jnp.arange(data.population)), 1)
    return {name: jax.ops.segment_sum(v, owner, data.population) / sizes for name, v in each.items()}


def _known(values: Array, data: Any) -> Array:
    """Values per client [N], NaN for clients without data, who have no score."""
    return jnp.where(data.size_of(jnp.arange(data.population)) > 0, values, jnp.nan)


def _personal(values: Callable, local: LocalUpdate, params: Params, states: PyTree, data: Any) -> dict[str, Array]:
    """Means per client [N], each with its own model."""

    def one(client: Array) -> dict[str, Array]:
        assert local.personal is not None
        shard = data.take(client, client)
        positions = jnp.arange(data.max_size)
        batch = shard.batch(positions, positions < shard.size)
        own = local.personal(params, jax.tree.map(lambda s: s[client], states))
        count = jnp.maximum(jnp.sum(batch.mask), 1.0)
        return {n: jnp.sum(v * batch.mask) / count for n, v in values(own, batch.x, batch.y).items()}

    return jax.lax.map(one, jnp.arange(data.population), batch_size=CLIENTS_AT_ONCE)
