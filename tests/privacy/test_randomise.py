"""Local randomisers: exact probabilities against their formulas, likelihood ratios, and estimates without bias.

Probabilities are those of the code itself, read from its 64-bit thresholds; Monte Carlo then shows that the code draws
with them. Seeds are fixed; the false-alarm rates say how often another seed would fail.
"""

import math
from fractions import Fraction
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import betainc, betaln, expit, logit
from scipy.stats import chi2

from fljax.core.check import FljaxError
from fljax.privacy import randomise

KEY = jax.random.key(17)
S = 0.7
CRITICAL = 2.7  # Kolmogorov-Smirnov, 2 exp(-2 * 2.7^2): false alarm 1e-6
EPSILONS = (1e-3, 0.1, 1.0, 4.0, 16.0, 50.0)
RANDOMISERS = {
    "laplace": (randomise.laplace, lambda v: v * min(1.0, S / np.abs(v).sum())),
    "duchi": (randomise.duchi, lambda v: np.clip(v, -S, S)),
    "krr": (partial(randomise.krr, levels=5), lambda v: np.clip(v, -S, S)),
    "privunit": (randomise.privunit, lambda v: v * min(1.0, S / np.linalg.norm(v))),
}


@partial(jax.jit, static_argnames=("name", "draws"))
def sample(name, values, epsilon, support=None, draws=40_000):
    """[draws, P] outputs on one input."""
    draw = RANDOMISERS[name][0]
    keys = jax.random.split(KEY, draws)
    return jax.lax.map(lambda key: draw(key, values, jnp.float32(S), epsilon, support), keys, batch_size=10_000)


def kolmogorov(sample, cdf) -> float:
    """sqrt(n) times the Kolmogorov-Smirnov distance to a distribution function."""
    ordered = cdf(np.sort(np.asarray(sample, np.float64)))
    n = len(ordered)
    return np.sqrt(n) * max((np.arange(1, n + 1) / n - ordered).max(), (ordered - np.arange(n) / n).max())


# ---- decisions -------------------------------------------------------------------------------------------------------


def yes(x) -> Fraction:
    """The exact probability with which ``bernoulli(key, x)`` is True."""
    high, low = jax.jit(randomise.threshold)(jnp.float32(x))
    rare = Fraction(int(high) * 2**32 + int(low), 2**64)
    return 1 - rare if x > 0 else rare


@pytest.mark.parametrize("x", [-40.0, -9.3, -1.0, -1e-3, 0.0, 1e-3, 0.7, 5.0, 16.7, 40.0])
def test_a_decision_has_its_probability_to_the_last_digits(x):
    """Relative to the rarer outcome: a float32 uniform would miss the rare ones by factors."""
    got = yes(x)
    rare, wanted = float(min(got, 1 - got)), expit(-abs(np.float64(np.float32(x))))
    assert rare == pytest.approx(wanted, rel=2e-6, abs=2.0**-63)


def test_no_is_never_impossible():
    assert yes(80.0) == 1 - Fraction(1, 2**64)
    assert yes(-80.0) == 0


@pytest.mark.parametrize("p", [0.02, 0.3, 0.5, 0.9])
def test_decisions_are_drawn_with_that_probability(p):
    """Within 5 standard errors of 200,000 draws: false alarm 6e-7. 20 % off is far outside."""
    keys = jax.random.split(KEY, 200_000)
    drawn = np.asarray(jax.jit(jax.vmap(lambda k: randomise.bernoulli(k, jnp.float32(logit(p)))))(keys))
    error = 5 * math.sqrt(p * (1 - p) / drawn.size)
    assert abs(drawn.mean() - p) < error < 0.2 * p


# ---- one coordinate --------------------------------------------------------------------------------------------------


def truth(epsilon: float, levels: int) -> float:
    """The exact probability with which the code sends the true level."""
    keep = yes(randomise.keep_logit(jnp.float32(epsilon), levels))
    return float(keep + (1 - keep) / levels)


def test_krr_tells_the_truth_as_often_as_published():
    assert truth(1.0, 2) == pytest.approx(0.7310586, abs=1e-5)
    assert truth(1.0, 10) == pytest.approx(0.2319693, abs=1e-5)
    assert truth(4.0, 10) == pytest.approx(0.8584865, abs=1e-5)


