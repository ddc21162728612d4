"""HeteroFL's scaler: a sub-model's hidden neurons are as much more active as neurons are missing."""

import jax
import jax.numpy as jnp
import numpy as np
import private_rounds as tiny
import pytest

from fljax.core.types import Ctx
from fljax.dropout.baselines import rescale
from fljax.models import make_model


@pytest.mark.parametrize("rate", [1.0, 0.5, 0.1])
def test_the_factor_is_the_share_that_is_kept(rate):
    """Where a layer keeps its least number of neurons, that number counts and not the rate."""
    model = make_model("cnn", (8, 8, 1), 3, channels=(4,), hidden=20)
    params = jax.tree.map(jnp.ones_like, model.init(jax.random.key(0)))
    h = tiny.HPARAMS.arrays()
    zero = jnp.int32(0)
    ctx = Ctx(zero, h, jax.random.key(0), zero, zero, jnp.float32(1), jnp.float32(rate))
    scaled = rescale(model.groups)(ctx, params)
    counts, sizes = model.groups.counts(rate), dict(model.groups.sizes)
    layers = {"conv_0": "conv_0", "dense_0": "dense_0"}
    for layer, group in layers.items():
        for leaf in scaled[layer].values():
            np.testing.assert_allclose(leaf, sizes[group] / counts[group], rtol=1e-6)
    for leaf in scaled["dense_1"].values():
        np.testing.assert_array_equal(leaf, 1.0)  # the output layer
    assert rate > 0.1 or counts["conv_0"] / sizes["conv_0"] > 2 * rate  # the least does count here
