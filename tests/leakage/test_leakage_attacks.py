"""Attacks against closed forms: what they must find, and what they cannot."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fljax.leakage import participation
from fljax.leakage.analytic import quotients
from fljax.leakage.inversion import _in_place, misfit, real_examples, total_variation
from fljax.leakage.labels import _rounded, count_labels, made_up_clients
from fljax.leakage.positions import Classifier, dominant, fit

RANDOM = np.random.default_rng(5)


# ---- labels ----------------------------------------------------------------------------------------------------------


def test_label_rule_by_hand():
    """K = 4, three examples: m = 5/4 / 3 * (-0.6 - 0.12) = -0.3. Class 1 and 3 first; class 1 is left at -0.3."""
    gradient = jnp.array([0.5, -0.6, 0.22, -0.12])
    assert count_labels(gradient, 3, 5).tolist() == [1, 3, 1, -1, -1]
    assert count_labels(1000 * gradient, 3, 5).tolist() == [1, 3, 1, -1, -1]  # the length does not matter
    assert count_labels(gradient, 1, 5).tolist() == [1, -1, -1, -1, -1]
    # Four examples: m = 4/3 / 4 * -0.58 = -0.193; class 0 is left at -0.107, class 1 at -0.087, then 0 at 0.087.
    assert count_labels(jnp.array([-0.3, -0.28, 0.58]), 4, 4).tolist() == [0, 1, 0, 1]


def bias_gradient(labels, probabilities):
    return np.mean(probabilities, axis=0) - np.bincount(labels, minlength=probabilities.shape[1]) / len(labels)


def test_one_example_has_one_negative_entry():
    gradients = [bias_gradient([label], RANDOM.dirichlet(np.ones(6), 1)) for label in range(6)]
    found = jax.jit(jax.vmap(lambda g: count_labels(g, 1, 1)))(jnp.asarray(gradients))
    assert found[:, 0].tolist() == [*range(6)]


def test_the_rule_names_every_label_above_its_share_and_none_that_is_absent():
    """At a fresh model p = 1/K: labels with a share above 1/K have a negative gradient, absent ones a positive one."""
    every = [*itertools.combinations_with_replacement(range(3), 4)]
    gradients = [bias_gradient(list(labels), np.full((4, 3), 1 / 3)) for labels in every]
    found = np.asarray(jax.jit(jax.vmap(lambda g: count_labels(g, 4, 4)))(jnp.asarray(gradients)))
    for labels, named in zip(every, found, strict=True):
        assert {k for k in labels if labels.count(k) > 4 / 3} <= set(named.tolist()) <= set(labels)


def test_shares_become_counts_by_largest_remainders():
    """5 * (0.5, 0.26, 0.24) = 2.5, 1.3, 1.2: the last example goes to the first label."""
    assert _rounded(np.array([0.5, 0.26, 0.24]), 5, 7).tolist() == [0, 1, 2, 0, 0, -1, -1]
    assert _rounded(np.array([0.1, 0.3, 0.1]), 5, 5).tolist() == [0, 1, 2, 1, 1]
    assert _rounded(np.array([-1.0, 2.0]), 3, 3).tolist() == [1, 1, 1]


def test_made_up_clients_have_few_labels_or_all():
    y = np.repeat(np.arange(5), 40)
    few = made_up_clients(np.random.default_rng(0), y, 300, 10, 0.1)
    many = made_up_clients(np.random.default_rng(0), y, 300, 10, np.inf)
    count = lambda rows: np.mean([len(np.unique(y[r])) for r in rows])  # noqa: E731
    assert few.shape == many.shape == (300, 10)
    assert count(few) < 2.5 < 4 < count(many)


# ---- analytic inversion ----------------------------------------------------------------------------------------------


def dense_gradient(x, d):
    """Gradients of kernel [D, n] and bias [n] for inputs [B, D] and errors d [B, n] at the neurons."""
    return jnp.asarray(x.T @ d), jnp.asarray(d.sum(0))


def test_one_example_is_read_off_exactly():
    x, d = RANDOM.uniform(size=(1, 20)), RANDOM.normal(size=(1, 7))
    d[0, 3] = 0.0
    found, told = quotients(*dense_gradient(x, d))
    assert told.tolist() == [True, True, True, False, True, True, True]
    np.testing.assert_allclose(np.asarray(found)[np.asarray(told)], np.repeat(x, 6, 0), rtol=1e-5)


def test_a_neuron_that_one_example_moves_tells_it_and_others_tell_means():
    x, d = RANDOM.uniform(size=(3, 20)), np.array([[1.0, 0.0, 2.0], [0.0, -3.0, 1.0], [0.0, 0.0, 1.0]])
    found, _ = quotients(*dense_gradient(x, d))
    np.testing.assert_allclose(found[:2], x[:2], rtol=1e-5)
    np.testing.assert_allclose(found[2], (2 * x[0] + x[1] + x[2]) / 4, rtol=1e-5)


# ---- inversion -------------------------------------------------------------------------------------------------------


def test_misfit_is_one_minus_the_cosine():
    a, b = {"u": jnp.array([3.0, 0.0]), "v": jnp.array([[4.0]])}, {"u": jnp.array([0.0, 1.0]), "v": jnp.array([[2.0]])}
    assert float(misfit(a, b)) == pytest.approx(1 - 8 / (5 * 5**0.5))
    assert float(misfit(a, jax.tree.map(lambda x: 7 * x, a))) == pytest.approx(0, abs=1e-6)


def test_total_variation_by_hand():
    image = jnp.array([[0.0, 1.0], [0.5, 0.5]]).reshape(1, 4)
    assert float(total_variation(image, (2, 2, 1))) == pytest.approx((0.5 + 0.5) / 2 + (1.0 + 0.0) / 2)
    assert float(total_variation(image, None)) == 0


def test_labels_go_to_the_places_of_examples():
    sizes = jnp.array([2, 0, 3])
    assert real_examples(sizes, 3).tolist() == [True, True, False, False, False, False, True, True, True]
    placed = _in_place(jnp.array([7, 8, 9, 1, 2, -1, -1, -1, -1]), sizes)
    assert placed.tolist() == [7, 8, 0, 0, 0, 0, 9, 1, 2]


# ---- positions -------------------------------------------------------------------------------------------------------


def test_logistic_regression_finds_the_bits_that_matter():
    bits = RANDOM.integers(0, 2, (400, 12)).astype(np.float32) - 0.5
    labels = (bits[:, 3] > 0) + 2 * (bits[:, 7] > 0)
    model = fit(jnp.asarray(bits[:300]), jnp.asarray(labels[:300]), 4)
    assert isinstance(model, Classifier)
    assert np.mean(np.asarray(model.predict(jnp.asarray(bits[300:]))) == labels[300:]) > 0.97


def test_dominant_label():
    y = np.array([[1, 2, 2, 9], [3, 3, 4, 4], [5, 5, 5, 5]])
    assert dominant(y, np.array([3, 4, 0])).tolist() == [2, 3, -1]


# ---- participation ---------------------------------------------------------------------------------------------------


def test_exposure_by_hand():
    """s1 = a + b, s2 = b, s3 = c + d: a and b are solved for, c and d are not."""
    rank, exposed = participation.exposed_clients(np.array([[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1]]))
    assert rank == 3 and exposed.tolist() == [True, True, False, False]


def test_two_of_three_pairs_are_not_enough_and_three_are():
    pairs = np.array([[1, 1, 0], [0, 1, 1], [1, 0, 1]])
    assert not participation.exposed_clients(pairs[:2])[1].any()
    assert participation.exposed_clients(pairs)[1].all()
    assert participation.exposed_clients(np.zeros((4, 3)))[0] == 0
    rank, exposed = participation.exposed_clients(np.array([[1, 1, 0]] * 3))  # the same sum three times
    assert rank == 1 and not exposed.any()


@pytest.mark.parametrize("seed", range(5))
def test_exposure_is_solvability_of_a_linear_system(seed):
    """Client i is exposed iff adding the row e_i leaves the rank as it is; brute force by ranks."""
    matrix = np.random.default_rng(seed).integers(0, 2, (6, 8))
    _, exposed = participation.exposed_clients(matrix)
    rank = np.linalg.matrix_rank
    brute = [rank(np.vstack([matrix, np.eye(8)[i]])) == rank(matrix) for i in range(8)]
    assert exposed.tolist() == brute
