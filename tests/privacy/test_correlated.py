"""Correlated noise: streamed rows are rows of one matrix, and what that matrix costs is what is accounted.

The matrix R of a stage (noise of round t = sum_s R[t, s] zeta_s) is recovered from what the stage releases, so that
sensitivities and errors are those of the code that runs. Seeds are fixed.
"""

import itertools
from functools import cache
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fljax.core.check import FljaxError
from fljax.core.transform import Noise, chain
from fljax.core.types import Ctx, Hparams, SamplingLaw
from fljax.privacy import correlated, epsilon, make_event
from fljax.privacy.accounting import epsilon_series
from fljax.privacy.clip import clip
from fljax.privacy.noise import add_gaussian, central_gaussian
from fljax.server.average import expected_average
from fljax.server.sampler import cyclic, cyclic_poisson, fixed_size, full, poisson

S, Z, WIDE, LONGEST = 0.3, 1.7, 20, 37
KEY = jax.random.key(3)
ZERO = {"update": {"a": jnp.zeros(WIDE), "b": jnp.zeros((3, WIDE))}}
COEFFICIENTS = np.array([0.8, 0.5, 0.3, 0.1])
"""A strategy that is not scaled, nor optimal: privacy must not depend on that."""


@cache
def make(kind, population, cohort, rounds, bands=3):
    """A stage; banded ones have the strategy above, scaled to norm 1."""
    sampler = cyclic(population, cohort)
    if kind == "tree":
        return correlated.tree_noise(rounds, sampler)
    used = COEFFICIENTS[: min(bands, rounds)]
    with patch.object(correlated, "banded_strategy", lambda rounds, bands: used / np.linalg.norm(used)):
        return correlated.banded_noise(rounds, bands, sampler)


def start(stage):
    return stage.init(ZERO["update"], None)[0]


def context(t, z=Z, support=None) -> Ctx:
    h = Hparams(clip=jnp.float32(S), noise_multiplier=jnp.asarray(z, jnp.float32))
    nobody = jnp.int32(-1)
    return Ctx(t, h, KEY, nobody, nobody, jnp.float32(1.0), h.keep_rate, support, {"payload": jnp.float32(S)})


def rows(stage, first, count, state, total=None, z=Z, support=None):
    """(state, releases, declared stds) of so many rounds."""

    def one(state, t):
        ctx = context(t, z, support)
        key = jax.random.fold_in(KEY, t)
        got, state, info = stage.decode(key, ctx, ZERO if total is None else total, None, state)
        return state, (got["update"], stage.noise(ctx, state, jnp.float32(0.0)), info["std"])

    state, (update, std, info) = jax.lax.scan(one, state, first + jnp.arange(count))
    return state, update, std, info


@cache
def drawn():
    """[LONGEST, P] the independent noise that the keys of the rounds stand for."""

    def one(t):
        key = jax.random.fold_in(jax.random.fold_in(KEY, t), 0)
        return add_gaussian(key, ZERO["update"], jnp.float32(Z * S))

    return flat(jax.jit(jax.vmap(one))(jnp.arange(LONGEST)))


def flat(update):
    return np.concatenate([np.asarray(x, np.float64).reshape(len(x), -1) for x in jax.tree.leaves(update)], axis=1)


@cache
def whole(kind, *case):
    """Releases of all rounds on an empty sum: ([T, P], declared stds [T])."""
    stage, rounds = make(kind, *case), case[2]
    _, update, std, info = jax.jit(lambda s: rows(stage, 0, rounds, s))(start(stage))
    np.testing.assert_allclose(std, info, rtol=1e-6)
    return flat(update), np.asarray(std, np.float64)


@cache
def matrix(kind, *case):
    """R [T, T] in float64, recovered from what the stage releases."""
    zeta, noise = drawn()[: case[2]], whole(kind, *case)[0]
    found = np.linalg.lstsq(zeta.T, noise.T, rcond=None)[0].T
    np.testing.assert_allclose(found @ zeta, noise, atol=1e-5 * Z * S)  # nothing else is in it
    return found


