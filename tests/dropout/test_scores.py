"""The score of a neuron: unbiased under noise, with the spread that theory says, blind to what is not released.

Seeds are fixed; the false-alarm rates say how often another seed would fail.
"""

import jax
import jax.numpy as jnp
import numpy as np
import private_rounds as tiny
import pytest

from fljax.core.types import Ctx, Hparams
from fljax.dropout.baselines import magnitude_dropout, ordered_dropout, random_dropout, rolling_dropout
from fljax.dropout.fisher import fisher_dropout
from fljax.dropout.ranked import RankState, ranked_submodel
from fljax.dropout.scores import neuron_scores, no_energy, observe_energy
from fljax.models import mlp

TAU, DECAY, ROUNDS, RUNS = 0.3, 0.8, 60, 3000
MODEL = mlp((3,), 2, (4,))
PER_NEURON = 4  # three weights and a bias


def signal():
    """A constant update: two informative neurons, one of them twice as strong, and two that do nothing."""
    strength = jnp.array([0.4, 0.0, 0.2, 0.0])
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape), MODEL.shapes())
    return zero | {"dense_0": {"kernel": jnp.tile(strength, (3, 1)), "bias": strength}}


def noisy_scores(key, update, decay=DECAY, rounds=ROUNDS):
    """Scores after many rounds of update + N(0, tau^2)."""
    ones = jax.tree.map(jnp.ones_like, update)
    leaves, structure = jax.tree.flatten(update)

    def one(energy, k):
        keys = jax.random.split(k, len(leaves))
        noisy = [x + TAU * jax.random.normal(q, x.shape) for x, q in zip(leaves, keys, strict=True)]
        return observe_energy(energy, jax.tree.unflatten(structure, noisy), ones, TAU, decay), None

    energy, _ = jax.lax.scan(one, no_energy(update), jax.random.split(key, rounds))
    return neuron_scores(energy, MODEL.groups)["dense_0"]


@pytest.fixture(scope="module")
def samples():
    """[RUNS, 4] scores of independent runs."""
    keys = jax.random.split(jax.random.key(0), RUNS)
    return np.asarray(jax.jit(jax.vmap(lambda k: noisy_scores(k, signal())))(keys), np.float64)


def test_the_corrected_energy_is_unbiased(samples):
    """Within 5 standard errors of ||u_g||^2: false alarm 6e-7 a neuron."""
    truth = PER_NEURON * np.array([0.4, 0.0, 0.2, 0.0]) ** 2
    assert np.all(np.abs(samples.mean(0) - truth) < 5 * samples.std(0) / np.sqrt(RUNS))


def test_without_the_correction_it_would_not_be(samples):
    """The test above has power: tau^2 n_g is 40 standard errors."""
    assert 40 * samples[:, 1].std() / np.sqrt(RUNS) < PER_NEURON * TAU**2


def test_the_spread_of_a_silent_neuron(samples):
    """std = tau^2 sqrt(2 n_g / T_eff), T_eff = (1 + beta) / (1 - beta), within 10 % (its standard error is 2.5 %)."""
    effective = (1 + DECAY) / (1 - DECAY)
    expected = TAU**2 * np.sqrt(2 * PER_NEURON / effective)
    np.testing.assert_allclose(samples[:, [1, 3]].std(0), expected, rtol=0.1)


def test_the_average_is_corrected_for_its_start():
    """After one round and after many the score of the same update is the same."""
    update = signal()
    ones = jax.tree.map(jnp.ones_like, update)
    energy = no_energy(update)
    for _ in range(3):
        energy = observe_energy(energy, update, ones, 0.0, 0.9)
        scores = neuron_scores(energy, MODEL.groups)["dense_0"]
        np.testing.assert_allclose(scores, PER_NEURON * np.array([0.4, 0, 0.2, 0]) ** 2, rtol=1e-5, atol=1e-7)


def test_coordinates_off_the_support_keep_their_average():
    update = signal()
    ones, zeros = jax.tree.map(jnp.ones_like, update), jax.tree.map(jnp.zeros_like, update)
    seen = observe_energy(no_energy(update), update, ones, TAU, DECAY)
    again = observe_energy(seen, zeros, zeros, TAU, DECAY)
    assert tiny.same_bits(seen, again)
    unseen = neuron_scores(no_energy(update), MODEL.groups)["dense_0"]
    np.testing.assert_array_equal(unseen, np.zeros(4))


