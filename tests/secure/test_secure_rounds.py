"""Whole rounds under masks: the same bits as without, with drop-outs, broken clients, chunks and devices.

Clients send random numbers instead of training, so that programs are small.
"""

from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import private_rounds as tiny
import pytest

from fljax.core.transform import chain
from fljax.core.types import Ctx, LocalUpdate
from fljax.privacy.distributed import distributed_noise
from fljax.privacy.integers import padded_size
from fljax.secure.fixedpoint import fixed_point
from fljax.secure.graph import choose_graph
from fljax.secure.masks import Lanes, double_mask
from fljax.server.average import realised_average
from fljax.server.execute import PerfFlags
from fljax.server.round import make_round
from fljax.server.sampler import bernoulli_availability, full
from fljax.sim.mesh import client_mesh

N, P, KEY, NOBODY = tiny.POPULATION, 40, jax.random.key(0), -1
DATA = tiny.pack(tiny.clients())
PARAMS = {"a": jnp.zeros((3, 10)), "b": jnp.ones(10)}


class Way(NamedTuple):
    """How a round is run. masking: clear | ideal | masked."""

    masking: str
    chunk: int = 4
    devices: int = 1


MASKED = Way("masked", 1, devices=2)


def hparams(**changes):
    extra = {"value_range": 1.0, "leave_before_keys": 0.5, "leave_after_upload": 0.0, "bad": NOBODY, "scale": 0.3}
    extra |= {name: changes.pop(name) for name in list(changes) if name in extra}
    numbers = {"server_momentum": 0.9, "availability": 0.75, "extra": extra}
    return tiny.Hparams(**numbers | changes).arrays()


def local() -> LocalUpdate:
    """Sends normal numbers, or NaN if it is the client ``bad``."""

    def run(key, ctx, broadcast, own, shard):
        scale = jnp.where(ctx.id == ctx.hparams.extra["bad"], jnp.nan, ctx.hparams.extra["scale"])
        keys = dict(zip(PARAMS, jax.random.split(key), strict=True))
        update = {name: scale * jax.random.normal(keys[name], x.shape) for name, x in PARAMS.items()}
        return {"update": update, "weight": shard.size.astype(jnp.float32)}, own, {}

    return LocalUpdate(lambda params: (params, {}), lambda *_: ((), ()), run, lambda ctx, state, total: state)


@cache
def round_of(way: Way):
    stages = [realised_average("present"), fixed_point(12, N, P)]
    if way.masking != "clear":
        lanes, ring = Lanes(P, 15, "counter", way.masking), choose_graph(N, degree=4, threshold=1)
        stages.append(double_mask(lanes, ring))
    return make_round(
        sampler=full(N),
        local=local(),
        transform=chain(*stages),
        available=bernoulli_availability,
        perf=PerfFlags(way.chunk, client_mesh(way.devices)),
    )


@cache
def compiled(way: Way):
    """The step of a round."""
    return jax.jit(round_of(way).step)


def played(way: Way, **changes):
    """(state, infos [rounds, ...]) after three rounds."""
    h, infos = hparams(**changes), []
    state = round_of(way).init(KEY, PARAMS, h)
    for t in range(3):
        state, info = compiled(way)(jnp.int32(t), KEY, state, DATA, h)
        infos.append(jax.device_get(info))
    return jax.device_get(state), jax.tree.map(lambda *x: np.stack(x), *infos)


def test_masked_and_clear_rounds_are_equal_bit_by_bit():
    """With clients that drop out before and after keys are shared, and one whose update is not finite. The masked round
    runs one by one, over two devices: sums of integers have no order."""
    for bad in (NOBODY, 1):
        (clear, seen), (state, info) = (played(way, bad=bad) for way in (Way("clear"), MASKED))
        assert np.isfinite(tiny.flat(clear.params)).all()
        assert (info.server["secure_aborted"] == 0).all() and (info.answered < N).any()
        assert (info.server["secure_members"] < N).any()
        assert tiny.same_bits(state.params, clear.params) and tiny.same_bits(state.server, clear.server)
    assert (seen.participants < seen.answered).any()  # the broken one came, and counts nothing


def test_an_aborted_round_changes_nothing_but_costs_its_bytes():
    """After rounds that built up momentum everybody leaves after the upload: model and momentum rest, bytes are those
    of the round that succeeds."""
    before, _ = played(MASKED)
    step, t = compiled(MASKED), jnp.int32(3)
    after, info = jax.device_get(step(t, KEY, before, DATA, hparams(leave_after_upload=1.0)))
    moved, good = jax.device_get(step(t, KEY, before, DATA, hparams()))
    assert info.server["secure_aborted"] == 1 and good.server["secure_aborted"] == 0
    assert tiny.same_bits((after.params, after.server), (before.params, before.server))
    assert not tiny.same_bits(moved.params, before.params)
    assert info.uplink.rest > 0 and tiny.same_bits(info.uplink, good.uplink)


def test_bytes_are_words_keys_and_shares():
    """15 bits a value and the weight, two public keys, and 3 x 4 + 1 shares, by hand."""
    _, info = played(MASKED)
    each = -(-(15 * P + 2 * 256 + 13 * 256) // 8) + -(-15 // 8)
    sent = 1024 * info.uplink.kib.astype(int) + info.uplink.rest
    assert (sent == each * info.answered).all()


@pytest.mark.slow  # samplers of integer noise take long to compile
def test_masks_compose_with_the_integers_of_distributed_noise():
    """The same noise, rotation and modulus: released updates are equal bit by bit with and without masks, the uploads
    are not."""
    bits, lanes = 18, Lanes(padded_size(P), 18, "counter", "masked")
    noise, ring = distributed_noise("skellam", P, full(N), 4, bits), choose_graph(N, degree=4, threshold=1)
    h = hparams(noise_multiplier=1.0, integer_step=0.01)
    one, alive = jnp.float32(1), jnp.array([True] * 5 + [False] * 3)
    bounds = {"payload": jnp.float32(0.5)}
    ctx = Ctx(jnp.int32(0), h, KEY, jnp.int32(-1), jnp.int32(-1), one, one, None, bounds, presence=alive + 1)

    def released(masks):
        stage = chain(noise, *masks)
        server, client = stage.init(PARAMS, h)

        def send(slot):
            payload = {"update": jax.tree.map(lambda x: 0.05 * (x + slot), PARAMS)}
            return stage.encode(jax.random.key(slot), ctx._replace(slot=slot), payload, server, client)[0]

        sent = jax.vmap(send)(jnp.arange(N))
        total = jax.tree.map(lambda x: jnp.sum(jnp.where(alive[:, None], x, 0), axis=0, dtype=x.dtype), sent)
        return stage.decode(KEY, ctx, total, alive, server)[0], sent

    plain, masked = jax.jit(lambda: (released([]), released([double_mask(lanes, ring)])))()
    assert tiny.same_bits(plain[0], masked[0]) and np.abs(tiny.flat(plain[0])).max() > 0
    assert (np.asarray(masked[1]["update"]) == np.asarray(plain[1]["update"]).astype(np.uint32)).mean() < 0.01
