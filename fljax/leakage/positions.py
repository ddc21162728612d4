"""Attack: a client's most frequent label from whose neurons it kept, and nothing else.

The adversary plays clients: it gives made-up clients labels and examples of its own, lets the experiment's own code
choose their neurons under the model of the round, and fits a logistic regression from mask bits to the label. A mask
that follows from private data is a message of its own; noise on the values does not hide it.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fljax.core.types import Array
from fljax.leakage.views import AdversaryView

STEPS = 300
PENALTY = 1e-3
"""Weight of the squared weights, for bits that are many and clients that are few."""


class Classifier(NamedTuple):
    """Multinomial logistic regression. weights [H, K], bias [K]."""

    weights: Array
    bias: Array

    def predict(self, bits: Array) -> Array:
        """Bits [n, H] -> classes [n]."""
        return jnp.argmax(bits @ self.weights + self.bias.reshape(1, -1), axis=-1)


@jax.jit
def _loss(model: Classifier, bits: Array, onehot: Array) -> Array:
    logits = bits @ model.weights + model.bias.reshape(1, -1)
    return jnp.mean(optax.softmax_cross_entropy(logits, onehot)) + PENALTY * jnp.sum(jnp.square(model.weights))


def fit(bits: Array, labels: Array, classes: int) -> Classifier:
    """Logistic regression by ``STEPS`` steps of Adam. bits [n, H] 0/1, labels [n] below ``classes``."""
    onehot, adam = jax.nn.one_hot(labels, classes), optax.adam(0.05)
    start = Classifier(jnp.zeros((bits.shape[1], classes)), jnp.zeros(classes))

    def step(carry, _):
        model, state = carry
        change, state = adam.update(jax.grad(_loss)(model, bits, onehot), state)
        return (optax.apply_updates(model, change), state), None

    run = jax.jit(lambda: jax.lax.scan(step, (start, adam.init(start)), length=STEPS)[0][0])
    return run()


def as_bits(neurons: dict[str, Array]) -> Array:
    """Masks of all layers side by side: {group: [n, size]} -> [n, H], centred."""
    return jnp.concatenate([jnp.asarray(neurons[g], jnp.float32) for g in sorted(neurons)], axis=1) - 0.5


class Shadows(NamedTuple):
    """Clients that the adversary made up: what they would keep, and their most frequent label [n]."""

    neurons: dict[str, Array]
    labels: Array


def guess_labels(view: AdversaryView, shadows: Shadows) -> np.ndarray:
    """The most frequent label of every client of the view, from its positions: [n_clients]."""
    model = fit(as_bits(shadows.neurons), shadows.labels, view.protocol.num_classes)
    return np.asarray(model.predict(as_bits(view.need("neurons"))))


def dominant(y: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Most frequent label of clients: y [n, M], of which the first sizes [n] count -> [n]; ties to the smallest."""
    return np.array([np.argmax(np.bincount(row[:n])) if n else -1 for row, n in zip(y, sizes, strict=True)])
