"""The layers against flax, XLA and NumPy (float64)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from fljax.core.check import FljaxError
from fljax.models import functional
from fljax.models.windows import depthwise_taps

RNG = np.random.default_rng(0)


def random(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def sigmoid(v):
    return 1 / (1 + np.exp(-v))


def f64(p):
    return {name: np.asarray(v, np.float64) for name, v in p.items()}


@pytest.mark.parametrize(("stride", "padding"), [(1, "VALID"), (2, [(1, 1), (1, 1)])])
def test_depthwise_convolution_equals_xla(stride, padding):
    x, kernel = random(2, 7, 6, 5), random(3, 3, 1, 5)

    def pulled_back(conv):
        out, back = jax.vjp(conv, x, kernel)
        return (out, *back(jnp.sin(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)))

    def xla(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, kernel, (stride, stride), padding, dimension_numbers=numbers, feature_group_count=5
        )

    ours = jax.jit(lambda: pulled_back(lambda x, k: depthwise_taps(x, k, (stride, stride), padding)))()
    for a, b in zip(ours, jax.jit(lambda: pulled_back(xla))(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_depthwise_convolution_refuses_a_window_larger_than_the_input():
    with pytest.raises(FljaxError, match="to fit into the padded input"):
        depthwise_taps(random(1, 2, 2, 3), random(5, 5, 1, 3), (1, 1), "VALID")


def test_convolution_pads_by_half_its_window():
    x, kernel, bias = random(2, 7, 6, 3), random(3, 3, 3, 4), random(4)
    ours = functional.conv({"kernel": kernel, "bias": bias}, x, stride=2)
    theirs = lax.conv_general_dilated(x, kernel, (2, 2), [(1, 1)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    np.testing.assert_allclose(ours, theirs + bias.reshape(1, 1, 1, -1), rtol=1e-4, atol=1e-5)


def test_group_norm_equals_flax():
    x, p = random(2, 3, 4, 12), {"scale": random(12), "bias": random(12)}
    theirs = nnx.GroupNorm(12, group_size=4, num_groups=None, epsilon=functional.EPSILON, rngs=nnx.Rngs(0))
    theirs.scale[...], theirs.bias[...] = p["scale"], p["bias"]
    np.testing.assert_allclose(functional.group_norm(p, x, 4), theirs(x), rtol=1e-4, atol=1e-5)


def test_layer_norm_equals_flax_and_counts_kept_entries_only():
    x, p = random(2, 3, 6), {"scale": random(6), "bias": random(6)}
    theirs = nnx.LayerNorm(6, epsilon=functional.EPSILON, rngs=nnx.Rngs(0))
    theirs.scale[...], theirs.bias[...] = p["scale"], p["bias"]
    np.testing.assert_allclose(functional.layer_norm(p, x), theirs(x), rtol=1e-4, atol=1e-5)
    wider = {name: jnp.insert(v, jnp.array([0, 3]), 0.0) for name, v in p.items()}
    y = functional.layer_norm(wider, jnp.insert(x, jnp.array([0, 3]), 0.0, axis=-1))
    np.testing.assert_allclose(np.delete(y, [0, 4], axis=-1), theirs(x), rtol=1e-4, atol=1e-5)
    assert not np.any(y[..., [0, 4]])


def test_layer_norm_keeps_an_entry_with_one_zero():
    x = random(2, 4)
    scale, bias = jnp.array([0.0, 1, 1, 1]), jnp.array([0.5, 0, 0, 0])
    y = functional.layer_norm({"scale": scale, "bias": bias}, x)
    centred = np.asarray(x, np.float64) - np.asarray(x, np.float64).mean(-1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + functional.EPSILON)
    np.testing.assert_allclose(y, normed * np.asarray(scale) + np.asarray(bias), rtol=1e-4, atol=1e-5)


def test_lstm_against_numpy():
    x, n = random(2, 5, 3), 4
    p = {"kernel": random(3, 4 * n), "recurrent": random(n, 4 * n), "bias": random(4 * n)}
    q, h, c = f64(p), np.zeros((2, n)), np.zeros((2, n))
    ours = jax.jit(functional.lstm)(p, x)
    for t in range(5):
        i, f, g, o = np.split(np.asarray(x[:, t], np.float64) @ q["kernel"] + h @ q["recurrent"] + q["bias"], 4, -1)
        c = sigmoid(f + 1) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        np.testing.assert_allclose(ours[:, t], h, rtol=1e-4, atol=1e-5)


def test_gru_against_numpy():
    x, n = random(2, 5, 3), 4
    p = {"kernel": random(3, 3 * n), "recurrent": random(n, 3 * n), "bias": random(3 * n)}
    q, h = f64(p), np.zeros((2, n))
    ours = jax.jit(functional.gru)(p, x)
    for t in range(5):
        new, old = np.asarray(x[:, t], np.float64) @ q["kernel"] + q["bias"], h @ q["recurrent"]
        update, reset = sigmoid(new + old)[:, :n], sigmoid(new + old)[:, n : 2 * n]
        h = (1 - update) * np.tanh(new[:, 2 * n :] + reset * old[:, 2 * n :]) + update * h
        np.testing.assert_allclose(ours[:, t], h, rtol=1e-4, atol=1e-5)


def test_causal_attention_against_numpy():
    x, width, head_dim, heads = random(2, 4, 6), 6, 3, 2
    p = {name: {"kernel": random(width, 6), "bias": random(6)} for name in ("query", "key", "value", "out")}
    ours = jax.jit(lambda p, x: functional.causal_attention(p, x, head_dim))(p, x)
    apply = {name: (lambda v, w=f64(w): v @ w["kernel"] + w["bias"]) for name, w in p.items()}
    for b, rows in enumerate(np.asarray(x, np.float64)):
        q, k, v = (apply[name](rows) for name in ("query", "key", "value"))
        for i in range(len(rows)):
            seen = []
            for head in range(heads):
                own = slice(head * head_dim, (head + 1) * head_dim)
                weights = np.exp(k[: i + 1, own] @ q[i, own] / np.sqrt(head_dim))
                seen.append(weights @ v[: i + 1, own] / weights.sum())
            np.testing.assert_allclose(ours[b, i], apply["out"](np.concatenate(seen)), rtol=1e-4, atol=1e-5)


def test_embedding_picks_rows_and_gives_zeros_for_unknown_ids():
    table = random(5, 3)
    y = functional.embed({"table": table}, jnp.array([[4, 0, 7]]))
    np.testing.assert_array_equal(y[0], [table[4], table[0], np.zeros(3)])