def context(t, key, keep=0.5, **numbers) -> Ctx:
    h = Hparams(**{"keep_rate": keep, "refresh_rounds": 1} | numbers)
    nobody = jnp.int32(-1)
    return Ctx(t, h, key, nobody, nobody, jnp.float32(5.0), jnp.float32(keep))


def test_on_noise_alone_the_masks_are_uniform():
    """The null test. Every neuron of iid noise is kept equally often, although kept neurons are observed more often.

    2000 runs of 6 rounds, 8 neurons of which 4 are kept: chi-square with 7 degrees of freedom, false alarm 1e-6.
    """
    model = mlp((3,), 2, (8,))
    sub, shapes = fisher_dropout(model.groups), model.shapes()
    params = jax.tree.map(lambda s: jnp.zeros(s.shape), shapes)

    def run(key):
        state = sub.init(params, None)
        for t in range(6):
            k = jax.random.fold_in(key, t)
            ctx = context(jnp.int32(t), k, mask_decay=0.7, explore=0.0)
            chosen = sub.select(ctx, state, params)
            mask = model.groups.masks(params, sub.masks(ctx, chosen))
            draws = [
                jax.random.normal(jax.random.fold_in(k, i), s.shape) for i, s in enumerate(jax.tree.leaves(shapes))
            ]
            noise = jax.tree.unflatten(jax.tree.structure(shapes), draws)
            update = jax.tree.map(lambda m, z: 0.3 * m * z, mask, noise)
            state = sub.observe(ctx._replace(support=mask), state, chosen, {"update": update}, jnp.float32(0.3))
        last = context(jnp.int32(6), key, mask_decay=0.7, explore=0.0)
        return sub.masks(last, sub.select(last, state, params))["dense_0"]

    kept = np.asarray(jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(4), 2000)))
    assert np.all(kept.sum(1) == 4)
    variance = 2000 * 0.5 * 0.5 * 8 / 7  # 4 of 8 without replacement
    assert ((kept.sum(0) - 1000) ** 2).sum() / variance < 40.5


def test_informative_neurons_are_found_under_noise():
    """The reverse of the null test: with a signal of 1.3 tau the informative half is kept in more than 90 % of runs."""
    keys = jax.random.split(jax.random.key(8), 200)
    scores = np.asarray(jax.jit(jax.vmap(lambda k: noisy_scores(k, signal())))(keys))
    assert np.mean(scores[:, 0] > np.maximum(scores[:, 1], scores[:, 3])) > 0.9


SOURCES = [fisher_dropout, random_dropout, ordered_dropout, rolling_dropout, magnitude_dropout]


@pytest.mark.parametrize("source", SOURCES)
def test_masks_are_functions_of_public_values_alone(source):
    """select(ctx, state, params), observe(ctx, state, chosen, released, std): no data and no payloads among them.

    And what clients have of the context (their id, slot and keep rate aside) is not looked at.
    """
    sub = source(MODEL.groups)
    params = jax.tree.map(lambda s: jnp.ones(s.shape), MODEL.shapes())
    state = sub.init(params, None)
    ctx = context(jnp.int32(0), jax.random.key(0), explore=0.5)
    other = ctx._replace(id=jnp.int32(3), slot=jnp.int32(1), expected=jnp.float32(99.0))
    chosen = sub.select(ctx, state, params)
    assert tiny.same_bits(chosen, sub.select(other, state, params))
    released = {"update": signal()}
    seen = sub.observe(ctx, state, chosen, released, jnp.float32(0.1))
    assert tiny.same_bits(seen, sub.observe(other, state, chosen, released, jnp.float32(0.1)))
    later = ctx._replace(round=jnp.int32(1), round_key=jax.random.key(9))
    assert tiny.same_bits(sub.select(later, seen, params), sub.select(later, jax.tree.map(jnp.copy, seen), params))


@pytest.mark.parametrize("source", SOURCES[1:])
def test_the_baselines_are_blind_to_updates_too(source):
    sub, params = source(MODEL.groups), MODEL.init(jax.random.key(5))
    state = sub.init(params, None)
    ctx = context(jnp.int32(0), jax.random.key(0))
    loud = jax.tree.map(lambda x: 100 * x, signal())
    chosen = sub.select(ctx, state, params)
    a = sub.observe(ctx, state, chosen, {"update": signal()}, jnp.float32(0.1))
    b = sub.observe(ctx, state, chosen, {"update": loud}, jnp.float32(5.0))
    assert tiny.same_bits(a, b)


