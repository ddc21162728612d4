"""Attack: which labels a client holds, from what the last layer tells.

For softmax cross-entropy the gradient of the bias of class k is ``mean_i p_k(x_i) - n_k / n``: negative only where the
client holds examples of k. Zhao, Mopuri, Bilen, "iDLG: Improved deep leakage from gradients", 2020 (the sign, for one
example); Wainakh et al., "User-level label leakage from gradients in federated learning", PoPETs 2022: a rule for
counts (LLG), and one that learns from public examples what local steps make of them (LLG+).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fljax.core import tree
from fljax.core.types import Array, Key, Params, PyTree
from fljax.leakage.protocol import Code, last_layer
from fljax.leakage.views import AdversaryView

MADE_UP = 1000
"""Clients that the adversary makes up to learn from."""
RIDGE = 1.0
CONCENTRATIONS = (0.5, np.inf)
"""Made-up clients have few labels, or all: the adversary does not know which."""


def count_labels(gradient: Array, count: Array, most: int) -> Array:
    """Labels of ``count`` examples from the gradient of the last bias [K] -> [most] int32, -1 beyond the count.

    First every class with a negative gradient is taken once, the most negative first; then, until all examples have a
    label, the class that is most negative after each taken example has been paid for with
    ``m = (1 + 1/K) / count * (sum of the negative gradients)``. Any positive factor on the gradient changes nothing.
    """
    classes = gradient.shape[0]
    impact = (1.0 + 1.0 / classes) / jnp.maximum(count, 1) * jnp.sum(jnp.minimum(gradient, 0.0))

    def pick(i, carry):
        left, fresh, labels = carry
        first = jnp.where(fresh, gradient, jnp.inf)
        k = jnp.where(jnp.any(fresh), jnp.argmin(first), jnp.argmin(left))
        return left.at[k].add(-impact), fresh.at[k].set(False), labels.at[i].set(jnp.where(i < count, k, -1))

    start = (gradient, gradient < 0, jnp.full((most,), -1, jnp.int32))
    return jax.lax.fori_loop(0, most, pick, start)[2]


def label_rule(view: AdversaryView) -> np.ndarray | None:
    """Labels behind every update by ``count_labels``: [U, G * M] int32, -1 beyond the number of its examples.

    None where the logits' bias does not travel, or the task has no classes.
    """
    found = _sent(view)
    if found is None:
        return None
    counts, most = _counts(view)
    bias = found[:, : view.protocol.num_classes]
    return np.asarray(jax.jit(jax.vmap(lambda g, n: count_labels(g, n, most)))(-bias, counts))


def infer_labels(key: Key, view: AdversaryView) -> np.ndarray | None:
    """The same, learnt: made-up clients of public examples are run through the client's own algorithm.

    A ridge regression takes bias and column sums of the last layer, scaled to length 1, to the shares of the labels;
    shares are rounded to counts by largest remainders. Sums of G clients are learnt from sums of G made-up ones.
    """
    found = _sent(view)
    if found is None:
        return None
    uploads, protocol = view.need("uploads"), view.protocol
    clients, size = uploads.sizes.shape[1], int(np.median(np.asarray(uploads.sizes)))
    random = np.random.default_rng(np.asarray(jax.random.key_data(key)).astype(np.uint64).tolist())
    y = np.asarray(protocol.public_y)
    rows = np.concatenate([made_up_clients(random, y, MADE_UP // 2, size, c) for c in CONCENTRATIONS])
    features, shares = _simulated(view, rows), _shares(y[rows], protocol.num_classes)
    if clients > 1:
        groups = random.integers(0, len(rows), (MADE_UP, clients))
        features, shares = features[groups].sum(1), shares[groups].mean(1)
    guessed = _ridge(_unit(features), shares, _unit(np.asarray(found, np.float64)))
    counts, most = _counts(view)
    return np.stack([_rounded(share, int(n), most) for share, n in zip(guessed, np.asarray(counts), strict=True)])


def made_up_clients(
    random: np.random.Generator, y: np.ndarray, count: int, size: int, concentration: float
) -> np.ndarray:
    """Examples of made-up clients, as rows of a pool: [count, size] indices, drawn with replacement.

    Every client draws shares of the labels from a symmetric Dirichlet distribution, then examples by them.

    Args:
      y: [n] labels of the pool. concentration: of the Dirichlet distribution; infinite: the pool's own shares.
    """
    if not np.isfinite(concentration):
        return random.integers(0, len(y), (count, size))
    classes, place = np.unique(y, return_inverse=True)
    rows = [np.flatnonzero(place == k) for k in range(len(classes))]
    shares = random.dirichlet(np.full(len(classes), concentration), count)
    drawn = [random.multinomial(size, share) for share in shares]
    pick = [[random.choice(rows[k], n) for k, n in enumerate(counts) if n] for counts in drawn]
    return np.stack([np.concatenate(parts) for parts in pick])


def _sent(view: AdversaryView) -> Array | None:
    """Bias and column sums of the last layer in every update: [U, 2 K]."""
    if view.protocol.loss.name != "classification":
        return None
    paths = last_layer(view.protocol, view.need("model"))
    sent: dict[str, Any] = tree.named_leaves(view.need("uploads").update)
    return None if paths is None or not {*paths} <= set(sent) else jax.vmap(lambda u: _ends(u, paths))(sent)


def _ends(leaves: dict[str, Array], paths: tuple[str, str]) -> Array:
    return jnp.concatenate([leaves[paths[1]], jnp.sum(leaves[paths[0]], axis=0)])


def _counts(view: AdversaryView) -> tuple[Array, int]:
    """(examples behind every update [U], places for their labels)."""
    sizes = view.need("uploads").sizes
    return jnp.sum(sizes, axis=1), int(np.max(np.asarray(sizes))) * sizes.shape[1]


def _simulated(view: AdversaryView, rows: np.ndarray) -> np.ndarray:
    """What made-up clients would send, each under the mask of one of the victims: [n, 2 K]."""
    model, protocol, mask = view.need("model"), view.protocol, view.need("uploads").mask
    paths = last_layer(protocol, model)
    examples = jnp.asarray(rows), protocol.public_x, protocol.public_y
    return np.asarray(_ends_of_clients(model, mask, *examples, code=protocol.code, paths=paths), np.float64)


@partial(jax.jit, static_argnames=("code", "paths"))
def _ends_of_clients(model: Params, mask: PyTree, rows: Array, x: Array, y: Array, *, code: Code, paths) -> Array:
    masks = jax.tree.leaves(mask)[0].shape[0]

    def one(args) -> Array:
        chosen, victim = args
        mine = jax.tree.map(lambda m: m[victim], mask)
        size = jnp.int32(rows.shape[1])
        return _ends(tree.named_leaves(code.simulate(model, mine, x[chosen], y[chosen], size)), paths)

    return jax.lax.map(one, (rows, jnp.arange(len(rows)) % masks), batch_size=code.at_once)


def _shares(labels: np.ndarray, classes: int) -> np.ndarray:
    return np.stack([np.bincount(row, minlength=classes) / len(row) for row in labels])


def _unit(values: np.ndarray) -> np.ndarray:
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-30)


def _ridge(known: np.ndarray, targets: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Ridge regression with an intercept on standardised features: [n, d], [n, K], [m, d] -> [m, K]."""
    mean, spread = known.mean(0), known.std(0) + 1e-9
    known, asked = ((v - mean) / spread for v in (known, asked))
    weights = np.linalg.solve(known.T @ known + RIDGE * np.eye(known.shape[1]), known.T @ (targets - targets.mean(0)))
    return asked @ weights + targets.mean(0)


def _rounded(share: np.ndarray, count: int, most: int) -> np.ndarray:
    """Shares of labels -> ``count`` labels in turn, -1 behind them: [most]. Largest remainders."""
    share = np.maximum(share, 0.0)
    exact = share / max(share.sum(), 1e-30) * count
    counts = np.floor(exact).astype(int)
    counts[np.argsort(counts - exact, kind="stable")[: count - counts.sum()]] += 1
    turns = [k for turn in range(int(counts.max(initial=0))) for k in np.flatnonzero(counts > turn)]
    return np.array((turns + [-1] * most)[:most], np.int32)
