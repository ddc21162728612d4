"""Distributed noise: clients encode, integers are added modulo 2^bits, the server decodes.

Seeds are fixed; the false-alarm rates say how often another seed would fail.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import private_rounds as tiny
import pytest
from scipy import stats

from fljax import recipes
from fljax.core.check import FljaxError
from fljax.core.transform import Wire, chain, no_claim, pass_decode, stateless
from fljax.core.types import Ctx, Hparams
from fljax.privacy import integers
from fljax.privacy.accounting import epsilon
from fljax.privacy.clip import clip
from fljax.privacy.distributed import OVERFLOW, distributed_noise, largest_sum
from fljax.privacy.statement import state_privacy
from fljax.server.average import expected_average
from fljax.server.sampler import bernoulli_availability, cyclic, fixed_size, full, poisson

KINDS = ("discrete_gaussian", "skellam")
S, Z, STEP, COHORT, SURVIVORS = 0.3, 1.7, 0.01, 6, 4
SHAPES = {"bias": (37,), "kernel": (40, 50), "scale": (3, 7, 11)}
SIZE = sum(int(np.prod(shape)) for shape in SHAPES.values())  # 2268 of 4096 places
PADDED = 4096
KEY = jax.random.key(5)
BASE = Hparams(clip=S, noise_multiplier=Z, integer_step=STEP)


def updates(seed=0, scale=1.0, count=COHORT):
    """Stacked updates of some clients, leaves [count, ...]; norms of about 45 scale, far above S."""
    rng = np.random.default_rng(seed)
    return {n: (scale * rng.normal(size=(count, *shape))).astype(np.float32) for n, shape in SHAPES.items()}


def stages(kind, survivors=SURVIVORS, bits=31):
    noise = distributed_noise(kind, SIZE, fixed_size(50, COHORT), survivors, bits)
    return recipes.private_average(noise=noise)


def context(h, key=KEY, support=None, chained=None):
    nobody = jnp.int32(-1)
    ctx = Ctx(jnp.int32(0), h, key, nobody, nobody, jnp.float32(COHORT), h.keep_rate, support)
    states, _ = chained.init(template(), h)
    unbounded = {"update": jnp.float32(np.inf), "weight": jnp.float32(np.inf)}
    return ctx._replace(bounds=chained.bound(ctx, states, unbounded)), states


def template():
    return {name: jnp.zeros(shape) for name, shape in SHAPES.items()}


@cache
def compiled(kind, bits=31):
    """(key, h, updates, alive, support) -> (sum, released, info, declared std), as a round does it."""
    chained = stages(kind, bits=bits)

    def run(key, h, clients, alive, support):
        ctx, states = context(h, key, support, chained)
        keys = jax.random.split(jax.random.fold_in(key, 9), COHORT)

        def one(key, place, update, alive):
            payload = {"update": update, "weight": jnp.float32(3.0)}
            mine = ctx._replace(id=10 + place, slot=place)  # what clients share must not hang on who they are
            sent = chained.encode(key, mine, payload, states, ((), (), ()))[0]["update"]
            return jnp.where(alive, sent, 0)

        total = jax.vmap(one)(keys, jnp.arange(COHORT), clients, alive).sum(axis=0)
        released, _, info = chained.decode(key, ctx, {"update": total}, alive, states)
        return total, released["update"], info, chained.noise(ctx, states, jnp.float32(0.0))

    return jax.jit(run)


def run(kind, clients, alive=None, key=KEY, support=None, bits=31, **numbers):
    h = Hparams(**{**vars(BASE), **numbers}).arrays()
    alive = np.ones(COHORT, bool) if alive is None else alive
    support = jax.tree.map(jnp.ones_like, template()) if support is None else support
    return compiled(kind, bits)(key, h, clients, alive, support)


def nothing():
    return {name: np.zeros((COHORT, *shape), np.float32) for name, shape in SHAPES.items()}


def clipped_sum(clients, alive=None):
    """float64 [P]: the sum of the clipped updates of those alive."""
    flat = np.concatenate([np.asarray(x, np.float64).reshape(COHORT, -1) for x in clients.values()], axis=1)
    norms = np.linalg.norm(flat, axis=1, keepdims=True)
    flat = flat * np.minimum(1.0, S / np.maximum(norms, 1e-30))
    return flat[np.ones(COHORT, bool) if alive is None else alive].sum(axis=0)


# ---- the whole stage -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_without_noise_the_release_is_the_clipped_mean_up_to_the_grain(kind, scale):
    """Rounding moves a coordinate of the sum by integer_step S sqrt(cohort) / 2 in rms at most, and leaves no bias."""
    clients = updates(scale=scale)
    total, released, info, _ = run(kind, clients, noise_multiplier=0.0, integer_step=1e-3)
    assert total.dtype == jnp.int32 and total.shape == (PADDED,)
    assert jax.tree.map(jnp.shape, released) == SHAPES
    error = tiny.flat(released) * COHORT - clipped_sum(clients)
    grain = 1e-3 * S * COHORT**0.5 / 2
    assert np.sqrt(np.mean(error**2)) < grain
    assert abs(np.mean(error)) < 5 * grain / SIZE**0.5
    assert np.linalg.norm(error) < 0.2 * np.linalg.norm(clipped_sum(clients))
    assert float(info["noise_aborted"]) == 0.0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("numbers", [{}, {"clip": 2.5, "noise_multiplier": 0.6, "integer_step": 0.004}])
def test_the_noise_of_the_release_is_z_s_over_the_cohort(kind, numbers):
    """With n = min_survivors clients alive; rounding of zeros adds nothing. 5.5 standard errors: false alarm 4e-8;
    a standard deviation that is 10 % off is rejected."""
    alive = np.arange(COHORT) < SURVIVORS
    _, released, *_ = run(kind, nothing(), alive, **numbers)
    h = {**vars(BASE), **numbers}
    std = h["noise_multiplier"] * h["clip"] / COHORT
    noise = tiny.flat(released)
    assert abs(noise.std() / std - 1) < 5.5 / np.sqrt(2 * SIZE)
    assert stats.kstest(noise / std, "norm").statistic * SIZE**0.5 < 2.7  # false alarm 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_the_declared_std_is_that_of_those_who_are_expected(kind):
    """All answer: sqrt(cohort / n) more. Half answer: n still do, or the round is aborted."""
    _, released, info, declared = run(kind, nothing())
    expected = Z * S * np.sqrt(COHORT / SURVIVORS)
    np.testing.assert_allclose([float(declared) * COHORT, float(info["noise_std"])], expected, rtol=1e-6)
    assert abs(tiny.flat(released).std() * COHORT / expected - 1) < 5.5 / np.sqrt(2 * SIZE)
    np.testing.assert_allclose(float(run(kind, nothing(), availability=0.5)[3]) * COHORT, Z * S, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_noise_hides_no_signal_and_is_independent_of_it(kind):
    clients = updates(scale=1e-3)
    signal = tiny.flat(run(kind, clients)[1]) - tiny.flat(run(kind, nothing())[1])
    grain = STEP * S * COHORT**0.5 / 2
    assert np.sqrt(np.mean((signal * COHORT - clipped_sum(clients)) ** 2)) < grain


@pytest.mark.parametrize("kind", KINDS)
def test_rounds_and_clients_are_independent(kind):
    """Two keys; and one client's share (in the others' absence) against another's. |r| < 5.5 / sqrt(n): 4e-8."""
    a, b = (tiny.flat(run(kind, nothing(), key=jax.random.fold_in(KEY, i))[1]) for i in range(2))
    assert abs(np.corrcoef(a, b)[0, 1]) < 5.5 / SIZE**0.5
    alone = [np.asarray(run(kind, nothing(), np.arange(COHORT) == k)[0], np.float64) for k in range(2)]
    assert abs(np.corrcoef(*alone)[0, 1]) < 5.5 / PADDED**0.5
    std = Z / STEP / SURVIVORS**0.5
    assert abs(alone[0].std() / std - 1) < 5.5 / np.sqrt(2 * PADDED)


