"""The product of a dense layer: the same value bit by bit, the same derivatives up to rounding, and zeros that stay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax import lax

from fljax.models import cnn, logistic, mlp, product, resnet
from fljax.models.product import MOST_ROWS, dense_product


def drawn(*shape: int, dtype=jnp.float32) -> jax.Array:
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape), dtype)


def usual(x, w):
    return x @ w


def curved(multiply, x, w):
    """A loss whose second derivatives are not zero."""
    return jnp.sum(jnp.tanh(multiply(x, w)))


def gradient(multiply, x, w):
    return jax.grad(curved, (1, 2))(multiply, x, w)


def along(multiply, x, w):
    """Forward mode."""
    return jax.jvp(multiply, (x, w), (0.3 * x + 1.0, w - 0.1))


def along_weights(multiply, x, w):
    """Forward mode with inputs that are constants."""
    return jax.jvp(lambda w: multiply(x, w), (w,), (w - 0.1,))


def curvature(multiply, x, w):
    """Forward over reverse, as in a Hessian times a vector."""
    return jax.jvp(jax.grad(lambda w: curved(multiply, x, w)), (w,), (w - 0.1,))


def twice(multiply, x, w):
    """Reverse over reverse, as in an attack that matches gradients."""
    return jax.grad(lambda x: jnp.sum(jnp.square(jax.grad(curved, 2)(multiply, x, w))))(x)


def products(program) -> int:
    """Matrix products of a program that nothing can do without."""
    return program.as_text().count("dot_general")


def outer_sums(multiply, rows: int, dtype=jnp.float32) -> bool:
    """Is the gradient by the weights anything but a product?"""
    arguments = drawn(rows, 6, dtype=dtype), drawn(6, 3, dtype=dtype)
    return products(jax.jit(jax.grad(lambda w, x: curved(multiply, x, w))).lower(arguments[1], arguments[0])) == 1


@pytest.mark.parametrize("rows", [1, 7, MOST_ROWS])
@pytest.mark.parametrize("of", [gradient, along, along_weights, curvature, twice])
def test_derivatives_of_all_kinds_are_those_of_the_product(of, rows):
    x, w = drawn(rows, 6), drawn(6, 3)
    assert outer_sums(dense_product, rows)
    ours, theirs = (jax.tree.leaves(jax.jit(of, static_argnums=0)(f, x, w)) for f in (dense_product, usual))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


def test_rounding_errors_are_those_of_the_product():
    x, w = drawn(20, 50), drawn(50, 30)
    with jax.enable_x64(True):
        exact = np.asarray(gradient(usual, *(jnp.asarray(np.asarray(a), jnp.float64) for a in (x, w)))[1])
    errors = [np.abs(np.asarray(gradient(f, x, w)[1]) - exact).max() for f in (dense_product, usual)]
    assert 0 < errors[0] < 2 * errors[1] < 1e-4 * np.abs(exact).max()


def test_every_client_of_a_batch_has_weights_of_its_own():
    x, w = drawn(5, 4, 6), drawn(5, 6, 3)
    ours = jax.vmap(lambda x, w: gradient(dense_product, x, w))(x, w)
    for k in range(5):
        for a, b in zip(ours, gradient(usual, x[k], w[k]), strict=True):
            np.testing.assert_allclose(a[k], b, rtol=2e-5, atol=2e-6)


def test_the_value_is_bit_identical():
    x, w = drawn(8, 6), drawn(6, 3)
    assert (jax.jit(dense_product)(x, w) == jax.jit(usual)(x, w)).all()


def test_dropped_neurons_stay_exactly_zero():
    """A neuron without weights has no gradient through either side of it."""
    model = mlp((6,), 3, hidden=(4,))
    params = model.init(jax.random.key(0))
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            leaf.at[..., 2].set(0) if "dense_0" in str(path) else (leaf.at[2].set(0) if leaf.ndim == 2 else leaf)
        ),
        params,
    )
    grads = jax.grad(lambda p: jnp.sum(jnp.square(model.apply(p, drawn(5, 6), None))))(params)
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(grads)}
    assert len(leaves) == 4
    for name, leaf in leaves.items():
        if "dense_0" in name:
            assert (leaf[..., 2] == 0).all() and (leaf != 0).any()
        elif leaf.ndim == 2:
            assert (leaf[2] == 0).all() and (leaf != 0).any()


@pytest.mark.parametrize(
    ("rows", "dtype", "options"),
    [
        (MOST_ROWS + 1, jnp.float32, {}),
        (4, jnp.bfloat16, {}),
        (4, jnp.float32, {"precision": lax.Precision.HIGHEST}),
        (4, jnp.float32, {"preferred_element_type": jnp.bfloat16}),
    ],
)
def test_what_was_not_measured_is_a_product_like_any_other(rows, dtype, options):
    assert not outer_sums(lambda x, w: dense_product(x, w, **options), rows, dtype)


def test_other_backends_keep_their_products(monkeypatch):
    assert outer_sums(dense_product, 4)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert not outer_sums(dense_product, 4)


def test_other_contractions_are_those_of_lax():
    x, w = drawn(4, 6), drawn(3, 6)
    dims = (((1,), (1,)), ((), ()))
    assert (dense_product(x, w, dims) == lax.dot_general(x, w, dims)).all()
    assert dense_product(drawn(2, 4, 6), drawn(6, 3)).shape == (2, 4, 3)


@pytest.mark.parametrize(("make", "layers"), [(logistic, 1), (mlp, 2), (cnn, 2), (resnet, 1)])
def test_the_models_use_it(make, layers, monkeypatch):
    """The gradient of no dense layer is a product any more."""
    model, x = make((8, 8, 1), 3, *[(8,), 1][: 2 * (make is resnet)]), drawn(4, 8, 8, 1)
    params = model.init(jax.random.key(0))

    def counted() -> int:
        loss = lambda params: jnp.sum(jnp.tanh(model.apply(params, x, None)))  # noqa: E731
        return products(jax.jit(jax.grad(loss)).lower(params))

    with_sums = counted()
    monkeypatch.setattr(product, "MOST_ROWS", 0)
    assert counted() == with_sums + layers


def test_layers_of_flax_take_it():
    """nnx and linen call it as they call lax.dot_general."""
    x = drawn(4, 6)
    layer = nnx.Linear(6, 3, dot_general=dense_product, rngs=nnx.Rngs(0))
    w, b = layer.kernel[...], layer.bias[...]
    assert (layer(x) == x @ w + b[None]).all()
    twin = linen.Dense(3, dot_general=dense_product)
    assert (twin.apply({"params": {"kernel": w, "bias": b}}, x) == x @ w + b[None]).all()
