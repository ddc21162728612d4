"""Every robust rule against NumPy in float64, by hand, without absent clients, in any order, and at its breakdown."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import robust_reference as reference

from fljax import robust
from fljax.core.check import FljaxError
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
    for seed in range(6):
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


@pytest.mark.parametrize("make", RULES, ids=names)
def test_the_order_of_clients_does_not_matter(make):
    x, order = rows(12, 7), np.random.default_rng(1).permutation(12)
    first, info = run(make, x, **NUMBERS)
    again, other = run(make, x[order], **NUMBERS)
    np.testing.assert_allclose(again, first, atol=2e-5)
    if "share" in info:
        np.testing.assert_allclose(other["share"], np.asarray(info["share"])[order], atol=1e-4)


NOT_ROBUST = (robust.mean, bounded_mean, robust.centred_clipping, robust.sign_majority)  # or of another scale
ROBUST = [make for make in RULES if make not in NOT_ROBUST]


@pytest.mark.parametrize("make", ROBUST, ids=lambda make: make.__name__)
def test_f_of_n_malicious_clients_do_not_carry_the_result_away(make):
    """Two of twelve at 1e4, on one side: what is left is no farther from the honest mean than honest clients are."""
    x = rows(12, 3)
    honest = x[2:]
    x[:2] = 1e4
    found, info = run(make, x, **NUMBERS)
    assert np.linalg.norm(found - honest.mean(axis=0)) < np.linalg.norm(honest - honest.mean(axis=0), axis=1).max()
    # Bulyan may pick malicious clients that are close to each other: its second step leaves their values out.
    if "share" in info and make not in (robust.geometric_median, geometric_byzfl, robust.bulyan, bulyan_byzfl):
        assert np.asarray(info["share"])[:2].max() < 1e-3


@pytest.mark.parametrize("make", [robust.median, robust.trimmed_mean, robust.geometric_median, robust.krum])
def test_more_than_half_malicious_clients_do(make):
    """The breakdown point is real: seven of twelve carry it away."""
    x = rows(12, 3)
    x[:7] = 1e4 + np.random.default_rng(0).normal(size=(7, D))
    assert np.linalg.norm(run(make, x, **NUMBERS)[0]) > 1e3


def test_one_malicious_client_carries_the_mean_and_not_the_bounded_one():
    x = rows(12, 3)
    x[0] = 1e4
    assert np.linalg.norm(run(robust.mean, x)[0]) > 1e3
    assert np.linalg.norm(run(bounded_mean, x, bound=2.5)[0]) <= 2.5 * (1 + 1e-6)


@pytest.mark.parametrize("make", RULES, ids=names)
def test_without_any_client_nothing_is_released(make):
    found, info = run(make, rows(12), np.zeros(12, bool), **NUMBERS)
    assert not found.any() and not np.asarray(info.get("share", 0.0)).any()


@pytest.mark.parametrize("make", RULES, ids=names)
def test_with_fewer_clients_than_f_asks_for_a_rule_still_answers(make):
    """One, two or three living clients of twelve: a finite result within their range."""
    for living in (1, 2, 3):
        x = rows(12, living)
        found, _ = run(make, x, np.arange(12) < living, **NUMBERS)
        assert np.isfinite(found).all()
        if make is not robust.sign_majority:
            assert np.linalg.norm(found) <= 1.001 * np.linalg.norm(x[:living], axis=1).max()


@pytest.mark.parametrize("make", RULES, ids=names)
def test_a_payload_of_a_norm_beyond_all_measure_is_as_good_as_away(make):
    """Its squares would overflow; beside it every distance would be infinite or no number."""
    x = rows(12, 2)
    x[4] = 3e18
    found, _ = run(make, x, **NUMBERS)
    np.testing.assert_allclose(found, RULES[make](np.delete(x, 4, axis=0)), atol=2e-4)


# ---- computed by hand -----------------------------------------------------------------------------------------------


def line(*values):
    """Clients that differ in one coordinate alone."""
    x = np.zeros((len(values), D))
    x[:, 0] = values
    return x


def test_rules_by_hand():
    x = line(0.0, 1.0, 2.0, 4.0, 100.0)
    assert run(robust.median, x)[0][0] == 2.0
    assert run(robust.median, x[:4])[0][0] == 1.5  # two middle values
    np.testing.assert_allclose(run(robust.trimmed_mean, x, f=1)[0][0], 7 / 3, rtol=1e-6)
    np.testing.assert_allclose(run(robust.mean_around_median, x, f=1)[0][0], 7 / 4, rtol=1e-6)
    # Krum, f = 1: two neighbours. Squares: 0: 1+4, 1: 1+1, 2: 1+4, 4: 4+9. The value 1 wins.
    assert run(robust.krum, x, f=1)[0][0] == 1.0
    # Four of them by score: 1 (2), 0 (5), 2 (5), 4 (13).
    np.testing.assert_allclose(run(robust.multi_krum, x, f=1)[0][0], 7 / 4, rtol=1e-6)
    # f = 2 of 5: one value is left in the middle.
    assert run(robust.trimmed_mean, x, f=2)[0][0] == 2.0


def test_definitions_of_krum_pick_different_clients():
    """n = 7, f = 2: on these points one neighbour more, or another power, makes another client win."""
    x = np.zeros((7, D))
    x[:, :3] = np.random.default_rng(29).normal(size=(7, 3)).astype(np.float32)
    makes = (robust.krum, krum_byzfl, krum_flpoison, krum_epfml)
    winners = [int(np.argmin(np.linalg.norm(x - run(make, x, f=2)[0], axis=1))) for make in makes]
    pairs = (("paper", 2), ("byzfl", 2), ("byzfl", 1), ("paper", 4))
    assert winners == [reference.krum_order(x, 2, *pair)[0] for pair in pairs] == [1, 0, 0, 3]


def test_bulyan_never_picks_a_client_twice():
    """The defect of published code, whose indices are those of the shrinking list."""
    for seed in range(20):
        _, info = run(robust.bulyan, rows(11, seed), f=2)
        share = np.asarray(info["share"])
        np.testing.assert_allclose(share[share > 0], 11 / 7, rtol=1e-5)
        assert (share > 0).sum() == 7
        assert set(np.flatnonzero(share)) == set(reference.bulyan_picks(rows(11, seed), 2))


def test_the_geometric_median_is_the_minimum():
    x = rows(9, 4)
    found = run(robust.geometric_median, x)[0]

    def cost(v):
        return np.linalg.norm(x - v, axis=1).sum()

    rng = np.random.default_rng(0)
    assert all(cost(found) <= cost(found + 1e-2 * rng.normal(size=D)) + 1e-7 for _ in range(50))


def test_centred_clipping_remembers_its_centre():
    """Three rounds of rule and reference; the centre begins at zero."""
    rule = robust.centred_clipping(0.7)
    state, v = rule.init({"a": jnp.zeros((3, 2)), "b": jnp.zeros(5)}, Hparams()), None
    reduce = jax.jit(rule.reduce)
    for seed in range(3):
        x = rows(10, seed)
        total, state, _ = reduce(jax.random.key(0), ctx(), payload(x), jnp.ones(10, bool), state)
        v = reference.centred_clipping(x, 0.7, start=v)
        np.testing.assert_allclose(flat(total), v, atol=1e-5)


def test_buckets_and_groups_are_means_of_disjoint_clients():
    """Seven living clients of nine in buckets of three: all of them once, and the rule sees three rows."""
    alive = np.arange(9) % 5 != 1
    seen = []

    def look(key, ctx_, rows_):
        seen.append(rows_)
        return rows_

    rule = robust.mean([robust.secure_groups(3), look])
    x = rows(9, 1)
    total, _, info = rule.reduce(jax.random.key(3), ctx(), payload(x), jnp.asarray(alive), ())
    made = np.asarray(seen[0].made)
    assert np.asarray(seen[0].alive).tolist() == [True, True, True]
    assert sorted((made > 0).sum(axis=1)) == [1, 3, 3]
    assert ((made > 0).sum(axis=0) == alive).all()
    np.testing.assert_allclose(made.sum(axis=1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(flat(total), (made @ x).mean(axis=0), atol=1e-5)
    assert np.asarray(info["share"])[~alive].max() == 0.0


def test_one_malicious_client_spoils_its_group_and_no_other():
    x = rows(12, 1)
    x[5] = 1e5
    spoilt = run(grouped_mean_rows, x)[1]["spoilt"]
    assert int(spoilt) == 1
    assert np.linalg.norm(run(grouped_median, x)[0]) < 10


def grouped_median():
    return robust.median([robust.secure_groups(3)])


def grouped_mean_rows():
    """Counts the rows that are far away."""
    from fljax.robust.rows import Verdict, bind, combine, plain_weights

    def rule(key, ctx_, rows_, state):
        far = jnp.sum(jnp.abs(rows_.tree["update"]["b"][:, 0]) > 100)
        return Verdict(combine(plain_weights(rows_.alive), rows_.tree), None, {"spoilt": far}), state

    return bind("counting", rule, [robust.secure_groups(3)])


def test_foolsgold_is_the_authors_code_and_remembers():
    """Two rounds; three sybils send the same, and are weighed down."""
    rule = robust.foolsgold(8)
    state = rule.init({"a": jnp.zeros((3, 2)), "b": jnp.zeros(5)}, Hparams())
    reduce = jax.jit(rule.reduce)
    history, ids = np.zeros((8, D)), np.array([4, 0, 7, 2, 1, 5])
    for seed in range(2):
        x = rows(6, seed, spread=4.0)
        x[1:4] = x[1] + 0.01 * np.random.default_rng(9).normal(size=(3, D))
        history[ids] += x
        total, state, info = reduce(jax.random.key(0), ctx(jnp.asarray(ids)), payload(x), jnp.ones(6, bool), state)
        weights = reference.foolsgold_weights(history[ids])
        np.testing.assert_allclose(flat(total), weights @ x / weights.sum(), atol=1e-3)
    assert np.asarray(info["share"])[1:4].max() < 0.1 < np.asarray(info["share"])[[0, 4, 5]].min()
    np.testing.assert_allclose(flat({"update": jax.tree.map(lambda h: h[7], state["update"])}), history[7], atol=1e-4)


def test_more_rows_than_the_network_takes_are_sorted_the_same():
    x = rows(260, 3)
    np.testing.assert_allclose(run(robust.trimmed_mean, x, f=9)[0], reference.trimmed_mean(x, 9), atol=1e-5)


def test_the_network_sorts_every_number_of_rows():
    """By the 0-1 principle a network that sorts zeros and ones sorts everything: all of them up to 10 rows."""
    from fljax.robust.coordinatewise import ordered

    rng = np.random.default_rng(0)
    for count in (1, 2, 3, 5, 7, 8, 10, 33, 50, 64):
        x = rng.random((count, 300)) > 0.5
        if count <= 10:
            x = (np.arange(2**count)[None] >> np.arange(count)[:, None]) & 1
        np.testing.assert_array_equal(ordered(jnp.asarray(x, jnp.float32)), np.sort(x, axis=0))


def test_large_leaves_go_block_by_block():
    """More than two blocks of coordinates, and a remainder."""
    x = np.random.default_rng(2).normal(size=(7, 2500)).astype(np.float32)
    tree = {"update": jnp.asarray(x)}
    for rule, expected in (
        (robust.median(), np.median(x, axis=0)),
        (robust.mean_around_median(2), reference.mean_around_median(x, 2)),
    ):
        found, _, _ = jax.jit(rule.reduce)(jax.random.key(0), ctx(), tree, jnp.ones(7, bool), ())
        np.testing.assert_allclose(found["update"], expected, atol=1e-5)


def test_unknown_definitions_are_refused():
    with pytest.raises(FljaxError, match="Expected neighbors='most' to be one of paper, byzfl"):
        robust.krum(neighbors="most")
    with pytest.raises(FljaxError, match="Expected power=3 to be one of 1, 2, 4"):
        robust.bulyan(power=3)
    with pytest.raises(FljaxError, match="Expected robust rule 'centred_clipping' to get payload=control, update"):
        rule = robust.centred_clipping(1.0)
        stacked = {"update": {"w": jnp.ones((3, 2))}, "control": jnp.ones((3, 1))}
        rule.reduce(jax.random.key(0), ctx(), stacked, jnp.ones(3, bool), rule.init({"w": jnp.ones(2)}, Hparams()))