def tree_matrix(rounds, epoch):
    """R of a binary tree by its definition: differences of N(t), the node of an interval being drawn when it ends."""

    def prefix(t):
        row, end = np.zeros(rounds), t % epoch
        for e in range(epoch, t - end + 1, epoch):  # finished epochs stay as they ended
            row += nodes(e - epoch, epoch)
        return row + nodes(t - end, end)

    def nodes(start, length):
        row, at = np.zeros(rounds), 0
        for bit in reversed(range(length.bit_length())):  # 13 = 8 + 4 + 1: intervals that end at 8, 12, 13
            if length >> bit & 1:
                at += 1 << bit
                row[start + at - 1] = 1.0
        return row

    prefixes = np.stack([prefix(t) for t in range(rounds + 1)])
    return np.diff(prefixes, axis=0)


def banded_matrix(coefficients, rounds):
    """C [T, T]."""
    return sum(c * np.eye(rounds, k=-j) for j, c in enumerate(coefficients))


# ---- rows of one matrix ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [(48, 4, 37), (16, 1, 16), (10, 3, 23), (7, 7, 5)])
def test_streamed_noise_of_the_tree_is_that_of_its_definition(case):
    expected = tree_matrix(case[2], case[0] // case[1])
    np.testing.assert_allclose(matrix("tree", *case), expected, atol=1e-4)
    np.testing.assert_allclose(whole("tree", *case)[1], Z * S * np.linalg.norm(expected, axis=1), rtol=1e-6)


@pytest.mark.parametrize("case", [(10, 3, 23, 3), (9, 3, 9, 3), (32, 8, 3, 4)])
def test_streamed_noise_of_a_banded_strategy_is_the_product_with_its_inverse(case):
    rounds, used = case[2], COEFFICIENTS[: min(case[3], case[2])]
    expected = np.linalg.inv(banded_matrix(used / np.linalg.norm(used), rounds))
    np.testing.assert_allclose(matrix("banded", *case), expected, atol=1e-4)
    np.testing.assert_allclose(whole("banded", *case)[1], Z * S * np.linalg.norm(expected, axis=1), rtol=1e-6)


def test_measured_covariance_is_that_of_the_matrix():
    """4,000 coordinates in 6 rounds: every entry of the covariance within 5.5 standard errors, false alarm 8e-7."""
    stage, wide = make("banded", 9, 3, 9), {"update": {"a": jnp.zeros(4000)}}
    _, update, *_ = jax.jit(lambda s: rows(stage, 0, 6, s, wide))(stage.init(wide["update"], None)[0])
    used = COEFFICIENTS[:3] / np.linalg.norm(COEFFICIENTS[:3])
    inverse = np.linalg.inv(banded_matrix(used, 6))
    expected = (Z * S) ** 2 * inverse @ inverse.T
    noise = np.asarray(update["a"], np.float64)
    error = np.sqrt((expected**2 + np.outer(np.diag(expected), np.diag(expected))) / noise.shape[1])
    assert np.all(np.abs(noise @ noise.T / noise.shape[1] - expected) < 5.5 * error)


# ---- sensitivity -----------------------------------------------------------------------------------------------------


def spent(inverse, member):
    """Largest squared norm of R^-1 x over contributions x_t, ||x_t|| <= 1, of a client that is in at these rounds."""
    return float(np.square(np.abs(inverse) @ member).sum())


@cache
def turns(population, cohort, rounds):
    """[N, T] who is in when, from the sampler that runs."""
    sampler = cyclic(population, cohort)
    cohorts = jax.jit(jax.vmap(lambda t: sampler.sample(KEY, t, Hparams())))(jnp.arange(rounds))
    return np.array([[k in ids for ids in np.asarray(cohorts.ids)] for k in range(population)], float)


@pytest.mark.parametrize("kind", ["tree", "banded"])
def test_no_client_of_the_cyclic_sampler_spends_more_than_is_accounted(kind):
    """Cohorts of 3 out of 10: a client comes again after 3 or 4 rounds, and its place within an epoch moves."""
    case = (10, 3, 23)
    inverse = np.linalg.inv(matrix(kind, *case) if kind == "tree" else matrix(kind, *case, 3))
    claimed = make(kind, *case).claim(Hparams(noise_multiplier=Z)).noise
    event = make_event(cyclic(10, 3).law(Hparams()), claimed, 23)
    most = max(spent(inverse, member) for member in turns(*case))
    assert event.noise == Z and event.rounds == 7 * (2 if kind == "tree" else 1)
    assert 0.5 * event.rounds < most <= event.rounds * (1 + 1e-3)


def test_one_participation_in_a_tree_costs_its_height():
    """Tight: 16 rounds, and one of them is in five nodes."""
    inverse = np.linalg.inv(matrix("tree", 16, 1, 16))
    np.testing.assert_allclose(max(spent(inverse, member) for member in np.eye(16)), 5, rtol=1e-3)
    assert make_event(cyclic(16, 1).law(Hparams()), Noise("tree", 1.0), 16).rounds == 5


def test_no_pattern_of_separated_participations_spends_more_on_bands_than_is_accounted():
    """Brute force over all patterns of 9 rounds with three rounds between them."""
    rounds, bands = 9, 3
    inverse = np.linalg.inv(matrix("banded", 9, 3, 9, 3))
    worst = dict.fromkeys(range(1, 4), 0.0)
    for pattern in itertools.product([0.0, 1.0], repeat=rounds):
        places = np.flatnonzero(pattern)
        if len(places) and np.all(np.diff(places) >= bands):
            worst[len(places)] = max(worst[len(places)], spent(inverse, np.array(pattern)))
    for count, most in worst.items():
        assert count * 0.9 < most <= count * (1 + 1e-3)
    event = make_event(SamplingLaw("cyclic", 1 / 3, 9), Noise("banded", Z, detail=(("bands", 3.0),)), rounds)
    assert (event.rounds, event.noise) == (3, Z)


@pytest.mark.parametrize(("rounds", "bands"), [(9, 3), (40, 8), (5, 1)])
def test_columns_of_a_strategy_have_norm_one(rounds, bands, tmp_path, monkeypatch):
    """So that one participation spends 1, from the computation and from the file alike."""
    pytest.importorskip("jax_privacy")
    monkeypatch.setenv("FLJAX_CACHE", str(tmp_path))
    for _ in range(2):
        coefficients = correlated.banded_strategy(rounds, bands)
        assert coefficients.shape == (bands,) and np.linalg.norm(coefficients) == pytest.approx(1.0, abs=1e-12)


# ---- error -----------------------------------------------------------------------------------------------------------


def prefix_error(inverse_strategy):
    """Root mean squared error of all prefix sums, over z S."""
    sums = np.cumsum(inverse_strategy, axis=0)
    return np.sqrt(np.square(sums).sum() / len(sums))


def test_bands_lower_the_error_of_prefix_sums_to_the_published_number(tmp_path, monkeypatch):
    """200 rounds: 10.02 for independent noise, 3.33 for 16 bands, at the same event."""
    pytest.importorskip("jax_privacy")
    monkeypatch.setenv("FLJAX_CACHE", str(tmp_path))
    strategy = correlated.banded_strategy(200, 16)
    assert abs(prefix_error(np.eye(200)) - 10.02) < 0.01
    assert abs(prefix_error(np.linalg.inv(banded_matrix(strategy, 200))) - 3.33) < 0.01


def test_the_tree_lowers_the_error_even_after_paying_for_its_height():
    """1,000 rounds, one participation: sqrt(10 popcount) against sqrt(t)."""
    tree = prefix_error(tree_matrix(1000, 1000)) * np.sqrt(make_event(*tree_question(1.0, 1000)).rounds)
    assert tree < 0.33 * prefix_error(np.eye(1000))


# ---- accounting ------------------------------------------------------------------------------------------------------


def tree_question(z, rounds):
    return SamplingLaw("cyclic", 1 / rounds, rounds), Noise("tree", z), rounds


@pytest.mark.parametrize(
    ("z", "rounds", "renyi", "analytic"),
    [(1.0, 16, 12.30169, 11.48002), (4.0, 1000, 3.617100, 3.341409), (10.0, 1000, 1.308497, 1.199370)],
)
def test_epsilon_of_a_tree_is_that_of_the_literature(z, rounds, renyi, analytic):
    """RDP as SingleEpochTreeAggregationDpEvent gives it; PLD meets the analytic Gaussian of sensitivity sqrt(h)."""
    np.testing.assert_allclose(epsilon(*tree_question(z, rounds), 1e-5, accountant="rdp"), renyi, rtol=1e-5)
    np.testing.assert_allclose(epsilon(*tree_question(z, rounds), 1e-5), analytic, rtol=1e-4)


@pytest.mark.parametrize(("bands", "expected"), [(1, 0.6220485), (4, 1.371242), (16, 3.082661)])
def test_epsilon_of_amplified_bands_is_that_of_the_literature(bands, expected):
    law = SamplingLaw("cyclic_poisson", 0.01 * bands, None, None, bands)
    noise = Noise("banded", 2.0, detail=(("bands", float(bands)),))
    np.testing.assert_allclose(epsilon(law, noise, 1000, 1e-5), expected, rtol=1e-4)
    assert make_event(law, noise, 1000).relation == "add_or_remove_one"


def test_bands_in_a_cyclic_order_cost_the_turns():
    """Ten turns of Gaussian(10): sensitivity sqrt(10), epsilon of Gaussian(sqrt(10)) = 1.2 by the analytic formula."""
    law = SamplingLaw("cyclic", 0.1, 100)
    noise = Noise("banded", 10.0, detail=(("bands", 4.0),))
    np.testing.assert_allclose(epsilon(law, noise, 100, 1e-5), epsilon(law, 10.0, 100, 1e-5), rtol=1e-12)
    assert make_event(law, noise, 100).rounds == 10


def test_the_live_curve_ends_at_the_whole_run_and_never_falls():
    for law, noise in (
        (SamplingLaw("cyclic", 1 / 16, 16), Noise("tree", 3.0)),
        (SamplingLaw("cyclic_poisson", 0.3, 40, None, 4), Noise("banded", 3.0, detail=(("bands", 4.0),))),
    ):
        curve = epsilon_series(law, noise, 40, 1e-3)
        assert np.all(np.diff(curve) >= 0) and curve[0] < curve[-1]
        exact = epsilon(law, noise, 40, 1e-3)
        assert exact <= curve[-1] < 1.5 * exact


def test_laws_under_which_clients_come_again_too_early_are_refused():
    for law in (SamplingLaw("poisson", 0.1, 100), SamplingLaw("full", 1.0, 9), SamplingLaw("fixed_size", 0.1, 100)):
        for kind in ("tree", "banded"):
            with pytest.raises(FljaxError, match="to be 'cyclic'"):
                make_event(law, Noise(kind, 1.0), 10)
    with pytest.raises(FljaxError, match="bands=5 <= 4"):
        make_event(SamplingLaw("cyclic", 0.25, 100), Noise("banded", 1.0, detail=(("bands", 5.0),)), 10)
    with pytest.raises(FljaxError, match="bands=5 <= 4"):
        make_event(SamplingLaw("cyclic_poisson", 0.25, 100, None, 4), Noise("banded", 1.0, detail=(("bands", 5.0),)), 9)
    with pytest.raises(FljaxError, match="epoch=4 <= 3"):
        make_event(SamplingLaw("cyclic", 0.3, 10), Noise("tree", 1.0, detail=(("epoch", 4.0),)), 10)


# ---- the stage -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tree", "banded"])
def test_without_correlation_it_is_plain_gaussian_noise(kind):
    """Epochs of one round, and one band: no state at all."""
    stage = correlated.tree_noise(5, cyclic(7, 7)) if kind == "tree" else correlated.banded_noise(9, 1, cyclic(9, 3))
    total = jax.tree.map(lambda x: x + 0.25, ZERO)

    def both(t):
        ctx, key = context(t), jax.random.fold_in(KEY, t)
        got, state, _ = stage.decode(key, ctx, total, None, start(stage))
        return got, central_gaussian().decode(key, ctx, total, None, ())[0], state

    got, expected, state = jax.jit(both)(jnp.int32(2))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-7)
    assert sum(x.size for x in jax.tree.leaves(state)) == 0