@pytest.mark.parametrize("levels", [2, 3, 10, 1000])
@pytest.mark.parametrize("epsilon", EPSILONS)
def test_krr_likelihood_ratio_is_below_its_epsilon(epsilon, levels):
    """Truth over one certain lie is the largest ratio of two levels, in exact fractions of the code's thresholds."""
    keep = yes(randomise.keep_logit(jnp.float32(epsilon), levels))
    lie = (1 - keep) / levels
    spent = math.log1p(float(keep / lie))
    assert spent <= epsilon
    assert spent >= min(epsilon * (1 - 2e-5) - 2e-5, 64 * math.log(2) - 0.1)


def krr_law(x: float, epsilon: float, levels: int) -> np.ndarray:
    """[k] probability of every level for one coordinate x, in float64, with the code's truth probability."""
    place = (np.clip(x, -S, S) / S + 1) / 2 * (levels - 1)
    low = min(math.floor(place), levels - 2)
    rounded = np.zeros(levels)
    rounded[low], rounded[low + 1] = 1 - (place - low), place - low
    p = truth(epsilon, levels)
    return rounded * p + (1 - rounded) * (1 - p) / (levels - 1)


@pytest.mark.parametrize("levels", [2, 7])
@pytest.mark.parametrize("epsilon", [0.1, 1.0, 6.0])
def test_likelihood_ratio_over_pairs_of_coordinates(epsilon, levels):
    """Extreme, zero, intermediate and unbounded values; the rounding before the response cannot add to the ratio."""
    laws = [krr_law(x, epsilon, levels) for x in (-1e30, -S, -0.31, 0.0, 1e-20, 0.2, S, 1e30)]
    worst = max((a / b).max() for a in laws for b in laws)
    assert math.exp(epsilon) * (1 - 1e-4) * (1 - 2e-5) <= worst <= math.exp(epsilon) * (1 + 1e-5)


@pytest.mark.parametrize(("name", "levels"), [("duchi", 2), ("krr", 5)])
def test_positions_and_levels_are_drawn_from_that_law(name, levels):
    """A chi-squared test of the joint law of position and level: false alarm 1e-6; at another epsilon it rejects."""
    values, epsilon = np.array([0.5 * S, -2.0, 0.03]), 1.0
    out = np.asarray(sample(name, jnp.asarray(values, jnp.float32), jnp.float32(epsilon)), np.float64)
    assert np.all((out != 0).sum(1) <= 1)  # the middle level is a zero
    gap = 2 / (levels - 1)
    scale = 3 * S * (math.exp(epsilon) + levels - 1) / math.expm1(epsilon)
    seen = [np.round((out[:, i][out[:, i] != 0] / scale + 1) / gap).astype(int) for i in range(3)]
    counts = np.stack([np.bincount(s, minlength=levels) for s in seen])
    middle = levels // 2 if levels % 2 else None
    law = np.stack([krr_law(x, epsilon, levels) for x in values]) / 3
    wrong = np.stack([krr_law(x, 1.2 * epsilon, levels) for x in values]) / 3
    if middle is not None:  # zeros at any position look alike
        counts[:, middle], law[:, middle], wrong[:, middle] = 0, 0, 0
    drawn = counts[counts > 0]

    def statistic(p):
        expected = p[p > 0] * len(out)
        return ((drawn - expected) ** 2 / expected).sum()

    assert statistic(law) < chi2.isf(1e-6, drawn.size)
    assert statistic(wrong) > chi2.isf(1e-6, drawn.size)


def test_duchi_has_the_published_bound_and_bias():
    """B = 2.1639534 S d at epsilon 1; P(+ | x = S / 2) = 0.6155293, within 5 standard errors: false alarm 6e-7."""
    out = np.asarray(sample("duchi", jnp.float32([0.5 * S]), jnp.float32(1.0)))
    np.testing.assert_allclose(np.unique(np.abs(out)), 2.1639534 * S, rtol=3e-5)
    assert abs((out > 0).mean() - 0.6155293) < 5 * 0.5 / math.sqrt(len(out))


