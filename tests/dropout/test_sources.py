"""Mask sources that look at data: who may change what, and what may be claimed.

A private mask tells the positions that a client's data rank first; a public one is blind to any one client.
"""

import dataclasses
from math import comb

import jax
import jax.numpy as jnp
import numpy as np
import private_rounds as tiny
import pytest

from fljax import recipes
from fljax.client.sgd import fedavg_update
from fljax.core.transform import chain
from fljax.dropout.information import Learner
from fljax.dropout.sources import (
    exact_dropout,
    paid_dropout,
    public_dropout,
    random_per_client,
    self_released_dropout,
)
from fljax.privacy.clip import clip
from fljax.privacy.local import local_gaussian
from fljax.privacy.noise import central_gaussian, query_share
from fljax.privacy.validity import VALUES_ONLY
from fljax.server.average import coordinate_average, expected_average
from fljax.server.round import make_round

KEY, T = jax.random.key(3), jnp.int32(4)
MODEL = tiny.model()
LEARNER = Learner(MODEL.apply, tiny.training().loss, MODEL.groups)
LOCAL = chain(expected_average(), clip(), local_gaussian())
VICTIM = 1


def numbers(**changes):
    return tiny.Hparams(**{**vars(tiny.HPARAMS), "sampling_rate": 1.0, "explore": 0.0, **changes})


def make(submodel, transform=None):
    transform = recipes.private_average() if transform is None else transform
    return make_round(
        sampler=tiny.sampler(), local=fedavg_update(tiny.training()), transform=transform, submodel=submodel
    )


def positions(made, data, h):
    """Which hidden neurons every client's upload touches: [C, n] bool, in the order of ids."""
    state = made.init(jax.random.key(1), MODEL.init(jax.random.key(2)), h.arrays())
    seen = jax.jit(made.transcript)(T, KEY, state, data, h.arrays())
    kernel = np.asarray(seen.payloads["update"]["dense_0"]["kernel"])
    return np.any(kernel != 0, axis=1)[np.argsort(np.asarray(seen.cohort.ids))]


def neighbours():
    """Two data sets that differ in one client, which has its inputs turned around and scaled."""
    pairs = tiny.clients()
    x, y = pairs[VICTIM]
    return tiny.pack(pairs), tiny.pack(tiny.swap(pairs, VICTIM, 5.0 * x[:, ::-1], 2 - y))


def test_an_exact_mask_tells_its_clients_data_and_nobody_elses():
    a, b = (positions(make(exact_dropout(LEARNER)), data, numbers()) for data in neighbours())
    others = np.arange(tiny.POPULATION) != VICTIM
    np.testing.assert_array_equal(a[others], b[others])
    assert np.any(a[VICTIM] != b[VICTIM]), "the transmitted positions depend on private data"
    assert np.all(a.sum(1) <= 3) and len({tuple(row) for row in a.tolist()}) > 1


@pytest.mark.parametrize("source", ["random", "public"])
def test_public_masks_are_blind_to_the_data(source):
    """Random ones differ between clients, those from public inputs do not."""
    if source == "random":
        sub = random_per_client(MODEL.groups)
    else:
        sub = public_dropout(LEARNER, jax.random.normal(KEY, (16, tiny.FEATURES)))
    made, h = make(sub, LOCAL), numbers(noise_multiplier=1e-6)
    a, b = (positions(made, data, h) for data in neighbours())
    np.testing.assert_array_equal(a, b)
    assert np.all(a.sum(1) == 3)
    assert (len({tuple(row) for row in a.tolist()}) == 1) == (source == "public")


def test_public_inputs_rank_by_the_information_of_the_model():
    """A neuron without outgoing weights tells nothing about the output: it is dropped first."""
    params = MODEL.init(jax.random.key(2))
    params["dense_1"]["kernel"] = params["dense_1"]["kernel"].at[jnp.array([1, 4])].set(0.0)
    sub = public_dropout(LEARNER, jax.random.normal(KEY, (64, tiny.FEATURES)))
    made = make(sub)
    state = made.init(jax.random.key(1), params, numbers().arrays())
    seen = jax.jit(made.transcript)(T, KEY, state, neighbours()[0], numbers(keep_rate=4 / 6).arrays())
    kept = np.asarray(seen.public["support"]["dense_0"]["bias"])
    assert kept[1] == kept[4] == 0 and kept.sum() == 4


