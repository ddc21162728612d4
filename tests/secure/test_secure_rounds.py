"""Whole rounds under masks: the same bits as without, with drop-outs, broken clients, chunks, devices and trials."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import private_rounds as tiny
import pytest

from fljax.client.sgd import fedavg_update
from fljax.core.transform import chain
from fljax.core.tree import num_elements
from fljax.privacy.clip import clip
from fljax.privacy.distributed import distributed_noise
from fljax.privacy.integers import padded_size
from fljax.secure.fixedpoint import fixed_point
from fljax.secure.graph import choose_graph
from fljax.secure.masks import Lanes, double_mask
from fljax.server.average import expected_average, realised_average
from fljax.server.execute import PerfFlags
from fljax.server.round import make_round
from fljax.server.sampler import bernoulli_availability, full
from fljax.sim.mesh import client_mesh

N, KEY = tiny.POPULATION, jax.random.key(0)
DATA = tiny.pack(tiny.clients())
PARAMS = tiny.model().init(jax.random.key(1))
P = num_elements(PARAMS)


def hparams(**changes):
    extra = {"value_range": 1.0, "leave_before_keys": 0.5, "leave_after_upload": 0.0}
    extra |= {name: changes.pop(name) for name in list(changes) if name in extra}
    numbers = {"client_lr": 0.5, "server_momentum": 0.9, "availability": 0.75, "extra": extra}
    return tiny.Hparams(**numbers | changes).arrays()


@cache
def round_of(masking, threshold=1, perf=PerfFlags(4)):
    """Tiny FedAvg with all clients: words in clear, or masked (``ideal`` | ``masked``)."""
    stages = [realised_average("present"), fixed_point(12, N, P)]
    if masking != "clear":
        stages.append(double_mask(Lanes(P, 15, "counter", masking), choose_graph(N, degree=4, threshold=threshold)))
    return make_round(
        sampler=full(N),
        local=fedavg_update(tiny.training()),
        transform=chain(*stages),
        server=lambda lr, momentum: optax.sgd(lr, momentum),
        available=bernoulli_availability,
        perf=perf,
    )


@cache
def compiled(masking, threshold=1, perf=PerfFlags(4)):
    """Three rounds -> (state, infos), under a vmap over two trials with other numbers."""
    round = round_of(masking, threshold, perf)

    def run(key, h, data):
        state = round.init(key, PARAMS, h)
        return jax.lax.scan(lambda s, t: round.step(t, key, s, data, h), state, jnp.arange(3))

    return jax.jit(jax.vmap(run, (None, 0, None)))


def trials(**changes):
    pair = [hparams(**changes), hparams(**{**changes, "client_lr": 0.2})]
    return jax.tree.map(lambda *x: jnp.stack(x), *pair)


def poisoned():
    """The data with a client whose update is not finite."""
    pairs = tiny.clients()
    return tiny.pack(tiny.swap(pairs, 1, np.full_like(pairs[1][0], np.nan), pairs[1][1]))


def test_masked_ideal_and_clear_rounds_are_equal_bit_by_bit():
    """With clients that drop out before and after keys are shared, and one whose update is not finite."""
    for data in (DATA, poisoned()):
        runs = {m: jax.device_get(compiled(m)(KEY, trials(), data)) for m in ("clear", "ideal", "masked")}
        clear = runs["clear"][0]
        assert np.isfinite(tiny.flat(clear.params)).all()
        for masking in ("ideal", "masked"):
            state, info = runs[masking]
            assert (info.server["secure_aborted"] == 0).all() and (info.answered < N).any()
            assert tiny.same_bits(state.params, clear.params) and tiny.same_bits(state.server, clear.server)
        assert tiny.same_bits(runs["ideal"][1].uplink, runs["masked"][1].uplink)
    assert (runs["clear"][1].participants < runs["clear"][1].answered).any()  # the broken one came, and counts nothing
    assert not np.array_equal(*jax.tree.leaves(clear.params)[0])  # trials differ


def test_an_aborted_round_changes_nothing_but_costs_its_bytes():
    """Everybody leaves after the upload: model and momentum rest, bytes are those of the round that succeeds."""
    h = trials(leave_after_upload=1.0)
    state, info = jax.device_get(compiled("masked")(KEY, h, DATA))
    _, good = jax.device_get(compiled("masked")(KEY, trials(), DATA))
    assert (info.server["secure_aborted"] == 1).all()
    start = round_of("masked").init(KEY, PARAMS, hparams())
    both = jax.tree.map(lambda x: np.stack([x, x]), (start.params, start.server))
    assert tiny.same_bits((state.params, state.server), both)
    assert (info.uplink.rest > 0).all() and tiny.same_bits(info.uplink, good.uplink)


def test_bytes_are_words_keys_and_shares():
    """15 bits a value and the weight, two public keys, and 3 x 4 + 1 shares, by hand."""
    _, info = jax.device_get(compiled("masked")(KEY, trials(), DATA))
    each = -(-(15 * P + 2 * 256 + 13 * 256) // 8) + -(-15 // 8)
    sent = 1024 * info.uplink.kib.astype(int) + info.uplink.rest
    assert (sent == each * info.answered).all()


def test_what_the_server_gets_is_uniform_words_and_the_same_sum_on_any_execution():
    """The transcript: payloads that fill 32 bits, of which the sum gives the release of the step; chunks and two
    devices change no bit, because integers are added."""
    run = jax.device_get(compiled("masked")(KEY, trials(), DATA))[0]
    for perf in (PerfFlags(1), PerfFlags(3, client_mesh(2))):
        other = jax.device_get(compiled("clear", perf=perf)(KEY, trials(), DATA))[0]
        np.testing.assert_allclose(tiny.flat(other.params), tiny.flat(run.params), atol=2e-3)
    h, first = hparams(), round_of("masked")
    t = jax.device_get(jax.jit(first.transcript)(jnp.int32(0), KEY, first.init(KEY, PARAMS, h), DATA, h))
    sent = np.concatenate([x.reshape(N, -1) for x in jax.tree.leaves(t.payloads)], axis=1)
    assert sent.dtype == np.uint32 and not sent[~t.alive].any()
    share = (sent[t.alive] >> 31).mean()  # a fair coin: 6 standard deviations
    assert abs(share - 0.5) < 3 / sent[t.alive].size ** 0.5


@pytest.mark.parametrize("kind", ["discrete_gaussian"])
def test_masks_compose_with_the_integers_of_distributed_noise(kind):
    """The same noise, rotation and modulus: released updates equal bit by bit with and without masks."""
    bits, lanes = 18, Lanes(padded_size(P), 18, "counter", "masked")
    noise = distributed_noise(kind, P, full(N), 4, bits)
    masks = {"none": [], "masked": [double_mask(lanes, choose_graph(N, degree=4, threshold=1))]}
    h = hparams(clip=0.5, noise_multiplier=1.0, integer_step=0.01)
    got = {}
    for name, mask in masks.items():
        first = make_round(
            sampler=full(N),
            local=fedavg_update(tiny.training()),
            transform=chain(expected_average(), clip(), noise, *mask),
            available=bernoulli_availability,
        )
        got[name] = jax.jit(first.transcript)(jnp.int32(0), KEY, first.init(KEY, PARAMS, h), DATA, h)
    assert tiny.same_bits(got["none"].released, got["masked"].released)
    assert not tiny.same_bits(got["none"].payloads, got["masked"].payloads)
    assert np.abs(tiny.flat(got["none"].released)).max() > 0
