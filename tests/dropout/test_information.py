"""Fisher information against closed forms and loops over single examples in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import private_rounds as tiny

from fljax.dropout.information import (
    Learner,
    empirical_fisher,
    gate_fisher,
    neuron_fisher,
    sample_labels,
    unit_scores,
)
from fljax.models import logistic, make_loss, mlp

LOSS = make_loss("classification")
MODEL = mlp((3,), 2, (4,))
LEARNER = Learner(MODEL.apply, LOSS, MODEL.groups)
RNG = np.random.default_rng(0)
X, Y = jnp.asarray(RNG.normal(size=(5, 3)), jnp.float32), jnp.array([0, 1, 1, 0, 1])
MASK = jnp.array([1.0, 1.0, 1.0, 1.0, 0.0])


def params():
    return jax.tree.map(lambda p: p + 0.3, MODEL.init(jax.random.key(1)))


def gradients():
    """Gradients of the four valid examples, one by one."""
    loss = lambda p, i: LOSS.per_example(MODEL.apply(p, X[i : i + 1]), Y[i : i + 1])[0]  # noqa: E731
    return [jax.grad(loss)(params(), i) for i in range(4)]


def test_empirical_fisher_is_the_mean_of_squared_single_gradients():
    expected = jax.tree.map(lambda *g: np.mean([np.asarray(x, np.float64) ** 2 for x in g], axis=0), *gradients())
    seen = empirical_fisher(LEARNER, params(), X, Y, MASK)
    np.testing.assert_allclose(tiny.flat(seen), tiny.flat(expected), rtol=1e-5, atol=1e-9)


def test_true_fisher_of_logistic_regression_has_its_closed_form():
    """For weights w_jc of a softmax: ``E_x[x_j^2 p_c (1 - p_c)]``. 20,000 draws of labels at five inputs."""
    model = logistic((3,), 2)
    p = jax.tree.map(lambda a: a + jnp.asarray(RNG.normal(size=a.shape), jnp.float32), model.init(jax.random.key(0)))
    learner = Learner(model.apply, LOSS, None)
    probability = np.asarray(jax.nn.softmax(model.apply(p, X)), np.float64)
    x = np.asarray(X, np.float64)
    expected = np.mean(x[:, :, None] ** 2 * (probability * (1 - probability))[:, None, :], axis=0)
    many = jnp.tile(X, (4000, 1))
    drawn = sample_labels(jax.random.key(2), learner, p, many)
    seen = empirical_fisher(learner, p, many, drawn, jnp.ones(len(many)))
    kernel = next(v for v in jax.tree.leaves(seen) if v.shape == (3, 2))
    np.testing.assert_allclose(kernel, expected, rtol=0.06, atol=1e-3)
    labels = np.asarray(sample_labels(jax.random.key(3), learner, p, jnp.tile(X, (4000, 1)))).reshape(4000, 5)
    np.testing.assert_allclose(labels.mean(0), probability[:, 1], atol=0.04)  # 5 standard deviations


def test_gate_fisher_is_the_derivative_by_a_gate():
    """Against a model whose hidden pre-activations are multiplied by gates of 1, differentiated by the gates."""

    def gated(gates, i):
        p = params()
        hidden = jax.nn.relu(gates * (X[i] @ p["dense_0"]["kernel"] + p["dense_0"]["bias"]))
        return LOSS.per_example((hidden @ p["dense_1"]["kernel"] + p["dense_1"]["bias"])[None], Y[i : i + 1])[0]

    by_gate = np.mean([np.asarray(jax.grad(gated)(jnp.ones(4), i), np.float64) ** 2 for i in range(4)], axis=0)
    seen = gate_fisher(LEARNER, params(), X, Y, MASK)["dense_0"]
    np.testing.assert_allclose(seen, by_gate, rtol=1e-5, atol=1e-10)


def test_a_neurons_information_is_that_of_its_incoming_weights_and_bias():
    """Summed by hand over single gradients; the outgoing weights count for the neuron that they lead to."""
    squares = [{n: np.asarray(v, np.float64) ** 2 for n, v in g["dense_0"].items()} for g in gradients()]
    expected = np.mean([s["kernel"].sum(0) + s["bias"] for s in squares], axis=0)
    seen = neuron_fisher(LEARNER, params(), X, Y, MASK)
    assert set(seen) == {"dense_0"}
    np.testing.assert_allclose(seen["dense_0"], expected, rtol=1e-5, atol=1e-10)


def test_unit_scores_have_norm_one_whatever_the_data():
    """Two layers weigh alike; a layer without information, or with values that are not finite, adds nothing."""
    scores = {"a": jnp.array([4.0, 9.0, 0.0]), "b": jnp.array([1e-12, 3e-12])}
    unit = unit_scores(scores)
    np.testing.assert_allclose(unit["a"], np.array([2, 3, 0]) / np.sqrt(13 * 2), rtol=1e-6)
    assert np.sqrt(sum(float(jnp.sum(v**2)) for v in unit.values())) <= 1 + 1e-6
    for bad in (0.0, jnp.nan, jnp.inf, 3e38):
        odd = unit_scores({"a": jnp.full(3, bad), "b": scores["b"]})
        assert np.all(np.isfinite(tiny.flat(odd)))
        assert np.sqrt((tiny.flat(odd) ** 2).sum()) <= 1 + 1e-6