@pytest.mark.slow
def test_own_uploads_rank_by_what_was_sent_and_cost_no_positions():
    """After one round each client's choice is that of its own noised upload; the server could repeat it."""
    sub = self_released_dropout(MODEL.groups, std=lambda c: c.hparams.noise_multiplier * c.hparams.clip)
    made, h = make(sub, LOCAL), numbers(noise_multiplier=0.05, mask_decay=0.0, refresh_rounds=1, warmup_rounds=1)
    data, state = neighbours()[0], None
    state = made.init(jax.random.key(1), MODEL.init(jax.random.key(2)), h.arrays())
    first = jax.jit(made.transcript)(jnp.int32(0), KEY, state, data, h.arrays())
    state, info = jax.jit(made.step)(jnp.int32(0), KEY, state, data, h.arrays())
    second = jax.jit(made.transcript)(jnp.int32(1), KEY, state, data, h.arrays())
    for k in range(tiny.POPULATION):
        (i,), (j,) = (np.flatnonzero(np.asarray(s.cohort.ids) == k) for s in (first, second))
        sent = jax.tree.map(lambda x, i=i: np.asarray(x[i], np.float64) ** 2, first.payloads["update"])
        energy = sent["dense_0"]["kernel"].sum(0) + sent["dense_0"]["bias"]
        kept = np.any(np.asarray(second.payloads["update"]["dense_0"]["kernel"][j]) != 0, axis=0)
        np.testing.assert_array_equal(np.flatnonzero(kept), np.sort(np.argsort(-energy)[:3]))
    assert int(info.uplink.rest) % 4 == 0  # whole float32 values: no bitmap


def test_positions_of_private_masks_are_counted():
    """Kept values and a bitmap of six neurons: one byte more than the same message with public positions."""
    h = numbers(noise_multiplier=0.0).arrays()
    sent = {}
    for name, sub in (("exact", exact_dropout(LEARNER)), ("random", random_per_client(MODEL.groups))):
        made = make(sub)
        state = made.init(jax.random.key(1), MODEL.init(jax.random.key(2)), h)
        info = jax.jit(made.step)(T, KEY, state, neighbours()[0], h)[1]
        sent[name] = int(info.uplink.rest + 1024 * info.uplink.kib)
    assert sent["random"] == tiny.POPULATION * 4 * (3 * 8 + 3)
    assert sent["exact"] == sent["random"] + tiny.POPULATION


CENTRAL = recipes.private_average
PAID = lambda: recipes.private_average(noise=central_gaussian(query_share))  # noqa: E731


@pytest.mark.parametrize(
    ("sub", "transform", "status"),
    [
        (lambda: exact_dropout(LEARNER), lambda: LOCAL, "values_only"),
        (lambda: exact_dropout(LEARNER, support="dense"), lambda: LOCAL, "valid"),
        (lambda: exact_dropout(LEARNER), CENTRAL, "valid"),  # the server noises all coordinates
        (lambda: random_per_client(MODEL.groups), lambda: LOCAL, "valid"),
        (lambda: self_released_dropout(MODEL.groups, std=lambda c: c.hparams.clip), lambda: LOCAL, "valid"),
        (lambda: public_dropout(LEARNER, jnp.ones((2, 4))), CENTRAL, "valid"),
        (lambda: paid_dropout(LEARNER), PAID, "valid"),
    ],
)
def test_what_every_source_may_claim(sub, transform, status):
    claim = make(sub(), transform()).claims(numbers(), MODEL.init(KEY))
    assert claim.noise is not None and claim.reason is None
    assert claim.values_only == (VALUES_ONLY if status == "values_only" else None)