# ---- every randomiser ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "wrong"), [((2.0, -0.3, 0.05, -0.9), 1.2), ((0.2, 0.1, 0.0, -0.25), 1.5)], ids=["clipped", "inside"]
)
@pytest.mark.parametrize("name", RANDOMISERS)
def test_the_estimate_is_unbiased(name, values, wrong):
    """Each mean within 5.5 standard errors: false alarm 4e-8. A factor of 1.2 on large outputs would be rejected."""
    out = np.asarray(sample(name, jnp.float32(values), jnp.float32(3.0)), np.float64)
    wanted = RANDOMISERS[name][1](np.array(values))
    error = 5.5 * out.std(0) / math.sqrt(len(out))
    assert np.all(np.abs(out.mean(0) - wanted) < error)
    assert np.any(np.abs(wrong * out.mean(0) - wanted) > wrong * error)


@pytest.mark.parametrize("name", RANDOMISERS)
def test_a_support_is_all_there_is(name):
    """Outside: zero, and no influence of what is there. Inside: unbiased (false alarm 4e-8)."""
    support = jnp.float32([1, 0, 1, 0, 1])
    values, hidden = jnp.float32([0.2, 9.0, -0.3, -9.0, 0.1]), jnp.float32([0.2, 0.0, -0.3, np.nan, 0.1])
    out = np.asarray(sample(name, values, jnp.float32(3.0), support), np.float64)
    assert np.all(out[:, [1, 3]] == 0)
    np.testing.assert_array_equal(out, sample(name, hidden, jnp.float32(3.0), support))
    inside = out[:, [0, 2, 4]]
    error = 5.5 * inside.std(0) / math.sqrt(len(out))
    assert np.all(np.abs(inside.mean(0) - [0.2, -0.3, 0.1]) < error) and np.all(error < 0.1)
    if name == "duchi":
        assert np.all(np.bincount(np.nonzero(out)[1], minlength=5)[[0, 2, 4]] > 0.3 * len(out))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("name", RANDOMISERS)
def test_what_is_not_finite_counts_as_zero(name, bad):
    """Bit by bit what a zero would have sent; 3e38 overflows the norms, and is a number for coordinates."""
    got = sample(name, jnp.float32([bad, bad, bad]), jnp.float32(1.0), draws=50)
    zero = sample(name, jnp.zeros(3), jnp.float32(1.0), draws=50)
    assert np.all(np.isfinite(got))
    if bad != 3e38 or name in ("laplace", "privunit"):
        np.testing.assert_array_equal(got, zero)


@pytest.mark.parametrize("name", RANDOMISERS)
def test_other_keys_send_other_things_and_epsilon_is_traced(name):
    draw = jax.jit(jax.vmap(RANDOMISERS[name][0], (0, None, None, 0, None)))
    keys = jax.random.split(KEY, 3)
    out = draw(keys, jnp.linspace(-0.2, 0.3, 40), jnp.float32(S), jnp.float32([1.0, 1.0, 100.0]), None)
    assert not np.array_equal(out[0], out[1])
    sizes = np.linalg.norm(out, axis=1)
    assert sizes[2] < 0.8 * min(sizes[0], sizes[1]) and np.all(np.isfinite(sizes))


# ---- Laplace ---------------------------------------------------------------------------------------------------------


def test_laplace_noise_has_scale_two_s_over_epsilon_and_the_test_has_power():
    """Kolmogorov-Smirnov with a false-alarm rate of 1e-6; a scale that is 20 % off is rejected."""
    epsilon, d = 1.6, 40_000
    out = randomise.laplace(KEY, jnp.zeros(d), jnp.float32(S), jnp.float32(epsilon))

    def law(factor):
        return lambda x: np.where(
            x < 0, np.exp(np.minimum(x, 0) / factor) / 2, 1 - np.exp(-np.maximum(x, 0) / factor) / 2
        )

    scale = 2 * S / epsilon
    assert kolmogorov(out, law(scale)) < CRITICAL
    assert kolmogorov(out, law(1.2 * scale)) > CRITICAL and kolmogorov(out, law(0.8 * scale)) > CRITICAL
    # std of a Laplace is scale * sqrt(2); the standard error of its estimate is 1.12 / sqrt(d): false alarm 6e-7
    assert abs(np.std(out) / (scale * math.sqrt(2)) - 1) < 5 * 1.12 / math.sqrt(d)


