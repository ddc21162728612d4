"""Sensitivity replay: the same round on neighbouring data sets with the same key.

The sum before the noise may move by at most the bound that the noise is scaled to, and every value that privacy
assumes to be public must be equal bit by bit. Leaving a client out (or zeroing it) is a neighbour in the sense of
add-or-remove; replacing its data by anything else is one removal and one addition, hence twice the bound.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import private_rounds as tiny
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fljax import recipes
from fljax.core.transform import Noise, UpdateTransform, chain, no_claim, pass_decode, stateless, total_bound
from fljax.data.federated import FederatedData
from fljax.privacy.clip import clip
from fljax.privacy.noise import central_gaussian
from fljax.server.average import expected_average
from fljax.server.round import make_round

KINDS = ("dp_fedavg", "fisher/submodel", "random/submodel")
SLACK = 1e-4
KEY = jax.random.key(0)
EVERYBODY = {"sampling_rate": 1.0}


def run(kind, pairs, t=3, key=KEY, state=None, **numbers):
    """The transcript of a round on these clients, from a state with a history unless told otherwise."""
    h = tiny.Hparams(**{**vars(tiny.HPARAMS), **numbers}).arrays()
    state = tiny.later_state(kind) if state is None else state
    return jax.device_get(tiny.replay(kind)(jnp.int32(t), key, state, tiny.pack(pairs), h))


def moved(a, b) -> float:
    """How far the sums before the noise are apart, in float64."""
    return float(np.linalg.norm(tiny.flat(a.pre_noise) - tiny.flat(b.pre_noise)))


def members(transcript) -> list[int]:
    return sorted(transcript.cohort.ids[transcript.alive].tolist())


def assert_neighbours(a, b, times=1.0):
    """Bounded movement, equal public values."""
    assert moved(a, b) <= times * float(a.public["bound"]) * (1 + SLACK)
    assert tiny.same_bits(a.public, b.public), (a.public, b.public)
    assert members(a) == members(b)
    assert np.isfinite(tiny.flat(a.pre_noise)).all() and np.isfinite(tiny.flat(b.pre_noise)).all()


NOTHING = (np.zeros((0, tiny.FEATURES)), np.zeros(0, int))


@st.composite
def contents(draw):
    """Anything a client may hold: 0 to 6 examples, features up to 1e4 or not finite at all, any labels."""
    size, seed = draw(st.integers(0, tiny.MOST)), draw(st.integers(0, 2**31))
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(size, tiny.FEATURES)) * 10.0 ** draw(st.floats(-3, 4))
    bad = draw(st.sampled_from([None, None, np.nan, np.inf, -np.inf, 3e38]))
    if bad is not None and size:
        x[rng.integers(size), rng.integers(tiny.FEATURES)] = bad
    return x, rng.integers(0, tiny.CLASSES, size)


@pytest.mark.parametrize("kind", KINDS)
def test_any_data_of_one_client_move_the_sum_by_a_bounded_amount(kind):
    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(contents(), st.integers(0, tiny.POPULATION - 1), st.integers(0, 50), st.floats(-2, 2))
    def check(data, victim, t, log_clip):
        numbers = {"clip": 10.0**log_clip, "client_lr": 5.0}
        pairs = tiny.clients(t)
        anything = run(kind, tiny.swap(pairs, victim, *data), t, **numbers)
        removed = run(kind, tiny.swap(pairs, victim, *NOTHING), t, **numbers)
        honest = run(kind, pairs, t, **numbers)
        assert_neighbours(anything, removed)
        assert_neighbours(honest, removed)
        assert_neighbours(anything, honest, times=2.0)

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_is_nearly_attained(kind):
    """Otherwise the test above could not fail: with everybody in the cohort, large features move the sum by S."""
    pairs = tiny.clients()
    loud = run(kind, tiny.swap(pairs, 1, pairs[1][0] * 1e4, pairs[1][1]), **EVERYBODY)
    removed = run(kind, tiny.swap(pairs, 1, *NOTHING), **EVERYBODY)
    assert moved(loud, removed) >= 0.99 * tiny.HPARAMS.clip
    assert_neighbours(loud, removed)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_a_client_with_poisoned_features_is_removed(kind, bad):
    """Whatever is not finite counts as nothing at all, and hurts nobody else."""
    pairs = tiny.clients()
    x = pairs[1][0].copy()
    x[2] = bad
    poisoned, removed = (run(kind, tiny.swap(pairs, 1, *d), **EVERYBODY) for d in ((x, pairs[1][1]), NOTHING))
    assert_neighbours(poisoned, removed)
    if np.isnan(bad):
        np.testing.assert_allclose(tiny.flat(poisoned.pre_noise), tiny.flat(removed.pre_noise), atol=1e-6)


@pytest.mark.parametrize("source", ["fisher", "random"])
def test_after_rounds_that_were_really_run(source):
    """The masks of later rounds come from released values, which both worlds share."""
    kind, pairs = f"{source}/submodel", tiny.clients()
    h, data = tiny.HPARAMS.arrays(), tiny.pack(pairs)
    state = tiny.start(kind)
    for t in range(4):
        state, _ = tiny.step(kind)(jnp.int32(t), KEY, state, data, h)
    honest = run(kind, pairs, 4, state=state, **EVERYBODY)
    for data in (NOTHING, (pairs[1][0] * 1e4, pairs[1][1]), (np.full_like(pairs[1][0], np.nan), pairs[1][1])):
        other = run(kind, tiny.swap(pairs, 1, *data), 4, state=state, **EVERYBODY)
        assert_neighbours(honest, other, times=1.0 if len(data[0]) == 0 else 2.0)
    support = tiny.flat(honest.public["support"])
    assert 0 < support.sum() < support.size


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_cohort_releases_pure_noise(kind):
    empty = run(kind, tiny.clients(), availability=0.0)
    assert not empty.alive.any()
    assert not np.any(tiny.flat(empty.pre_noise))
    noise, std = tiny.flat(empty.released), float(empty.public["noise_std"])
    support = np.ones_like(noise) if empty.public["support"] is None else tiny.flat(empty.public["support"])
    assert np.all((noise != 0) == (support == 1))
    others = run(kind, tiny.clients(9), **EVERYBODY)  # the same noise, now on top of a sum
    sums, expected = tiny.flat(others.pre_noise), float(others.public["expected"])
    scaled = noise * float(empty.public["expected"]) / expected
    np.testing.assert_allclose(tiny.flat(others.released) - sums / expected, scaled, atol=1e-6)
    assert 0.5 < noise[support == 1].std() / std < 1.5  # at least 18 numbers; false alarm 1e-3, fixed seed


@pytest.mark.parametrize("kind", KINDS)
def test_noise_is_z_times_the_bound(kind):
    public = run(kind, tiny.clients()).public
    h = tiny.HPARAMS
    assert float(public["bound"]) == np.float32(h.clip)
    np.testing.assert_allclose(public["noise_std"] * public["expected"] / public["bound"], h.noise_multiplier, 1e-6)
    np.testing.assert_allclose(public["expected"], h.sampling_rate * tiny.POPULATION, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_sum_of_the_transcript_is_the_sum_of_its_payloads(kind):
    a = run(kind, tiny.clients())
    np.testing.assert_allclose(tiny.flat(a.pre_noise), tiny.flat(jax.tree.map(lambda x: x.sum(0), a.payloads)), 1e-6)
    norms = np.sqrt(sum((x.reshape(len(a.alive), -1) ** 2).sum(1) for x in jax.tree.leaves(a.payloads)))
    assert np.all(norms[~a.alive] == 0) and np.all(norms <= tiny.HPARAMS.clip * (1 + SLACK))
    assert np.any(~a.alive), "a round without padding shows nothing about padding"


@jax.tree_util.register_dataclass
class Leaking(FederatedData):
    """Data whose empty slots see the largest client's examples, scaled by 1e4."""

    def take(self, slot, client_id):
        """A real shard for an id that belongs to nobody."""
        empty = client_id >= self.population
        shard = super().take(slot, jnp.where(empty, 1, client_id))
        return shard._replace(x=jnp.where(empty, 1e4, 1.0) * shard.x)


