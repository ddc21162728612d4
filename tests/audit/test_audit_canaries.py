"""Canary clients in a round: what they send, what real clients send beside them, and how they are found again."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from scipy import stats

from fljax import recipes
from fljax.audit.canaries import canary, canary_available, canary_update, draw_canaries
from fljax.audit.scores import canary_scores
from fljax.client.sgd import fedavg_update
from fljax.core.check import FljaxError
from fljax.core.types import Hparams
from fljax.server.round import make_round
from fljax.server.sampler import bernoulli_availability, full

K, CLIP = 6, 0.4
HPARAMS = Hparams(client_lr=0.5, clip=CLIP, noise_multiplier=1.0).arrays()


def drawn(out: float):
    """Six canaries, of which some are in and some are out."""
    canaries = draw_canaries(jax.random.key(5), K, out)
    assert 0 < np.sum(np.asarray(canaries.signs) > 0) < K
    return canaries


@cache
def transcript(out: float, train: bool):
    """One private round of the tiny federation and six canaries."""
    canaries = drawn(out)
    round = make_round(
        sampler=full(tiny.N + K),
        local=canary_update(fedavg_update(tiny.training(tiny.line(), **tiny.ONE_BATCH)), tiny.N, canaries, train=train),
        transform=recipes.private_average(),
        available=canary_available(bernoulli_availability, tiny.N, canaries),
    )
    state = round.init(jax.random.key(0), tiny.line().init(jax.random.key(1)), HPARAMS)
    seen = jax.jit(round.transcript)(0, jax.random.key(0), state, tiny.data(), HPARAMS)
    return round, state, jax.device_get(seen)


def sent(seen, client: int) -> np.ndarray:
    """The update that a client sent, flat."""
    (slot,) = np.flatnonzero(seen.cohort.ids == client)
    return np.concatenate([np.ravel(x[slot]) for x in jax.tree.leaves(seen.payloads["update"])])


def direction(state, index: int) -> np.ndarray:
    return np.asarray(canary(drawn(0.0).key, jnp.int32(index), sum(x.size for x in jax.tree.leaves(state.params))))


@pytest.mark.parametrize(("out", "train"), [(0.0, False), (-1.0, True)])
def test_canaries_send_their_direction_at_the_full_clip(out, train):
    _, state, seen = transcript(out, train)
    signs = np.asarray(drawn(out).signs)
    for i, sign in enumerate(signs):
        np.testing.assert_allclose(sent(seen, tiny.N + i), sign * CLIP * direction(state, i), atol=1e-7)
        np.testing.assert_allclose(np.linalg.norm(direction(state, i)), 1.0, rtol=1e-6)


def test_absent_canaries_do_not_answer():
    _, _, seen = transcript(0.0, False)
    answered = set(seen.cohort.ids[seen.alive])
    assert answered == {*range(tiny.N), *(tiny.N + np.flatnonzero(np.asarray(drawn(0.0).signs)))}
    assert len(set(transcript(-1.0, True)[2].cohort.ids[transcript(-1.0, True)[2].alive])) == tiny.N + K


def test_real_clients_send_exact_zeros_and_nothing_is_trained():
    round, state, seen = transcript(0.0, False)
    assert all(not sent(seen, k).any() for k in range(tiny.N))
    trace = jax.make_jaxpr(round.step)(0, jax.random.key(0), state, tiny.data(), HPARAMS)
    assert "dot_general" not in str(trace), "no model is applied"


def test_real_clients_train_beside_canaries_as_without_them():
    plain = recipes.dp_fedavg(tiny.training(tiny.line(), **tiny.ONE_BATCH), full(tiny.N))
    state = plain.init(jax.random.key(0), tiny.line().init(jax.random.key(1)), HPARAMS)
    alone = jax.device_get(jax.jit(plain.transcript)(0, jax.random.key(0), state, tiny.data(), HPARAMS))
    _, _, seen = transcript(-1.0, True)
    for k in range(tiny.N):
        np.testing.assert_allclose(sent(seen, k), sent(alone, k), atol=1e-6)
    assert any(sent(seen, k).any() for k in range(tiny.N))


def test_coins_are_fair_and_independent_of_the_directions():
    """10 000 coins: within 5 standard errors, false alarm 6e-7."""
    signs = np.asarray(draw_canaries(jax.random.key(0), 10_000, 0.0).signs)
    assert set(signs) == {0.0, 1.0} and abs(signs.mean() - 0.5) < 5 * 0.5 / 100
    assert np.array_equal(jax.random.key_data(drawn(0.0).key), jax.random.key_data(drawn(-1.0).key))


# ---- scores ----------------------------------------------------------------------------------------------------------

COUNT = 60


@cache
def rows() -> np.ndarray:
    """[k, 403] canaries of a tree of 403 numbers."""
    return np.asarray(jax.vmap(lambda i: canary(jax.random.key(9), i, 403))(jnp.arange(COUNT)), np.float64)


def shaped(flat: np.ndarray):
    return {"a": jnp.asarray(flat[:253].reshape(11, 23), jnp.float32), "b": jnp.asarray(flat[253:], jnp.float32)}


@pytest.mark.parametrize("room", [2**25, 7 * 403])
def test_scores_are_the_t_statistics_of_a_regression(room, monkeypatch):
    """Against numpy's least squares in float64; a third of the coordinates never moved. Blocks of any size agree."""
    monkeypatch.setattr("fljax.audit.scores.ROOM", room)
    rng = np.random.default_rng(0)
    moved = np.arange(403) % 3 != 0
    change = (0.5 * rows()[:20].sum(0) + 0.1 * rng.normal(size=403)) * moved
    x, y = rows()[:, moved].T, change[moved]
    beta, residual, *_ = np.linalg.lstsq(x, y, rcond=None)
    freedom = len(y) - COUNT
    t = beta / np.sqrt(residual[0] / freedom * np.diag(np.linalg.inv(x.T @ x)))
    found = canary_scores(jax.random.key(9), COUNT, shaped(change))
    np.testing.assert_allclose(stats.norm.sf(found), stats.t.sf(t, freedom), rtol=2e-3, atol=1e-12)
    assert found[:20].min() > found[20:].max()