def test_laplace_densities_differ_by_epsilon_at_the_most():
    """The noise does not look at the input, so that the log-ratio of densities is the L1 distance over the scale."""
    epsilon = 1.6
    rng = np.random.default_rng(3)
    inputs = [np.zeros(30), 1e6 * rng.normal(size=30), np.eye(30)[0], -np.eye(30)[0], 0.001 * rng.normal(size=30)]
    inputs = [jnp.asarray(v, jnp.float32) for v in inputs]
    clipped = [np.asarray(randomise.clip_l1(v, jnp.float32(S))[0], np.float64) for v in inputs]
    out = [np.asarray(randomise.laplace(KEY, v, jnp.float32(S), jnp.float32(epsilon)), np.float64) for v in inputs]
    for c, o in zip(clipped, out, strict=True):
        np.testing.assert_allclose(o - c, out[0], atol=1e-5)
    scale = np.float64(2 * S / randomise.usable(epsilon))
    worst = max(np.abs(a - b).sum() / scale for a in clipped for b in clipped)
    assert 0.999 * epsilon < worst <= epsilon


# ---- PrivUnit --------------------------------------------------------------------------------------------------------


def moments(dimension, gamma, p) -> tuple[float, float]:
    """(M, P_cap) in float64, by the beta functions of the paper."""
    alpha = (dimension - 1) / 2
    share = betainc(alpha, 0.5, 1 - gamma**2) / 2
    peak = np.exp(alpha * np.log1p(-(gamma**2)) - betaln(0.5, alpha)) / (2 * alpha)
    return peak * (p / share - (1 - p) / (1 - share)), share


def test_privunit_known_answers():
    assert moments(10, 0.3, 0.9)[0] == pytest.approx(0.40115468, rel=1e-7)
    assert moments(100, 0.1, 0.9)[0] == pytest.approx(0.13400489, rel=1e-7)
    assert randomise.privunit_epsilon(10, 0.3, 0.9) == pytest.approx(3.67978124, rel=1e-8)
    assert randomise.privunit_epsilon(100, 0.1, 0.9) == pytest.approx(3.85638869, rel=1e-8)


@pytest.mark.parametrize("wrong", [(1, 0.3, 0.9), (10, 1.0, 0.9), (10, -0.1, 0.9), (10, 0.3, 1.0), (10, 0.3, np.nan)])
def test_privunit_epsilon_refuses(wrong):
    with pytest.raises(FljaxError, match="Expected"):
        randomise.privunit_epsilon(*wrong)


plan = jax.jit(randomise.plan_cap)


@pytest.mark.parametrize("dimension", [2, 3, 10, 1000, 10**6, 10**7])
@pytest.mark.parametrize("epsilon", EPSILONS)
def test_a_cap_spends_its_epsilon_and_knows_its_mean(dimension, epsilon):
    """Exact epsilon in float64, with the p that the 64-bit threshold draws, never exceeds what was given."""
    cap = plan(jnp.float32(epsilon), jnp.float32(dimension))
    height = np.float64(cap.height)
    left = math.exp(-(height**2) / (dimension - 1))  # 1 - gamma^2, which a gamma near 1 cannot tell
    alpha = (dimension - 1) / 2
    share = betainc(alpha, 0.5, left) / 2
    p = yes(cap.logit)
    spent = math.log(p) - math.log(1 - p) + math.log1p(-share) - math.log(share)
    assert spent <= epsilon
    assert spent >= epsilon * (1 - 2e-5) - 2e-5
    peak = math.exp(-(height**2) / 2 - betaln(0.5, alpha)) / (2 * alpha)
    mean = peak * (float(p) / share - float(1 - p) / (1 - share))
    assert float(cap.mean) == pytest.approx(mean, rel=3e-4 if epsilon < 0.01 else 3e-5)
    assert float(cap.share) == pytest.approx(math.log(share), abs=3e-6)
    assert float(cap.gamma) == pytest.approx(math.sqrt(-math.expm1(-(height**2) / (dimension - 1))), rel=1e-6)
    if dimension < 10**4 and 0.1 <= epsilon <= 4:
        assert randomise.privunit_epsilon(dimension, float(cap.gamma), float(p)) <= epsilon


