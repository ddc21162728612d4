"""Rules and adversaries in whole rounds: who counts, who is replaced, who is caught, and what may be claimed."""

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import private_rounds as tiny
import pytest

from fljax import recipes, robust
from fljax.client.sgd import fedavg_update
from fljax.core.check import FljaxError
from fljax.core.keys import stream
from fljax.core.transform import chain
from fljax.privacy.local import local_gaussian
from fljax.robust import attacks, poison
from fljax.server.average import bounded_average, realised_average
from fljax.server.round import make_round

N, KEY = tiny.POPULATION, jax.random.key(0)
ATTACK = {"attack_fraction": 0.25, "attack_strength": 100.0, "attack_start": 1.0, "attack_share": 1.0}


def numbers(**extra):
    h = dataclasses.replace(tiny.HPARAMS, sampling_rate=1.0, extra={**ATTACK, **extra})
    return h.arrays()


@cache
def attacked(rule=robust.median):
    """A compiled transcript and step under sign flips of strength 100."""
    adversary = robust.make_adversary("sign_flip", N, forge=attacks.sign_flip())
    return recipes.robust_fedavg(tiny.training(), tiny.sampler(), rule(), adversary=adversary)


def krum_of_two():
    return robust.krum(2)


def start(round, h):
    return round.init(KEY, tiny.model().init(jax.random.key(1)), h)


def test_a_robust_rule_under_a_mean_chain_is_the_rule_on_the_payloads():
    """The released update of a whole round is the median of what the living clients sent, NaN data and all."""
    x, y = tiny.clients()[2]
    data = tiny.pack(tiny.swap(tiny.clients(), 2, np.full_like(x, np.nan), y))
    round, h = attacked(), numbers(attack_fraction=0.0)
    t = jax.device_get(jax.jit(round.transcript)(jnp.int32(3), KEY, start(round, h), data, h))
    sent = np.stack([tiny.flat(jax.tree.map(lambda x, i=i: x[i], t.payloads["update"])) for i in range(N)])
    living = t.cohort.ids != 2  # its NaN is no zero among the values
    assert not sent[~living].any() and np.abs(sent[living]).max(axis=1).all()
    np.testing.assert_allclose(tiny.flat(t.released), np.median(sent[living], axis=0), atol=1e-6)
    assert not np.allclose(tiny.flat(t.released), np.median(sent, axis=0), atol=1e-6)


def test_malicious_updates_are_replaced_and_honest_ones_are_not():
    """Before the start of the attack all bits are those of a run without it; then two clients of eight are flipped."""
    round, none = attacked(), numbers(attack_fraction=0.0)
    replay, data, h = jax.jit(round.transcript), tiny.pack(tiny.clients()), numbers()
    state = start(round, none)
    for t, changed in ((0, 0), (1, 2)):
        bad, good = (jax.device_get(replay(jnp.int32(t), KEY, state, data, n)) for n in (h, none))
        pairs = [
            [tiny.flat(jax.tree.map(lambda x, i=i: x[i], p["update"])) for p in (bad.payloads, good.payloads)]
            for i in range(N)
        ]
        other = [(a, b) for a, b in pairs if not np.array_equal(a, b)]
        assert len(other) == changed
        for a, b in other:
            np.testing.assert_allclose(a, -100.0 * b, rtol=1e-6)


def test_who_was_caught_is_counted():
    """Krum keeps one honest client; two malicious ones of eight are rejected, and five honest ones with them."""
    round, h = attacked(krum_of_two), numbers()
    _, info = jax.jit(round.step)(jnp.int32(2), KEY, start(round, h), tiny.pack(tiny.clients()), h)
    seen = {name: int(info.server[name]) for name in ("malicious_seen", "rejected", "rejected_malicious")}
    assert seen == {"malicious_seen": 2, "rejected": 7, "rejected_malicious": 2}


@pytest.mark.slow  # one more compiled round
def test_a_sum_can_be_attacked_as_well():
    """The modelled server sees a sum alone; the simulation still replaces two of its terms."""
    adversary = robust.make_adversary("free_rider", N, forge=attacks.free_rider())
    plain = recipes.dp_fedavg(tiny.training(), tiny.sampler(), adversary=adversary)
    h = dataclasses.replace(numbers(attack_strength=0.0), noise_multiplier=jnp.float32(0.0))
    t = jax.device_get(jax.jit(plain.transcript)(jnp.int32(2), KEY, start(plain, h), tiny.pack(tiny.clients()), h))
    norms = np.sqrt(sum(np.square(x).reshape(N, -1).sum(1) for x in jax.tree.leaves(t.payloads["update"])))
    assert (norms == 0).sum() == 2
    total = tiny.flat(jax.tree.map(lambda x: x.sum(0), t.payloads["update"]))
    np.testing.assert_allclose(tiny.flat(t.released), total / N, atol=1e-6)


@pytest.mark.slow  # one more compiled round
def test_poisoned_labels_change_malicious_clients_alone():
    """The same round with and without malicious clients: payloads of the others are equal bit by bit."""
    adversary = robust.make_adversary("label_flip", N, poison.flip_labels(tiny.CLASSES))
    round = recipes.robust_fedavg(tiny.training(), tiny.sampler(), robust.median(), adversary=adversary)
    replay, data = jax.jit(round.transcript), tiny.pack(tiny.clients())
    runs = [
        jax.device_get(replay(jnp.int32(1), KEY, start(round, h), data, h))
        for h in (numbers(), numbers(attack_fraction=0.0))
    ]
    ids = jnp.asarray(runs[0].cohort.ids)
    members = np.asarray(adversary.members(stream(KEY, "adversary"), numbers(), jnp.int32(1), ids))
    same = [
        all(np.array_equal(a[i], b[i]) for a, b in zip(*(jax.tree.leaves(r.payloads) for r in runs), strict=True))
        for i in range(N)
    ]
    assert same == (~members).tolist() and members.sum() == 2


def test_a_mean_refuses_every_other_denominator():
    for average in (realised_average(), bounded_average(4.0, 6.0, N)):
        with pytest.raises(FljaxError, match="Expected aggregator='median', which returns a mean, to come with"):
            make_round(
                sampler=tiny.sampler(),
                local=fedavg_update(tiny.training()),
                transform=average,
                aggregator=robust.median(),
            )


def test_what_may_be_claimed():
    """No epsilon for noise by a server that runs a robust rule; noise of the clients themselves stands."""
    params = tiny.model().init(jax.random.key(1))
    private = recipes.dp_fedavg(tiny.training(), tiny.sampler(), aggregator=robust.median())
    assert "robust rule 'median' has no stated bound" in private.claims(tiny.HPARAMS, params).reason
    transform = recipes.private_average(noise=local_gaussian())
    local = recipes.dp_fedavg(tiny.training(), tiny.sampler(), transform=transform, aggregator=robust.median())
    claim = local.claims(tiny.HPARAMS, params)
    assert claim.reason is None and claim.noise.trust == "local"
    assert chain(transform).denominator == "expected"
