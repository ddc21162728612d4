"""FjORD: the loss of a step against NumPy, which widths are drawn, and one round of it."""

import jax
import jax.numpy as jnp
import numpy as np
import private_rounds as tiny
import pytest

from fljax import recipes
from fljax.core.check import FljaxError
from fljax.core.types import Ctx
from fljax.data.federated import Batch
from fljax.dropout.information import Learner
from fljax.dropout.widths import random_widths
from fljax.server.clients import Tiers

MODEL, LOSS = tiny.model(), tiny.training().loss
LEARNER = Learner(MODEL.apply, LOSS, MODEL.groups)
KEY = jax.random.key(0)
RNG = np.random.default_rng(2)
PARAMS = jax.tree.map(lambda s: jnp.asarray(RNG.normal(size=s.shape), jnp.float32), MODEL.shapes())
BATCH = Batch(
    jnp.asarray(RNG.normal(size=(5, 4)), jnp.float32), jnp.array([0, 1, 2, 1, 0]), jnp.array([1.0, 1, 1, 1, 0])
)


def ctx(keep=1.0, distill=0.0, t=0) -> Ctx:
    h = tiny.Hparams(keep_rate=keep, distill=distill).arrays()
    return Ctx(jnp.int32(t), h, KEY, jnp.int32(0), jnp.int32(0), jnp.float32(8), jnp.float32(keep))


def log_softmax(width):
    """Of the first ``width`` hidden neurons, in float64: [4 valid examples, 3]."""
    p = jax.tree.map(lambda v: np.asarray(v, np.float64), PARAMS)
    x = np.asarray(BATCH.x, np.float64)[:4]
    hidden = np.maximum(x @ p["dense_0"]["kernel"][:, :width] + p["dense_0"]["bias"][:width], 0)
    z = hidden @ p["dense_1"]["kernel"][:width] + p["dense_1"]["bias"]
    return z - np.log(np.exp(z).sum(1, keepdims=True))


def entropy(width):
    return -np.mean(log_softmax(width)[np.arange(4), np.asarray(BATCH.y)[:4]])


def test_a_step_trains_the_prefix_that_it_draws():
    """The loss is one of the three widths', each about as often; neurons behind the prefix have no gradient."""
    objective = jax.jit(jax.value_and_grad(random_widths(LEARNER, (1 / 3, 1.0, 2 / 3)), argnums=2))
    expected, counts = np.array([entropy(w) for w in (2, 4, 6)]), np.zeros(3)
    for key in jax.random.split(KEY, 60):
        value, gradient = objective(key, ctx(), PARAMS, BATCH)
        place = int(np.argmin(np.abs(expected - float(value))))
        assert abs(expected[place] - float(value)) < 1e-5
        used = np.any(np.asarray(gradient["dense_0"]["kernel"]) != 0, axis=0)
        assert not used[2 * place + 2 :].any() and not np.any(gradient["dense_1"]["kernel"][2 * place + 2 :])
        counts[place] += 1
    assert counts.min() > 5  # Binomial(60, 1/3) is below 6 with probability 2e-5, three of them


def test_a_client_draws_no_width_above_its_own():
    objective = jax.jit(random_widths(LEARNER, (1 / 3, 2 / 3, 1.0)))
    for keep, allowed in ((2 / 3, (2, 4)), (0.5, (2,)), (1 / 6, (1,))):
        values = {round(float(objective(k, ctx(keep), PARAMS, BATCH)), 4) for k in jax.random.split(KEY, 20)}
        assert values == {round(entropy(w), 4) for w in allowed}


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_narrow_widths_learn_from_the_widest(weight):
    """``CE(f_P) + (1 - a) CE(f_p) + a KL(f_P || f_p)`` by hand for p = 2 of 6; no gradient through the target."""
    objective = jax.jit(jax.value_and_grad(random_widths(LEARNER, (1 / 3,), distill=True), argnums=2))
    value, gradient = objective(KEY, ctx(distill=weight), PARAMS, BATCH)
    wide, narrow = log_softmax(6), log_softmax(2)
    apart = np.mean(np.sum(np.exp(wide) * (wide - narrow), axis=1))
    assert float(value) == pytest.approx(entropy(6) + (1 - weight) * entropy(2) + weight * apart, abs=1e-5)
    whole = jax.grad(random_widths(LEARNER, (1.0,)), argnums=2)(KEY, ctx(), PARAMS, BATCH)
    behind = np.asarray(gradient["dense_0"]["kernel"])[:, 2:]
    np.testing.assert_allclose(behind, np.asarray(whole["dense_0"]["kernel"])[:, 2:], rtol=1e-5, atol=1e-7)


def test_a_round_of_it_sends_the_widest_prefix_of_every_class():
    tiers = Tiers((1.0, 0.5), np.arange(tiny.POPULATION) % 2)
    made = recipes.fjord(tiny.training(), tiny.sampler(), tiers, widths=(1 / 6, 0.5, 1.0))
    h = tiny.Hparams(client_lr=0.5, keep_rate=1.0, sampling_rate=1.0).arrays()
    state = made.init(jax.random.key(1), MODEL.init(jax.random.key(2)), h)
    seen = jax.jit(made.transcript)(jnp.int32(0), KEY, state, tiny.pack(tiny.clients()), h)
    moved = np.any(np.asarray(seen.payloads["update"]["dense_0"]["kernel"]) != 0, axis=1)
    small = np.asarray(seen.cohort.ids) % 2 == 1
    assert not moved[small][:, 3:].any() and moved[~small][:, 3:].any()
    held = np.where(np.arange(6) < 3, 8, 4)  # all hold the first half, one class the rest
    counts = np.asarray(seen.pre_noise["count"]["dense_0"]["bias"])
    np.testing.assert_array_equal(counts, held)


@pytest.mark.parametrize(("widths", "says"), [((), "hold a share"), ((0.5, 1.5), "width=1.5"), ((0.0,), "width=0.0")])
def test_widths_out_of_range_are_one_line(widths, says):
    with pytest.raises(FljaxError, match=says) as caught:
        random_widths(LEARNER, widths)
    assert "\n" not in str(caught.value)
    with pytest.raises(FljaxError, match="neuron groups"):
        random_widths(LEARNER._replace(groups=None), (0.5,))
