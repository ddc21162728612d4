"""DP-SGD at a client: Poisson batches, clipped steps with noise, and nothing else.

Statistical tests have fixed seeds and the false-alarm rates that they state.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import private_rounds as tiny
import pytest
from scipy import stats

from fljax.client.dpsgd import batch_slots, dpsgd_update, poisson_batch
from fljax.client.sgd import Training
from fljax.core.check import FljaxError
from fljax.core.keys import stream
from fljax.core.transform import Noise
from fljax.core.types import Broadcast, Ctx, Hparams
from fljax.models import make_loss
from fljax.privacy.record import private_gradient

S, Z, B, STEPS, LR = 0.3, 1.7, 3, 4, 0.5
KEY = jax.random.key(8)
LOSS = make_loss("classification")
EMPTY = (np.zeros((0, tiny.FEATURES)), np.zeros(0, int))


def training(steps=STEPS, batch=B) -> Training:
    return Training(tiny.model(), LOSS, optax.sgd, epochs=None, steps=steps, batch_size=batch)


def start():
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), jnp.float32), tiny.model().shapes())


@cache
def client(steps=STEPS, many=False):
    """(key, id, data, S, z) -> the update of one client, or with keys [R], of many runs."""
    pytest.importorskip("jax_privacy")
    local = dpsgd_update(training(steps), private_gradient)

    def run(key, i, data, clip, z):
        h = Hparams(client_lr=jnp.float32(LR), clip=clip, noise_multiplier=z)
        one = jnp.float32(1.0)
        ctx = Ctx(jnp.int32(0), h, KEY, i, i, one, one)
        sent, _, info = local.run(key, ctx, Broadcast(start(), (), None), {}, data.take(i, i))
        return sent, info

    return jax.jit(jax.vmap(run, (0, 0, None, None, None)) if many else run)


def update(pairs, i, clip=S, z=0.0, steps=STEPS, key=KEY):
    sent, _ = client(steps)(key, jnp.int32(i), tiny.pack(pairs), jnp.float32(clip), jnp.float32(z))
    return tiny.flat(sent["update"])


# ---- batches ---------------------------------------------------------------------------------------------------------


@cache
def drawing(batch, slots, longest):
    return jax.jit(jax.vmap(lambda k, n: poisson_batch(k, n, batch, slots, longest), (0, None)))


def members(size, batch, slots, longest, count=20_000):
    """[count, longest] which examples are in, for many keys."""
    positions, valid = map(np.asarray, drawing(batch, slots, longest)(jax.random.split(KEY, count), jnp.int32(size)))
    inside = np.zeros((count, longest), int)
    np.add.at(inside, (np.arange(count)[:, None], positions), valid)
    assert inside.max() <= 1, "no example is in twice"
    return inside


def test_batches_are_poisson_samples_of_the_clients_own_examples():
    """Every example, every pair and the size of the batch at rate B/n: each at 1e-6."""
    inside, n, q = members(12, 3, 16, 16), 12, 0.25
    count = len(inside)
    assert not inside[:, n:].any()
    hits = inside[:, :n].sum(0)
    assert stats.chi2.sf(((hits - count * q) ** 2 / (count * q * (1 - q))).sum(), n) > 1e-6
    pairs = (inside[:, :n].T @ inside[:, :n])[np.triu_indices(n, 1)]
    z = (pairs - count * q**2) / np.sqrt(count * q**2 * (1 - q**2))
    assert 2 * stats.norm.sf(np.abs(z).max()) * len(pairs) > 1e-6
    sizes = np.bincount(inside.sum(1), minlength=10)[:10]
    expected = count * stats.binom.pmf(np.arange(10), n, q)
    assert (
        stats.chisquare(
            np.append(sizes[:9], count - sizes[:9].sum()), np.append(expected[:9], count - expected[:9].sum())
        ).pvalue
        > 1e-6
    )


def test_a_batch_that_overflows_keeps_a_uniformly_random_subset():
    """Four slots for eight expected examples of sixteen: all are in alike, at 1e-6."""
    inside = members(16, 8, 4, 16)
    sizes, hits = inside.sum(1), inside.sum(0)
    assert sizes.max() == 4 and (sizes == 4).mean() > 0.9
    share = hits.mean() / len(inside)
    spread = len(inside) * share * (1 - share) * 16 / 15
    assert stats.chi2.sf(((hits - hits.mean()) ** 2).sum() / spread * 15 / 16, 15) > 1e-6


def test_a_client_with_fewer_examples_than_a_batch_uses_all_and_an_empty_one_none():
    assert np.all(members(2, 3, 16, 16)[:, :2] == 1) and not members(2, 3, 16, 16)[:, 2:].any()
    assert not members(0, 3, 16, 16).any()


@pytest.mark.parametrize("batch", [1, 2, 3, 8, 16, 64, 256, 1024])
def test_slots_are_exceeded_as_rarely_as_the_docstring_says(batch):
    slots = batch_slots(batch)
    assert slots >= batch + 5 * np.sqrt(batch)
    for size in np.unique(np.geomspace(slots + 1, 1e6, 30).astype(int)):
        assert stats.binom.sf(slots, size, batch / size) < 2e-15


# ---- steps -----------------------------------------------------------------------------------------------------------


def oracle(pairs, i, clip, steps=STEPS):
    """The same batches, one example at a time in float64: clip, sum, divide by B, step."""
    x, y = pairs[i]
    one = jax.jit(jax.grad(lambda p, x, y: LOSS.per_example(tiny.model().apply(p, x, None), y)[0]))
    params, size = start(), len(x)
    for step in range(steps):
        key = jax.random.fold_in(stream(KEY, "sample"), step)
        positions, valid = poisson_batch(key, jnp.int32(size), B, min(batch_slots(B), tiny.MOST), tiny.MOST)
        total = jax.tree.map(lambda p: np.zeros(p.shape), params)
        for place in np.asarray(positions)[np.asarray(valid)]:
            g = one(params, jnp.asarray(x[place : place + 1], jnp.float32), jnp.asarray(y[place : place + 1]))
            scale = min(1.0, clip / np.linalg.norm(tiny.flat(g)))
            total = jax.tree.map(lambda t, u: t + scale * np.asarray(u, np.float64), total, g)  # noqa: B023
        params = jax.tree.map(
            lambda p, t: jnp.asarray(np.asarray(p, np.float64) - LR * t / B, jnp.float32), params, total
        )
    return tiny.flat(params) - tiny.flat(start())


@pytest.mark.parametrize("clip", [S, np.inf])
def test_without_noise_it_is_clipped_sgd_on_the_same_batches(clip):
    """With S = inf plain SGD; client 2 has fewer examples than a batch."""
    pairs = tiny.clients()
    for i in (1, 2):
        np.testing.assert_allclose(update(pairs, i, clip), oracle(pairs, i, clip), atol=2e-6)


def test_one_example_moves_one_step_by_at_most_the_clip():
    """All three examples of a client are in every batch; the third is left out, huge, or NaN."""
    pairs = tiny.clients()
    x, y = (np.array(a) for a in pairs[0])
    honest = update(tiny.swap(pairs, 0, x[:2], y[:2]), 0, steps=1)
    for scale in (1.0, 1e4):
        loud = x.copy()
        loud[2] *= scale
        moved = np.linalg.norm(update(tiny.swap(pairs, 0, loud, y), 0, steps=1) - honest)
        assert 0.5 * LR * S / B < moved <= LR * S / B * (1 + 1e-4)
    loud[2] = np.nan
    np.testing.assert_array_equal(update(tiny.swap(pairs, 0, loud, y), 0, steps=1), honest)


def test_noise_of_all_steps_is_z_s_over_b():
    """A client without data sends pure noise: std lr z S sqrt(steps) / B on 50 parameters x 300 runs, 5 errors."""
    keys = jax.random.split(KEY, 300)
    data = tiny.pack(tiny.swap(tiny.clients(), 0, *EMPTY))
    sent, _ = client(many=True)(keys, jnp.zeros(300, int), data, jnp.float32(S), jnp.float32(Z))
    noise = np.concatenate(
        [np.asarray(u, np.float64).reshape(300, -1) for u in jax.tree.leaves(sent["update"])], axis=1
    )
    expected = LR * Z * S * np.sqrt(STEPS) / B
    assert abs(noise.std() / expected - 1) < 5 / np.sqrt(2 * noise.size)
    assert np.abs(np.corrcoef(noise.T) - np.eye(noise.shape[1])).max() < 6.5 / np.sqrt(300)


def test_clients_side_by_side_are_as_alone():
    pairs, ids = tiny.clients(), jnp.arange(300) % 3
    keys = jax.random.split(KEY, 300)
    numbers = (tiny.pack(pairs), jnp.float32(S), jnp.float32(Z))
    together, infos = client(many=True)(keys, ids, *numbers)
    for i in range(3):
        alone, info = client()(keys[i], ids[i], *numbers)
        np.testing.assert_allclose(tiny.flat(jax.tree.map(lambda x, i=i: x[i], together)), tiny.flat(alone), atol=1e-6)
        np.testing.assert_allclose(infos["loss"][i], info["loss"], rtol=1e-5)
    assert not tiny.same_bits(*(jax.tree.map(lambda x, i=i: x[i], together["update"]) for i in (0, 1)))


# ---- what it claims --------------------------------------------------------------------------------------------------


def test_the_claim_is_noise_at_record_level():
    local = dpsgd_update(training(), private_gradient)
    claim = local.claim(Hparams(noise_multiplier=Z, clip=S))
    detail = (("batch", 3.0), ("steps", 4.0), ("capacity", float(batch_slots(3))))
    assert (claim.reason, claim.noise) == (None, Noise("gaussian", Z, "record", detail))
    assert "privacy.clip" in local.claim(Hparams(noise_multiplier=Z)).reason


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 2, "steps": None}, "epochs=2 to be None"),
        ({"batch_size": None}, "batch_size=None"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_steps_and_batches_that_are_not_public_are_refused(changes, message):
    with pytest.raises(FljaxError, match=message):
        dpsgd_update(training()._replace(**changes), private_gradient)