CASES = {"tree": (10, 3, 23), "banded": (10, 3, 23, 3)}


@pytest.mark.parametrize("kind", CASES)
def test_a_resumed_run_releases_the_same_noise(kind):
    """The state goes to the host and back in the middle; it carries all there is."""
    stage = make(kind, *CASES[kind])
    run = jax.jit(lambda first, state: rows(stage, first, 7, state)[:3])
    state, early, _ = run(0, start(stage))
    _, late, std = run(7, jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), state))
    expected, declared = whole(kind, *CASES[kind])
    np.testing.assert_allclose(np.concatenate([flat(early), flat(late)]), expected[:14], atol=2e-6)
    np.testing.assert_allclose(std, declared[7:14], rtol=1e-6)


@pytest.mark.parametrize("kind", CASES)
def test_members_of_a_sweep_run_as_they_would_alone(kind):
    stage = make(kind, *CASES[kind])
    many = jax.jit(jax.vmap(lambda z: rows(stage, 0, 8, start(stage), z=z)[1]))(jnp.array([0.0, 0.7, Z]))
    noise = [flat(jax.tree.map(lambda x, i=i: x[i], many)) for i in range(3)]
    np.testing.assert_allclose(noise[2], whole(kind, *CASES[kind])[0][:8], atol=2e-6)
    np.testing.assert_allclose(noise[1], noise[2] * 0.7 / Z, atol=2e-6)
    assert not np.any(noise[0])


