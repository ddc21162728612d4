"""Adaptive and per-layer clipping, and weights for private averages: budgets, bounds, convergence."""

import jax
import jax.numpy as jnp
import numpy as np
import private_rounds as tiny
import pytest

from fljax import recipes
from fljax.config import Experiment, validate
from fljax.core.check import FljaxError
from fljax.core.types import Ctx, Hparams
from fljax.privacy.adaptive import BIT, adaptive_clip, bit_share
from fljax.privacy.clip import clip, clip_layers
from fljax.privacy.noise import noise_stds
from fljax.server.average import bounded_average

EXPECTED = 100.0


def context(**numbers) -> Ctx:
    """A context of the server with these numbers."""
    nobody, key = jnp.int32(-1), jax.random.key(0)
    hparams = Hparams(**numbers).arrays()
    return Ctx(jnp.int32(0), hparams, key, nobody, nobody, jnp.float32(EXPECTED), hparams.keep_rate)


@pytest.mark.parametrize(("z", "bits", "update"), [(1, 5, 1.005037815), (0.5, 5, 0.500626174), (2, 2.5, 2.182178902)])
def test_the_budget_split_has_the_published_values(z, bits, update):
    """Andrew et al. 2021, section 3: z_u = (z^-2 - (2 sigma_b)^-2)^(-1/2)."""
    ctx = context(noise_multiplier=z, clip_bit_noise=bits)._replace(bounds={"payload": jnp.float32(0.3), BIT: 0.5})
    stds = noise_stds(ctx, bit_share)
    assert float(stds["payload"]) / 0.3 == pytest.approx(update, rel=1e-6)
    assert float(stds[BIT]) == pytest.approx(bits, rel=1e-6)


def test_all_parts_together_are_one_gaussian_mechanism():
    bounds = {"payload": jnp.float32(0.7), "a": jnp.float32(3.0), "b": jnp.float32(0.01)}
    ctx = context(noise_multiplier=1.3)._replace(bounds=bounds)
    for shares in (None, lambda ctx: {"a": jnp.float32(0.25)}):
        stds = noise_stds(ctx, shares)
        joint = sum(float(bounds[name] / stds[name]) ** 2 for name in bounds)
        assert joint == pytest.approx(1 / 1.3**2, rel=1e-5)


def test_the_bit_noise_defaults_to_a_twentieth_of_the_cohort():
    ctx = context(noise_multiplier=1.0)._replace(bounds={"payload": jnp.float32(1.0), BIT: 0.5})
    assert float(noise_stds(ctx, bit_share)[BIT]) == pytest.approx(EXPECTED / 20)


@pytest.mark.parametrize("start", [0.01, 100.0])
def test_the_norm_converges_to_the_quantile_from_both_sides(start):
    """100 clients with norms 0.01 .. 1 and no noise: C settles at the 0.3 quantile, wherever it starts."""
    stage, ctx = adaptive_clip(), context(clip=start, clip_quantile=0.3, clip_rate=0.2)
    norms = jnp.linspace(0.01, 1.0, 100)
    value, _ = stage.init(None, ctx.hparams)

    @jax.jit
    def step(value):
        def one(size):
            payload = {"update": {"w": jnp.zeros(3).at[0].set(size)}, "weight": jnp.float32(1)}
            return stage.encode(None, ctx, payload, value, ())[0]

        total = jax.tree.map(lambda x: x.sum(0), jax.vmap(one)(norms))
        return stage.decode(None, ctx, total, None, value)[1]

    for _ in range(150):
        value = step(value)
    assert float(value) == pytest.approx(0.3, abs=0.02)


def test_a_client_sends_one_centred_bit_and_a_clipped_update():
    stage, ctx = adaptive_clip(), context(clip=2.0)
    for size, bit in [(1.9, 0.5), (2.1, -0.5), (np.nan, 0.0)]:
        payload = {"update": {"w": jnp.array([size, 0.0])}, "weight": jnp.float32(1)}
        sent, _, _ = stage.encode(None, ctx, payload, jnp.float32(2.0), ())
        assert float(sent[BIT]) == bit
        assert float(jnp.linalg.norm(sent["update"]["w"])) <= 2.0 * (1 + 2e-7)


def test_a_loud_client_attains_the_bounds_that_the_noise_is_scaled_to():
    """Neither looser nor tighter, for the update and the bit; C_t is the state, whatever clip_rate will make of it."""
    stage, ctx, now = adaptive_clip(), context(clip=9.0, clip_rate=0.7), jnp.float32(2.0)
    bounds = stage.bound(ctx, now, {"update": jnp.float32(np.inf)})
    payload = {"update": {"w": jnp.full(4, 50.0)}, "weight": jnp.float32(1)}
    sent, _, _ = stage.encode(None, ctx, payload, now, ())
    assert float(jnp.linalg.norm(sent["update"]["w"])) == pytest.approx(float(bounds["payload"]), rel=1e-6)
    assert abs(float(sent[BIT])) == float(bounds[BIT])


