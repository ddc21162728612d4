"""Attack: reading examples off the gradient of the first dense layer, without any optimisation.

For a layer ``z = W'x + b`` the gradients of neuron j are ``sum_i d_ij x_i`` and ``sum_i d_ij``. Where one example alone
moves the neuron, their quotient *is* that example; else it is a weighted mean of several. The same holds for an update
after any number of local steps on one example. Phong et al., "Privacy-preserving deep learning via additively
homomorphic encryption", 2017; Geiping et al., "Inverting gradients", NeurIPS 2020, proposition 3.1.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fljax.core import tree
from fljax.core.types import Array
from fljax.leakage.protocol import first_layer
from fljax.leakage.views import AdversaryView

SMALLEST = 1e-12
"""A bias that moved less tells nothing."""


def quotients(kernel: Array, bias: Array) -> tuple[Array, Array]:
    """Candidates of one update: kernel [D, n], bias [n] -> (examples [n, D], whether the neuron tells one [n])."""
    told = jnp.abs(bias) > SMALLEST
    return (kernel / jnp.where(told, bias, 1.0).reshape(1, -1)).T, told


def invert_first_layer(view: AdversaryView) -> tuple[Array, Array] | None:
    """Candidates from every update: (examples [U, n, ...] within the range of inputs, told [U, n] bool).

    None where the first layer is not dense, or does not travel.
    """
    uploads, protocol = view.need("uploads"), view.protocol
    paths = first_layer(protocol, view.need("model"))
    sent = tree.named_leaves(uploads.update)
    if paths is None or paths[0] not in sent or paths[1] not in sent:
        return None
    values, told = jax.jit(jax.vmap(quotients))(sent[paths[0]], sent[paths[1]])
    inside = jnp.clip(values, protocol.low, protocol.high)
    return inside.reshape(*inside.shape[:2], *protocol.input_shape), told