def ranks(source, t, params=None, **numbers):
    """Ranks of the four neurons of the model in round t of a source that has seen nothing."""
    params = MODEL.init(jax.random.key(5)) if params is None else params
    sub = source(MODEL.groups)
    ctx = context(jnp.int32(t), jax.random.key(t), explore=0.0, **numbers)
    return np.asarray(sub.select(ctx, sub.init(params, None), params).ranks["dense_0"])


def test_ordered_masks_are_prefixes_and_rolling_ones_move_on():
    np.testing.assert_array_equal(ranks(ordered_dropout, 7), [0, 1, 2, 3])
    np.testing.assert_array_equal(ranks(rolling_dropout, 0), [0, 1, 2, 3])
    np.testing.assert_array_equal(ranks(rolling_dropout, 1), [3, 0, 1, 2])  # the window starts at neuron 1
    np.testing.assert_array_equal(ranks(rolling_dropout, 6), [2, 3, 0, 1])
    np.testing.assert_array_equal(ranks(rolling_dropout, 6, refresh_rounds=3), [2, 3, 0, 1])  # two refreshes: 0, 3, 6


def test_magnitude_ranks_by_incoming_weights_and_bias():
    params = MODEL.init(jax.random.key(5))
    layer = {name: np.asarray(x, np.float64) for name, x in params["dense_0"].items()}
    energy = np.square(layer["kernel"]).sum(0) + np.square(layer["bias"])
    np.testing.assert_array_equal(np.argsort(ranks(magnitude_dropout, 0, params)), np.argsort(-energy))


def test_hysteresis_keeps_what_is_kept_unless_the_evidence_is_clear():
    """Two neurons of four are kept. Without it a slightly better newcomer wins; with it only a much better one."""

    def kept(newcomer, hysteresis):
        scores = {"dense_0": jnp.array([1.0, 0.9, newcomer, 0.0])}
        sub = ranked_submodel(MODEL.groups, "submodel", score=lambda ctx, learnt, params: scores)
        ctx = context(jnp.int32(3), jax.random.key(0), explore=0.0, hysteresis=hysteresis)
        chosen = sub.select(ctx, RankState({"dense_0": jnp.array([0, 1, 2, 3])}, ()), None)
        return np.flatnonzero(sub.masks(ctx, chosen)["dense_0"])

    np.testing.assert_array_equal(kept(0.95, 0.0), [0, 2])
    np.testing.assert_array_equal(kept(0.95, 1.0), [0, 1])
    np.testing.assert_array_equal(kept(9.0, 1.0), [0, 2])


def test_the_oracle_rule_keeps_the_neurons_above_the_noise():
    """``||u_g||^2 > n_g tau^2``, by hand: four neurons with three incoming weights and a bias, n_g = 4."""
    sub, params = fisher_dropout(MODEL.groups), jax.tree.map(lambda s: jnp.zeros(s.shape), MODEL.shapes())
    state = sub.init(params, None)
    update = jax.tree.map(jnp.zeros_like, params)
    update["dense_0"]["kernel"] = update["dense_0"]["kernel"].at[0].set(jnp.array([3.0, 2.5, 1.0, 0.1]))
    ctx = context(jnp.int32(0), jax.random.key(0), keep=1.0, explore=0.0, auto_keep=1.0, mask_decay=0.0)
    seen = sub.observe(ctx, state, sub.select(ctx, state, params), {"update": update}, jnp.float32(0.9))
    later = ctx._replace(round=jnp.int32(1))
    noise = 4 * 0.9**2  # energies after the correction: 9, 6.25, 1, 0.01 minus 3.24, against a floor of 3.24
    expected = [e - noise > noise for e in (9.0, 6.25, 1.0, 0.01)]
    assert sum(expected) == 1
    np.testing.assert_array_equal(sub.masks(later, sub.select(later, seen, params))["dense_0"], expected)


def test_the_random_baseline_is_uniform():
    """Chi-square of 3000 masks over four neurons: false alarm 1e-6 at 30.7 (3 degrees of freedom)."""
    sub = random_dropout(MODEL.groups)
    state = sub.init(MODEL.shapes(), None)
    keys = jax.random.split(jax.random.key(2), 3000)

    def mask(key):
        ctx = context(jnp.int32(0), key)
        return sub.masks(ctx, sub.select(ctx, state, None))["dense_0"]

    counts = np.asarray(jax.jit(jax.vmap(mask))(keys)).sum(0)
    assert ((counts - 1500) ** 2).sum() / (3000 * 0.25 * 4 / 3) < 30.7
