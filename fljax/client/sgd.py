"""Local training by stochastic gradient descent (or any optax optimiser), and plain gradients.

FedAvg and FedSGD: McMahan, Moore, Ramage, Hampson, Agüera y Arcas, "Communication-efficient learning of deep networks
from decentralized data", AISTATS 2017. Partial sharing: Arivazhagan et al., "Federated learning with personalization
layers", 2019.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fljax.client.batches import Plan, plan_steps
from fljax.core import tree
from fljax.core.check import FljaxError, positive
from fljax.core.keys import stream
from fljax.core.types import Array, Ctx, Key, LocalUpdate, Params, PyTree

OptimiserFactory = Callable[[Any], optax.GradientTransformation]
"""learning rate (may be traced) -> optax optimiser: ``optax.sgd`` or ``lambda lr: optax.adam(lr, b1=0.8)``."""


class Training(NamedTuple):
    """How a client trains: static structure, shared by all algorithms of this folder.

    model: with apply(params, x, key). loss: with per_example(outputs, y) -> [B].
    optimiser: factory of the local optimiser, reset every round.
    epochs | steps: exactly one of them. batch_size: B, or None for full batches.
    scaler: (ctx, params) -> the parameters that the forward pass uses, or None (HeteroFL's rescaled sub-models).
    present_classes: logits of classes that a client has no example of are held at 0 (HeteroFL's masked loss).
    objective: (key, ctx, params, batch) -> () loss of one step, in the place of the mean loss of the batch, or None;
      with it neither scaler nor present_classes is used (FjORD's random widths).
    """

    model: Any
    loss: Any
    optimiser: OptimiserFactory = optax.sgd
    epochs: int | None = 1
    steps: int | None = None
    batch_size: int | None = None
    scaler: Callable[[Ctx, Params], Params] | None = None
    present_classes: bool = False
    objective: Callable[[Key, Ctx, Params, Any], Array] | None = None

    def check(self) -> Training:
        """Raises FljaxError unless the numbers make sense; returns itself."""
        if (self.epochs is None) == (self.steps is None):
            raise FljaxError(f"Expected one of epochs={self.epochs}, steps={self.steps}. Set the other one to None.")
        positive(local_epochs_or_steps=self.steps if self.epochs is None else self.epochs)
        if self.batch_size is not None:
            positive(remedy="Use None for full batches.", batch_size=self.batch_size)
        return self


def schedule(base: Array, decay: Array, warmup: Array, t: Array) -> Array:
    """Learning rate of round t: ``base * decay^t * min(1, (t + 1) / warmup)``, all of it traced."""
    ramp = jnp.where(warmup > 0, jnp.minimum(1.0, (t + 1) / jnp.maximum(warmup, 1.0)), 1.0)
    return base * decay**t * ramp


def client_rate(ctx: Ctx) -> Array:
    """The local learning rate of this round."""
    h = ctx.hparams
    return schedule(h.client_lr, h.client_lr_decay, h.lr_warmup, ctx.round)


def batch_loss(training: Training, params: Params, batch, key: Key | None, present: Array | None = None) -> Array:
    """Mean loss over the valid examples of a batch: () float32; 0 for a batch without any.

    Args:
      present: None, or [K] 1 for the classes whose logits count; the others are held at 0.
    """
    outputs = training.model.apply(params, batch.x, key)
    if present is not None:
        outputs = jnp.where(present > 0, outputs, 0.0)
    losses = training.loss.per_example(outputs, batch.y)
    return jnp.sum(losses * batch.mask) / jnp.maximum(jnp.sum(batch.mask), 1.0)


def train(
    key: Key,
    ctx: Ctx,
    training: Training,
    params: Params,
    shard,
    *,
    mask: PyTree = None,
    correction: Callable[[Params], PyTree] | None = None,
) -> tuple[Params, Array, Array | int]:
    """Trains one client's copy of the parameters on its own data.

    Args:
      key: consumed; shuffling and drop-out layers.
      ctx: the round's numbers (learning rate).
      training: model, loss, optimiser, length.
      params: where to start.
      shard: the client's data.
      mask: None, or a 0/1 tree like params: gradients, momentum and weight decay are exactly zero off the mask.
      correction: added to every gradient: params -> tree (proximal term, control variates).

    Returns:
      (trained params, () mean training loss over the steps, number of steps taken).
    """
    plan = plan_steps(
        stream(key, "sample"), shard, epochs=training.epochs, steps=training.steps, batch_size=training.batch_size
    )
    optimiser = training.optimiser(client_rate(ctx))
    whole = shard.batch(*plan.batch(0)) if plan.full_batch else None
    scaled = (lambda p: p) if training.scaler is None else (lambda p: training.scaler(ctx, p))
    present = classes_of(training, params, shard) if training.present_classes else None

    def step(i, carry):
        params, opt_state, seen = carry
        batch = whole if whole is not None else shard.batch(*plan.batch(i))
        drop = jax.random.fold_in(key, i)
        loss = lambda p: batch_loss(training, scaled(p), batch, drop, present)  # noqa: E731
        if training.objective is not None:
            loss = lambda p: training.objective(drop, ctx, p, batch)  # noqa: E731
        value, grads = jax.value_and_grad(loss)(params)
        if correction is not None:
            grads = jax.tree.map(jnp.add, grads, correction(params))
        updates, opt_state = optimiser.update(tree.keep(grads, mask), opt_state, params)
        return tree.where(mask, optax.apply_updates(params, updates), params), opt_state, seen + value

    params, _, seen = _repeat(plan, step, (params, optimiser.init(params), jnp.float32(0.0)))
    return params, seen / jnp.maximum(plan.steps, 1), plan.steps


def classes_of(training: Training, params: Params, shard) -> Array:
    """Which classes a client has examples of: [1, K] float32, 1 or 0."""
    batch = shard.batch(jnp.arange(shard.max_size), jnp.arange(shard.max_size) < shard.size)
    count = jax.eval_shape(lambda p: training.model.apply(p, batch.x[:1], None), params).shape[-1]
    return jnp.zeros((1, count)).at[0, batch.y].max(batch.mask)


def _repeat(plan: Plan, step: Callable, carry):
    """The steps of a plan; a single step needs no loop."""
    if isinstance(plan.steps, int) and plan.steps == 1:
        return step(0, carry)
    return jax.lax.fori_loop(0, plan.steps, step, carry)


def share_all(params: Params) -> tuple[Params, dict]:
    """Every parameter travels."""
    return params, {}


def share_only(paths: Sequence[str]) -> Callable[[Params], tuple[Params, dict]]:
    """Only parameters below the given paths travel (``["dense_0"]``: the first layer); the rest stays with the client.

    Raises FljaxError if a path matches no parameter, or if nothing is shared.
    """

    def below(path: str, root: str) -> bool:
        return path == root or path.startswith(root + "/")

    def split(params: Params):
        names = list(tree.named_leaves(params))
        for root in paths:
            if not any(below(name, root) for name in names):
                raise FljaxError(f"Expected shared path {root!r} to name a parameter. There are {', '.join(names)}.")
        return tree.split_paths(params, lambda path: any(below(path, root) for root in paths))

    if not paths:
        raise FljaxError("Expected shared=[] to name at least one path. Leave it out to share all parameters.")
    return split


def fedavg_update(training: Training, shared: Sequence[str] | None = None) -> LocalUpdate:
    """Model aggregation: train locally, send the difference ``w_k - w``.

    Args:
      training: how a client trains.
      shared: None, or the parameter paths that are shared. The others are private: each client starts from the
        model's initial values, keeps its own between rounds, and never sends them.
    """
    return difference_update(training.check(), share_all if shared is None else share_only(shared))


def difference_update(
    training: Training, split: Callable, proximal: Callable[[Ctx, Params, Params], PyTree] | None = None
) -> LocalUpdate:
    """FedAvg's client with an optional term in the gradient: proximal(ctx, params, broadcast params) -> tree."""

    def init(key, params, hparams):
        del key, hparams
        return (), split(params)[1]

    def run(key, ctx, broadcast, client_state, shard):
        start = tree.keep(broadcast.params, broadcast.mask)
        full = tree.merge_paths(start, client_state) if client_state else start
        mask = broadcast.mask
        if mask is not None and client_state:
            mask = tree.merge_paths(mask, jax.tree.map(jnp.ones_like, client_state))
        correction = None if proximal is None else (lambda params: proximal(ctx, params, full))
        trained, loss, steps = train(key, ctx, training, full, shard, mask=mask, correction=correction)
        sent, kept = split(trained) if client_state else (trained, client_state)
        return difference(sent, start, shard), kept, {"loss": loss, "steps": jnp.float32(steps)}

    def personal(params, client_state):
        return tree.merge_paths(params, client_state)

    return LocalUpdate(split, init, run, keep_algorithm, None if split is share_all else personal)


def difference(new: Params, old: Params, shard) -> dict[str, PyTree]:
    """The payload of a client: what it changed, and how many examples it has."""
    return {"update": jax.tree.map(jnp.subtract, new, old), "weight": shard.size.astype(jnp.float32)}


def keep_algorithm(ctx: Ctx, state, total):
    """absorb of an algorithm without server-side state."""
    del ctx, total
    return state


def fedsgd_update(training: Training) -> LocalUpdate:
    """Gradient aggregation: send minus the gradient of the client's mean loss over all its examples.

    The gradient is summed over batches of training.batch_size examples, so that memory does not grow with the shard.
    With the average weighted by examples it is the gradient of the pooled data; minus, so that the server may treat
    it like any other update.
    """
    whole = training._replace(epochs=1, steps=None).check()

    def init(key, params, hparams):
        del key, params, hparams
        return (), {}

    def run(key, ctx, broadcast, client_state, shard):
        del ctx
        plan = plan_steps(key, shard, epochs=1, steps=None, batch_size=whole.batch_size)
        params = tree.keep(broadcast.params, broadcast.mask)

        def total_loss(p, batch, k):
            losses = whole.loss.per_example(whole.model.apply(p, batch.x, k), batch.y)
            return jnp.sum(losses * batch.mask)

        def step(i, carry):
            batch = shard.batch(*plan.batch(i))
            value, grads = jax.value_and_grad(total_loss)(params, batch, jax.random.fold_in(key, i))
            return jax.tree.map(jnp.add, carry, (grads, value))

        zero = (jax.tree.map(jnp.zeros_like, params), jnp.float32(0.0))
        grads, loss = _repeat(plan, step, zero)
        size = jnp.maximum(shard.size, 1)
        update = tree.keep(jax.tree.map(lambda g: -g / size, grads), broadcast.mask)
        payload = {"update": update, "weight": shard.size.astype(jnp.float32)}
        return payload, client_state, {"loss": loss / size, "steps": jnp.float32(1.0)}

    return LocalUpdate(share_all, init, run, keep_algorithm)
