"""Models that predict the next token at every place of a sequence: ids [B, L] below V -> logits [B, L, V]."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from fljax.core.check import FljaxError, positive
from fljax.core.types import Array, Params
from fljax.models.declare import (
    attention_spec,
    declared,
    dense_spec,
    embedding_spec,
    norm_spec,
    recurrent_spec,
)
from fljax.models.functional import causal_attention, dense, embed, gru, layer_norm, lstm
from fljax.models.model import Model
from fljax.models.neurons import Axis

CELLS = {"lstm": (lstm, 4), "gru": (gru, 3)}
"""Recurrent layer and its number of gates."""


def char_lstm(
    input_shape: Sequence[int], num_classes: int, hidden: Sequence[int] | int = (256, 256), embedding: int = 8
) -> Model:
    """The next-character model of the LEAF benchmark's Shakespeare task, which predicts at every place.

    Embedding 8 - LSTM 256 - LSTM 256 - dense V. 817,872 parameters for the 80 characters of LEAF, 822,642 for the 98
    ids of ``fljax.data``'s Shakespeare. LEAF predicts the character after the sequence alone; here every place predicts
    its next one, as in Reddi et al., which is 80 predictions for the price of one pass.

    Groups: ``embedding`` (dimensions), ``lstm_0``, ``lstm_1`` (hidden units, with all their gates).

    Args:
      input_shape: (L,).
      num_classes: V, the vocabulary of inputs and outputs.
      hidden: units of each layer.
      embedding: dimensions of the embedding.

    Source: Caldas et al., "LEAF: A Benchmark for Federated Settings", 2018; Reddi et al., "Adaptive Federated
    Optimization", 2021.
    """
    return _recurrent("lstm", input_shape, num_classes, hidden, embedding)


def char_gru(
    input_shape: Sequence[int], num_classes: int, hidden: Sequence[int] | int = (256, 256), embedding: int = 8
) -> Model:
    """char_lstm with gated recurrent units, which have three gates for four. Args as there; groups ``gru_i``."""
    return _recurrent("gru", input_shape, num_classes, hidden, embedding)


def _recurrent(
    cell: str, input_shape: Sequence[int], vocabulary: int, hidden: Sequence[int] | int, embedding: int
) -> Model:
    units = (hidden,) if isinstance(hidden, int) else tuple(hidden)
    _check(input_shape, vocabulary)
    positive(embedding=embedding, number_of_layers=len(units))
    for i, n in enumerate(units):
        positive("", **{f"hidden[{i}]": n})
    layer, gates = CELLS[cell]
    names = [f"{cell}_{i}" for i in range(len(units))]
    sizes = {"embedding": embedding, **dict(zip(names, units, strict=True))}
    spec = embedding_spec("embedding", vocabulary, Axis("embedding"))
    for source, name in zip(["embedding", *names], names, strict=False):
        spec |= recurrent_spec(name, gates, Axis(source), name)
    spec |= dense_spec("dense_0", Axis(names[-1]), vocabulary)

    def apply(params: Params, x: Array) -> Array:
        x = embed(params["embedding"], x)
        for name in names:
            x = layer(params[name], x)
        return dense(params["dense_0"], x)

    return declared(f"char_{cell}", spec, sizes, apply, input_shape, input_dtype=jnp.int32)


def transformer(
    input_shape: Sequence[int],
    num_classes: int,
    width: int = 64,
    heads: int = 4,
    layers: int = 2,
    hidden: int = 256,
) -> Model:
    """A small transformer decoder with normalisation before each sub-layer.

    Embedding + position, then per layer x + attention(LN(x)) and x + dense(GELU(dense(LN(x)))), then LN and a dense
    layer of logits. Each place sees itself and what is before it.

    Groups: ``attention_i`` (whole heads) and ``ffn_i`` (hidden units). The residual stream, and with it the embedding,
    is never cut. 117,858 parameters for sequences of 80 and 98 ids.

    Args:
      input_shape: (L,), the longest sequence.
      num_classes: V, the vocabulary of inputs and outputs.
      width: of the residual stream, a multiple of heads.
      heads: attention heads of each layer.
      layers: how many.
      hidden: units of the dense sub-layers.

    Raises:
      FljaxError: for a width that heads do not divide.

    Source: Vaswani et al., "Attention is all you need", 2017; Xiong et al., "On layer normalization in the transformer
    architecture", ICML 2020.
    """
    _check(input_shape, num_classes)
    positive(width=width, heads=heads, layers=layers, hidden=hidden)
    if width % heads:
        raise FljaxError(f"Expected width={width} to be a multiple of heads={heads}.")
    head_dim, sizes = width // heads, {}
    spec = embedding_spec("embedding", num_classes, width) | embedding_spec("position", input_shape[0], width)
    for i in range(layers):
        attention, ffn = f"attention_{i}", f"ffn_{i}"
        sizes |= {attention: heads, ffn: hidden}
        spec |= norm_spec(f"{attention}_norm", width)
        spec |= attention_spec(attention, width, Axis(attention, block=head_dim))
        spec |= norm_spec(f"{ffn}_norm", width)
        spec |= dense_spec(f"{ffn}/in", width, Axis(ffn)) | dense_spec(f"{ffn}/out", Axis(ffn), width)
    spec |= norm_spec("norm", width) | dense_spec("dense_0", width, num_classes)

    def apply(params: Params, x: Array) -> Array:
        x = embed(params["embedding"], x) + params["position"]["table"][None, : x.shape[1]]
        for i in range(layers):
            normed = layer_norm(params[f"attention_{i}_norm"], x)
            x = x + causal_attention(params[f"attention_{i}"], normed, head_dim)
            ffn = params[f"ffn_{i}"]
            x = x + dense(ffn["out"], jax.nn.gelu(dense(ffn["in"], layer_norm(params[f"ffn_{i}_norm"], x))))
        return dense(params["dense_0"], layer_norm(params["norm"], x))

    tables = {"table": jax.nn.initializers.normal(0.02)}
    return declared("transformer", spec, sizes, apply, input_shape, input_dtype=jnp.int32, initializers=tables)


def _check(input_shape: Sequence[int], vocabulary: int) -> None:
    positive(num_classes=vocabulary)
    if len(input_shape) != 1 or input_shape[0] < 1:
        raise FljaxError(
            f"Expected input_shape={tuple(input_shape)} to be (length,), a sequence of tokens. Use cnn for images."
        )