def test_a_query_and_the_update_share_one_budget():
    """``sigma_eff = (sigma_u^-2 + sigma_q^-2)^(-1/2)`` with norms 1 and S; the noise of both is measured.

    Standard deviations from 400 releases of 51 and 6 numbers: false alarm below 1e-6 at 8 % and 12 %.
    """
    share, h = 0.2, numbers(query_share=0.2, keep_rate=1.0)
    made = make(paid_dropout(LEARNER), PAID())
    state = made.init(jax.random.key(1), MODEL.init(jax.random.key(2)), h.arrays())
    replay = jax.jit(jax.vmap(lambda k: made.transcript(T, k, state, neighbours()[0], h.arrays())))
    seen = replay(jax.random.split(KEY, 400))
    expected = float(tiny.POPULATION)
    noise = {n: tiny.flat(seen.released[n]) - tiny.flat(seen.pre_noise[n]) / expected for n in ("update", "query")}
    z, clip_norm = tiny.HPARAMS.noise_multiplier, tiny.HPARAMS.clip
    std = {name: float(np.std(values)) * expected for name, values in noise.items()}
    np.testing.assert_allclose(std["update"], z * clip_norm / np.sqrt(1 - share), rtol=0.08)
    np.testing.assert_allclose(std["query"], z / np.sqrt(share), rtol=0.12)
    total = (std["update"] / clip_norm) ** -2 + std["query"] ** -2
    np.testing.assert_allclose(total**-0.5, z, rtol=0.1)
    norms = np.sqrt((np.asarray(seen.payloads["query"]["dense_0"]) ** 2).sum(-1))
    assert norms.max() <= 1 + 1e-6 and norms.max() > 0.99


def noise_energy(average, keep_rates) -> list[float]:
    """Energy of the noise in one release, by its difference to the same without noise; 200 draws a keep rate."""
    made = make(random_per_client(MODEL.groups), chain(average, clip(), local_gaussian()))
    data = neighbours()[0]

    def released(key, z, keep):
        h = dataclasses.replace(numbers().arrays(), noise_multiplier=z, keep_rate=keep)
        state = made.init(jax.random.key(1), MODEL.init(jax.random.key(2)), h)
        return made.transcript(T, key, state, data, h).released["update"]

    def energy(key, keep):
        both = jax.vmap(released, (None, 0, None))(key, jnp.array([1.0, 0.0]), keep)
        return sum(jnp.sum((x[0] - x[1]) ** 2) for x in jax.tree.leaves(both))

    mean = jax.jit(lambda keep: jnp.mean(jax.vmap(energy, (0, None))(jax.random.split(KEY, 200), keep)))
    return [float(mean(jnp.float32(keep))) for keep in keep_rates]


@pytest.mark.slow
def test_the_trap_of_dividing_by_the_clients_that_came():
    """With local noise and masks that differ: the plain average has p of the dense noise, counts have more than 1/p.

    p is the share of kept parameters. By hand for eight clients and two neurons of six: hidden coordinates are held by
    Binomial(8, 1/3) clients, the output biases by all. Ratios to 15 %, several times the spread of 200 draws.
    """
    hidden, always, p = 6 * 8, 3, 1 / 3
    dense, fixed = noise_energy(expected_average(), [1.0, p])
    others = {name: noise_energy(coordinate_average(name), [p])[0] for name in ("count", "inverse")}
    ratio = {name: energy / dense for name, energy in {"fixed": fixed, **others}.items()}
    holders = np.arange(1, 9)
    chance = np.array([comb(8, n) * p**n * (1 - p) ** (8 - n) for n in holders])
    by_hand = {
        "fixed": (hidden * p + always) / (hidden + always),
        "count": (hidden * float((chance / holders).sum()) * 8 + always) / (hidden + always),
        "inverse": (hidden / p + always) / (hidden + always),
    }
    for name, value in by_hand.items():
        np.testing.assert_allclose(ratio[name], value, rtol=0.15, err_msg=name)
    assert ratio["count"] > 1 / p > 1 > ratio["fixed"]
