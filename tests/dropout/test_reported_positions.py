"""Positions by randomised response: the exact privacy loss, what is remembered, and what it costs."""

import itertools
import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import private_rounds as tiny
import pytest

from fljax.config import validate
from fljax.core.check import FljaxError
from fljax.core.transform import Noise
from fljax.core.types import Ctx, SamplingLaw
from fljax.dropout.positions import largest_change, lie_rate, reported_positions
from fljax.dropout.sources import random_per_client
from fljax.privacy.accounting import epsilon
from fljax.privacy.mechanisms import reports
from fljax.privacy.validity import judge, judge_positions
from fljax.sim.build import build, load_data, resolve

GROUPS, PARAMS = tiny.model().groups, None


def masks_of(n, k):
    return [np.array([i in c for i in range(n)], np.float32) for c in itertools.combinations(range(n), k)]


def test_the_loss_of_a_report_is_at_most_epsilon_and_reaches_it():
    """All pairs of masks with k of n neurons, every possible report, by brute force."""
    for n, k, eps in ((4, 1, 2.0), (4, 2, 0.5), (5, 4, 6.0)):
        p = float(lie_rate(jnp.float32(eps), largest_change({"a": jnp.asarray(masks_of(n, k)[0])})))
        worst = 0.0
        for a, b in itertools.product(masks_of(n, k), repeat=2):
            for told in itertools.product((0, 1), repeat=n):
                chance = [np.prod(np.where(m == told, 1 - p, p)) for m in (a, b)]
                worst = max(worst, abs(math.log(chance[0] / chance[1])))
        assert 0.999 * eps < worst <= eps


def chosen(hparams, rounds, count=400, eps=3.0):
    """Reports of ``count`` clients with one true mask each, round after round: ([T, count, n], the true masks)."""
    sub = reported_positions(random_per_client(GROUPS), eps)
    h, zero = hparams.arrays(), jnp.int32(0)
    start = jax.vmap(lambda _: sub.own.init(PARAMS))(jnp.arange(count))

    def one(state, t):
        ctx = Ctx(t, h, jax.random.key(0), zero, zero, jnp.float32(1), h.keep_rate)

        def client(i, own):
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(5), t), i)
            selection, new = sub.own.choose(key, ctx, PARAMS, own, None, None)
            told = jnp.concatenate(list(sub.masks(ctx, selection).values()))
            inner = random_per_client(GROUPS).masks(ctx, selection._replace(ranks=new.inner.ranks, told=None))
            return new, (told, jnp.concatenate(list(inner.values())))

        return jax.vmap(client)(jnp.arange(count), state)

    return jax.device_get(jax.jit(lambda: jax.lax.scan(one, start, jnp.arange(rounds)))()[1])


def test_lies_are_as_frequent_as_declared_and_told_once():
    """400 clients of six neurons, three kept: flips are binomial (false alarm below 1e-6: 5 standard deviations);
    between two choices the same report; dense before the warm-up ends; a new one after."""
    told, true = chosen(tiny.HPARAMS.__class__(keep_rate=0.5, warmup_rounds=1, refresh_rounds=2), 5)
    assert (told[0] == 1).all()
    lies, p = (told[1] != true[1]).mean(), 1 / (1 + math.exp(3.0 / 6))
    assert abs(lies - p) < 5 * math.sqrt(p * (1 - p) / told[1].size)
    assert (told[2] == told[1]).all() and (told[4] == told[3]).all() and (told[3] != told[1]).mean() > 0.1


