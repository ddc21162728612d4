"""Layers as pure functions of their own parameters.

Every size is read off the shapes of the parameters and none is stored: the same function computes the whole model and
the smaller one that is left when neurons are cut out. What the shapes cannot tell, the width of an attention head or of
a norm group, belongs to a neuron, never to the number of neurons.

A dropped neuron has weights, scale and bias of exactly zero and then puts out exactly zero, through ReLU, GELU, tanh,
pooling and recurrence alike. Normalisation is what could let it be felt: it may not count towards the statistics.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from fljax.core.types import Array
from fljax.models.convolution import conv_matmul
from fljax.models.product import dense_product
from fljax.models.windows import depthwise_taps

Weights = dict[str, Array]
"""The parameters of one layer by name."""
EPSILON = 1e-5


def _last(values: Array, x: Array) -> Array:
    """values [n] shaped to broadcast along the last axis of x."""
    return values.reshape((1,) * (x.ndim - 1) + (-1,))


def dense(p: Weights, x: Array) -> Array:
    """``x W + b`` on the last axis. kernel [D, n], bias [n] (optional); x [..., D] -> [..., n]."""
    y = dense_product(x, p["kernel"])
    return y + _last(p["bias"], y) if "bias" in p else y


def conv(p: Weights, x: Array, stride: int = 1) -> Array:
    """A convolution padded by half its window. kernel [k, k, c, n], bias [n] (optional); x [B, H, W, c]."""
    y = conv_matmul(x, p["kernel"], (stride, stride), _half(p["kernel"]))
    return y + _last(p["bias"], y) if "bias" in p else y


def depthwise_conv(p: Weights, x: Array, stride: int = 1) -> Array:
    """A depthwise convolution padded by half its window. kernel [k, k, 1, c]; x [B, H, W, c]."""
    return depthwise_taps(x, p["kernel"], (stride, stride), _half(p["kernel"]))


def _half(kernel: Array) -> list[tuple[int, int]]:
    return [(k // 2, k // 2) for k in kernel.shape[:2]]


def group_norm(p: Weights, x: Array, group_size: int) -> Array:
    """Group normalisation over groups of ``group_size`` neighbouring channels, whatever the number of channels.

    A norm group is one neuron: it is kept or dropped whole, and so no statistics ever mix kept and dropped channels.
    Means are taken over places first and then over the channels of a group, and scale and deviation are one factor per
    channel: what is as large as x is read and written in its own layout, in half the time on a CPU. In float32.

    Args:
      p: scale [c], bias [c].
      x: [B, *spatial, c].
      group_size: channels of a norm group; divides c.

    Source: Wu and He, "Group Normalization", ECCV 2018, with a fixed number of channels per group.
    """
    batch, channels = x.shape[0], x.shape[-1]
    wide = x.astype(jnp.float32).reshape(batch, -1, channels)

    def over_groups(values: Array) -> Array:
        means = values.mean(1).reshape(batch, channels // group_size, group_size).mean(-1, keepdims=True)
        return jnp.broadcast_to(means, (batch, channels // group_size, group_size)).reshape(batch, 1, channels)

    centred = wide - over_groups(wide)
    factor = jax.lax.rsqrt(over_groups(jnp.square(centred)) + EPSILON) * _last(p["scale"], wide)
    return (centred * factor + _last(p["bias"], wide)).reshape(x.shape).astype(x.dtype)


def layer_norm(p: Weights, x: Array) -> Array:
    """Layer normalisation over the kept entries of the last axis.

    A masked model is recognised by its zeros: an entry whose scale and bias are both exactly zero is dropped, and
    neither counts nor is summed. Trained values do not hit two zeros by chance; do not initialise scales with zeros.

    Args:
      p: scale [n], bias [n].
      x: [..., n], zero in dropped entries.

    Source: Ba, Kiros and Hinton, "Layer Normalization", 2016.
    """
    kept, wide = _last(((p["scale"] != 0) | (p["bias"] != 0)).astype(jnp.float32), x), x.astype(jnp.float32)
    count = jnp.maximum(kept.sum(), 1.0)
    centred = (wide - (wide * kept).sum(-1, keepdims=True) / count) * kept
    scaled = centred * jax.lax.rsqrt(jnp.square(centred).sum(-1, keepdims=True) / count + EPSILON)
    return scaled.astype(x.dtype) * _last(p["scale"], x) + _last(p["bias"], x)


def embed(p: Weights, tokens: Array) -> Array:
    """Rows of a table: table [V, n], tokens [B, L] -> [B, L, n]; an id that is out of range gives zeros.

    On a CPU a look-up, whose gradient is a scatter into the table, added up in float32 at least: by measurement far
    faster for all but the smallest tables, batched over clients too. On accelerators one-hot vectors times the table:
    there the order in which a scatter adds up is not fixed, that of a product is.

    Source: ``python -m benchmarks.layers``; its table is in docs/performance.md.
    """
    table = p["table"]
    if jax.default_backend() != "cpu":
        return one_hot_rows(table, tokens)
    wide = table.astype(jnp.promote_types(table.dtype, jnp.float32))
    rows = wide.at[tokens].get(mode="fill", fill_value=0, wrap_negative_indices=False)
    return rows.astype(table.dtype)


@jax.jit
def one_hot_rows(table: Array, tokens: Array) -> Array:
    """Rows of a table by a matrix product; ``flops`` knows it by its name and takes it for the look-up that it is."""
    return jax.nn.one_hot(tokens, table.shape[0], dtype=table.dtype) @ table


def lstm(p: Weights, x: Array) -> Array:
    """Long short-term memory, from zero states: x [B, L, D] -> hidden states [B, L, n].

    ``i, f, g, o = x W + h U + b;  c = sigma(f + 1) c + sigma(i) tanh(g);  h = sigma(o) tanh(c)``

    The 1 is the usual bias towards remembering. A dropped unit has g = 0, hence c = h = 0 at all times.

    Args:
      p: kernel [D, 4n] = W, recurrent [n, 4n] = U, bias [4n] = b, gate after gate in the order i, f, g, o.

    Source: Hochreiter and Schmidhuber, 1997; Jozefowicz, Zaremba and Sutskever, ICML 2015 (the bias).
    """

    def step(carry: tuple[Array, Array], gates: Array) -> tuple[tuple[Array, Array], Array]:
        h, c = carry
        i, f, g, o = jnp.split(gates + h @ p["recurrent"], 4, axis=-1)
        c = jax.nn.sigmoid(f + 1.0) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = (jax.nn.sigmoid(o) * jnp.tanh(c)).astype(h.dtype)
        return (h, c), h

    zero = jnp.zeros((x.shape[0], p["recurrent"].shape[0]), x.dtype)
    return _over_time(step, (zero, zero.astype(jnp.float32)), dense(p, x))


def gru(p: Weights, x: Array) -> Array:
    """Gated recurrent units, from zero states: x [B, L, D] -> hidden states [B, L, n].

    ``z, r, a = x W + b;  z', r', a' = h U;  h = (1 - s) tanh(a + sigma(r + r') a') + s h  with  s = sigma(z + z')``

    A dropped unit has a = a' = 0, hence h = 0 at all times.

    Args:
      p: kernel [D, 3n] = W, recurrent [n, 3n] = U, bias [3n] = b, gate after gate in the order z, r, a.

    Source: Cho et al., EMNLP 2014, with the reset gate after the product, so that one product serves all gates.
    """

    def step(h: Array, gates: Array) -> tuple[Array, Array]:
        z, r, a = jnp.split(gates, 3, axis=-1)
        old_z, old_r, old_a = jnp.split(h @ p["recurrent"], 3, axis=-1)
        s = jax.nn.sigmoid(z + old_z)
        h = (1.0 - s) * jnp.tanh(a + jax.nn.sigmoid(r + old_r) * old_a) + s * h
        return h, h

    zero = jnp.zeros((x.shape[0], p["recurrent"].shape[0]), x.dtype)
    return _over_time(step, zero, dense(p, x))


def _over_time(step, state, gates: Array) -> Array:
    """Scans the input gates [B, L, m] over L; the product with the inputs was taken for all times at once."""
    return jax.lax.scan(step, state, gates.swapaxes(0, 1))[1].swapaxes(0, 1)


def causal_attention(p: dict[str, Weights], x: Array, head_dim: int) -> Array:
    """Multi-head self-attention in which each place sees itself and what is before it: x [B, L, D] -> [B, L, D].

    A head is one neuron: ``head_dim`` neighbouring columns of the query, key and value and the same rows of ``out``. A
    dropped head has values of zero and adds nothing.

    Args:
      p: query, key, value: kernel [D, heads * head_dim], bias [heads * head_dim]; out: kernel [heads * head_dim, D],
        bias [D].
      head_dim: the width of a head.

    Source: Vaswani et al., "Attention is all you need", 2017.
    """
    batch, length = x.shape[:2]
    q, k, v = (dense(p[name], x).reshape(batch, length, -1, head_dim) for name in ("query", "key", "value"))
    similarity = jnp.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(head_dim)
    past = jnp.tril(jnp.ones((1, 1, length, length), bool))
    weights = jax.nn.softmax(jnp.where(past, similarity.astype(jnp.float32), -jnp.inf), axis=-1)
    seen = jnp.einsum("bhqk,bkhd->bqhd", weights.astype(x.dtype), v)
    return dense(p["out"], seen.reshape(batch, length, -1))