def test_with_too_few_survivors_nothing_is_released():
    alive = np.arange(COHORT) < SURVIVORS - 1
    _, released, info, _ = run("discrete_gaussian", updates(), alive)
    assert not tiny.flat(released).any()
    assert float(info["noise_aborted"]) == 1.0
    alive[-1] = True
    _, released, info, _ = run("discrete_gaussian", updates(), alive)
    assert tiny.flat(released).all() and float(info["noise_aborted"]) == 0.0


def test_everybody_has_to_answer_unless_told_otherwise():
    chained = stages("discrete_gaussian", survivors=None)
    ctx, states = context(BASE.arrays(), chained=chained)
    decode = jax.jit(lambda total, alive: chained.decode(KEY, ctx, {"update": total}, alive, states)[0]["update"])
    total = jnp.arange(PADDED, dtype=jnp.int32)
    for alive, any_of_it in ((np.arange(COHORT) > 0, False), (np.ones(COHORT, bool), True)):
        released = decode(total, alive)
        assert tiny.flat(released).any() == any_of_it


def test_a_mask_that_is_public_stays_clean():
    support = {name: jnp.asarray(np.arange(np.prod(s)).reshape(s) % 3 == 0, jnp.float32) for name, s in SHAPES.items()}
    released = tiny.flat(run("discrete_gaussian", updates(), support=support)[1])
    np.testing.assert_array_equal(released != 0, tiny.flat(support) == 1)