@pytest.mark.parametrize(("dimension", "epsilon"), [(2, 1.0), (10, 4.0), (1000, 0.5), (10**5, 8.0)])
def test_no_other_cap_is_much_better(dimension, epsilon):
    """The mean over a fine grid of gamma, in float64, is at most 0.2 % larger."""
    gammas = np.sqrt(-np.expm1(-(np.linspace(0, 6, 5000) ** 2) / (dimension - 1)))
    _, share = moments(dimension, gammas, 0.5)
    p = expit(epsilon + logit(share))
    best = moments(dimension, gammas, p)[0].max()
    assert best * 0.998 < float(plan(jnp.float32(epsilon), jnp.float32(dimension)).mean) < best * 1.0001


@jax.jit
def inner_products(dimension, epsilon):
    """[20000] inner products with the plan's cap."""
    cap = randomise.plan_cap(epsilon, dimension)
    return jax.vmap(lambda k: randomise.draw_inner(k, cap, dimension))(jax.random.split(KEY, 20_000)), cap


@pytest.mark.parametrize("dimension", [2, 3, 10, 10**6])
@pytest.mark.parametrize("epsilon", [0.5, 2.0, 8.0])
def test_the_cap_is_hit_as_often_as_planned_and_filled_evenly(dimension, epsilon):
    """Frequency within 5 standard errors; Kolmogorov-Smirnov inside and outside the cap: false alarm 1e-6 each."""
    t, cap = inner_products(jnp.float32(dimension), jnp.float32(epsilon))
    t, gamma, p = np.asarray(t, np.float64), np.float64(cap.gamma), expit(np.float64(cap.logit))
    inside = t >= gamma
    assert abs(inside.mean() - p) < 5 * math.sqrt(p * (1 - p) / t.size) + 1e-9
    share = math.exp(cap.share)

    def above(x):  # P(<V, u> >= x) of a uniform direction
        half = betainc((dimension - 1) / 2, 0.5, np.clip(1 - x**2, 0, 1)) / 2
        return np.where(x >= 0, half, 1 - half)

    assert kolmogorov(t[inside], lambda x: 1 - above(x) / share) < CRITICAL
    outside = kolmogorov(t[~inside], lambda x: (1 - above(x)) / (1 - share)) if (~inside).sum() > 10 else 0.0
    assert outside < CRITICAL
    assert abs(t.mean() - float(cap.mean)) < 5 * t.std() / math.sqrt(t.size)
    if epsilon > 0.5:  # power: without the cap the same points are far from their law
        assert kolmogorov(t, lambda x: 1 - above(x)) > CRITICAL


def test_privunit_sends_a_point_of_the_sphere_that_turns_freely_around_the_input():
    """Norm S / M whatever the input; the angle around the direction is uniform: false alarm 1e-6."""
    mean = float(plan(jnp.float32(2.0), jnp.float32(3.0)).mean)
    values = jnp.float32([0.0, 0.0, 3.0])
    out = np.asarray(sample("privunit", values, jnp.float32(2.0), draws=20_000), np.float64)
    np.testing.assert_allclose(np.linalg.norm(out, axis=1), S / mean, rtol=1e-5)
    angle = np.arctan2(out[:, 1], out[:, 0])
    assert kolmogorov(angle, lambda x: (x + np.pi) / (2 * np.pi)) < CRITICAL
    for other in (jnp.zeros(3), jnp.float32([1e-30, 0, 0]), jnp.float32([0.1, -0.2, 0.0])):
        size = np.linalg.norm(sample("privunit", other, jnp.float32(2.0), draws=50), axis=1)
        np.testing.assert_allclose(size, S / mean, rtol=1e-5)


def test_privunit_sends_short_vectors_in_both_directions():
    """Half the length: <out, u> is that of +u with probability 3/4, else of -u. Within 5 standard errors."""
    u = np.array([0.6, 0.8, 0.0])
    out = np.asarray(sample("privunit", jnp.asarray(0.5 * S * u, jnp.float32), jnp.float32(8.0)), np.float64) @ u
    cap = plan(jnp.float32(8.0), jnp.float32(3.0))
    t = out * float(cap.mean) / S
    p = float(expit(np.float64(cap.logit)))
    caps = [(t >= float(cap.gamma)).mean(), (t <= -float(cap.gamma)).mean()]
    share = math.exp(cap.share)
    other = (1 - p) * share / (1 - share)  # the opposite cap lies in the rest of the sphere
    for got, wanted in zip(caps, (0.75 * p + 0.25 * other, 0.25 * p + 0.75 * other), strict=True):
        assert abs(got - wanted) < 5 * math.sqrt(0.25 / t.size)
