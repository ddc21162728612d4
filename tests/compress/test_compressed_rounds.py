"""Compression in whole rounds: against an oracle, in bytes, under a clip and noise, and by name in an experiment."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import private_rounds as tiny
import pytest
from uploads import best

from fljax import recipes
from fljax.compress.feedback import error_feedback
from fljax.compress.quantise import quantise
from fljax.compress.sparsify import kept_count, top_k
from fljax.config import Experiment
from fljax.core.check import FljaxError
from fljax.core.transform import Noise, Wire, chain
from fljax.core.types import Ctx
from fljax.privacy.clip import clip
from fljax.privacy.noise import central_gaussian
from fljax.privacy.validity import judge
from fljax.server.average import expected_average
from fljax.server.round import make_round
from fljax.sim.mechanisms import make_transform

KEY = jax.random.key(0)
P = tiny.model().num_params()
LEAVES = len(jax.tree.leaves(tiny.model().shapes()))
RATE = 0.1
K = int(kept_count(jnp.float32(RATE), P))


def numbers(**changes):
    plain = {"clip": np.inf, "noise_multiplier": 0.0, "keep_rate": 1.0, "explore": 0.0, "compress_rate": RATE}
    return tiny.Hparams(**{**vars(tiny.HPARAMS), **plain, **changes}).arrays()


@cache
def made(name: str):
    """A round, compiled: (round, step, transcript)."""
    sampler, training = tiny.sampler(), tiny.training()
    local = recipes.fedavg_update(training)
    compress = error_feedback(chain(top_k(), quantise(4, LEAVES)))
    private = {"private": [compress, clip()], "right of the clip": [clip(), compress]}
    rounds = {
        "fedavg": lambda: recipes.fedavg(training, sampler),
        "topk": lambda: recipes.topk_fedavg(training, sampler),
        "fed_smp": lambda: recipes.fed_smp(training, sampler),
    }
    if name in rounds:
        round_ = rounds[name]()
    else:
        stages = chain(*private[name], expected_average(), central_gaussian())
        round_ = make_round(sampler=sampler, local=local, transform=stages)
    return round_, jax.jit(round_.step), jax.jit(round_.transcript)


def start(name: str, h):
    return made(name)[0].init(jax.random.key(1), tiny.model().init(jax.random.key(2)), h)


def vectors(tree) -> np.ndarray:
    """Leaves [C, ...] -> [C, P] in float64."""
    return np.concatenate([np.asarray(x, np.float64).reshape(len(x), -1) for x in jax.tree.leaves(tree)], axis=1)


def test_three_rounds_of_top_k_with_feedback_by_hand():
    """Updates come from the uncompressed round; choice, residuals, weights and average are NumPy's.

    Who does not answer neither sends nor loses its residual.
    """
    h, data = numbers(), tiny.pack(tiny.clients())
    _, step, _ = made("topk")
    _, _, plain = made("fedavg")
    state, owed, absent = start("topk", h), np.zeros((tiny.POPULATION, P)), 0
    for t in range(3):
        weightless = start("fedavg", h)._replace(params=state.params)
        seen = jax.device_get(plain(jnp.int32(t), KEY, weightless, data, h))
        before = tiny.flat(state.params)
        state, info = step(jnp.int32(t), KEY, state, data, h)
        total, weight = np.zeros(P), 0.0
        payloads = vectors(seen.payloads["update"])
        for slot, client in enumerate(seen.cohort.ids):
            if not seen.alive[slot]:
                absent += 1
                continue
            n = float(seen.payloads["weight"][slot])
            owed[client] += payloads[slot] / n
            sent = np.where(best(owed[client], K), owed[client], 0.0)
            owed[client] -= sent
            total, weight = total + n * sent, weight + n
        np.testing.assert_allclose(tiny.flat(state.params), before + total / weight, atol=2e-6)
        residual = state.clients[1][0][0]
        np.testing.assert_allclose(vectors(residual), owed, atol=2e-5)
        assert int(info.participants) == seen.alive.sum()
    assert absent > 0 and np.any(owed), "everybody answered: nothing was shown about those who do not"


def test_bytes_of_a_round_are_those_of_its_messages():
    """Each participant sends k floats, their positions, and its weight."""
    h = numbers()
    _, info = made("topk")[1](jnp.int32(0), KEY, start("topk", h), tiny.pack(tiny.clients()), h)
    message = 4 * K + -(-min(P, K * (P - 1).bit_length()) // 8)
    assert int(info.uplink.kib) * 1024 + int(info.uplink.rest) == int(info.answered) * (message + 4) > 0


# ---- privacy --------------------------------------------------------------------------------------------------------

NOTHING = (np.zeros((0, tiny.FEATURES)), np.zeros(0, int))
PRIVATE = {"clip": 0.37, "noise_multiplier": 1.7, "sampling_rate": 1.0}


def replay(name, pairs, owed: float):
    """The transcript of a round in which client 1 owes a residual of that size."""
    h = numbers(**PRIVATE)
    state = start(name, h)
    own, (sending, *rest) = state.clients[0], state.clients[1]
    residual, inner = sending
    rng = np.random.default_rng(3)
    residual = jax.tree.map(lambda r: r.at[1].set(owed * rng.normal(size=r.shape[1:]).astype(np.float32)), residual)
    state = state._replace(clients=(own, ((residual, inner), *rest), *state.clients[2:]))
    return jax.device_get(made(name)[2](jnp.int32(3), KEY, state, tiny.pack(pairs), h))


@pytest.mark.parametrize("owed", [0.0, 1.0, 1e4, 1e25])
@pytest.mark.parametrize("bad", [None, np.nan, 1e4])
def test_one_client_with_any_residual_moves_the_sum_by_at_most_the_clip(owed, bad):
    """Compared with a client that never was: no data, no residual. Private positions change, the bound does not."""
    pairs = tiny.clients()
    x, y = pairs[1]
    x = x if bad is None else np.full_like(x, bad) * np.sign(x)
    a = replay("private", tiny.swap(pairs, 1, x, y), owed)
    b = replay("private", tiny.swap(pairs, 1, *NOTHING), 0.0)
    moved = np.linalg.norm(tiny.flat(a.pre_noise) - tiny.flat(b.pre_noise))
    bound = float(a.public["bound"])
    assert bound == np.float32(0.37) and tiny.same_bits(a.public, b.public)
    assert moved <= bound * (1 + 1e-5)
    if owed == 1e4 and bad is None:
        assert moved > 0.99 * bound, "a bound that is never attained shows nothing"
    np.testing.assert_allclose(float(a.public["noise_std"] * a.public["expected"]), 1.7 * bound, rtol=1e-6)
    assert np.all(tiny.flat(a.released) != 0), "the noise covers all coordinates"


def test_claims():
    """Noise on all coordinates covers private positions; not without a clip behind."""
    h, params = tiny.Hparams(**{**vars(tiny.HPARAMS), "compress_rate": RATE}), tiny.model().init(KEY)
    claim = made("private")[0].claims(h, params)
    assert (claim.noise, claim.reason, claim.values_only) == (Noise("gaussian", 1.7), None, None)
    assert judge("central", "exact", "dense").reason is None
    assert made("fed_smp")[0].claims(h, params).reason is None
    refused = made("right of the clip")[0].claims(h, params)
    assert "nothing bounds" in (refused.reason or "")


def test_fed_smp_releases_noise_on_the_shared_positions_alone():
    h = numbers(**PRIVATE)
    seen = jax.device_get(made("fed_smp")[2](jnp.int32(3), KEY, start("fed_smp", h), tiny.pack(tiny.clients()), h))
    released, sent = tiny.flat(seen.released["update"]), vectors(seen.payloads["update"])
    assert np.sum(released != 0) == K and not np.any(sent[:, released == 0])
    norms = np.linalg.norm(sent, axis=1)
    assert norms.max() <= 0.37 * (1 + 1e-6) and float(seen.public["bound"]) == np.float32(0.37)
    noise = released * float(seen.public["expected"]) - sent.sum(0)
    assert 0.1 * 1.7 * 0.37 < np.linalg.norm(noise) / np.sqrt(K) < 4 * 1.7 * 0.37  # fixed seed


# ---- by name --------------------------------------------------------------------------------------------------------

NOISE = {"privacy.mechanism": "central_gaussian", "privacy.noise_multiplier": 1.0, "privacy.clip": 1.0}


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({"compress.sparsify": "topk"}, (32, "listed")),
        ({"compress.sparsify": "topk", "compress.error_feedback": True, **NOISE}, (32, "listed")),
        ({"compress.sparsify": "randk", **NOISE}, (32, "public")),
        ({"compress.quantise": "stochastic", "compress.bits": 5}, (5, "all")),
        ({"compress.quantise": "sign", "compress.error_feedback": True}, (1, "all")),
        ({"compress.sparsify": "topk", "compress.quantise": "sign", "compress.error_feedback": True}, (1, "listed")),
    ],
)
def test_an_experiment_names_its_stages(fields, parts):
    """What the chain writes, and that its bound is the clip where there is one."""
    sparse = "compress.sparsify" in fields
    experiment = Experiment().replace(**fields, **({"compress.keep": RATE} if sparse else {}))
    transform = make_transform(experiment, tiny.sampler(), P, LEAVES)
    h = experiment.hparams().arrays()
    assert float(h.compress_rate) == np.float32(RATE if sparse else 1.0)
    state, _ = transform.init(tiny.model().init(KEY), h)
    ctx = context_of(h)
    bits, positions = parts
    wire = transform.wire(ctx, {"update": Wire(jnp.int32(P), jnp.int32(32), jnp.int32(0))})["update"]
    listed = min(P, K * (P - 1).bit_length()) if positions == "listed" else 0
    assert [int(x) for x in wire] == [K if sparse else P, bits, listed + (32 * LEAVES if bits < 32 else 0)]
    bounds = transform.bound(ctx, state, {"update": jnp.float32(np.inf), "weight": jnp.float32(np.inf)})
    if "privacy.clip" in fields:
        assert {n: float(b) for n, b in bounds.items()} == {"payload": 1.0}
    else:
        assert float(bounds["update"]) == np.inf


def context_of(h):
    nobody, one = jnp.int32(-1), jnp.float32(1.0)
    return Ctx(jnp.int32(0), h, KEY, nobody, nobody, one, one)


def test_a_sweep_over_the_share_is_one_program_and_the_method_is_not():
    base = Experiment().replace(**{"compress.sparsify": "topk"})
    assert base.replace(**{"compress.keep": 0.1}).structure() == base.replace(**{"compress.keep": 0.2}).structure()
    assert base.structure() != base.replace(**{"compress.error_feedback": True}).structure()


@pytest.mark.parametrize(
    "fields",
    [
        {"compress.keep": 0.5},
        {"compress.error_feedback": True},
        {"compress.sparsify": "topk", "compress.keep": 0.0},
        {"compress.quantise": "stochastic", "compress.bits": 1},
        {"compress.sparsify": "topk", **NOISE, "privacy.mechanism": "local_gaussian"},
        {"compress.quantise": "sign", **NOISE, "privacy.mechanism": "distributed_skellam"},
        {"compress.sparsify": "topk", "dropout.source": "random", "dropout.keep_rate": 0.5},
        {"compress.quantise": "sign", "dropout.source": "random", "dropout.keep_rate": 0.5},
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(fields):
    with pytest.raises(FljaxError, match=r"^[^\n]*compress[^\n]*$|^[^\n]*keep < 1[^\n]*$|^[^\n]*error_feedback[^\n]*$"):
        Experiment().replace(**fields)


def test_quantisation_goes_with_dropout():
    fields = {"compress.quantise": "stochastic", "dropout.source": "random", "dropout.keep_rate": 0.5}
    assert Experiment().replace(**fields).compress.with_masks
