"""Every robust rule against NumPy in float64, by hand, without absent clients, in any order, and at its breakdown."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import robust_reference as reference

from fljax import robust
from fljax.core.types import Ctx, Hparams

SHAPES = {"a": (3, 2), "b": (5,)}
D = 11


def ctx(ids=None, **extra) -> Ctx:
    h = Hparams(extra={f"robust_{k}": v for k, v in extra.items()}).arrays()
    one, key = jnp.float32(1.0), jax.random.key(0)
    return Ctx(jnp.int32(0), h, key, jnp.int32(-1) if ids is None else ids, jnp.int32(-1), one, one)


def payload(x):
    """Rows [n, 11] as the update of a model with two leaves."""
    x = jnp.asarray(x, jnp.float32)
    return {"update": {"a": x[:, :6].reshape(-1, 3, 2), "b": x[:, 6:]}}


def flat(tree) -> np.ndarray:
    update = tree["update"]
    return np.concatenate([np.asarray(update["a"]).reshape(-1), np.asarray(update["b"])]).astype(np.float64)


@cache
def compiled(make):
    rule = make()
    zero = {"a": jnp.zeros((3, 2)), "b": jnp.zeros(5)}
    state = rule.init(zero, Hparams())
    return jax.jit(rule.reduce), state


def run(make, x, alive=None, key=0, **extra):
    """(result [11], info) of a rule on rows x [n, 11]."""
    reduce, state = compiled(make)
    alive = np.ones(len(x), bool) if alive is None else alive
    ids = jnp.arange(len(x))
    total, _, info = reduce(jax.random.key(key), ctx(ids, **extra), payload(x), jnp.asarray(alive), state)
    return flat(total), info


def rows(n, seed=0, spread=1.0):
    """Clients with something in common, as updates have."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=D) + spread * rng.normal(size=(n, D))).astype(np.float32).astype(np.float64)


def krum_byzfl():
    return robust.krum(neighbors="byzfl")


def krum_flpoison():
    return robust.krum(neighbors="byzfl", power=1)


def krum_epfml():
    return robust.krum(power=4)


def multi_krum_two():
    return robust.multi_krum(chosen=2)


def bulyan_byzfl():
    return robust.bulyan(neighbors="byzfl")


def geometric_byzfl():
    return robust.geometric_median(steps=3, nu=0.1, start="zero")


def mixed_median():
    return robust.median(before=[robust.nearest_neighbour_mixing()])


def mixed_krum():
    return robust.krum(before=[robust.adaptive_norm_bound(), robust.nearest_neighbour_mixing()])


def bounded_mean():
    return robust.mean(before=[robust.norm_bound()])


def quiet_flame():
    return robust.flame(noise=0.0)


F = 2
RULES = {
    robust.mean: lambda x: reference.mean(x),
    robust.median: lambda x: reference.median(x),
    robust.trimmed_mean: lambda x: reference.trimmed_mean(x, F),
    robust.mean_around_median: lambda x: reference.mean_around_median(x, F),
    robust.sign_majority: lambda x: reference.sign_majority(x, 0.3),
    robust.krum: lambda x: reference.krum(x, F),
    krum_byzfl: lambda x: reference.krum(x, F, "byzfl"),
    krum_flpoison: lambda x: reference.krum(x, F, "byzfl", 1),
    krum_epfml: lambda x: reference.krum(x, F, "paper", 4),
    robust.multi_krum: lambda x: reference.multi_krum(x, F),
    multi_krum_two: lambda x: reference.multi_krum(x, F, 2),
    robust.bulyan: lambda x: reference.bulyan(x, F),
    bulyan_byzfl: lambda x: reference.bulyan(x, F, "byzfl"),
    robust.geometric_median: lambda x: reference.geometric_median(x),
    geometric_byzfl: lambda x: reference.geometric_median(x, 3, 0.1, "zero"),
    robust.centred_clipping: lambda x: reference.centred_clipping(x, 1.5),
    robust.divide_and_conquer: lambda x: reference.divide_and_conquer_all(x, F),
    quiet_flame: lambda x: reference.flame(x),
    mixed_median: lambda x: reference.median(reference.nearest_neighbour_mixing(x, F)),
    mixed_krum: lambda x: reference.krum(reference.nearest_neighbour_mixing(reference.adaptive_norm_bound(x, F), F), F),
    bounded_mean: lambda x: reference.norm_bound(x, 2.5).mean(axis=0),
}
NUMBERS = {"f": F, "tau": 1.5, "bound": 2.5, "step": 0.3}
names = [make.__name__ for make in RULES]


@pytest.mark.parametrize("make", RULES, ids=names)
def test_a_rule_is_that_of_its_definition(make):
    """Random clients, and clients of which two are far away."""
    for seed in range(12):
        x = rows(12, seed)
        if seed % 3 == 1:
            x[[1, 7]] += 40.0
        if seed % 3 == 2:  # the same far from zero: common parts must not eat the digits
            x += 200.0
        expected = RULES[make](x)
        found, _ = run(make, x, **NUMBERS)
        np.testing.assert_allclose(found, expected, atol=2e-4 * max(1.0, np.abs(expected).max()), rtol=2e-5)


@pytest.mark.parametrize("make", RULES, ids=names)
def test_absent_clients_are_no_zeros(make):
    """A rule over 12 slots of which some are empty is the rule over the others, whatever lies in the empty ones."""
    for alive in (np.arange(12) != 3, np.arange(12) % 11 != 0, np.arange(12) < 11):
        x = rows(12, 5)
        x[~alive] = 0.0
        expected, _ = run(make, x, alive, **NUMBERS)
        np.testing.assert_allclose(expected, RULES[make](x[alive]), atol=2e-4)
        x[~alive] = 77.0
        again, _ = run(make, x, alive, **NUMBERS)
        np.testing.assert_array_equal(again, expected)