def test_reports_are_counted_once_for_every_choice_that_a_client_meets():
    """Against a walk over the rounds; a client that takes part in every round reports at most so often."""

    def walk(rounds, warmup, every):
        return len({(t - warmup) // every if every else 0 for t in range(warmup, rounds)})

    for rounds, warmup, every in itertools.product((1, 4, 9), (0, 1, 5), (0, 1, 2, 7)):
        assert reports(rounds, warmup, every, 100) == walk(rounds, warmup, every)
    assert reports(9, 0, 1, 4) == 4


def test_epsilon_has_that_of_the_reports_beside_that_of_the_values():
    """Nearly no loss by the values: the sum of the reports' epsilons, and no more; delta is tiny."""
    law = SamplingLaw("full", 1.0, 50)
    detail = (("positions_epsilon", 0.5), ("positions_warmup", 0.0), ("positions_every", 2.0))
    alone = epsilon(law, Noise("gaussian", 1e4, "local", detail), 6, 1e-9)
    assert 1.49 < alone < 1.52  # three reports
    both, values = (epsilon(law, Noise("gaussian", 20.0, "local", d), 6, 1e-3) for d in (detail, ()))
    assert values + 0.5 < both <= values + 1.51
    many = epsilon(law, Noise("pure", 2.0, "local", detail), 6, 1e-9)
    assert 4.49 < many < 4.53  # six uploads of 0.5, three reports


def test_what_may_be_claimed_of_positions():
    assert judge("local", "reported", "mask") == judge("local", "random", "mask")
    assert "record level" in judge("record", "reported", "mask").reason
    assert judge("local", "exact", "mask").values_only
    assert judge_positions("central", False, 1).reason is None and judge_positions("local", False, 2).reason is None
    assert "min_contributors = 1" in judge_positions("central", False, 2).reason
    assert judge_positions("central", True, 1).reason is None
    assert "counts without noise" in judge_positions("local", True, 1).reason


WORDS = {"masking": "double_mask", "value_range": 1.0}
EXACT = {"source": "exact", "keep_rate": 0.5}
LOCAL = {"mechanism": "local_gaussian", "noise_multiplier": 4.0, "clip": 0.5}


@pytest.mark.parametrize(
    ("dropout", "secure", "privacy", "said"),
    [
        (EXACT, {"positions": "public", "masking": "flashe"}, {}, "leaves words out"),
        (EXACT, {"positions": "public", "masking": "none"}, {}, "leaves words out"),
        (EXACT, {"min_contributors": 3}, {}, "min_contributors needs positions"),
        (EXACT, {"positions": "ldp"}, {}, "go together"),
        (EXACT, {"positions_epsilon": 1.0}, {}, "go together"),
        ({"source": "fisher", "keep_rate": 0.5}, {"positions": "public"}, {}, "needs dropout.source = exact"),
        ({"source": "fisher", "keep_rate": 0.5}, {"positions": "seeded"}, {}, "random_per_client"),
        (EXACT, {"positions": "consensus"}, {}, "fisher or magnitude or public or paid"),
        (EXACT | {"support": "dense"}, {"positions": "union"}, {}, "noise on all values"),
        ({"source": "random", "keep_rate": 0.5}, {"positions": "seeded", "min_contributors": 3}, {}, "different words"),
        (EXACT, {"positions": "ldp", "positions_epsilon": 1.0}, LOCAL | {"mechanism": "central_gaussian"}, "trusted"),
        ({"source": "self_released", "keep_rate": 0.5}, {}, LOCAL, "single uploads"),
    ],
)
def test_contradictions_are_one_line_with_a_remedy(dropout, secure, privacy, said):
    with pytest.raises(FljaxError, match=said) as caught:
        validate({"dropout": dropout, "secure": WORDS | secure, "privacy": privacy})
    assert "\n" not in str(caught.value).strip()


BASE = {
    "data": {"name": "digits"},
    "model": {"name": "mlp", "hidden": [8]},
    "rounds": 4,
    "sampler": {"kind": "fixed_size", "cohort": 6},
}


@cache
def digits():
    return load_data(validate(BASE).data)


CENTRAL = LOCAL | {"mechanism": "central_gaussian"}
REPORTED = {"positions": "ldp", "positions_epsilon": 2.0}


@pytest.mark.parametrize(
    ("secure", "privacy", "server", "status", "said"),
    [
        ({"positions": "public"}, CENTRAL, {}, "refused", "set secure.min_contributors = 1"),
        ({"positions": "public", "min_contributors": 1}, CENTRAL, {}, "valid", ""),
        ({"positions": "union"}, CENTRAL, {}, "valid", ""),
        ({}, CENTRAL, {"denominator": "count"}, "refused", "set server.denominator = expected"),
        ({"positions": "union"}, LOCAL, {}, "refused", "counts without noise"),
        ({"positions": "public"}, LOCAL, {}, "values_only", "NOT covered"),
        (REPORTED, LOCAL, {}, "valid", ""),
    ],
)
def test_statements_of_whole_experiments(secure, privacy, server, status, said):
    """From the configuration to what may be said; epsilon of reported masks is above that of the values alone."""
    tree = BASE | {"dropout": EXACT, "secure": WORDS | {"value_range": 9.0} | secure, "privacy": privacy}
    experiment = validate(tree | {"server": server})
    _, found = resolve(experiment, build(experiment, digits()))
    assert found.status == status and said in found.reason
    if secure is REPORTED:
        values = epsilon(SamplingLaw("full", 1.0, 143), Noise("gaussian", 4.0, "local"), 4, found.delta)
        assert values + 1 < found.epsilon <= values + 2.01  # one choice in the run
        assert any("randomised response" in caveat for caveat in found.caveats)
