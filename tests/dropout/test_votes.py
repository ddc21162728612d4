"""Private picks among the clients' votes: the law of the picks, who is asked and when, and what it costs."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import private_rounds as tiny
import pytest

from fljax import recipes
from fljax.client.sgd import fedavg_update
from fljax.core.types import Ctx
from fljax.dropout.information import Learner
from fljax.dropout.votes import gumbel_dropout, gumbel_picks
from fljax.models import mlp
from fljax.privacy.local import local_gaussian
from fljax.privacy.mechanisms import make_event
from fljax.server.round import make_round

MODEL = tiny.model()
LEARNER = Learner(MODEL.apply, tiny.training().loss, MODEL.groups)
DATA = tiny.pack(tiny.clients())


def numbers(**changes):
    given = {"explore": 0.0, "refresh_rounds": 2, "warmup_rounds": 1, "choice_rho": 5.0, "sampling_rate": 1.0}
    return tiny.Hparams(**{**vars(tiny.HPARAMS), **given, **changes})


def test_picks_follow_the_exponential_mechanism_one_after_the_other():
    """24 ordered outcomes of three picks of four, 40,000 draws: chi-square of 23 degrees, false alarm below 1e-6."""
    votes, scale, draws = jnp.array([1.0, 0.2, 0.7, 0.0]), 0.8, 40_000
    picks = jax.jit(jax.vmap(lambda k: gumbel_picks(k, votes, scale, 3.0)))(jax.random.split(jax.random.key(0), draws))
    assert np.all(np.sort(picks, axis=1) == [0, 1, 2, 3])  # the last is told nothing of
    seen = np.argsort(-np.asarray(picks), axis=1)[:, :3]
    weight, chi = np.exp(np.asarray(votes, np.float64) / scale), 0.0
    for order in itertools.permutations(range(4), 3):
        left, chance = weight.sum(), 1.0
        for i in order:
            chance, left = chance * weight[i] / left, left - weight[i]
        chi += (np.sum(np.all(seen == order, axis=1)) - draws * chance) ** 2 / (draws * chance)
    assert chi < 70.6


def context(t, h):
    h = h.arrays()
    return Ctx(jnp.int32(t), h, jax.random.key(0), jnp.int32(-1), jnp.int32(-1), jnp.float32(8), h.keep_rate)


def test_the_scale_is_that_of_the_budget():
    """``scale = 1 / (sqrt(L) eta)``, ``eta = sqrt(8 rho / k)``, read off the noise of two layers: 6 of 12 and 4 of 8.

    The highest of n Gumbel variables of a scale is beta log n above the location on average; here the chance that the
    one neuron with a vote v is first, ``e^(v/beta) / (e^(v/beta) + n - 1)``. 20,000 draws, five standard errors.
    """
    model, h = mlp((3,), 2, (12, 8)), numbers(choice_rho=0.2)
    sub = gumbel_dropout(Learner(model.apply, None, model.groups))
    spent = sub.spends(h)
    assert spent["choice_picks"] == 10 and spent["choice_range"] == pytest.approx((8 * 0.2 / 10) ** 0.5)
    votes = {"dense_0": jnp.zeros(12).at[3].set(2.0), "dense_1": jnp.zeros(8)}
    keys = jax.random.split(jax.random.key(1), 20_000)
    first = jax.jit(jax.vmap(lambda k: sub.release(k, context(2, h), votes)["dense_0"] == 6.0))(keys)
    odds = np.exp(2.0 * np.sqrt(2) * spent["choice_range"])
    chance = odds / (odds + 11)
    assert abs(np.mean(first[:, 3]) - chance) < 5 * np.sqrt(chance / 20_000)
    assert chance > 2 / 12  # the vote is seen


def test_clients_are_asked_and_picks_are_told_in_the_round_before_a_choice():
    """Due after rounds 0, 2, 4 (warm-up 1, every 2): bytes of six votes in these rounds alone, masks are the picks."""
    made = make_round(
        sampler=tiny.sampler(),
        local=fedavg_update(tiny.training()),
        transform=recipes.private_average(),
        submodel=gumbel_dropout(LEARNER),
    )
    h = numbers().arrays()
    state = made.init(jax.random.key(1), MODEL.init(jax.random.key(2)), h)
    step, seen = jax.jit(made.step), []
    for t in range(5):
        before = state.submodel.energy["dense_0"]
        state, info = step(jnp.int32(t), jax.random.key(3), state, DATA, h)
        values = 51 if t == 0 else 27  # the warm-up is dense, then three of six neurons are kept
        votes = 6 if t % 2 == 0 else 0
        assert int(info.uplink.rest + 1024 * info.uplink.kib) == tiny.POPULATION * 4 * (values + votes)
        told = np.asarray(state.submodel.energy["dense_0"])
        assert sorted(told) == [0, 0, 0, 1, 2, 3]
        if t % 2 == 1:  # nothing is told; what was told before decides
            np.testing.assert_array_equal(told, before)
            assert set(np.flatnonzero(np.asarray(state.submodel.ranks["dense_0"]) < 3)) == set(np.flatnonzero(told))
        seen.append(told)
    noise = made.claims(numbers(), state.params).noise
    assert noise is not None
    (part,) = make_event(tiny.sampler().law(numbers()), noise, 5).beside
    assert (part.mechanism, part.rounds) == ("bounded_range", 9)  # three choices of three neurons
    assert part.rounds / (8 * part.noise**2) == pytest.approx(3 * 5.0)


@pytest.mark.parametrize(("transform", "says"), [(local_gaussian, "trust it"), (None, None)])
def test_only_a_trusted_server_may_pick(transform, says):
    chain = recipes.private_average(noise=None if transform is None else transform())
    local = fedavg_update(tiny.training())
    made = make_round(sampler=tiny.sampler(), local=local, transform=chain, submodel=gumbel_dropout(LEARNER))
    claim = made.claims(numbers(), MODEL.init(jax.random.key(0)))
    assert (claim.reason is None) == (says is None) and (says or "") in (claim.reason or "")
    assert claim.masks == "votes"
