"""Attacks against NumPy, and what malicious clients see of their data."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import robust_reference as reference

from fljax import robust
from fljax.core.check import FljaxError
from fljax.core.types import Crowd, Ctx, Hparams
from fljax.data.federated import FederatedData
from fljax.robust import attacks, poison
from fljax.robust.adversary import malicious_ids

N, D, BAD = 10, 9, np.array([2, 5, 6])
HONEST = np.setdiff1d(np.arange(N), [*BAD, 8])  # client 8 did not answer


def ctx(**extra) -> Ctx:
    one = jnp.float32(1.0)
    return Ctx(jnp.int32(0), Hparams(extra=extra).arrays(), jax.random.key(0), jnp.int32(3), jnp.int32(0), one, one)


def rows(seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=D) + rng.normal(size=(N, D))).astype(np.float32)


def crowd(x, rule=None, ids=None) -> Crowd:
    mask = lambda which: jnp.zeros(N, bool).at[jnp.asarray(which)].set(True)  # noqa: E731

    def aggregate(sent):
        return rule.reduce(jax.random.key(1), ctx(), sent, mask(np.setdiff1d(np.arange(N), [8])), ())[0]

    ids = jnp.arange(N) if ids is None else jnp.asarray(ids)
    return Crowd({"update": {"w": jnp.asarray(x)}}, mask(HONEST), mask(BAD), ids, aggregate)


def forged(forge, x, strength=1.0, key=0, **kwargs):
    """What each of the malicious clients sends: [3, 9] float64."""
    sent = forge(jax.random.key(key), ctx(attack_strength=strength), crowd(x, **kwargs))
    return np.asarray(sent["update"]["w"], np.float64)[BAD]


SAME = {
    "ipm": (attacks.inner_product(), lambda x: -0.5 * x.mean(axis=0), 0.5),
    "alie": (attacks.little_is_enough(), lambda x: reference.little_is_enough(x, 1.5), 1.5),
    "alie byzfl": (attacks.little_is_enough(sign="plus"), lambda x: reference.little_is_enough(x, 1.5, 1), 1.5),
    "alie flpoison": (
        attacks.little_is_enough(sign="plus", ddof=0),
        lambda x: reference.little_is_enough(x, 1.5, 1, 0),
        1.5,
    ),
    "alie most": (
        attacks.little_is_enough(z="most"),
        lambda x: reference.little_is_enough(x, 2.0 * reference.hidden_deviations(6, 3)),
        2.0,
    ),
    **{
        f"{name} {kind}": (
            getattr(attacks, name)(kind),
            lambda x, name=name, kind=kind: getattr(reference, name)(x, kind),
            1.0,
        )
        for name in ("min_max", "min_sum")
        for kind in ("std", "unit", "sign")
    },
    "mimic": (attacks.mimic(), lambda x: x[0], 1.0),
    "sign_flip mean": (attacks.sign_flip("mean"), lambda x: -3 * x.mean(axis=0), 3.0),
}


@pytest.mark.parametrize("name", SAME)
def test_an_attack_is_that_of_its_definition(name):
    """All malicious clients send the same, made of the honest ones alone: NaN and 1e9 of the others do not matter."""
    forge, expected, strength = SAME[name]
    for seed in range(3):
        x = rows(seed)
        x[BAD], x[8] = 1e9, 0.0
        sent = forged(forge, x, strength)
        for row in sent:
            np.testing.assert_allclose(row, expected(x[HONEST].astype(np.float64)), rtol=2e-4, atol=2e-4)


def test_own_updates_are_flipped_and_scaled():
    x = rows()
    np.testing.assert_allclose(forged(attacks.sign_flip(), x, 3.0), -3 * x[BAD], rtol=1e-6)
    np.testing.assert_allclose(forged(attacks.scale_update(), x, 7.0), 7 * x[BAD], rtol=1e-6)
    np.testing.assert_array_equal(forged(attacks.free_rider(), x, 0.0), 0.0)


def test_gaussian_updates_are_normal_and_belong_to_ids():
    """3 x 9 numbers of 200 keys: mean and std within 6 standard errors (false alarm below 1e-8), in any slot."""
    send = jax.jit(lambda key: attacks.gaussian()(key, ctx(attack_strength=2.0), crowd(rows()))["update"]["w"])
    seen = np.asarray(jax.vmap(send)(jax.random.split(jax.random.key(5), 200)), np.float64)[:, BAD].ravel()
    assert abs(seen.mean()) < 6 * 2 / np.sqrt(seen.size) and abs(seen.std() / 2 - 1) < 6 / np.sqrt(2 * seen.size)
    a = forged(attacks.gaussian(), rows())
    assert len(np.unique(a)) == a.size
    swapped = np.arange(N)
    swapped[[2, 5]] = [5, 2]
    np.testing.assert_array_equal(forged(attacks.gaussian(), rows(), ids=swapped), a[[1, 0, 2]])


def test_mimic_finds_the_client_farthest_out():
    x = rows()
    x[HONEST] *= 0.1
    x[4] += 5.0
    np.testing.assert_allclose(forged(attacks.mimic("farthest"), x), np.tile(x[4], (3, 1)), rtol=1e-6)


def test_hidden_deviations_of_the_paper():
    """Baruch et al.: n = 50, 24 malicious: s = 2, z = Phi^-1(24 / 26)."""
    assert float(attacks.hidden_deviations(jnp.int32(26), jnp.int32(24))) == pytest.approx(1.4261, abs=1e-3)


def test_the_optimised_attack_is_the_best_of_its_factors():
    x, rule = rows(), robust.trimmed_mean(2)
    honest = x[HONEST].mean(axis=0)

    def damage(factor):
        sent = x.copy()
        sent[BAD] = -factor * honest
        alive = np.setdiff1d(np.arange(N), [8])
        return np.linalg.norm(reference.trimmed_mean(sent[alive].astype(np.float64), 2) - honest)

    factors = (0.1, 0.5, 1.0, 10.0)
    best = max(factors, key=damage)
    sent = forged(attacks.optimised(attacks.inner_product(), factors), x, rule=rule)
    np.testing.assert_allclose(sent, np.tile(-best * honest, (3, 1)), rtol=1e-4)


# ---- who ------------------------------------------------------------------------------------------------------------


def test_malicious_clients_are_an_exact_nested_share_of_the_ids():
    ids, key = jnp.arange(41), jax.random.key(3)
    members = [
        np.flatnonzero(malicious_ids(40, key, Hparams(extra={"attack_fraction": f}).arrays(), ids))
        for f in (0.0, 0.1, 0.25, 0.5)
    ]
    assert [len(m) for m in members] == [0, 4, 10, 20]
    assert all(set(a) < set(b) for a, b in itertools.pairwise(members))
    assert 40 not in members[-1]  # an empty slot
    other = malicious_ids(40, jax.random.key(4), Hparams(extra={"attack_fraction": 0.5}).arrays(), ids)
    assert set(np.flatnonzero(other)) != set(members[-1])


def test_the_attack_begins_with_its_round():
    adversary = robust.make_adversary("late", 8)
    h = Hparams(extra={"attack_fraction": 0.5, "attack_start": 3.0}).arrays()
    acts = [int(adversary.members(jax.random.key(0), h, jnp.int32(t), jnp.arange(8)).sum()) for t in (0, 2, 3, 9)]
    assert acts == [0, 0, 4, 4]


# ---- data -----------------------------------------------------------------------------------------------------------


def shard(x, y):
    return FederatedData.from_clients([(x, y)]).take(jnp.int32(0), jnp.int32(0))


def view(poisoning, x, y, malicious=True, **extra):
    """(x, y, mask) of a batch that asks for two places too many."""
    seen = poisoning(ctx(**extra), jnp.bool_(malicious), shard(x, y))
    places = jnp.arange(len(y) + 2)
    return [np.asarray(v) for v in seen.batch(places, places >= 0)]


def test_labels_are_flipped_and_padding_stays():
    x, y = np.ones((5, 4), np.float32), np.array([0, 1, 2, 1, 0])
    assert view(poison.flip_labels(3), x, y)[1].tolist() == [2, 1, 0, 1, 2, 0, 0]
    assert view(poison.flip_labels(3, target=1), x, y)[1].tolist() == [1, 1, 1, 1, 1, 0, 0]
    assert view(poison.flip_labels(3, 1, 2), x, y)[1].tolist() == [0, 2, 2, 2, 0, 0, 0]
    assert view(poison.flip_labels(3), x, y, malicious=False)[1].tolist() == [0, 1, 2, 1, 0, 0, 0]


def test_a_backdoor_stamps_its_share_and_relabels_it():
    x, y = np.zeros((200, 8, 8, 1), np.float32), np.full(200, 2)
    how = poison.backdoor((8, 8, 1), "corner", 2, 1.0, 1, 3)
    seen, labels, mask = view(how, x, y, attack_share=0.25)
    stamped = seen.sum(axis=(1, 2, 3)) == 4
    assert abs(stamped.sum() - 50) <= 2
    assert (labels[stamped] == 1).all() and (labels[:200][~stamped[:200]] == 2).all()
    assert (seen[stamped][:, 6:, 6:] == 1).all()
    assert not seen[200:].any() and mask.sum() == 200
    clean = view(how, x, y, malicious=False, attack_share=1.0)
    assert not clean[0].any() and (clean[1][:200] == 2).all()


@pytest.mark.parametrize("shape", [(8, 8), (64,), (8, 8, 3)])
@pytest.mark.parametrize("pattern", poison.PATTERNS)
def test_patterns_fit_all_forms_of_images(shape, pattern):
    x = np.zeros((2, *shape), np.float32)
    out = np.asarray(poison.stamp(shape, pattern, 2, 3.0)(x)).reshape(2, 8, 8, -1)
    marked = (out[0, :, :, 0] > 0).sum()
    assert marked == {"corner": 4, "distributed": 8, "blend": 32}[pattern]
    assert out.max() == pytest.approx(0.6 if pattern == "blend" else 3.0)


def test_the_parts_of_a_distributed_pattern_make_the_whole():
    x = jnp.zeros((1, 8, 8))
    parts = [np.asarray(poison.stamp((8, 8), "distributed", 2, 1.0, part)(x)) for part in range(4)]
    assert all(p.sum() == 2 for p in parts)
    np.testing.assert_array_equal(sum(parts), poison.stamp((8, 8), "distributed", 2, 1.0)(x))


def test_what_does_not_fit_is_refused():
    with pytest.raises(FljaxError, match=r"Expected attack.size=5 in \[1, 4\]"):
        poison.stamp((8, 8), "corner", 5, 1.0)
    with pytest.raises(FljaxError, match=r"Expected data of shape=\(13,\) to be images"):
        poison.stamp((13,), "corner", 2, 1.0)
    with pytest.raises(FljaxError, match=r"Expected attack.target=3 to be a class, 0 to 2"):
        poison.flip_labels(3, target=3)
