"""The models by name, for experiments that are written as text."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from fljax.core.check import one_of
from fljax.models.cnn import cnn, leaf_cnn
from fljax.models.linear import linear, logistic
from fljax.models.mlp import mlp
from fljax.models.model import Model
from fljax.models.resnet import mobilenet, resnet
from fljax.models.text import char_gru, char_lstm, transformer

MODELS: dict[str, Callable[..., Model]] = {
    "linear": linear,
    "logistic": logistic,
    "mlp": mlp,
    "cnn": cnn,
    "leaf_cnn": leaf_cnn,
    "resnet": resnet,
    "mobilenet": mobilenet,
    "char_lstm": char_lstm,
    "char_gru": char_gru,
    "transformer": transformer,
}


def make_model(name: str, input_shape: Sequence[int], num_classes: int, **options: Any) -> Model:
    """The model of that name.

    Args:
      name: a key of MODELS.
      input_shape: shape of one example.
      num_classes: K; the number of outputs for ``linear``, the vocabulary V for models of text.
      **options: what the builder takes beyond these, e.g. ``hidden=(64,)``.

    Raises:
      FljaxError: for an unknown name or option (the message lists the known ones), or a shape the model refuses.
    """
    one_of(MODELS, model=name)
    builder = MODELS[name]
    known = list(inspect.signature(builder).parameters)[2:]
    for option in options:
        one_of(known or ["(none)"], **{f"option of {name}": option})
    return builder(input_shape, num_classes, **options)
