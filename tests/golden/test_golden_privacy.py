"""Numbers of privacy accounting from independent sources: closed forms, published tables, other accountants."""

import math
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from fljax.core.transform import Noise
from fljax.core.types import Ctx, Hparams, SamplingLaw
from fljax.privacy import calibrate, epsilon, make_event, rdp_epsilon
from fljax.privacy.accounting import GRID, evaluate
from fljax.privacy.noise import noise_stds, query_share
from fljax.privacy.rdp import ORDERS, _rdp


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FLJAX_CACHE", str(tmp_path))


FULL = SamplingLaw("full", 1.0)
MNIST = 256 / 6e4
slow = pytest.mark.slow

# Analytic values of Balle & Wang 2018 (columns z, delta, exact epsilon, RDP with the default orders of dp_accounting).
GAUSSIAN = [
    (1.0, 1e-5, 4.377178, 4.728507),
    (2.0, 1e-5, 1.993091, 2.165716),
    (0.5, 1e-5, 9.997256, 10.72551),
    (4.0, 1e-6, 1.060702, 1.143169),
    (1.0, 1e-6, 4.886554, 5.221540),
]

# Columns: q, z, T, delta, PLD, RDP. The rows of Abadi et al. 2016, TF Privacy, Opacus, and FEMNIST-like settings.
POISSON = [
    (0.01, 4.0, 10_000, 1e-5, 0.946999, 1.035490),
    (0.01, 2.0, 10_000, 1e-5, 2.162774, 2.352913),
    (MNIST, 1.3, 3515, 1e-5, 0.8644587, 0.9544295),
    pytest.param(MNIST, 1.1, 14062, 1e-5, 2.381686, 2.596556, marks=slow),
    pytest.param(MNIST, 0.7, 10546, 1e-5, 5.639447, 6.319464, marks=slow),
    pytest.param(MNIST, 1.12, 14063, 1e-5, 2.310275, 2.518686, marks=slow),
    (0.04, 1.5, 2250, 1e-5, 6.768787, 7.329335),
    (0.1, 1.0, 100, 1e-5, 7.046603, 7.903850),
    (0.01, 1.0, 1000, 1e-5, 1.828244, 2.101367),
    (0.001, 0.7, 1000, 1e-5, 0.6089572, 1.653191),
    (0.5, 5.0, 200, 1e-5, 6.701170, 7.231782),
    pytest.param(0.02, 0.8, 3000, 1e-6, 12.73313, 13.82093, marks=slow),
    (100 / 3400, 1.0, 1500, 3400**-1.1, 6.350059, 7.070588),
    (100 / 342477, 0.7, 1600, 1e-6, 0.3220011, 1.611664),
]


@pytest.mark.parametrize(("z", "delta", "pld", "rdp"), GAUSSIAN)
def test_gaussian_golden(z, delta, pld, rdp):
    assert epsilon(FULL, z, 1, delta) == pytest.approx(pld, rel=1e-4)
    assert epsilon(FULL, z, 1, delta, accountant="rdp") == pytest.approx(rdp, rel=1e-4)


def test_gaussian_composes():
    assert epsilon(FULL, 10.0, 100, 1e-5) == pytest.approx(4.377178, rel=1e-4)
    assert epsilon(SamplingLaw("poisson", 1.0), 10.0, 100, 1e-5) == epsilon(FULL, 10.0, 100, 1e-5)


@pytest.mark.parametrize(("q", "z", "T", "delta", "pld", "rdp"), POISSON)
def test_poisson_golden(q, z, T, delta, pld, rdp):
    law = SamplingLaw("poisson", q)
    exact, loose = epsilon(law, z, T, delta), epsilon(law, z, T, delta, accountant="rdp")
    assert exact == pytest.approx(pld, rel=1e-4)
    assert loose == pytest.approx(rdp, rel=1e-4)
    assert exact <= loose
    assert exact <= rdp_epsilon(q, z, T, delta)