def test_the_noise_of_a_round_is_scaled_to_the_norm_of_that_round():
    """The bound comes from the state with which the clients clipped, not from the one that the round leaves."""
    chain = recipes.private_average("adaptive")
    ctx = context(clip=1.0, noise_multiplier=1.0, clip_rate=5.0)
    states, _ = chain.init({"w": jnp.zeros(2)}, ctx.hparams)
    ctx = ctx._replace(bounds=chain.bound(ctx, states, {"update": jnp.inf, "weight": jnp.inf}))
    before = float(chain.noise(ctx, states, jnp.float32(0)))
    total = {"update": {"w": jnp.zeros(2)}, BIT: jnp.float32(-EXPECTED / 2)}
    _, after, info = chain.decode(jax.random.key(1), ctx, total, None, states)
    assert float(info["noise_std"]) / EXPECTED == pytest.approx(before, rel=1e-6)
    assert float(info["clip_bound"]) == 1.0
    assert float(after[1]) > 5.0


def test_too_little_noise_on_the_bits_is_refused():
    round_ = recipes.dp_fedavg(tiny.training(), tiny.sampler(), transform=recipes.private_average("adaptive"))
    params = tiny.model().init(jax.random.key(0))
    numbers = {"sampling_rate": 0.5, "clip": 1.0, "noise_multiplier": 1.0}
    assert round_.claims(Hparams(**numbers, clip_bit_noise=0.6), params).reason is None
    for too_little in (0.5, 0.4):  # nothing left for the update, and less than nothing
        assert "clip_bit_noise" in round_.claims(Hparams(**numbers, clip_bit_noise=too_little), params).reason


def test_layers_are_clipped_on_their_own_to_one_joint_bound():
    update = {"a": {"w": jnp.full(4, 10.0)}, "b": {"w": jnp.full(9, 0.01)}, "c": {"w": jnp.full(2, -3.0)}}
    layers, size, clipped = clip_layers(update, jnp.float32(0.6))
    norms = {name: float(jnp.linalg.norm(layer["w"])) for name, layer in layers.items()}
    assert norms["a"] == pytest.approx(0.6 / 3**0.5)
    assert norms["b"] == pytest.approx(0.03)
    assert norms["c"] == pytest.approx(0.6 / 3**0.5)
    assert sum(n**2 for n in norms.values()) <= 0.36
    assert bool(clipped)
    assert float(size) == pytest.approx((400 + 9e-4 + 18) ** 0.5)


def test_one_broken_layer_silences_the_client():
    update = {"a": {"w": jnp.array([np.nan])}, "b": {"w": jnp.ones(2)}}
    layers, _, _ = clip_layers(update, jnp.float32(1.0))
    assert all(np.all(np.asarray(x) == 0) for x in jax.tree.leaves(layers))


def test_per_layer_clipping_needs_layers():
    payload = {"update": jnp.ones(3), "weight": jnp.float32(1)}
    with pytest.raises(FljaxError, match="dict of layers"):
        clip(per_layer=True).encode(None, context(clip=1.0), payload, (), ())


def test_private_weights_never_exceed_one_and_divide_by_a_constant():
    stage, ctx = bounded_average(cap=20, total_weight=50.0, population=200), context(clip=1.0)
    sent = []
    for examples in (5, 20, 4000):
        payload = {"update": {"w": jnp.ones(2)}, "weight": jnp.float32(examples)}
        sent.append(stage.encode(None, ctx, payload, (), ())[0])
    assert [float(p["update"]["w"][0]) for p in sent] == [0.25, 1.0, 1.0]
    assert all("weight" not in p for p in sent)
    total = jax.tree.map(lambda *xs: sum(xs), *sent)
    released, _, _ = stage.decode(None, ctx, total, None, ())
    np.testing.assert_allclose(released["update"]["w"], 2.25 / (EXPECTED / 200 * 50), rtol=1e-6)
    assert stage.bound(ctx, (), {"payload": 0.5, "weight": jnp.inf}) == {"payload": 0.5}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"server": {"weights": "examples"}}, "weight_cap and total_weight"),
        ({"server": {"weight_cap": 3.0, "total_weight": 5.0}}, "weight_cap and total_weight"),
        (
            {
                "server": {"weights": "examples", "weight_cap": 3.0, "total_weight": 5.0},
                "privacy": {"mechanism": "central_gaussian", "clipping": "adaptive", "clip": 1.0},
            },
            "adaptive",
        ),
    ],
)
def test_contradictory_settings_are_one_line(fields, says):
    with pytest.raises(FljaxError, match=says):
        validate(fields)


def test_the_quantile_is_a_traced_number():
    base = Experiment()
    assert base.replace(**{"privacy.clip_quantile": 0.8}).structure() == base.structure()
    assert base.replace(**{"privacy.clipping": "per_layer"}).structure() != base.structure()


def test_the_count_that_is_released_is_noised():
    """C moves by the noise on the bits alone: its log has the std clip_rate sigma_b / E|cohort|, within 5 errors."""
    chain = recipes.private_average("adaptive")
    ctx = context(clip=1.0, noise_multiplier=1.0, clip_rate=0.2, clip_bit_noise=7.0)
    states, _ = chain.init({"w": jnp.zeros(2)}, ctx.hparams)
    ctx = ctx._replace(bounds=chain.bound(ctx, states, {"update": jnp.inf, "weight": jnp.inf}))
    total = {"update": {"w": jnp.zeros(2)}, BIT: jnp.float32(0.0)}
    keys = jax.random.split(jax.random.key(3), 4000)
    after = jax.jit(jax.vmap(lambda key: chain.decode(key, ctx, total, None, states)[1][1]))(keys)
    assert abs(np.log(after).std() / (0.2 * 7.0 / EXPECTED) - 1) < 5 / np.sqrt(2 * len(keys))  # false alarm 6e-7
