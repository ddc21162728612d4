"""Who is absent or broken contributes exactly nothing, is counted, and remembers nothing."""

import exact_round
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import tiny
from exact_round import N, Way

from fljax.core.transform import UpdateTransform, chain, pass_decode, stateless
from fljax.core.types import Hparams
from fljax.data.federated import FederatedData
from fljax.server.average import realised_average
from fljax.server.round import make_round
from fljax.server.sampler import poisson

WAYS = [Way(), Way(chunk=3), Way(devices=2, chunk=3, max_rate=exact_round.RATE)]


def cohort(t: int = 0) -> set[int]:
    """Ids of the clients of a round, from the state that each of them wrote in it."""
    seen = exact_round.play(Way(), rounds=t + 1)
    before = np.zeros(N) if t == 0 else np.asarray(seen[t - 1][0].clients[0]["times"])
    return set(np.flatnonzero(np.asarray(seen[t][0].clients[0]["times"]) - before))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf, 1e30])
def test_a_client_that_is_not_finite_is_as_good_as_away(way, poison):
    """An update of 1e30 has a norm that overflows. Parameters and states equal those of a cohort without the client."""
    bad = min(cohort())
    broken = exact_round.play(way, exact_round.hparams(bad=bad, poison=poison))
    absent = exact_round.play(Way(), exact_round.hparams(away=bad))
    for (state, info), (expected, seen) in zip(broken, absent, strict=True):
        assert tiny.same_bits(state, expected)
        assert int(info.participants) == int(seen.participants)
        assert tiny.same_bits(info.client, seen.client)
    first, other = broken[0][1], absent[0][1]
    assert int(first.answered) == int(first.participants) + 1  # it answered, and what it sent was refused
    assert int(other.contacted) == int(other.answered) + 1  # it was asked, and did not answer


def test_what_a_stage_makes_not_finite_counts_as_nothing():
    """The client trained well, and its encoding broke: it is as good as away, and remembers nothing of the round."""

    def encode(key, ctx, payload, server_state, client_state):
        broken = ctx.id == ctx.hparams.extra["bad"]
        return payload | {"update": payload["update"] / jnp.where(broken, 0.0, 1.0)}, client_state, {}

    breaking = UpdateTransform("breaking", stateless, encode, pass_decode)
    parts = {"sampler": poisson(N, 1.0), "local": exact_round.local(True), "available": exact_round.answers}
    built = make_round(**parts, transform=chain(realised_average(), breaking))
    step, bad, seen = jax.jit(built.step), min(cohort()), []
    for numbers in (exact_round.hparams(bad=bad), exact_round.hparams(away=bad)):
        state = built.init(jax.random.key(0), jnp.zeros(3), numbers)
        seen.append(step(jnp.int32(0), jax.random.key(0), state, exact_round.data(), numbers))
    (state, info), (expected, absent) = seen
    assert tiny.same_bits(state, expected)
    assert int(info.participants) == int(absent.participants) == int(info.answered) - 1


def test_a_stage_that_is_always_sent_sends_what_it_makes_of_zeros():
    """Its noise must not tell who broke: 1e30 and NaN arrive as a client that sent zeros, and count as nobody."""

    def encode(key, ctx, payload, server_state, client_state):
        return {"update": payload["update"] + 1.0}, client_state, {}

    always = UpdateTransform("always", stateless, encode, pass_decode, always=True)
    built = make_round(sampler=poisson(N, 1.0), local=exact_round.local(True), transform=always)
    step, bad, seen = jax.jit(built.step), min(cohort()), []
    for poison in (0.0, np.nan, np.inf, 1e30):
        numbers = exact_round.hparams(bad=bad, poison=poison)
        state = built.init(jax.random.key(0), jnp.zeros(3), numbers)
        seen.append(step(jnp.int32(0), jax.random.key(0), state, exact_round.data(), numbers))
    for state, info in seen[1:]:
        assert tiny.same_bits(state.params, seen[0][0].params)
        assert int(info.participants) == int(seen[0][1].participants) - 1
        assert not np.asarray(state.clients[0]["last"])[bad].any()


@pytest.mark.parametrize("way", WAYS)
def test_states_are_written_for_those_who_took_part_and_for_nobody_else(way):
    who = cohort()
    bad, away = sorted(who)[:2]
    state = exact_round.play(way, exact_round.hparams(bad=bad, poison=np.nan, away=away), rounds=1)[0][0]
    wrote = np.flatnonzero(np.asarray(state.clients[0]["times"]))
    assert set(wrote) == who - {bad, away} and len(wrote) > 3
    assert not np.asarray(state.clients[0]["last"])[[bad, away]].any()


@pytest.mark.parametrize("way", WAYS)
def test_an_empty_cohort_changes_nothing(way):
    """Neither the model nor any client's state; exactly zero is released."""
    for state, info in exact_round.play(way, exact_round.hparams(rate=0.0)):
        assert not np.asarray(state.params).any() and not np.asarray(state.clients[0]["times"]).any()
        assert int(info.contacted) == 0 and float(info.server["update_norm"]) == 0.0


def test_an_empty_cohort_under_a_public_denominator_changes_nothing():
    hparams = Hparams(client_lr=0.4, sampling_rate=1e-7, clip=1.0)
    assert tiny.cohort("dp_fedavg", 0, hparams) == []
    played = tiny.play("dp_fedavg", 1, hparams)
    assert tiny.same_bits(played.states[1].params, played.states[0].params)


def test_real_training_survives_a_client_with_nan_in_its_data():
    """The other clients' round, to rounding: the broken one has weight zero, too."""
    bad, pairs = 2, tiny.clients()
    x = pairs[bad][0].copy()
    x[1, 2] = np.nan
    data = FederatedData.from_clients([(x, y) if k == bad else (a, y) for k, (a, y) in enumerate(pairs)])
    played = tiny.play("fedavg", 2, Hparams(client_lr=0.4), on=data)
    params, rest = oracle.exact(tiny.first_params()), [k for k in range(tiny.N) if k != bad]
    for t in range(2):
        params = oracle.plus(params, oracle.fedavg_update(params, t, rest, lr=0.4))
        tiny.close(played.states[t + 1].params, params)
        info = played.infos[t]
        assert (int(info.answered), int(info.participants)) == (tiny.N, tiny.N - 1)
        assert bool(jnp.isfinite(info.client["loss"]))