@pytest.mark.parametrize(
    ("law", "z", "T", "value"),
    [
        (SamplingLaw("fixed_size", 0.01, 10_000), 1.0, 100, 6.476210),
        (SamplingLaw("fixed_size", 0.01, 10_000), 2.0, 1000, 1.828244),
        (SamplingLaw("truncated_poisson", 0.01, 10_000, 110), 1.0, 100, 4.676424),
        pytest.param(SamplingLaw("truncated_poisson", 0.01, 10_000, 140), 1.0, 100, 0.7615455, marks=slow),
        (SamplingLaw("truncated_poisson", 0.01, 10_000, 150), 1.0, 100, 0.7187799),
        pytest.param(SamplingLaw("truncated_poisson", 0.01, 10_000, 120), 1.0, 100, 3.598250, marks=slow),
        pytest.param(SamplingLaw("truncated_poisson", 0.01, 10_000, 130), 1.0, 100, 2.089640, marks=slow),
        pytest.param(SamplingLaw("truncated_poisson", 0.01, 10_000, 170), 1.0, 100, 0.7180368, marks=slow),
        (SamplingLaw("poisson", 0.01, 10_000), 1.0, 100, 0.7180367),
        (SamplingLaw("fixed_size", 1.0, 100), 1.0, 1, 9.997256),  # replacing moves the sum by twice its bound
        (SamplingLaw("cyclic", 1.0, 100), 1.0, 1, 4.377178),  # zero-out does not
    ],
)
def test_other_laws_golden(law, z, T, value):
    assert epsilon(law, z, T, 1e-5) == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize(
    ("q", "z", "T", "published"),
    [
        (0.01, 4.0, 10_000, 1.258575),
        (MNIST, 1.3, 3515, 1.192214),
        (MNIST, 1.1, 14062, 3.008327),
    ],
)
def test_rdp_curve_reproduces_published_numbers_by_the_old_conversion(q, z, T, published):
    """Abadi et al. 2016 and the tutorial of TF Privacy: min over orders of RDP + ln(1/delta) / (order - 1)."""
    curve = T * _rdp(np.array([q]), np.array([z]))[0]
    old = np.min(curve + math.log(1e5) / (np.array(ORDERS) - 1))
    assert old == pytest.approx(published, rel=1e-3)


# epsilon, delta, the multiplier of the analytic Gaussian mechanism (Balle & Wang 2018).
ANALYTIC = [(1.0, 1e-5, 3.730632), (8.0, 1e-5, 0.6002291), (0.1, 1e-6, 36.30469), (3.0, 1e-6, 1.543861)]


@pytest.mark.parametrize(("target", "delta", "known"), ANALYTIC)
def test_calibration_meets_the_analytic_gaussian(target, delta, known):
    assert known * (1 - 1e-6) <= calibrate(FULL, target, 1, delta) <= known * 1.005


def test_a_point_of_the_privacy_profile():
    """delta(2) = 2.665722e-6 for q = 0.01, z = 1, T = 1000: epsilon at that delta is 2."""
    assert epsilon(SamplingLaw("poisson", 0.01), 1.0, 1000, 2.665722e-6) == pytest.approx(2.0, abs=1e-3)


@pytest.mark.parametrize(("rho", "rdp"), [(0.5, 4.728507), (0.02, 0.794522)])
def test_zero_concentrated_privacy_is_a_gaussian_to_rdp(rho, rdp):
    assert epsilon(FULL, (2 * rho) ** -0.5, 1, 1e-5, accountant="rdp") == pytest.approx(rdp, rel=1e-5)


# ---- several releases of one round ---------------------------------------------------------------------------------

SMALL, MIDDLE = SamplingLaw("poisson", 0.1, 100), SamplingLaw("poisson", 0.1, 500)
FEMNIST = SamplingLaw("poisson", 100 / 3400, 3400)