def test_garbage_in_padding_changes_nothing():
    data = tiny.pack(tiny.clients())
    leaking = Leaking(**vars(data))
    state, h = tiny.later_state("dp_fedavg"), tiny.HPARAMS.arrays()
    a = tiny.replay("dp_fedavg")(jnp.int32(3), KEY, state, data, h)
    b = tiny.replay("dp_fedavg")(jnp.int32(3), KEY, state, leaking, h)
    assert 0 < int(a.alive.sum()) < len(a.alive)
    np.testing.assert_allclose(tiny.flat(a.pre_noise), tiny.flat(b.pre_noise), rtol=1e-5, atol=1e-7)
    assert all(not np.any(np.asarray(x)[~np.asarray(b.alive)]) for x in jax.tree.leaves(b.payloads))


STEP = 0.1  # of the grid; as coarse as the clip is large


def quantiser() -> UpdateTransform:
    """Rounds every coordinate away from zero on a coarse grid: up to STEP per coordinate on top of what came in."""

    def encode(key, ctx, payload, server_state, client_state):
        return jax.tree.map(lambda x: STEP * jnp.sign(x) * jnp.ceil(jnp.abs(x) / STEP), payload), client_state, {}

    def bound(ctx, state, bounds):
        return {"quantised": total_bound(bounds) + STEP * np.sqrt(tiny.model().num_params())}

    return UpdateTransform("quantise", stateless, encode, pass_decode, bound, claim=no_claim)


