"""Error feedback: nothing is lost, nothing leaves the support, and what compression alone cannot reach is reached."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from uploads import KEY, LEAVES, P, best, context, everything, flat, send, states, support, unflat, update

from fljax.compress.feedback import error_feedback
from fljax.compress.quantise import quantise, sign_quantise
from fljax.compress.sparsify import rand_k, top_k
from fljax.core.transform import chain
from fljax.core.types import Hparams
from fljax.privacy.clip import clip

ROUNDS = 12
_tree = ravel_pytree(unflat(np.zeros(P)))[1]
COMPRESSORS = {
    "top_k": top_k,
    "rand_k": lambda: rand_k(rescale=False),
    "quantise": lambda: quantise(6, LEAVES),
    "signs": lambda: sign_quantise(LEAVES),
    "top_k and quantise": lambda: chain(top_k(), quantise(6, LEAVES)),
    "top_k and signs": lambda: chain(top_k(), sign_quantise(LEAVES, sparse=True)),
}


FED = {name: error_feedback(make()) for name, make in COMPRESSORS.items()}  # each compiled once


def rounds(stage, updates, rate):
    """(what is sent in every round, the residual after every round)."""
    own, sent, left = states(stage)[1], [], []
    for t, u in enumerate(updates):
        key = jax.random.fold_in(KEY, t)
        got, own = send(stage, u, rate=rate, mask=everything(), round_key=key, key=key, own=own)
        sent.append(flat(got))
        left.append(flat(own[0]))
    return np.array(sent), np.array(left)


def whole(seed):
    """Integer values: sums of them are exact in float32."""
    return unflat(np.random.default_rng(seed).integers(-50, 50, P))


@pytest.mark.parametrize("name", ["top_k", "rand_k"])
def test_what_was_sent_and_what_is_left_are_all_updates_exactly(name):
    updates = [whole(t) for t in range(ROUNDS)]
    sent, left = rounds(FED[name], updates, 0.1)
    np.testing.assert_array_equal(np.cumsum(sent, 0) + left, np.cumsum([flat(u) for u in updates], 0))
    assert np.all((sent != 0).sum(1) <= 14) and np.any(left[-1] != 0)


@pytest.mark.parametrize("name", COMPRESSORS)
def test_what_was_sent_and_what_is_left_are_all_updates(name):
    updates = [update(t) for t in range(ROUNDS)]
    sent, left = rounds(FED[name], updates, 0.5)
    total = np.cumsum([flat(u) for u in updates], 0)
    np.testing.assert_allclose(np.cumsum(sent, 0) + left, total, rtol=1e-5, atol=1e-2)
    assert np.linalg.norm(left[-1]) > 1.0, "without a loss there is nothing to feed back"


def test_top_k_with_feedback_by_hand():
    updates = [update(t) for t in range(ROUNDS)]
    sent, _ = rounds(FED["top_k"], updates, 0.05)
    owed = np.zeros(P, np.float32)
    for t, u in enumerate(updates):
        owed = owed + flat(u).astype(np.float32)
        now = np.where(best(owed, 7), owed, np.float32(0))
        np.testing.assert_array_equal(sent[t], now)
        owed = owed - now


@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38])
def test_a_client_that_is_not_finite_keeps_its_residual(bad):
    stage = FED["top_k"]
    own = send(stage, update(), rate=0.1, mask=everything(), own=states(stage)[1])[1]
    broken = update(1)
    broken["kernel"] = broken["kernel"].at[0, 0].set(bad)
    sent, after = send(stage, broken, rate=0.1, mask=everything(), own=own)
    assert not np.any(flat(sent)) and np.any(flat(own))
    np.testing.assert_array_equal(flat(after), flat(own))


@pytest.mark.parametrize("name", COMPRESSORS)
def test_nothing_leaves_the_support_and_the_rest_waits(name):
    """The residual of another support must not slip out where there is no noise."""
    stage = FED[name]
    first, second = support(1), support(2)
    off = flat(second) == 0
    own = send(stage, whole(0), rate=0.3, mask=first, own=states(stage)[1])[1]
    assert np.any(flat(own[0])[off])
    sent, after = send(stage, whole(1), rate=0.3, mask=second, own=own)
    assert np.any(flat(sent)) and not np.any(flat(sent)[off])
    np.testing.assert_allclose(flat(after[0])[off], (flat(own[0]) + flat(whole(1)))[off], rtol=1e-5, atol=1e-5)


def test_the_residual_has_no_bound_and_only_a_clip_to_the_right_gives_one():
    """A residual of any size is sent on: top k alone keeps a bound, with feedback it does not."""
    stage = FED["top_k"]
    own = jax.tree.map(lambda x: x + 1e6, states(stage)[1])
    assert np.linalg.norm(flat(send(stage, update(scale=1e-3), rate=0.1, mask=everything(), own=own)[0])) > 1e6
    ctx = context()._replace(hparams=Hparams(clip=0.3))
    bounds = {"update": jnp.float32(np.inf), "weight": jnp.float32(2.0)}
    for stages, expected in (([clip(), stage], np.inf), ([stage, clip()], 0.3)):
        both = chain(*stages)
        got = both.bound(ctx, states(both)[0], bounds)
        assert float(got["payload"]) == np.float32(expected) and float(got["weight"]) == 2.0


def test_feedback_reaches_what_top_k_alone_cannot():
    """Two clients pull coordinate 0 apart and agree on eight small others: top 1 alone sends coordinate 0 for ever."""
    goals = np.zeros((2, P), np.float32)
    goals[:, 1:9] = 1.0
    goals[:, 0] = [50.0, -50.0]

    def distance(stage) -> float:
        def step(carry, key):
            w, own = carry
            updates = jax.vmap(lambda goal: _tree(0.01 * (goal - w)))(jnp.asarray(goals))
            sent, own = jax.vmap(lambda u, own: send(stage, u, rate=1 / P, own=own))(updates, own)
            return (w + jnp.mean(jax.vmap(lambda s: ravel_pytree(s)[0])(sent), axis=0), own), None

        own = jax.tree.map(lambda x: jnp.stack([x, x]), states(stage)[1])
        (w, _), _ = jax.lax.scan(step, (jnp.zeros(P), own), jax.random.split(KEY, 1000))
        return float(np.linalg.norm(np.asarray(w) - goals.mean(0)))

    alone, fed = distance(top_k()), distance(FED["top_k"])
    assert alone == pytest.approx(np.sqrt(8.0)), "none of the eight was ever sent"
    assert fed < 0.5 * alone