@pytest.mark.parametrize("kind", CASES)
def test_noise_is_added_to_the_sum_on_the_support_alone(kind):
    stage = make(kind, *CASES[kind])
    support = jax.tree.map(lambda x: jnp.asarray(np.arange(x.size).reshape(x.shape) % 3 == 0, jnp.float32), ZERO)
    total = jax.tree.map(lambda x: x + 2.0, ZERO)
    run = jax.jit(lambda s: rows(stage, 0, 6, s, total, support=support["update"])[1])
    mask = flat(jax.tree.map(lambda x: x[None], support["update"]))
    np.testing.assert_allclose(flat(run(start(stage))), 2.0 + mask * whole(kind, *CASES[kind])[0][:6], atol=2e-6)


def test_in_a_chain_the_noise_is_that_of_the_whole_bound_and_is_divided():
    stages = chain(expected_average(), clip(), correlated.tree_noise(8, cyclic(24, 3)))
    states, _ = stages.init(ZERO["update"], None)
    ctx = context(jnp.int32(3))._replace(expected=jnp.float32(3.0))
    ctx = ctx._replace(bounds=stages.bound(ctx, states, {"update": jnp.float32(np.inf), "weight": jnp.float32(np.inf)}))
    np.testing.assert_allclose(stages.noise(ctx, states, jnp.float32(0.0)), Z * S * np.sqrt(3) / 3, rtol=1e-6)
    claim = stages.claim(Hparams(noise_multiplier=Z))
    assert (claim.noise, claim.reason) == (Noise("tree", Z, "central", (("epoch", 8.0),)), None)
    assert "noise_scale" in stages.claim(Hparams(noise_multiplier=Z, noise_scale=0.5)).reason


def test_what_cannot_be_promised_is_refused_when_it_is_built():
    for sampler in (poisson(20, 0.3), fixed_size(20, 4), full(20)):
        with pytest.raises(FljaxError, match="to be 'cyclic' for correlated noise"):
            correlated.tree_noise(10, sampler)
        with pytest.raises(FljaxError, match="to be 'cyclic' for correlated noise"):
            correlated.banded_noise(10, 2, sampler)
    for sampler in (cyclic(14, 4), cyclic_poisson(14, 3, 0.5)):
        with pytest.raises(FljaxError, match="bands=4 <= 3"):
            correlated.banded_noise(10, 4, sampler)
    stage = correlated.tree_noise(10, cyclic(20, 4))
    with pytest.raises(FljaxError, match="control, update to be the update alone"):
        stage.decode(KEY, context(jnp.int32(0)), ZERO | {"control": ZERO["update"]}, None, stage.init({}, None)[0])
