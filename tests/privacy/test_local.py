"""Stages of local privacy: the noise and the bounds they state are those they add and keep, and nothing goes unhidden.

Seeds are fixed; the false-alarm rates say how often another seed would fail.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import private_rounds as tiny
import pytest

from fljax.client.scaffold import scaffold_update
from fljax.core.check import FljaxError
from fljax.core.transform import Noise, Wire, chain
from fljax.core.types import Ctx, Hparams
from fljax.privacy.clip import clip
from fljax.privacy.local import bits_for, local_duchi, local_gaussian, local_krr, local_laplace, local_privunit
from fljax.recipes import dp_fedavg, make_round
from fljax.server.average import expected_average
from fljax.server.sampler import poisson

KEY = jax.random.key(23)
S, Z, EXPECTED, AVAILABLE = 0.3, 1.7, 12.5, 0.6
PURE = {
    "laplace": (local_laplace, 1.0),
    "duchi": (local_duchi, None),
    "krr": (lambda size: local_krr(size, 4), None),
    "privunit": (local_privunit, 1.0),
}
"""Stage, and the largest L2 norm of what it hides, in units of S (None: sqrt(P))."""


def context(stage, params, support=None, z=Z, s=S, parts=("update",)):
    """What one client of a round sees."""
    h = Hparams(clip=s, noise_multiplier=z, availability=AVAILABLE)
    nobody = jnp.int32(-1)
    ctx = Ctx(jnp.int32(0), h, KEY, nobody, nobody, jnp.float32(EXPECTED), h.keep_rate, support)
    states, own = stage.init(params, h)
    return ctx._replace(bounds=stage.bound(ctx, states, {p: jnp.float32(np.inf) for p in parts})), states, own


def upload(stage, payload, key=KEY, **options):
    """What one client sends, and the std that the stage states for the released sum."""
    ctx, states, own = context(stage, payload["update"], **options)
    sent, _, info = stage.encode(key, ctx, payload, states, own)
    return sent, stage.noise(ctx, states, jnp.float32(0.0)), info


# ---- Gaussian --------------------------------------------------------------------------------------------------------

GAUSSIAN = chain(expected_average(), clip(), local_gaussian())
ZEROS = {"a": jnp.zeros((50, 60)), "b": jnp.zeros(4000)}


def test_gaussian_noise_is_z_s_on_every_coordinate_of_every_part():
    """Within 5 standard errors of every leaf: false alarm 6e-7; 20 % off is far outside. All leaves are independent."""
    sent, *_ = jax.jit(lambda p: upload(GAUSSIAN, p, parts=("update", "control")))({"update": ZEROS, "control": ZEROS})
    leaves = [np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(sent)]
    assert len(leaves) == 4
    for i, x in enumerate(leaves):
        error = 5 / math.sqrt(2 * x.size)
        assert abs(x.std() / (Z * S) - 1) < error < 0.1
        for y in leaves[:i]:
            n = min(x.size, y.size)
            assert abs(np.corrcoef(x[:n], y[:n])[0, 1]) < 5.5 / math.sqrt(n)  # false alarm 4e-8


def test_gaussian_noise_lives_on_the_support_of_the_update():
    support = {"a": jnp.ones((50, 60)).at[:25].set(0), "b": jnp.zeros(4000)}
    payload = {"update": ZEROS, "control": ZEROS}
    sent, *_ = jax.jit(lambda p, m: upload(GAUSSIAN, p, support=m, parts=("update", "control")))(payload, support)
    assert np.all(sent["update"]["b"] == 0) and np.all(sent["update"]["a"][:25] == 0)
    assert abs(np.std(sent["update"]["a"][25:]) / (Z * S) - 1) < 5 / math.sqrt(2 * 1500)
    assert np.all(sent["control"]["b"] != 0)


def test_gaussian_hides_the_bound_of_the_whole_chain_and_adds_to_the_signal():
    payload = {"update": {"w": jnp.full(2000, 5.0)}}
    noisy, std, info = upload(GAUSSIAN, payload)
    plain, none, _ = upload(GAUSSIAN, payload, z=0.0)
    np.testing.assert_allclose(np.linalg.norm(plain["update"]["w"]), S, rtol=1e-5)
    assert abs(np.std(noisy["update"]["w"] - plain["update"]["w"]) / (Z * S) - 1) < 5 / math.sqrt(4000)
    np.testing.assert_allclose(info["noise_std"], Z * S, rtol=1e-6)
    np.testing.assert_allclose(std, math.sqrt(EXPECTED * AVAILABLE) * Z * S / EXPECTED, rtol=1e-6)
    assert float(none) == 0


def test_without_noise_nothing_is_added_even_where_nothing_is_bounded():
    payload = {"update": {"w": jnp.arange(5.0)}}
    sent, std, _ = upload(chain(expected_average(), local_gaussian()), payload, z=0.0)
    np.testing.assert_array_equal(sent["update"]["w"], payload["update"]["w"])
    assert float(std) == 0


def test_gaussian_claims_local_noise_and_is_always_sent():
    claim = local_gaussian().claim(Hparams(noise_multiplier=1.25))
    assert (claim.noise, claim.reason) == (Noise("gaussian", 1.25, "local"), None)
    assert GAUSSIAN.always


@pytest.fixture(scope="module")
def replay():
    """Compiled transcripts of one private round on honest data and on data with a client that holds NaN."""
    round = dp_fedavg(tiny.training(), poisson(tiny.POPULATION, 1.0), transform=GAUSSIAN)
    state = round.init(jax.random.key(1), tiny.model().init(jax.random.key(2)), tiny.HPARAMS.arrays())
    transcript = jax.jit(jax.vmap(round.transcript, (0, None, None, None, None)))

    def run(data, z):
        h = Hparams(**{**vars(tiny.HPARAMS), "noise_multiplier": z}).arrays()
        return jax.device_get(transcript(jnp.arange(60), KEY, state, data, h))

    return round, run


def test_a_round_releases_the_noise_of_every_upload(replay):
    """Noise of 60 rounds over its stated scale, sqrt(alive) z S / expected: within 5 standard errors, false alarm 6e-7.

    A client that holds NaN adds its noise too, around zero: who fails is not told by who is silent.
    """
    round, run = replay
    h, data = tiny.HPARAMS, tiny.pack(tiny.clients())
    x, y = tiny.clients()[2]
    broken = tiny.pack(tiny.swap(tiny.clients(), 2, np.full_like(x, np.nan), y))
    expected = h.sampling_rate * tiny.POPULATION
    for held in (data, broken):
        noisy, plain = run(held, h.noise_multiplier), run(held, 0.0)
        alive = noisy.alive.sum(1)
        assert len(set(alive.tolist())) > 2
        scale = np.sqrt(alive) * h.noise_multiplier * h.clip / expected
        noise = [a.reshape(60, -1) - b.reshape(60, -1) for a, b in zip(*map(leaves, (noisy, plain)), strict=True)]
        values = np.concatenate(noise, axis=1)[alive > 0] / scale[alive > 0, None]
        error = 5 / math.sqrt(2 * values.size)
        assert abs(values.std() - 1) < error < 0.1
        np.testing.assert_allclose(noisy.public["noise_std"] ** 2, np.mean(scale**2), rtol=0.2)
    seen = noisy.cohort.ids == 2  # the broken client: noise alone, of a full upload
    sent = np.concatenate([x[seen & noisy.alive].ravel() for x in jax.tree.leaves(noisy.payloads["update"])])
    assert abs(sent.std() / (h.noise_multiplier * h.clip) - 1) < 5 / math.sqrt(2 * sent.size)
    law, claim = round.law(h), round.claims(h, tiny.model().init(jax.random.key(2)))
    assert (law.kind, claim.noise, claim.reason) == ("poisson", Noise("gaussian", 1.7, "local"), None)


def leaves(transcript):
    return jax.tree.leaves(transcript.released["update"])


def test_scaffold_is_noised_by_its_joint_bound_and_refused_by_pure_randomisers():
    local, params = scaffold_update(tiny.training(), tiny.POPULATION), tiny.model().init(jax.random.key(2))
    parts = {"sampler": tiny.sampler(), "local": local}
    claim = make_round(transform=GAUSSIAN, **parts).claims(tiny.HPARAMS, params)
    assert (claim.noise, claim.reason) == (Noise("gaussian", 1.7, "local"), None)
    size = sum(x.size for x in jax.tree.leaves(params))
    round = make_round(transform=chain(expected_average(), local_duchi(size)), **parts)
    with pytest.raises(FljaxError, match="'update' alone, not 'control'"):
        round.claims(tiny.HPARAMS, params)
    with pytest.raises(FljaxError, match="not 'control'"):
        upload(local_duchi(3), {"update": jnp.zeros(3), "control": jnp.zeros(3)})


# ---- pure epsilon ----------------------------------------------------------------------------------------------------

UPDATE = {"a": jnp.linspace(-0.4, 0.5, 12).reshape(3, 4), "b": {"c": jnp.float32([2.0, -2.0])}}
P = 14


@pytest.mark.parametrize("name", PURE)
def test_a_pure_stage_claims_its_epsilon(name):
    stage = PURE[name][0](P)
    claim = stage.claim(Hparams(noise_multiplier=1 / 2.5))
    assert (claim.noise, claim.reason) == (Noise("pure", 1 / 2.5, "local"), None)
    assert stage.claim(Hparams()).noise.multiplier == 0
    assert "at least 0.001" in stage.claim(Hparams(noise_multiplier=1001.0)).reason
    assert stage.always


@pytest.mark.parametrize("name", PURE)
def test_with_multiplier_zero_the_clipped_update_is_sent(name):
    """Its norm is within the bound that the stage states; so is that of a hundred times as large an update."""
    make, reach = PURE[name]
    stage = make(P)
    send = jax.jit(lambda update: (*upload(stage, {"update": update}, z=0.0), context(stage, update)[0].bounds))
    for factor in (0.01, 100.0):
        sent, std, info, bounds = send(jax.tree.map(partial(jnp.multiply, factor), UPDATE))
        bound = bounds["update"]
        size = np.linalg.norm(tiny.flat(sent))
        np.testing.assert_allclose(bound, S * (reach or math.sqrt(P)), rtol=1e-6)
        assert size <= bound * (1 + 1e-6)
        assert float(std) == 0 and float(info["fraction"]) == (factor > 1)
        assert (size > 0.3 * bound) if factor > 1 else np.allclose(tiny.flat(sent), 0.01 * tiny.flat(UPDATE))
        assert jax.tree.structure(sent["update"]) == jax.tree.structure(UPDATE)


@pytest.mark.parametrize("name", PURE)
def test_epsilon_of_an_upload_is_one_over_the_multiplier(name):
    """Mean over 20,000 uploads within 5.5 standard errors of the clipped update; the std is that of the multiplier.

    The stated std is a bound that Laplace noise, one bit, and a sphere reach on zeros; levels inside are below it.
    """
    stage = PURE[name][0](P)
    keys = jax.random.split(KEY, 20_000)
    zeros = jax.tree.map(jnp.zeros_like, UPDATE)
    mean = np.asarray(tiny.flat(upload(stage, {"update": UPDATE}, z=0.0)[0]))

    @jax.jit
    @jax.vmap
    def send(key):
        sent, std, _ = upload(stage, {"update": UPDATE}, key)
        return sent, upload(stage, {"update": zeros}, key)[0], std

    sent, of_zeros, std = send(keys)
    sent, of_zeros = flat(sent), flat(of_zeros)
    assert np.all(np.abs(sent.mean(0) - mean) < 5.5 * sent.std(0) / math.sqrt(len(keys)))
    stated = float(std[0]) / math.sqrt(EXPECTED * AVAILABLE)
    seen = np.sqrt(np.mean(of_zeros**2))
    epsilon = 1 / Z
    wanted = {
        "laplace": math.sqrt(8) * S / epsilon,
        "duchi": math.sqrt(P) * S / math.tanh(epsilon / 2),
        "krr": math.sqrt(P) * S * (math.exp(epsilon) + 3) / math.expm1(epsilon),
    }.get(name, stated)
    assert stated == pytest.approx(wanted, rel=1e-3)
    if name == "krr":
        assert 0.5 * stated < seen < stated
    else:
        assert seen == pytest.approx(stated, rel=0.02)


def flat(tree) -> np.ndarray:
    """[n, P] from leaves [n, ...]."""
    return np.concatenate([np.asarray(x, np.float64).reshape(x.shape[0], -1) for x in jax.tree.leaves(tree)], axis=1)


@pytest.mark.parametrize("name", PURE)
def test_pure_stages_keep_to_the_mask(name):
    """Nothing outside; the stated std is that of the smaller vector."""
    stage = PURE[name][0](P)
    support = {"a": jnp.ones((3, 4)).at[0].set(0.0), "b": {"c": jnp.zeros(2)}}
    sent, std, _ = jax.jit(lambda p, m: upload(stage, p, support=m))({"update": UPDATE}, support)
    assert np.all(sent["update"]["a"][0] == 0) and np.all(sent["update"]["b"]["c"] == 0)
    assert np.any(sent["update"]["a"][1:] != 0)
    small, few, _ = jax.jit(lambda p: upload(PURE[name][0](8), p))({"update": UPDATE["a"][1:]})
    assert jax.tree.leaves(small)[0].size == 8
    np.testing.assert_allclose(std, few, rtol=1e-6)


@pytest.mark.parametrize("name", PURE)
def test_a_wrong_size_is_refused(name):
    with pytest.raises(FljaxError, match="Expected size=15 to be the number of parameters, 14"):
        upload(PURE[name][0](15), {"update": UPDATE})
    with pytest.raises(FljaxError, match="> 0"):
        PURE[name][0](0)


def test_structure_is_checked_when_it_is_built():
    with pytest.raises(FljaxError, match="levels=1"):
        local_krr(10, 1)
    with pytest.raises(FljaxError, match="PrivUnit needs two coordinates"):
        local_privunit(1)


def test_bits_on_the_wire():
    """One coordinate: position and level. Without noise, and for dense randomisers, 32 bits for every value."""
    ctx, *_ = context(local_duchi(14), UPDATE)
    whole = {"update": Wire(jnp.int32(14), jnp.int32(32), jnp.int32(0))}

    def bits(stage, z=Z):
        wire = stage.wire(ctx._replace(hparams=Hparams(noise_multiplier=z)), whole)["update"]
        return int(wire.values * wire.bits + wire.extra)

    assert bits(local_duchi(14)) == 4 + 1
    assert bits(local_krr(14, 5)) == 4 + 3
    assert bits(local_duchi(14), z=0.0) == bits(local_laplace(14)) == bits(local_privunit(14)) == 14 * 32
    assert [int(bits_for(jnp.int32(n))) for n in (1, 2, 3, 4, 5, 2**20, 2**20 + 1)] == [0, 1, 2, 2, 3, 20, 21]
