"""Pools, norms and embeddings with other weights for every client: their gradients, and what XLA makes of them."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fljax.models.functional import embed, group_norm
from fljax.models.layers import max_pool_2x2

CLIENTS, WIDTH, GROUP = 3, 16, 4
SLOW = {"select-and-scatter", "convolution", "scatter", "gather", "dot", "sort", "while"}
"""Operations that a batch of clients makes slow on a CPU, or that have no business in these layers."""


def normal(*shape):
    return jnp.asarray(np.random.default_rng(len(shape)).normal(size=shape), jnp.float32)


IMAGES = normal(CLIENTS, 2, 6, 6, WIDTH)
NORM = {"scale": normal(CLIENTS, WIDTH), "bias": normal(CLIENTS, WIDTH) + 1}
TOKENS = jnp.asarray(np.random.default_rng(0).integers(-1, 8, (CLIENTS, 4, 9)))  # ids below 0 and above 6 are nobody's
TABLES = {"table": normal(CLIENTS, 7, WIDTH)}

LAYERS = {  # a function of one client, what it is differentiated by, what else it is given
    "pool": (lambda x: max_pool_2x2(x), (IMAGES,), ()),
    "group norm": (lambda p, x: group_norm(p, x, GROUP), (NORM, IMAGES), ()),
    "embedding": (embed, (TABLES,), (TOKENS,)),
}


def direct(name, given, tokens=()):
    """The layers by their definitions in NumPy, in double precision and without clients."""
    if name == "pool":
        (x,) = given
        return x.reshape(2, 3, 2, 3, 2, WIDTH).max((2, 4))
    if name == "group norm":
        p, x = given
        groups = x.reshape(2, 6, 6, WIDTH // GROUP, GROUP)
        mean, var = groups.mean((1, 2, 4), keepdims=True), groups.var((1, 2, 4), keepdims=True)
        return ((groups - mean) / np.sqrt(var + 1e-5)).reshape(x.shape) * p["scale"] + p["bias"]
    padded = np.concatenate([given[0]["table"], np.zeros((1, WIDTH))])
    return padded[np.where((tokens >= 0) & (tokens < 7), tokens, 7)]


def pulled_back(name):
    """Of one client: outputs, and the gradients of their weighted sum."""
    layer, differentiated, _ = LAYERS[name]

    def one(*arguments):
        given, rest = arguments[: len(differentiated)], arguments[len(differentiated) :]
        out, back = jax.vjp(lambda *given: layer(*given, *rest), *given)
        return out, back(jnp.sin(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape))

    return one


def client(tree, i):
    return jax.tree.map(lambda leaf: np.asarray(leaf[i]), tree)


@pytest.mark.parametrize("name", LAYERS)
def test_a_batch_of_clients_equals_one_after_another_and_the_definition(name):
    _, differentiated, rest = LAYERS[name]
    outputs, gradients = jax.jit(jax.vmap(pulled_back(name)))(*differentiated, *rest)
    alone = jax.jit(pulled_back(name))
    for i in range(CLIENTS):
        given, more = client(differentiated, i), client(rest, i)
        for a, b in zip(
            jax.tree.leaves(client((outputs, gradients), i)), jax.tree.leaves(alone(*given, *more)), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)
        exact = jax.tree.map(lambda leaf: leaf.astype(np.float64), given)
        np.testing.assert_allclose(outputs[i], direct(name, exact, *more), rtol=2e-5, atol=2e-5)
        weights = np.sin(np.arange(outputs[i].size)).reshape(outputs[i].shape)
        leaves, structure = jax.tree.flatten(exact)
        for j, found in enumerate(jax.tree.leaves(client(gradients, i))):
            for place in ((0,) * found.ndim, tuple(n - 2 for n in found.shape)):  # by differences, in two places
                sums = []
                for step in (1e-5, -1e-5):
                    moved = [leaf.copy() for leaf in leaves]
                    moved[j][place] += step
                    sums.append((direct(name, jax.tree.unflatten(structure, moved), *more) * weights).sum())
                assert found[place] == pytest.approx((sums[0] - sums[1]) / 2e-5, rel=1e-4, abs=1e-4)


def program(name):
    """What XLA makes of the gradients of a batch of clients, for a CPU."""
    _, differentiated, rest = LAYERS[name]
    return jax.jit(jax.vmap(pulled_back(name))).lower(*differentiated, *rest).compile().as_text()


def operations(text):
    return set(re.findall(r" ([a-z][a-z-]*)\(", text))


def test_no_operation_of_a_batch_is_of_the_slow_kind():
    assert not operations(program("group norm")) & SLOW
    assert not operations(program("pool")) & (SLOW | {"reduce-window"})  # XLA itself splits long sums by windows


def test_group_norm_leaves_what_is_large_in_its_own_layout():
    """Nothing as large as the images has the few channels of a group as its last axis."""
    shapes = {tuple(map(int, found.split(","))) for found in re.findall(r"f32\[([\d,]+)\]", program("group norm"))}
    assert any(math.prod(shape) == IMAGES.size for shape in shapes)
    assert not [shape for shape in shapes if math.prod(shape) == IMAGES.size and shape[-1] == GROUP]


def test_an_embedding_is_a_look_up_on_a_cpu_and_a_product_elsewhere(monkeypatch):
    found = operations(program("embedding"))
    assert {"gather", "scatter"} <= found and not found & (SLOW - {"gather", "scatter", "while"})
    looked_up = jax.jit(jax.vmap(pulled_back("embedding")))(TABLES, TOKENS)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    multiplied = jax.jit(jax.vmap(pulled_back("embedding"))).lower(TABLES, TOKENS)
    assert "scatter" not in multiplied.as_text() and "gather" not in multiplied.as_text()
    for a, b in zip(jax.tree.leaves(looked_up), jax.tree.leaves(multiplied.compile()(TABLES, TOKENS)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_the_gradient_of_a_table_in_half_precision_is_added_up_in_single_precision():
    """600 ones: a sum of ones in bfloat16 would stay at 256."""
    table, tokens = jnp.zeros((3, 2), jnp.bfloat16), jnp.ones((6, 100), jnp.int32)
    gradient = jax.jit(jax.grad(lambda t: embed({"table": t}, tokens).astype(jnp.float32).sum()))(table)
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_array_equal(gradient.astype(jnp.float32), [[0, 0], [600, 600], [0, 0]])
