"""The two models in plain JAX, on the problem's own parameters."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Params = dict[str, jax.Array]


def forward(model: str, params: Params, x: jax.Array) -> jax.Array:
    """Scores [B, classes] of ``cnn`` or ``mlp``, with XLA's own convolution."""
    if model == "cnn":
        for name in ("conv_0", "conv_1"):
            kernel, bias = params[f"{name}/kernel"], params[f"{name}/bias"]
            x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            x = jax.nn.relu(x + bias)
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        x = x.reshape(x.shape[0], -1)
    x = jax.nn.relu(x @ params["dense_0/kernel"] + params["dense_0/bias"])
    return x @ params["dense_1/kernel"] + params["dense_1/bias"]


def mean_loss(model: str, params: Params, x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean cross-entropy of a batch."""
    scores = jax.nn.log_softmax(forward(model, params, x))
    return -jnp.mean(jnp.take_along_axis(scores, y[:, None], axis=1))
