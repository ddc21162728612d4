"""Models as pure functions, their neuron groups, and losses. Imports jax, flax, numpy and the core only."""

from fljax.models.cnn import cnn, leaf_cnn
from fljax.models.convolution import conv_matmul
from fljax.models.derive import derive_groups
from fljax.models.flops import model_flops
from fljax.models.layers import max_pool_2x2
from fljax.models.linear import linear, logistic
from fljax.models.losses import LOSSES, Loss, make_loss
from fljax.models.mlp import mlp
from fljax.models.model import Model, from_functions, from_linen, from_nnx
from fljax.models.neurons import Axis, Leaf, NeuronGroups
from fljax.models.product import dense_product
from fljax.models.resnet import mobilenet, resnet
from fljax.models.text import char_gru, char_lstm, transformer
from fljax.models.verify import verify
from fljax.models.zoo import MODELS, make_model

__all__ = [
    "LOSSES",
    "MODELS",
    "Axis",
    "Leaf",
    "Loss",
    "Model",
    "NeuronGroups",
    "char_gru",
    "char_lstm",
    "cnn",
    "conv_matmul",
    "dense_product",
    "derive_groups",
    "from_functions",
    "from_linen",
    "from_nnx",
    "leaf_cnn",
    "linear",
    "logistic",
    "make_loss",
    "make_model",
    "max_pool_2x2",
    "mlp",
    "mobilenet",
    "model_flops",
    "resnet",
    "transformer",
    "verify",
]
