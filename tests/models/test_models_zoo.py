"""The zoo: published parameter counts, shapes, initialisation, drop-out, the registry."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fljax.core.check import FljaxError
from fljax.models import (
    MODELS,
    char_gru,
    char_lstm,
    cnn,
    leaf_cnn,
    linear,
    logistic,
    make_model,
    mlp,
    mobilenet,
    resnet,
    transformer,
)

KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("build", "count"),
    [
        (lambda: cnn((32, 32, 3), 10), 1_626_442),
        (lambda: cnn((28, 28, 1), 62, dropout=True), 1_206_590),
        (lambda: leaf_cnn((28, 28, 1), 62), 6_603_710),
        (lambda: logistic((28, 28, 1), 10), 7_850),
        (lambda: linear((13,)), 14),
        (lambda: mlp((28, 28, 1), 10, (200, 200)), 199_210),
        # ResNet-18 for CIFAR-10 as it is commonly built (3x3 stem, no biases), its norms with as many parameters
        (lambda: resnet((32, 32, 3), 10), 11_173_962),
        (lambda: resnet((28, 28, 1), 10), 11_173_962 - 2 * 9 * 64),
        # LEAF's stacked LSTM: 80 x 8, 4 x 256 x (8 + 256 + 1), 4 x 256 x (256 + 256 + 1), 257 x 80
        (lambda: char_lstm((80,), 80), 640 + 271_360 + 525_312 + 20_560),
        (lambda: char_lstm((80,), 90), 820_522),  # Reddi et al., "Adaptive Federated Optimization", 2021
        (lambda: char_gru((80,), 80), 640 + 3 * 256 * (8 + 256 + 1) + 3 * 256 * (256 + 256 + 1) + 20_560),
        # depthwise 9 c and 1x1 c c', each with a norm
        (lambda: mobilenet((8, 8, 3), 5, (4, 6)), 27 * 4 + 8 + (9 * 4 + 8) + (4 * 6 + 12) + 7 * 5),
        # tables, per layer (2 norms, 4 square layers, 2 of 64 x 256), norm, logits
        (
            lambda: transformer((80,), 98),
            178 * 64 + 2 * (256 + 4 * 65 * 64 + 64 * 256 + 256 + 256 * 64 + 64) + 128 + 65 * 98,
        ),
    ],
)
def test_parameter_counts(build, count):
    assert build().num_params() == count


IMAGE, TEXT = (8, 8, 1), (6,)
SMALL = dict.fromkeys(MODELS, (6, 1)) | dict.fromkeys(("cnn", "leaf_cnn", "resnet", "mobilenet"), IMAGE)
SMALL |= dict.fromkeys(("char_lstm", "char_gru", "transformer"), TEXT)
OPTIONS = {
    "cnn": {"channels": (2,), "hidden": 16},
    "leaf_cnn": {"channels": (2,), "hidden": 16},
    "resnet": {"channels": (4, 8), "blocks": 1, "group_size": 2},
    "mobilenet": {"channels": (4, 6)},
    "char_lstm": {"hidden": (5,)},
    "char_gru": {"hidden": 5},
    "transformer": {"width": 8, "heads": 2, "layers": 1, "hidden": 12},
}


def inputs(shape, *batch):
    """Random numbers, or for text random tokens."""
    rng = np.random.default_rng(0)
    if shape == TEXT:
        return jnp.asarray(rng.integers(0, 3, (*batch, *shape)), jnp.int32)
    return jnp.asarray(rng.normal(size=(*batch, *shape)), jnp.float32)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_initialises_and_applies_under_vmap(name):
    model = make_model(name, SMALL[name], 3, **OPTIONS.get(name, {}))
    x = inputs(SMALL[name], 2, 5)

    def run(key, x):
        params = model.init(key)
        return params, model.apply(params, x, key)

    run_both = jax.jit(jax.vmap(run), compiler_options={"xla_backend_optimization_level": 0})
    params, outputs = run_both(jax.random.split(KEY, 2), x)
    places = TEXT if SMALL[name] == TEXT else ()
    assert model.name == name and outputs.shape == (2, 5, *places, 3) and np.isfinite(outputs).all()
    assert not np.array_equal(outputs[0], outputs[1])
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


def test_mlp_names_its_layers_and_carries_groups():
    model = mlp((4,), 2, (8, 6))
    assert sorted(model.shapes()) == ["dense_0", "dense_1", "dense_2"]
    assert model.groups.sizes == (("dense_0", 8), ("dense_1", 6))
    assert mlp((4,), 2, ()).groups is None and logistic((4,), 2).groups is None


def test_mlp_against_numpy():
    model = mlp((2, 3), 4, (5,))
    params = jax.tree.map(np.asarray, jax.jit(model.init)(KEY))
    x = np.random.default_rng(0).normal(size=(7, 2, 3)).astype(np.float32)
    first, last = params["dense_0"], params["dense_1"]
    hidden = np.maximum(x.reshape(7, 6) @ first["kernel"] + first["bias"], 0)
    np.testing.assert_allclose(
        jax.jit(model.apply)(params, x), hidden @ last["kernel"] + last["bias"], rtol=1e-4, atol=1e-6
    )


def test_weights_are_xavier_uniform_and_biases_zero():
    params = jax.jit(cnn((6, 6, 3), 2, (24,), 4).init)(KEY)
    bound = np.sqrt(6 / (9 * 3 + 9 * 24))
    kernel = np.asarray(params["conv_0"]["kernel"])
    assert 0.98 * bound < np.abs(kernel).max() <= bound
    assert kernel.std() == pytest.approx(bound / np.sqrt(3), rel=0.05)
    assert not np.any(params["conv_0"]["bias"])


def test_drop_out_of_the_cnn_is_a_switch_that_leaves_the_weights_alone():
    without, with_it = (cnn((4, 4, 1), 3, (2,), 8, dropout=d) for d in (False, True))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 4, 4, 1)), jnp.float32)

    @jax.jit
    def run(key):
        params = without.init(key)
        outputs = without.apply(params, x, key), with_it.apply(params, x), with_it.apply(params, x, key)
        return (params, with_it.init(key)), outputs

    (ours, theirs), (plain, evaluated, trained) = run(KEY)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    np.testing.assert_array_equal(plain, evaluated)
    assert not np.array_equal(trained, evaluated)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: make_model("cn", (8, 8, 1), 3),
            "linear, logistic, mlp, cnn, leaf_cnn, .*transformer. Perhaps you meant 'cnn'",
        ),
        (lambda: make_model("mlp", (8,), 3, hiden=(4,)), "option of mlp='hiden'.*'hidden'"),
        (lambda: make_model("logistic", (8,), 3, hidden=(4,)), "option of logistic='hidden'"),
        (lambda: cnn((28, 28), 10), r"input_shape=\(28, 28\) to be \(height, width, channels\)"),
        (lambda: cnn((5, 5, 1), 10), "to be larger"),
        (lambda: make_model("cnn", (8, 8, 1), 3, hidden=(32, 16)), r"hidden=\(32, 16\) of cnn to be one number"),
        (lambda: mlp((), 10), r"input_shape=\(\)"),
        (lambda: mlp((4,), 10, (0,)), r"hidden\[0\]=0 > 0"),
        (lambda: cnn((8, 8, 1), 10, (4, -1)), r"channels\[1\]=-1 > 0"),
        (lambda: logistic((4,), 0), "num_classes=0 > 0"),
        (lambda: resnet((8, 8, 1), 3, (12,)), r"channels=\(12,\) to be multiples of group_size=8"),
        (lambda: resnet((8, 8), 3), r"\(height, width, channels\)"),
        (lambda: mobilenet((8, 8, 1), 3, (4, 0)), r"channels\[1\]=0 > 0"),
        (lambda: char_lstm((8, 8, 1), 3), r"to be \(length,\), a sequence"),
        (lambda: char_gru((8,), 3, (4, 0)), r"hidden\[1\]=0 > 0"),
        (lambda: transformer((8,), 3, width=10, heads=4), "width=10 to be a multiple of heads=4"),
    ],
)
def test_errors_name_the_value_and_the_remedy(build, message):
    with pytest.raises(FljaxError, match=message):
        build()