def test_sums_wrap_around_and_come_back():
    """Two clients who cancel out leave the range of 9 bits, each alone; the sum of all does not: nothing is lost."""
    clients = jax.tree.map(lambda x: np.stack([x[0], -x[0], *np.zeros_like(x[2:])]), updates())
    numbers = {"integer_step": 5e-5, "noise_multiplier": 1e-3}
    few, many = (run("discrete_gaussian", clients, bits=bits, **numbers) for bits in (9, 31))
    assert np.abs(few[0]).max() >= 2**8
    assert np.abs(many[0]).max() < 2**8
    assert tiny.same_bits(few[1], many[1])


# ---- sensitivity -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0.5, 0.02, 1e-3])
@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 1e20, np.inf, np.nan])
def test_one_client_moves_the_sum_by_at_most_the_claim(step, scale):
    """Before the noise, in integers: one client present or absent, in both norms; one replaced by another, twice."""
    clients = updates(3)
    victim, other = updates(4), updates(5)
    with np.errstate(invalid="ignore"):
        for name, x in clients.items():
            x[1] = np.float32(scale) * victim[name][1]
    quiet = {"noise_multiplier": 0.0, "integer_step": step}
    alone = lambda c: np.asarray(run("discrete_gaussian", c, np.arange(COHORT) == 1, **quiet)[0], np.float64)  # noqa: E731
    detail = dict(stages("skellam").claim(Hparams(clip=S, noise_multiplier=Z, integer_step=step)).noise.detail)
    share, replaced = alone(clients), alone(other)
    assert np.linalg.norm(share) <= detail["l2"] and np.abs(share).sum() <= detail["l1"]
    assert np.linalg.norm(share - replaced) <= 2 * detail["l2"]
    assert np.linalg.norm(replaced) > 0.9 * detail["unit"]  # the bound is not idle
    assert detail["unit"] == 1 / step and detail["dimension"] == PADDED and detail["shares"] == SURVIVORS
    if scale == 1.0 and step < 0.01:
        assert np.linalg.norm(share) > 0.99 * detail["l2"]


def test_the_bound_holds_even_where_nothing_was_clipped():
    """A stage to the left that lies about its bound: the rounding itself refuses what is too long."""
    lying = expected_average()._replace(
        bound=lambda ctx, state, bounds: {"update": jnp.float32(S)}, claim=no_claim, decode=pass_decode, init=stateless
    )
    chained = chain(lying, distributed_noise("discrete_gaussian", SIZE, full(COHORT)))
    ctx, states = context(Hparams(**{**vars(BASE), "noise_multiplier": 0.0}).arrays(), chained=chained)
    encode = jax.jit(lambda u: chained.encode(KEY, ctx, {"update": u}, states, ((), ()))[0]["update"])
    long = jax.tree.map(lambda x: x[0], updates())
    assert not np.asarray(encode(long)).any()
    short = jax.tree.map(lambda x: x * np.float32(0.9 * S / np.linalg.norm(tiny.flat(long))), long)
    assert 0 < np.linalg.norm(np.asarray(encode(short), np.float64)) <= integers.rounded_bound(1 / STEP, PADDED)


