"""Every model of the zoo that has neuron groups: masked equals extracted, and the way there and back."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from fljax.core.check import FljaxError
from fljax.core.tree import named_leaves
from fljax.dropout.select import best
from fljax.models import (
    MODELS,
    char_gru,
    char_lstm,
    cnn,
    from_linen,
    from_nnx,
    leaf_cnn,
    mlp,
    mobilenet,
    resnet,
    transformer,
    verify,
)
from fljax.models.declare import declared, dense_spec, recurrent_spec
from fljax.models.functional import dense, lstm
from fljax.models.neurons import Axis, Leaf, NeuronGroups, dense_leaves

IMAGE, TEXT = (8, 8, 2), (5,)
BUILD = {
    "mlp": (lambda: mlp(IMAGE, 3, (6, 5)), IMAGE),
    "cnn": (lambda: cnn(IMAGE, 3, (4, 6), 8), IMAGE),
    "leaf_cnn": (lambda: leaf_cnn(IMAGE, 3, (4, 6), 8), IMAGE),
    "resnet": (lambda: resnet(IMAGE, 3, (4, 8), 1, group_size=2), IMAGE),
    "mobilenet": (lambda: mobilenet(IMAGE, 3, (4, 6)), IMAGE),
    "char_lstm": (lambda: char_lstm(TEXT, 7, (6, 5), 4), TEXT),
    "char_gru": (lambda: char_gru(TEXT, 7, (6,), 4), TEXT),
    "transformer": (lambda: transformer(TEXT, 7, width=8, heads=4, layers=1, hidden=6), TEXT),
}
FAST = {"xla_backend_optimization_level": 0}


@functools.cache
def model(name):
    return BUILD[name][0]()


def inputs(shape):
    rng = np.random.default_rng(0)
    if shape == TEXT:
        return jnp.asarray(rng.integers(0, 7, (3, *shape)), jnp.int32)
    return jnp.asarray(rng.normal(size=(3, *shape)), jnp.float32)


def random_params(model):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), model.shapes())


def random_neurons(groups, seed=0):
    """Some neurons of each group, in no order."""
    rng = np.random.default_rng(seed)
    return {group: rng.permutation(n)[: max(1, n // 2)].astype(np.int32) for group, n in groups.sizes}


def test_every_model_with_neurons_is_here():
    assert set(BUILD) == set(MODELS) - {"linear", "logistic"}


@pytest.mark.parametrize("name", BUILD)
def test_a_masked_model_equals_the_extracted_one(name):
    verify(model(name), inputs(BUILD[name][1]))


SMALLER = {
    "mlp": lambda: mlp(IMAGE, 3, (3, 2)),
    "cnn": lambda: cnn(IMAGE, 3, (2, 3), 4),
    "leaf_cnn": lambda: leaf_cnn(IMAGE, 3, (2, 3), 4),
    "mobilenet": lambda: mobilenet(IMAGE, 3, (2, 3)),
    "char_lstm": lambda: char_lstm(TEXT, 7, (3, 2), 2),
    "char_gru": lambda: char_gru(TEXT, 7, (3,), 2),
}


@pytest.mark.parametrize("name", SMALLER)
def test_shapes_of_a_sub_model_are_those_of_the_model_built_smaller(name):
    counts = {group: n // 2 for group, n in model(name).groups.sizes}
    assert model(name).groups.shapes(model(name).shapes(), counts) == SMALLER[name]().shapes()


def test_shapes_of_sub_models_whose_stream_stays():
    shapes = named_leaves(model("resnet").groups.shapes(model("resnet").shapes(), {"block_0": 1, "block_1": 3}))
    assert shapes["stem/kernel"].shape == (3, 3, 2, 4) and shapes["block_0/conv_1/kernel"].shape == (3, 3, 2, 4)
    assert shapes["block_1/norm_0/scale"].shape == (6,) and shapes["block_1/shortcut/kernel"].shape == (1, 1, 4, 8)
    shapes = named_leaves(
        model("transformer").groups.shapes(model("transformer").shapes(), {"attention_0": 3, "ffn_0": 1})
    )
    assert shapes["attention_0/query/kernel"].shape == (8, 6) and shapes["attention_0/out/kernel"].shape == (6, 8)
    assert shapes["ffn_0/in/bias"].shape == (1,) and shapes["embedding/table"].shape == (7, 8)


@pytest.mark.parametrize("name", BUILD)
def test_there_and_back_with_traced_neurons_in_any_order(name):
    groups, params = model(name).groups, random_params(model(name))
    kept = random_neurons(groups)
    masks = {group: np.isin(np.arange(n), kept[group]) for group, n in groups.sizes}

    @functools.partial(jax.jit, compiler_options=FAST)
    def run(params, kept, masks):
        small = groups.extract(params, kept)
        zeros = jax.tree.map(jnp.zeros_like, params)
        full_masks = groups.masks(params, masks)
        return small, groups.insert(zeros, small, kept), groups.insert(params, small, kept), full_masks

    small, update, back, masks = run(params, kept, masks)
    jax.tree.map(lambda p, m, u: np.testing.assert_array_equal(p * m, u), params, masks, update)
    jax.tree.map(np.testing.assert_array_equal, params, back)
    assert sum(x.size for x in jax.tree.leaves(small)) == sum(m.sum() for m in jax.tree.leaves(masks))


def test_extract_and_insert_under_vmap_over_clients_with_masks_of_their_own():
    groups, params = model("char_lstm").groups, random_params(model("char_lstm"))
    own = [random_neurons(groups, seed) for seed in (1, 2)]
    both = jax.tree.map(lambda *v: jnp.stack(v), *own)
    zeros = jax.tree.map(jnp.zeros_like, params)
    there_and_back = lambda kept: groups.insert(zeros, groups.extract(params, kept), kept)  # noqa: E731
    batched = jax.jit(jax.vmap(there_and_back), compiler_options=FAST)(both)
    for i, kept in enumerate(own):
        mask = groups.masks(params, {g: np.isin(np.arange(n), kept[g]) for g, n in groups.sizes})
        jax.tree.map(lambda p, m, b, i=i: np.testing.assert_array_equal(p * m, b[i]), params, mask, batched)


def test_gates_and_heads_are_cut_where_they_lie():
    params = jax.tree.map(np.asarray, random_params(model("char_lstm")))
    small = model("char_lstm").groups.extract(params, {"embedding": [0, 1, 2, 3], "lstm_0": [4, 1], "lstm_1": [0]})
    columns = [4, 1, 10, 7, 16, 13, 22, 19]  # gate after gate, six units each
    np.testing.assert_array_equal(small["lstm_0"]["recurrent"], params["lstm_0"]["recurrent"][[4, 1]][:, columns])
    np.testing.assert_array_equal(small["lstm_1"]["kernel"], params["lstm_1"]["kernel"][[4, 1]][:, [0, 5, 10, 15]])
    params = random_params(model("transformer"))
    small = model("transformer").groups.extract(params, {"attention_0": [3, 0], "ffn_0": [5]})
    rows = [6, 7, 0, 1]  # heads of two
    np.testing.assert_array_equal(small["attention_0"]["key"]["bias"], params["attention_0"]["key"]["bias"][rows])
    np.testing.assert_array_equal(small["attention_0"]["out"]["kernel"], params["attention_0"]["out"]["kernel"][rows])


@pytest.mark.parametrize("name", BUILD)
def test_scores_count_every_parameter_once_or_not_at_all(name):
    groups = model(name).groups
    rng = np.random.default_rng(0)
    values = jax.tree.map(lambda s: rng.integers(0, 9, s.shape).astype(np.float32), model(name).shapes())
    owners = {path: leaf.owner for path, leaf in groups.leaves}
    unowned = sum(v.sum() for path, v in named_leaves(values).items() if owners.get(path) is None)
    scores = jax.jit(groups.scores, compiler_options=FAST)(values)
    assert {g: s.shape for g, s in scores.items()} == {g: (n,) for g, n in groups.sizes}
    assert sum(float(s.sum()) for s in scores.values()) + unowned == sum(v.sum() for v in jax.tree.leaves(values))


def test_logits_and_streams_are_not_owned():
    owners = {path: leaf.owner for path, leaf in model("resnet").groups.leaves}
    assert {p for p, o in owners.items() if o} == {
        f"block_{i}/{leaf}" for i in (0, 1) for leaf in ("conv_0/kernel", "norm_0/scale", "norm_0/bias")
    }
    for name in BUILD:
        last = {path: leaf for path, leaf in model(name).groups.leaves if path.endswith("bias")}
        assert all(leaf.axes == (None,) for path, leaf in last.items() if path == "dense_2/bias")


def test_scores_of_heads_and_gates_by_hand():
    groups = NeuronGroups({"h": 2}, {"w": Leaf((None, Axis("h", repeats=2, block=2)), "h")})
    values = jnp.array([[1.0, 2, 10, 20, 100, 200, 1000, 2000]])
    np.testing.assert_array_equal(groups.scores({"w": values})["h"], [303.0, 3030.0])
    np.testing.assert_array_equal(groups.masks({"w": values}, {"h": np.array([0, 1])})["w"], [[0, 0, 1, 1, 0, 0, 1, 1]])


def test_counts_are_those_of_traced_masks():
    groups = NeuronGroups({"a": 7, "b": 10}, dense_leaves("a", None, "a") | dense_leaves("b", Axis("a"), "b"), {"b": 4})
    rates = np.concatenate([np.linspace(0.01, 1, 100), np.arange(1, 21) / 20])
    for group, n in groups.sizes:
        least = dict(groups.min_keep)[group]
        masks = jax.jit(jax.vmap(lambda r, n=n, least=least: best(jnp.arange(n), r, least, n).sum()))
        expected = [groups.counts(r)[group] for r in rates]
        np.testing.assert_array_equal(masks(jnp.asarray(rates, jnp.float32)), expected)


# -------------------------------------------------------------- what is wrong is found, in one line that says where


class NormedNet(nnx.Module):
    """A layer norm that counts dropped units."""

    def __init__(self, rngs):
        self.first, self.norm, self.last = (
            nnx.Linear(4, 6, rngs=rngs),
            nnx.LayerNorm(6, rngs=rngs),
            nnx.Linear(6, 2, rngs=rngs),
        )

    def __call__(self, x):
        return self.last(self.norm(self.first(x)))


def normed():
    norm = {f"norm/{leaf}": Leaf((Axis("first"),), "first") for leaf in ("scale", "bias")}
    leaves = dense_leaves("first", None, "first") | norm | dense_leaves("last", Axis("first"), None)
    return from_nnx(NormedNet, (4,), NeuronGroups({"first": 6}, leaves))


class LinenNet(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(2, name="last")(jax.nn.relu(linen.Dense(6, name="first")(x)))


def linen_net():
    leaves = dense_leaves("first", None, "first") | dense_leaves("last", Axis("first"), None)
    return from_linen(LinenNet(), (4,), NeuronGroups({"first": 6}, leaves))


def wrong_gates():
    """The gates of a unit declared as neighbours."""
    spec = recurrent_spec("lstm", 4, 4, "lstm") | dense_spec("last", Axis("lstm"), 2)
    spec |= {
        f"lstm/{leaf}": (*spec[f"lstm/{leaf}"][:-1], Axis("lstm", block=4)) for leaf in ("kernel", "recurrent", "bias")
    }
    return declared("wrong", spec, {"lstm": 6}, lambda p, x: dense(p["last"], lstm(p["lstm"], x)), (5, 4))


def forgotten_leaf():
    leaves = dense_leaves("dense_0", None, "dense_0")
    return from_nnx(
        lambda rngs: nnx.Sequential(nnx.Linear(4, 6, rngs=rngs), nnx.Linear(6, 2, rngs=rngs)),
        (4,),
        NeuronGroups({"dense_0": 6}, {p.replace("dense_0", "layers/0"): leaf for p, leaf in leaves.items()}),
    )


@pytest.mark.parametrize(
    ("build", "shape", "message"),
    [
        (normed, (3, 4), "model 'NormedNet' .*group 'first' is wrong: outputs differ .*what normalises over them"),
        (linen_net, (3, 4), "group 'first' is wrong: the smaller parameters are refused .*Read sizes off their shapes"),
        (wrong_gates, (3, 5, 4), "group 'lstm' is wrong: outputs differ .*Check axes, repeats, block"),
        (forgotten_leaf, (3, 4), "group 'dense_0' is wrong: the smaller parameters are refused"),
        (lambda: MODELS["logistic"]((4,), 2), (3, 4), "to have neuron groups"),
    ],
)
def test_groups_that_are_wrong_are_found(build, shape, message):
    with pytest.raises(FljaxError, match=message) as error:
        verify(build(), jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32))
    assert "\n" not in str(error.value)


GROUPS = NeuronGroups({"a": 4}, dense_leaves("d", None, "a"))
PARAMS = {"d": {"kernel": np.zeros((3, 4), np.float32), "bias": np.zeros(4, np.float32)}}


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({}, "a mask for group 'a'"),
        ({"a": np.zeros(4)}, "group 'a' to keep at least one neuron"),
        ({"a": np.zeros(0, np.int32)}, "group 'a' to keep at least one neuron"),
        ({"a": np.array([1, 0, 1, 0])}, "distinct indices below 4"),
        ({"a": np.array([1, 4])}, "distinct indices below 4"),
        ({"a": np.array([-1, 2])}, "distinct indices below 4"),
        ({"a": np.ones(3)}, r"shape \(3,\) to have shape \(4,\)"),
    ],
)
def test_kept_neurons_that_make_no_model_are_refused(kept, message):
    with pytest.raises(FljaxError, match=message):
        GROUPS.extract(PARAMS, kept)


def test_a_traced_mask_is_refused_because_it_fixes_no_shape():
    with pytest.raises(FljaxError, match=r"concrete mask of group 'a'. Use the indices"):
        jax.eval_shape(lambda m: GROUPS.extract(PARAMS, {"a": m}), jnp.ones(4))


@pytest.mark.parametrize("rate", [0.0, -1.0, 1.5, float("nan")])
def test_a_tier_that_keeps_nothing_is_refused(rate):
    with pytest.raises(FljaxError, match="keep_rate"):
        GROUPS.counts(rate)


def test_an_axis_that_does_not_fit_its_blocks_is_refused():
    groups = NeuronGroups({"h": 3}, {"w": Leaf((Axis("h", block=2),), "h")})
    with pytest.raises(FljaxError, match=r"axis 0 of 'w' with shape \(5,\) to have length 1 x 3 x 2.*Fix sizes"):
        groups.check({"w": np.zeros(5)})
    with pytest.raises(FljaxError, match="repeats=1 and block=0 of 'w' >= 1"):
        NeuronGroups({"h": 3}, {"w": Leaf((Axis("h", block=0),), "h")})