def test_scores_of_canaries_that_are_out_are_standard_normal_whatever_the_change():
    """A change that no noise is in, and that is anything but spherical: 4 coordinates carry nearly all of it.

    A chi-square and a Kolmogorov test of 1200 scores, each with false alarm 1e-6.
    """
    rng = np.random.default_rng(1)
    change = np.where(np.arange(403) < 4, 10.0, 1e-2 * rng.random(403))
    found = np.concatenate([canary_scores(jax.random.key(s), COUNT, shaped(change)) for s in range(20)])
    low, high = stats.chi2.ppf([5e-7, 1 - 5e-7], len(found))
    assert low < np.sum(found**2) < high
    assert stats.kstest(found, "norm").pvalue > 1e-6


def test_a_change_without_a_scale_still_scores_the_same():
    change = rows()[:5].sum(0) + 0.1 * np.random.default_rng(2).normal(size=403)
    plain = canary_scores(jax.random.key(9), COUNT, shaped(change))
    np.testing.assert_allclose(canary_scores(jax.random.key(9), COUNT, shaped(1e-4 * change)), plain, rtol=1e-3)
    np.testing.assert_allclose(canary_scores(jax.random.key(9), COUNT, shaped(-change)), -plain, rtol=1e-3)


@pytest.mark.parametrize(
    ("change", "count", "message"),
    [
        (np.zeros(403), 60, "finite change"),
        (np.full(403, np.nan), 60, "finite change"),
        (np.ones(403), 101, "canaries=101 <= 100"),
    ],
)
def test_a_change_that_says_nothing_is_refused(change, count, message):
    with pytest.raises(FljaxError, match=message):
        canary_scores(jax.random.key(0), count, shaped(change))