# ---- what is claimed and refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_claim_names_kind_multiplier_and_trust(kind):
    claim = distributed_noise(kind, 1000, full(COHORT)).claim(BASE)
    assert claim.noise[:3] == (kind, Z, "distributed") and claim.reason is None
    detail = dict(claim.noise.detail)
    l2 = np.sqrt(100.0**2 + 1024 / 4 + 100.0 + 16.0)  # unit 100, 1024 places
    np.testing.assert_allclose([detail["l2"], detail["l1"]], [l2, l2 * 32], rtol=1e-12)
    assert detail["shares"] == COHORT


def test_how_it_is_written_down():
    stage = distributed_noise("skellam", SIZE, full(COHORT), bits=13)
    wires = stage.wire(None, {"update": Wire(jnp.int32(SIZE), jnp.int32(32), jnp.int32(0))})
    assert {n: tuple(map(int, w)) for n, w in wires.items()} == {"update": (PADDED, 13, 0)}


@pytest.mark.parametrize("kind", KINDS)
def test_too_few_bits_are_refused_with_enough_of_them(kind):
    h = Hparams(clip=S, noise_multiplier=Z, integer_step=1e-3)
    reason = distributed_noise(kind, SIZE, full(COHORT), bits=8).claim(h).reason
    assert "\n" not in reason and "set bits = " in reason
    enough = int(reason.split("= ")[1])
    assert distributed_noise(kind, SIZE, full(COHORT), bits=enough).claim(h).reason is None
    assert distributed_noise(kind, SIZE, full(COHORT), bits=enough - 1).claim(h).reason == reason
    fine = Hparams(clip=S, noise_multiplier=Z, integer_step=1e-9)
    assert "larger integer_step" in distributed_noise(kind, SIZE, full(COHORT), bits=31).claim(fine).reason
    loud = Hparams(clip=S, noise_multiplier=1e4, integer_step=1e-3)
    assert "one share of the noise" in distributed_noise(kind, SIZE, full(COHORT), bits=31).claim(loud).reason


@pytest.mark.parametrize("kind", KINDS)
def test_the_range_holds_with_the_probability_that_is_promised(kind):
    """Tails of the exact laws at the bound: signal by the worst vector of random signs, noise by its own tail."""
    z, unit, cohort, least = 0.8, 50.0, 10, 8
    for d in (4, 1024, 2**20):
        largest = largest_sum(kind, z, unit, d, cohort, least)
        t = np.log(4 * d / OVERFLOW)
        signal = cohort * unit * min(1.0, np.sqrt(2 * t / d))
        variance = (z * unit) ** 2 * cohort / least
        rest = largest - signal - cohort
        tail = (
            2 * stats.skellam.sf(rest, variance / 2, variance / 2)
            if kind == "skellam"
            else 2 * stats.norm.sf(rest, scale=variance**0.5)
        )
        assert d * tail < OVERFLOW / 2
        signs = 2 * d * np.exp(-((signal / (cohort * unit)) ** 2) * d / 2)
        assert signal == cohort * unit or signs <= OVERFLOW / 2 * (1 + 1e-9)


def test_what_does_not_fit_together_is_refused():
    for sampler in (poisson(50, 0.2), poisson(50, 1.0)):
        with pytest.raises(FljaxError, match="sampler='poisson' to draw cohorts of a fixed size"):
            distributed_noise("skellam", SIZE, sampler)
    with pytest.raises(FljaxError, match=r"min_survivors=7 in \[1, 6\]\. The cohort has 6 clients"):
        distributed_noise("skellam", SIZE, cyclic(50, 6), 7)
    with pytest.raises(FljaxError, match="kind='gaussian' to be one of discrete_gaussian, skellam"):
        distributed_noise("gaussian", SIZE, full(6))
    with pytest.raises(FljaxError, match="bits=32"):
        distributed_noise("skellam", SIZE, full(6), bits=32)
    with pytest.raises(FljaxError, match=r"integer_step=0\.0 > 0"):
        distributed_noise("skellam", SIZE, full(6)).claim(Hparams(integer_step=0.0))
    stage = distributed_noise("skellam", SIZE, full(6))
    ctx, _ = context(BASE.arrays(), chained=chain(expected_average(), clip()))
    one = jax.tree.map(lambda x: x[0], updates())
    for payload, message in (
        ({"update": one, "control": one}, "payload part 'control' to be 'update' alone"),
        ({"update": {"bias": one["bias"]}}, f"size={SIZE} to be 37"),
    ):
        with pytest.raises(FljaxError, match=message):
            jax.eval_shape(lambda p: stage.encode(KEY, ctx, p, template(), ()), payload)