# law, T, delta, epsilon, joint multiplier, and the update's with 5, 10 and 20 % of the budget for the mask.
JOINT = [
    (SMALL, 100, 1e-3, 2, 1.674, (1.717, 1.764, 1.871)),
    (SMALL, 100, 1e-3, 4, 1.100, (1.129, 1.160, 1.230)),
    (SMALL, 100, 1e-3, 8, 0.778, (0.799, 0.821, 0.870)),
    (MIDDLE, 200, 1e-3, 2, 2.214, (2.271, 2.333, 2.475)),
    pytest.param(MIDDLE, 200, 1e-3, 4, 1.385, (1.421, 1.460, 1.548), marks=slow),
    (MIDDLE, 200, 1e-3, 8, 0.941, (0.965, 0.991, 1.052)),
    (FEMNIST, 1500, 1e-4, 2, 2.126, (2.181, 2.241, 2.377)),
    pytest.param(FEMNIST, 1500, 1e-4, 4, 1.311, (1.345, 1.382, 1.465), marks=slow),
    pytest.param(FEMNIST, 1500, 1e-4, 8, 0.902, (0.926, 0.951, 1.009), marks=slow),
]


def split(joint, share):
    """(multiplier of the update, of the score) by the noise stage itself, for bounds of 1."""
    one, h = jnp.float32(1.0), Hparams(noise_multiplier=joint, query_share=share).arrays()
    ctx = Ctx(one, h, None, one, one, one, one, bounds={"payload": one, "query": one})
    stds = noise_stds(ctx, query_share)
    return float(stds["payload"]), float(stds["query"])


@pytest.mark.parametrize(("law", "rounds", "delta", "target", "joint", "update"), JOINT)
def test_multipliers_of_an_update_and_a_score(law, rounds, delta, target, joint, update):
    assert calibrate(law, target, rounds, delta) == pytest.approx(joint, rel=5e-3)
    for share, known in zip((0.05, 0.10, 0.20), update, strict=True):
        z_update, z_score = split(joint, share)
        assert z_update == pytest.approx(known, abs=1.1e-3)
        assert (z_update**-2 + z_score**-2) ** -0.5 == pytest.approx(joint, rel=1e-6)


@pytest.mark.parametrize(
    ("target", "joint", "scores"), [(2, 1.674, (7.49, 5.29, 3.74)), (8, 0.778, (3.48, 2.46, 1.74))]
)
def test_multipliers_of_the_score(target, joint, scores):
    for share, known in zip((0.05, 0.10, 0.20), scores, strict=True):
        assert split(joint, share)[1] == pytest.approx(known, abs=6e-3)


@pytest.mark.parametrize(
    ("score", "queries", "known"),
    [(None, 0, 4.784), (4.0, 10, 4.814), (2.0, 5, 4.852), (4.0, 100, 5.074), (2.0, 100, 5.969)],
)
def test_paying_for_a_mask_in_some_rounds(score, queries, known):
    """N = 100, q = 0.1, z = 1 for the update, T = 100, delta = 1e-3; a noised score in some of the rounds."""
    run = make_event(SMALL, 1.0, max(100 - queries, 1))
    if queries:
        both = make_event(SMALL, (1.0 + score**-2) ** -0.5, queries)
        run = both if queries == 100 else replace(run, beside=(both,))
    assert evaluate(run, 1e-3, "pld", GRID) == pytest.approx(known, abs=6e-4)


def test_paying_by_zero_concentrated_privacy():
    """The same run by RDP: 5.655, and 5.944 with 0.1-zCDP for masks, k choices of range sqrt(8 rho / k)."""
    assert epsilon(SMALL, 1.0, 100, 1e-3, accountant="rdp") == pytest.approx(5.655, abs=6e-4)
    for picks, every in ((64, 0), (16, 25)):  # all at once, or a quarter of it in each of four choices
        width = (8 * 0.1 / 64) ** 0.5
        detail = (("choice_range", width), ("choice_picks", picks), ("choice_warmup", 5), ("choice_every", every))
        noise = Noise("gaussian", 1.0, "central", detail)
        assert epsilon(SMALL, noise, 100, 1e-3, accountant="rdp") == pytest.approx(5.944, abs=6e-4)