@cache
def quantised(place: str):
    """A private round with the quantiser to the right of the noise, or between clip and noise."""
    right = [clip(), central_gaussian(), quantiser()]
    stages = right if place == "right" else [clip(), quantiser(), central_gaussian()]
    local = recipes.fedavg_update(tiny.training())
    return make_round(sampler=tiny.sampler(), local=local, transform=chain(expected_average(), *stages))


def test_a_stage_to_the_right_of_the_clip_raises_the_noise():
    """A client really moves the sum by more than S, and the noise is scaled to the bound of the whole chain."""
    pairs, h = tiny.clients(), tiny.Hparams(**{**vars(tiny.HPARAMS), "sampling_rate": 1.0}).arrays()
    replay, state = jax.jit(quantised("right").transcript), tiny.later_state("dp_fedavg")
    state = quantised("right").init(KEY, state.params, h)
    loud = tiny.swap(pairs, 1, pairs[1][0] * 3, pairs[1][1])
    a, b = (replay(jnp.int32(3), KEY, state, tiny.pack(p), h) for p in (loud, tiny.swap(pairs, 1, *NOTHING)))
    bound = float(a.public["bound"])
    assert moved(a, b) > 1.2 * tiny.HPARAMS.clip, "a test whose quantiser is not coarse shows nothing"
    assert moved(a, b) <= bound * (1 + SLACK)
    std = float(a.public["noise_std"]) * float(a.public["expected"])
    np.testing.assert_allclose(std, tiny.HPARAMS.noise_multiplier * bound, rtol=1e-6)
    added = tiny.flat(a.released) * float(a.public["expected"]) - tiny.flat(a.pre_noise)
    assert abs(added.std() / std - 1) < 5 / np.sqrt(2 * added.size)  # false alarm 6e-7


def test_the_bound_of_the_chain_does_not_depend_on_where_the_noise_stands():
    assert float(_chain_bound("right")) == float(_chain_bound("between")) > tiny.HPARAMS.clip


def _chain_bound(place):
    h = tiny.HPARAMS.arrays()
    state = quantised(place).init(KEY, tiny.later_state("dp_fedavg").params, h)
    shapes = jax.eval_shape(quantised(place).transcript, jnp.int32(0), KEY, state, tiny.pack(tiny.clients()), h)
    assert shapes.public["bound"].shape == ()
    claim = quantised(place).claims(tiny.HPARAMS, state.params)
    assert claim.reason is None and claim.noise == Noise("gaussian", tiny.HPARAMS.noise_multiplier)
    return jax.jit(lambda: quantised(place).transcript(0, KEY, state, tiny.pack(tiny.clients()), h).public["bound"])()
