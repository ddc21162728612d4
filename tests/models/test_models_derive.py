"""Groups found by experiment against groups declared by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from fljax.core.check import FljaxError
from fljax.models import cnn, derive_groups, from_functions, from_linen, from_nnx, mlp
from fljax.models.layers import flatten


def meaning(groups):
    """What groups say, without leaves that are never cut."""
    return dict(groups.sizes), {path: leaf for path, leaf in groups.leaves if any(leaf.axes)}


@pytest.mark.parametrize(
    "build",
    [
        lambda: (mlp((2, 3), 3, (5, 5)), (2, 3)),
        lambda: (cnn((10, 9, 2), 3, (3, 4), 5), (10, 9, 2)),
    ],
)
def test_derived_groups_are_the_declared_ones(build):
    model, shape = build()
    assert meaning(derive_groups(model.apply, model.shapes(), shape)) == meaning(model.groups)


class Residual(nnx.Module):
    """x + last(relu(inner(x))) on a stream of 4: only inner may be dropped."""

    def __init__(self, rngs):
        self.stem, self.inner = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 6, use_bias=False, rngs=rngs)
        self.outer, self.logits = nnx.Linear(6, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        x = self.stem(x)
        return self.logits(x + self.outer(jax.nn.relu(self.inner(x))))


class ChannelsFirst(nnx.Module):
    """Flattened with the channel slowest: each channel is a block of neighbours."""

    def __init__(self, rngs):
        self.conv, self.logits = nnx.Conv(1, 3, (3, 3), rngs=rngs), nnx.Linear(3 * 16, 2, rngs=rngs)

    def __call__(self, x):
        return self.logits(flatten(jnp.moveaxis(jax.nn.relu(self.conv(x)), -1, 1)))


def test_a_residual_stream_is_left_alone():
    model = from_nnx(Residual, (3,), "derive")
    assert model.groups.sizes == (("inner", 6),)
    assert {path for path, leaf in model.groups.leaves if any(leaf.axes)} == {"inner/kernel", "outer/kernel"}


def test_blocks_are_told_from_repeats():
    groups = from_nnx(ChannelsFirst, (4, 4, 1), "derive").groups
    axis = dict(groups.leaves)["logits/kernel"].axes[0]
    assert (axis.group, axis.repeats, axis.block) == ("conv", 1, 16)


class Sigmoid(nnx.Module):
    def __init__(self, rngs):
        self.first, self.last = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.last(jax.nn.sigmoid(self.first(x)))


class Gated(nnx.Module):
    def __init__(self, rngs):
        self.gate, self.up, self.down = (nnx.Linear(4, n, rngs=rngs) for n in (4, 4, 2))

    def __call__(self, x):
        return self.down(jax.nn.relu(self.gate(x)) * self.up(x))


class LinenNet(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(2)(jax.nn.relu(linen.Dense(6)(x)))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: from_nnx(Sigmoid, (3,), "derive"), "outgoing weights of their own, found none. Declare NeuronGroups"),
        (
            lambda: from_nnx(Gated, (4,), "derive"),
            "axis 0 of 'down/kernel' to follow one layer, found 'gate' and 'up'",
        ),
        (lambda: from_linen(LinenNet(), (4,), "derive"), "found none: 'Dense_1' cannot be smaller .*Declare"),
        (
            lambda: from_functions(lambda key: {"w": jnp.ones(4)}, lambda p, x: x @ p["w"], "derive"),
            "input_shape for groups='derive'",
        ),
    ],
)
def test_what_cannot_be_derived_is_said_in_one_line(build, message):
    with pytest.raises(FljaxError, match=message) as error:
        build()
    assert "\n" not in str(error.value)


def test_derived_groups_need_no_values():
    model = mlp((3,), 2, (4,))
    zeros = jax.tree.map(lambda s: np.zeros(s.shape, np.float32), model.shapes())
    assert meaning(derive_groups(model.apply, zeros, (3,))) == meaning(model.groups)
