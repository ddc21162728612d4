"""Who keeps how much: traced rates, classes that are redrawn or follow from data, the cap, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import private_rounds as tiny
import pytest

from fljax import recipes
from fljax.config import validate
from fljax.core.check import FljaxError
from fljax.core.transform import summed
from fljax.core.types import Ctx
from fljax.dropout.fisher import fisher_dropout
from fljax.dropout.sources import random_per_client
from fljax.models import mlp
from fljax.privacy.local import local_gaussian
from fljax.privacy.mechanisms import make_event
from fljax.privacy.validity import judge_rates
from fljax.server.clients import Parts, Tiers, divide_among_tiers
from fljax.server.execute import PerfFlags
from fljax.server.round import make_round
from fljax.server.traffic import count_traffic
from fljax.sim.build import build, load_data, resolve
from fljax.sim.devices import tier_rates
from fljax.sim.tiers import check_tiers, label_diversity, make_tiers, noise_trap, randomised_response

KEY, OF = jax.random.key(3), np.arange(tiny.POPULATION) % 2
DIGITS = {
    "data": {"name": "digits", "clients": 12, "partition": "dirichlet", "alpha": 0.3},
    "model": {"hidden": [16]},
    "rounds": 3,
    "dropout": {"source": "fisher", "keep_rate": 0.5},
}


def experiment(dropout, **others):
    return validate({**DIGITS, **others, "dropout": {**DIGITS["dropout"], **dropout}})


def ctx(t=0, **extra) -> Ctx:
    h = dataclasses.replace(tiny.HPARAMS.arrays(), extra=extra, warmup_rounds=jnp.int32(0))
    nobody, key = jnp.int32(-1), jax.random.fold_in(KEY, t)
    return Ctx(jnp.int32(t), h, key, nobody, nobody, jnp.float32(8), h.keep_rate)


def test_rates_of_classes_are_traced_and_batched():
    """One program under vmap counts for three settings what numbers by hand say, and rates each client by its class."""
    model, tiers = tiny.model(), Tiers((1.0, 0.5), OF)
    sub, params, rates = fisher_dropout(model.groups), model.init(KEY), (1 / 6, 2 / 3, 0.5)
    local, chain = recipes.fedavg_update(tiny.training()), recipes.private_average()
    parts = Parts(local, chain, summed(), sub, tiers, None, PerfFlags(), tiny.POPULATION)

    def count(extra):
        now = ctx(2, **extra)._replace(keep_rate=jnp.float32(1.0))
        selection = sub.select(now, sub.init(params, now.hparams), params)
        seen = count_traffic(parts, now, selection, params, (), {"update": params})
        return seen.up, seen.up_values, tiers.in_round(now).rate(jnp.arange(tiny.POPULATION))

    batch = {"tier_0": jnp.ones(3), "tier_1": jnp.asarray(rates)}
    up, most, mine = jax.jit(jax.vmap(lambda extra: count(extra)))(batch)
    for i, rate in enumerate(rates):
        values = [8 * round(6 * r) + 3 for r in (1.0, rate)]  # 4 + 1 + 3 numbers a neuron, and three biases
        assert up[i].tolist() == [4 * v for v in values] and int(most[i]) == values[0]
        np.testing.assert_allclose(mine[i], np.where(OF == 0, 1.0, rate), rtol=1e-6)


def test_classes_that_are_redrawn_have_their_shares_in_every_round():
    """4,000 clients, shares .5, .3, .2: chi-square of two degrees, false alarm 1e-6 at 27.6; rounds are independent."""
    tiers = Tiers((1.0, 0.5, 0.25), divide_among_tiers(4000, (0.5, 0.3, 0.2)), redrawn=True, declared=(0.5, 0.3, 0.2))
    seen = [np.asarray(tiers.in_round(ctx(t)).place(jnp.arange(4000))) for t in (0, 1)]
    expected = 4000 * np.array([0.5, 0.3, 0.2])
    for place in seen:
        assert ((np.bincount(place, minlength=3) - expected) ** 2 / expected).sum() < 27.6
    same = np.mean(seen[0] == seen[1])  # 0.38 if independent
    assert abs(same - 0.38) < 5 * np.sqrt(0.38 * 0.62 / 4000)
    one = tiers.in_round(ctx(1)).place(jnp.int32(7))
    assert one.shape == () and int(one) == seen[1][7]
    still = Tiers((1.0, 0.5), OF)
    np.testing.assert_array_equal(still.in_round(ctx(1)).place(jnp.arange(8)), OF)


def test_the_cap_holds_for_every_class_and_leaves_the_small_ones():
    e = experiment({"keep_rate": 0.8, "support_keep": 0.4, "tiers": [1.0, 0.75, 0.25]})
    h = e.hparams()
    assert h.keep_rate == 0.4
    np.testing.assert_allclose([h.keep_rate * h.extra[f"tier_{k}"] for k in range(3)], [0.4, 0.4, 0.2])
    free = experiment({"keep_rate": 0.8, "tiers": [1.0, 0.75, 0.25]})
    assert free.hparams().extra == {"tier_0": 1.0, "tier_1": 0.75, "tier_2": 0.25}
    assert e.structure() == free.structure()  # all of it is traced
    three = free.replace(**{"dropout.tiers": [1.0, 0.5]})
    assert three.structure() != free.structure()
    compact = {"perf.dropout": "compact"}
    assert e.replace(**compact).structure() != free.replace(**compact).structure()


def test_classes_follow_from_sizes_and_labels_with_public_bounds():
    """Against a loop over clients; each class depends on its own client alone."""
    e = experiment({"tiers": [0.25, 0.5, 1.0], "tiers_by": "size", "tier_bounds": [60, 150]})
    data = load_data(e.data)
    sizes, tiers = data.train.sizes, make_tiers(e, (0.25, 0.5, 1.0), data, 13)
    assert tiers.of.tolist() == [int(n >= 60) + int(n >= 150) for n in sizes] + [0]  # a guest has no data
    assert len(set(tiers.of.tolist())) == 3 and tiers.chosen_by == "private" and tiers.shares() == [1 / 3] * 3
    y, ends = np.asarray(data.train.y), np.asarray(data.train.offsets)
    for k, found in enumerate(label_diversity(data)):
        share = np.unique(y[ends[k] : ends[k + 1]], return_counts=True)[1] / sizes[k]
        assert found == pytest.approx(np.prod(share**-share))
        assert 1 <= found <= 10


def test_a_reported_class_is_a_randomised_response():
    """Truth with probability e / (e + 2) for epsilon 1 and three classes: 6,000 reports, five standard errors."""
    told = randomised_response(np.random.default_rng(0), np.full(6000, 2, np.int32), 3, 1.0)
    truth, lie = np.e / (np.e + 2), 1 / (np.e + 2)
    share = np.bincount(told, minlength=3) / 6000
    np.testing.assert_allclose(share, [lie, lie, truth], atol=5 * np.sqrt(0.25 / 6000))
    assert truth / lie == pytest.approx(np.exp(1.0))


@pytest.mark.parametrize(
    ("trust", "chosen_by", "holds"),
    [
        *((trust, by, True) for trust in ("central", "distributed", "local", "record") for by in ("public", "paid")),
        ("central", "private", True),
        ("distributed", "private", True),
        ("local", "private", False),
        ("record", "private", False),
    ],
)
def test_which_rates_an_epsilon_may_stand_beside(trust, chosen_by, holds):
    claim = judge_rates(trust, chosen_by)
    assert (claim.reason is None) == holds and claim.values_only is None


def local_round(**tiers):
    transform = recipes.private_average(noise=local_gaussian())
    return make_round(
        sampler=tiny.sampler(),
        local=recipes.fedavg_update(tiny.training()),
        transform=transform,
        submodel=fisher_dropout(tiny.model().groups),
        tiers=Tiers((1.0, 0.5), OF, **tiers),
    )


def test_rates_by_private_data_are_refused_under_local_noise_and_a_report_is_counted():
    params, h = tiny.model().init(KEY), tiny.HPARAMS
    refused = local_round(chosen_by="private", declared=(0.5, 0.5)).claims(h, params)
    assert refused.reason is not None and "tier_data = public" in refused.reason
    paid = local_round(chosen_by="paid", declared=(0.5, 0.5), report_epsilon=0.7).claims(h, params)
    assert paid.reason is None and paid.noise is not None
    (part,) = make_event(tiny.sampler().law(h), paid.noise, 5).beside
    assert (part.mechanism, 1 / part.noise, part.rounds) == ("pure", pytest.approx(0.7), 1)
    assert local_round().claims(h, params).reason is None
    with pytest.raises(FljaxError, match="declared=None"):
        local_round(chosen_by="private")


def test_a_statement_says_where_masks_come_from_and_counts_a_report():
    """An experiment with local noise, whose classes follow from sizes: refused, then paid for."""
    private = {"privacy": {"mechanism": "local_gaussian", "clip": 1.0, "noise_multiplier": 30.0}}
    by_size = {"tiers": [0.5, 1.0], "tiers_by": "size", "tier_bounds": [100]}
    e = experiment(by_size, **private)
    data = load_data(e.data)
    assert resolve(e, build(e, data))[1].status == "refused"
    public = e.replace(**{"dropout.tier_data": "public"})
    free = resolve(public, build(public, data))[1]
    paid = e.replace(**{"dropout.report_epsilon": 0.5})
    stated = resolve(paid, build(paid, data))[1]
    assert free.status == stated.status == "valid"
    assert free.epsilon < stated.epsilon <= free.epsilon + 0.5
    assert any(c.startswith("Masks follow from the noised aggregates") for c in free.caveats)


def test_feddrop_from_a_file_rates_its_classes_by_resources():
    """Random sub-models for each client; rates by speeds, traced, so that keep rates share a program."""
    slow = {"uplink": [20.0, 4.0], "downlink": [100.0, 20.0], "compute": [50.0, 10.0], "shares": [0.75, 0.25]}
    e = experiment({"source": "random_per_client", "keep_rate": 0.75, "tiers": "resources"}, devices=slow)
    data = load_data(e.data)
    program = build(e, data)
    rates = tier_rates(e, program.model, data)
    assert rates[0] == 1.0 and 0.125 <= rates[1] < 1
    assert resolve(e, program)[0].extra == {"tier_0": 1.0, "tier_1": rates[1]}
    assert e.structure() == e.replace(**{"dropout.keep_rate": 0.5}).structure()


@pytest.mark.parametrize(
    ("dropout", "denominator", "factors"),
    [
        ({"source": "random_per_client", "keep_rate": 0.25}, "inverse", ("4 times", "0.25 times")),
        ({"source": "fisher", "keep_rate": 0.5, "tiers": [1.0, 0.5]}, "count", ("2.67 times", "0.375 times")),
        ({"source": "random_per_client", "keep_rate": 0.25}, "expected", None),
        ({"source": "fisher", "keep_rate": 0.25}, "inverse", None),  # one mask for all
    ],
)
def test_the_trap_of_denominators_is_warned_about(dropout, denominator, factors):
    e = experiment(dropout, server={"denominator": denominator})
    for trust in ("central", "local"):
        said = noise_trap(e, trust)
        assert bool(said) == (trust == "local" and factors is not None)
    if factors is not None:
        assert all(word in said[0] for word in factors)


BAD = [
    ({"keep_rate": 0.0}, "greater than 0"),
    ({"keep_rate": 1.2}, "less than or equal to 1"),
    ({"support_keep": 0.0}, "greater than 0"),
    ({"tiers": [0.5, 0.25]}, "the largest at 1"),
    ({"tiers": [1.0, 0.0]}, "must lie in"),
    ({"positions": "list"}, "nobody receives them"),
    ({"source": "exact", "support": "dense", "positions": "list"}, "nobody receives them"),
    ({"information": "diagonal"}, "information is for source"),
    ({"source": "gumbel"}, "warmup_rounds >= 1"),
    ({"source": "gumbel", "warmup_rounds": 1}, 'needs privacy.mechanism = "central_gaussian"'),
    ({"widths": [0.5]}, 'with source = "ordered"'),
    ({"source": "ordered", "widths": [1.5]}, "must lie in"),
    ({"source": "ordered", "distill": 0.5}, "distill needs widths"),
    ({"tiers_redrawn": True}, "needs tiers to draw from"),
    ({"tiers": [1.0, 0.5], "tiers_by": "size"}, "tier_bounds between"),
    ({"tiers": [1.0, 0.5, 0.2], "tiers_by": "size", "tier_bounds": [5, 5]}, "must rise"),
    ({"tiers": [1.0, 0.5], "tier_bounds": [5]}, "need tiers_by"),
    ({"tiers": [1.0, 0.5], "tiers_by": "size", "tier_bounds": [5], "report_epsilon": 1.0}, "local noise"),
]


@pytest.mark.parametrize(("dropout", "says"), BAD)
def test_bad_input_is_one_line(dropout, says):
    with pytest.raises(FljaxError, match=says) as caught:
        experiment(dropout)
    assert "\n" not in str(caught.value)


def test_a_tier_that_empties_a_layer_is_one_line_with_the_layer():
    model = mlp((4,), 2, (16, 5))
    check_tiers(experiment({"tiers": [1.0, 0.2]}), model.groups)  # 0.5 x 0.2 x 5 rounds to one half: the limit
    with pytest.raises(
        FljaxError, match=r"one of the 5 neurons of group 'dense_1'\. Raise the smallest to 0\.2"
    ) as caught:
        check_tiers(experiment({"tiers": [1.0, 0.19]}), model.groups)
    assert "\n" not in str(caught.value)


def test_a_model_whose_neurons_are_not_known_is_one_line():
    for source in (fisher_dropout, random_per_client):
        with pytest.raises(FljaxError, match=r"groups=None.*Use a model that declares them") as caught:
            source(None)
        assert "\n" not in str(caught.value)