# ---- in a round ------------------------------------------------------------------------------------------------------

ROUND = tiny.Hparams(client_lr=2.0, clip=0.37, noise_multiplier=1.3, integer_step=0.004, availability=1.0)


@cache
def private_round():
    """(round, its compiled transcript): three of eight clients, two of whom have to answer."""
    sampler, size = fixed_size(tiny.POPULATION, 3), sum(x.size for x in jax.tree.leaves(tiny.model().shapes()))
    noise = distributed_noise("discrete_gaussian", size, sampler, min_survivors=2)
    built = recipes.dp_fedavg(
        tiny.training(), sampler, transform=recipes.private_average(noise=noise), available=bernoulli_availability
    )
    return built, jax.jit(built.transcript)


def play(pairs, **numbers):
    built, transcript = private_round()
    h = tiny.Hparams(**{**vars(ROUND), **numbers}).arrays()
    state = built.init(jax.random.key(1), tiny.model().init(jax.random.key(2)), h)
    return jax.device_get(transcript(jnp.int32(0), KEY, state, tiny.pack(pairs), h))


def test_a_round_is_private_and_says_so():
    built = private_round()[0]
    claim = built.claims(ROUND, tiny.model().init(jax.random.key(2)))
    assert claim.reason is None and claim.noise.multiplier == 1.3
    law = built.law(ROUND)
    said = state_privacy(law, claim.noise, 4, 0.01)
    assert (said.status, said.trust, said.relation) == ("valid", "distributed", "replace_one")
    assert said.epsilon == epsilon(law, claim.noise, 4, 0.01)


def test_a_round_moves_the_model_by_the_clipped_sum_and_noise():
    """The sum before the noise is found again by taking the noise of a run without updates (learning rate 0) away."""
    real, empty = play(tiny.clients()), play(tiny.clients(), client_lr=0.0)
    assert real.payloads["update"].dtype == np.int32
    signal = 3 * (tiny.flat(real.released) - tiny.flat(empty.released))
    assert 0 < np.linalg.norm(signal) <= 3 * 0.37 * 1.1
    quiet = play(tiny.clients(), noise_multiplier=0.0)
    np.testing.assert_allclose(3 * tiny.flat(quiet.released), signal, atol=6 * 0.004 * 0.37)


def test_a_client_that_is_not_finite_sends_its_share_of_the_noise():
    """Exactly what it would send with an update of zeros; and nobody else sends anything else."""
    pairs = tiny.clients()
    members = play(pairs).cohort.ids
    victim = int(members[0])
    x, y = pairs[victim]
    broken = play(tiny.swap(pairs, victim, np.full_like(x, np.nan), y))
    idle = play(tiny.swap(pairs, victim, np.zeros((0, tiny.FEATURES)), np.zeros(0, int)))
    place = [list(t.cohort.ids).index(victim) for t in (broken, idle)]
    shares = [t.payloads["update"][p] for t, p in zip((broken, idle), place, strict=True)]
    np.testing.assert_array_equal(*shares)
    assert np.count_nonzero(shares[0]) > 0.9 * shares[0].size
    np.testing.assert_array_equal(broken.pre_noise["update"], idle.pre_noise["update"])
    assert np.isfinite(tiny.flat(broken.released)).all()


def test_a_round_without_enough_answers_releases_zeros():
    aborted, held = play(tiny.clients(), availability=0.0), play(tiny.clients())
    assert not tiny.flat(aborted.released).any() and tiny.flat(held.released).all()
    assert float(aborted.public["noise_std"]) > 0
    sent = held.payloads["update"]
    assert sent.shape == (3, integers.padded_size(tiny.flat(held.released).size))
    assert np.abs(sent).max() < 2**15
