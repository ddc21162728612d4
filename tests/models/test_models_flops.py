"""Counted arithmetic against closed forms."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from fljax.core.check import FljaxError
from fljax.models import char_lstm, cnn, mlp, model_flops, resnet, transformer
from fljax.models.flops import matmul_flops


def cnn_flops(a, b, hidden):
    """10 x 9 x 2 images: two 3x3 VALID convolutions, pooled to 3 x 2, two dense layers, 5 classes."""
    return 2 * (8 * 7 * 9 * 2 * a + 6 * 5 * 9 * a * b + 3 * 2 * b * hidden + hidden * 5)


def test_mlp_and_its_sub_model():
    model = mlp((4, 3), 5, (8, 6))
    assert model_flops(model, (4, 3)) == 2 * (12 * 8 + 8 * 6 + 6 * 5)
    assert model_flops(model, (4, 3), model.groups.counts(0.5)) == 2 * (12 * 4 + 4 * 3 + 3 * 5)


def test_cnn_and_its_sub_model():
    model = cnn((10, 9, 2), 5, (4, 6), 8)
    assert model_flops(model, (10, 9, 2)) == cnn_flops(4, 6, 8)
    assert model_flops(model, (10, 9, 2), {"conv_0": 2, "conv_1": 5, "dense_0": 1}) == cnn_flops(2, 5, 1)


def test_resnet_18_on_cifar_is_the_0_56_billion_multiplications_that_are_quoted():
    assert model_flops(resnet((32, 32, 3), 10), (32, 32, 3)) == pytest.approx(2 * 0.556e9, rel=2e-3)


def test_a_scan_counts_as_often_as_it_runs():
    model = char_lstm((20,), 11, (6, 5), 4)
    per_character = 4 * 6 * (4 + 6) + 4 * 5 * (6 + 5) + 5 * 11
    assert model_flops(model, (20,), input_dtype=jnp.int32) == 20 * 2 * per_character


@pytest.mark.parametrize("backend", ["cpu", "gpu"])  # where the embedding is a look-up, and where it is a product
def test_transformer(backend, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    model = transformer((5,), 7, width=8, heads=4, layers=2, hidden=6)
    layer = 4 * 5 * 8 * 8 + 2 * 5 * 5 * 8 + 2 * 5 * 8 * 6
    assert model_flops(model, (5,), input_dtype=jnp.int32) == 2 * (2 * layer + 5 * 8 * 7)


def test_xla_convolutions_with_groups_branches_and_programs_within_programs():
    x, kernel = jnp.ones((1, 6, 6, 4)), jnp.ones((3, 3, 2, 8))

    def grouped(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=numbers, feature_group_count=2)

    assert matmul_flops(grouped, x, kernel) == 2 * 16 * 8 * 9 * 2
    w = jnp.ones((3, 3))
    assert matmul_flops(lambda w: lax.cond(w[0, 0] > 0, lambda w: w @ w @ w, lambda w: w @ w, w), w) == 2 * 2 * 27
    assert matmul_flops(jax.jit(jax.checkpoint(lambda w: w @ w)), w) == 2 * 27
    assert matmul_flops(lambda w: lax.fori_loop(0, 4, lambda _, v: v @ w, w), w) == 4 * 2 * 27


def test_a_loop_of_unknown_length_is_refused():
    w = jnp.ones((3, 3))
    with pytest.raises(FljaxError, match="loops of known length"):
        matmul_flops(lambda w: lax.while_loop(lambda v: v[0, 0] < 9, lambda v: v @ w, w), w)
