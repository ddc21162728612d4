"""CKKS: the cost and error model against TenSEAL, and the stage that puts it into a round against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from fljax.core.check import FljaxError
from fljax.core.transform import Wire, chain
from fljax.core.types import Ctx, Hparams
from fljax.privacy.clip import clip
from fljax.secure.ckks import MEASURED, Ckks, encrypted_total, open_cipher
from fljax.secure.encrypted import Choice, Selective, encrypted_sum
from fljax.server.average import expected_average, realised_average

KEY = jax.random.key(5)
SHAPES = {"a": (3, 4), "b": (8,)}
P, C = 20, 4
NAMED = ["(8192, (60, 40)) True", "(8192, (60, 40)) False", "(4096, (50, 50)) True"]


def params():
    return {name: jnp.zeros(shape) for name, shape in SHAPES.items()}


def tree_of(vector):
    return ravel_pytree(params())[1](jnp.asarray(vector, jnp.float32))


def context(round=0, **numbers) -> Ctx:
    nobody, h = jnp.int32(-1), Hparams(**numbers).arrays()
    bounds = {"payload": h.clip}
    return Ctx(jnp.int32(round), h, KEY, nobody, nobody, jnp.float32(C), h.keep_rate, None, bounds)


def vector(tree) -> np.ndarray:
    return np.asarray(ravel_pytree(tree)[0], np.float64)


# ---- the scheme ------------------------------------------------------------------------------------------------------


def test_known_answers_of_the_model():
    """Bytes measured with TenSEAL 0.3.18; errors by the formula, whose terms are written out here."""
    s = Ckks().check()
    assert (s.slots, s.ciphertext_bytes, s.blocks(4096), s.blocks(4097)) == (4096, 131_217, 1, 2)
    assert s.ciphertext_bytes / s.slots == pytest.approx(32.0, rel=0.01)  # 8 times float32
    np.testing.assert_allclose(s.error_std, np.sqrt(4096 * (5462.333 + 1) / 12) / 2**40, rtol=1e-4)
    np.testing.assert_allclose(s._replace(public_key=False).error_std, np.sqrt(4096 * 10.3233) / 2**40, rtol=1e-4)
    assert Ckks(16384, (55, 45)).ciphertext_bytes == 2 * 8 * 16384 + 145  # not measured: as it is without compression
    assert s.largest == 2.0**19


@pytest.mark.parametrize("name", NAMED)
def test_the_model_is_what_tenseal_does(name):
    """Bytes within 1 %, error within 15 %, of a sum of ten."""
    pytest.importorskip("tenseal", reason="needs fljax[he]")
    known = {f"{key} {public}": (*key, public) for key in MEASURED for public in (True, False)}
    degree, bits, public = known[name]
    scheme = Ckks(degree, bits, 40 if 60 in bits else 30, public)
    rows = 0.05 * np.random.default_rng(0).normal(size=(10, scheme.slots))
    summed = encrypted_total(open_cipher(scheme), scheme, rows)
    error = summed.total - rows.sum(axis=0)
    assert summed.ciphertext_bytes == pytest.approx(scheme.ciphertext_bytes, rel=0.01)
    assert error.std() == pytest.approx(10**0.5 * scheme.error_std, rel=0.15)
    assert scheme.scale_bits < 40 or np.abs(error).max() < 1e-6
    assert summed.encrypt_ms > 0 and summed.decrypt_ms > 0


def test_several_blocks_are_put_together_in_order():
    pytest.importorskip("tenseal", reason="needs fljax[he]")
    scheme, rows = Ckks(4096, (60, 40)), np.arange(2 * 5000, dtype=float).reshape(2, 5000) / 1e4
    summed = encrypted_total(open_cipher(scheme), scheme, rows)
    np.testing.assert_allclose(summed.total, rows[0] + rows[1], atol=1e-7)


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        (Ckks(2048), "4096, 8192, 16384"),
        (Ckks(4096, (60, 60)), "at most 109"),
        (Ckks(8192, (60,)), "primes of 20 to 60"),
        (Ckks(8192, (60, 40), 57), "scale_bits=57"),
    ],
)
def test_parameters_that_are_not_secure_or_leave_no_room_are_refused(scheme, message):
    with pytest.raises(FljaxError, match=message):
        scheme.check()


def test_a_message_that_cannot_be_counted_is_refused():
    with pytest.raises(FljaxError, match="10000000 parameters"):
        encrypted_sum(chain(), Ckks(), 10_000_000)


# ---- the stage -------------------------------------------------------------------------------------------------------


def test_the_error_is_on_encrypted_numbers_alone_with_the_stated_spread():
    """A scheme with an error of 1 a client: of 4 clients std 2, over 2000 draws of 20 numbers; false alarm < 1e-9."""
    loud = Ckks(4096, (60, 40), 10)
    stage = encrypted_sum(chain(), loud, P, Selective(0.3, warmup=0))
    state = stage.init(params(), Hparams())[0]
    mask = vector(state[1].mask)
    assert mask.sum() == 6 and (mask[:6] == 1).all(), "before anything is known: the first coordinates"
    total = {"update": tree_of(np.arange(P)), "weight": jnp.float32(7.0)}

    def one(key):
        released, *_ = stage.decode(key, context(), total, jnp.ones(C, bool), state)
        return ravel_pytree(released["update"])[0], released["weight"]

    updates, weights = jax.jit(jax.vmap(one))(jax.random.split(KEY, 2000))
    error = np.asarray(updates, np.float64) - np.arange(P)
    assert np.all(error[:, mask == 0] == 0)
    std = 2 * loud.error_std
    np.testing.assert_allclose(error[:, mask == 1].std(), std, rtol=6.5 / np.sqrt(2 * 12_000))
    np.testing.assert_allclose(np.std(np.asarray(weights, np.float64)), std, rtol=6.5 / np.sqrt(2 * 2000))
    assert abs(error[:, mask == 1].mean()) < 6.5 * std / np.sqrt(12_000)


def test_in_exact_mode_nothing_is_added():
    stage = encrypted_sum(chain(), Ckks(), P, exact=True)
    total = {"update": tree_of(np.arange(P))}
    released, *_ = stage.decode(KEY, context(), total, jnp.ones(C, bool), stage.init(params(), Hparams())[0])
    np.testing.assert_array_equal(vector(released["update"]), np.arange(P))


def test_the_most_energetic_released_coordinates_are_encrypted_next():
    """Against NumPy in float64: the moving average of the squared release, over three rounds."""
    stage = encrypted_sum(chain(expected_average()), Ckks(), P, Selective(0.25, warmup=1, decay=0.8), exact=True)
    state, rng = stage.init(params(), Hparams())[0], np.random.default_rng(2)
    mean, weight = np.zeros(P), 0.0
    for t in range(3):
        sent = rng.normal(size=P)
        total = {"update": tree_of(sent)}
        released, state, info = stage.decode(KEY, context(t), total, jnp.ones(C, bool), state)
        mean, weight = mean + 0.2 * ((sent / C) ** 2 - mean), weight + 0.2 * (1 - weight)
        assert float(info["encrypted_share"]) == (1.0 if t == 0 else 0.25)
        best = np.argsort(-mean / weight, kind="stable")[:5]
        np.testing.assert_array_equal(np.flatnonzero(vector(state[1].mask)), np.sort(best))
        np.testing.assert_allclose(vector(state[1].mean), mean, rtol=1e-5, atol=1e-9)
        np.testing.assert_allclose(vector(released["update"]), sent / C, rtol=1e-6)


def test_dropped_coordinates_are_not_sent_and_keep_their_rank():
    stage = encrypted_sum(chain(expected_average()), Ckks(), P, Selective(0.25, "dropped", 0), exact=True)
    energy = np.arange(P, dtype=float)
    mask = (np.arange(P) >= 15).astype(float)
    state = ((),), Choice(tree_of(energy), tree_of(np.ones(P)), tree_of(mask))
    payload, *_ = stage.encode(KEY, context(3), {"update": tree_of(np.ones(P)), "weight": jnp.float32(1)}, state, ((),))
    np.testing.assert_array_equal(vector(payload["update"]), mask)
    _, (_, choice), _ = stage.decode(KEY, context(3), payload, jnp.ones(C, bool), state)
    np.testing.assert_allclose(vector(choice.mean)[:15], energy[:15])  # not observed
    np.testing.assert_allclose(vector(choice.mean)[15:], 0.9 * energy[15:] + 0.1 / C**2, rtol=1e-6)


@pytest.mark.parametrize(("round", "hidden"), [(0, 20), (5, 6)])
@pytest.mark.parametrize("rest", ["plain", "dropped"])
def test_bytes_are_those_of_ciphertexts_beside_the_rest(round, hidden, rest):
    scheme = Ckks()._replace(degree=4096)
    stage = encrypted_sum(realised_average(), scheme, P, Selective(0.3, rest, 1))
    wires = {"update": Wire(jnp.int32(P), jnp.int32(32), jnp.int32(0)), "weight": Wire(jnp.int32(1), 32, 0)}
    out = stage.wire(context(round), wires)
    total = sum(int(-(-(w.values * w.bits + w.extra) // 8)) for w in out.values())
    assert total == MEASURED[4096, (60, 40)] + (4 * (P - hidden) if rest == "plain" else 0)
    assert int(out["update"].values) == (P if rest == "plain" else hidden)


def test_many_parameters_need_their_blocks():
    stage = encrypted_sum(realised_average(), Ckks(), 8192)
    wires = {"update": Wire(jnp.int32(8192), jnp.int32(32), jnp.int32(0)), "weight": Wire(jnp.int32(1), 32, 0)}
    out = stage.wire(context(), wires)
    assert sum(int(w.values * w.bits + w.extra) for w in out.values()) == 8 * 3 * 131_217  # the weight needs a third


# ---- shares of noise for what is encrypted, all of it for what is not ------------------------------------------------


@pytest.fixture(scope="module")
def noisy():
    """z = 0.5, S = 2, three of four clients at the least."""
    stage = encrypted_sum(chain(expected_average(), clip()), Ckks(), P, Selective(0.3, warmup=0), least=3, exact=True)
    return stage, stage.init(params(), Hparams())


NUMBERS = {"clip": 2.0, "noise_multiplier": 0.5}


def test_each_client_adds_all_of_the_noise_in_clear_and_a_share_where_it_encrypts(noisy):
    """std 1 in clear, 1 / sqrt(3) encrypted, over 2000 draws; false alarm < 1e-9."""
    stage, (state, own) = noisy
    payload = {"update": tree_of(np.zeros(P)), "weight": jnp.float32(1)}

    def one(key):
        return ravel_pytree(stage.encode(key, context(**NUMBERS), payload, state, own)[0]["update"])[0]

    draws = np.asarray(jax.jit(jax.vmap(one))(jax.random.split(KEY, 2000)), np.float64)
    for columns, std in ((slice(0, 6), 3**-0.5), (slice(6, P), 1.0)):
        part = draws[:, columns]
        np.testing.assert_allclose(part.std(), std, rtol=6.5 / np.sqrt(2 * part.size))
    corr = np.corrcoef(draws.T) - np.eye(P)
    assert np.abs(corr).max() < 7 / np.sqrt(2000)


def test_with_fewer_than_the_least_the_round_releases_zeros(noisy):
    stage, (state, _) = noisy
    for alive, aborted in (([1, 1, 1, 0], 0.0), ([1, 1, 0, 0], 1.0)):
        total = {"update": tree_of(np.ones(P))}
        released, _, info = stage.decode(KEY, context(**NUMBERS), total, jnp.array(alive, bool), state)
        np.testing.assert_allclose(vector(released["update"]), (1 - aborted) / C)
        assert float(info["noise_aborted"]) == aborted


def test_the_claim_is_that_of_local_noise(noisy):
    stage, _ = noisy
    claim = stage.claim(Hparams(**NUMBERS))
    assert claim.reason is None and claim.noise is not None
    assert (claim.noise.kind, claim.noise.trust, claim.noise.multiplier) == ("gaussian", "local", 0.5)
    assert stage.always, "the noise of a client whose update failed must not be missing"
    quiet = encrypted_sum(chain(expected_average(), clip()), Ckks(), P)
    assert quiet.claim(Hparams(**NUMBERS)).noise is None and not quiet.always


def test_noise_and_bound_fold_through_the_chain(noisy):
    stage, (state, _) = noisy
    ctx = context(**NUMBERS)
    assert float(stage.noise(ctx, state, jnp.float32(0.0))) == pytest.approx(np.sqrt(C) * 1.0 / C)
    bounds = stage.bound(ctx, state, {"update": jnp.float32(np.inf), "weight": jnp.float32(np.inf)})
    assert {n: float(b) for n, b in bounds.items()} == {"payload": 2.0}


def test_local_noise_refuses_further_parts():
    stage = encrypted_sum(realised_average(), Ckks(), P, Selective(0.5), least=2)
    state, own = stage.init(params(), Hparams())
    with pytest.raises(FljaxError, match="weight"):
        stage.encode(KEY, context(), {"update": tree_of(np.ones(P)), "weight": jnp.float32(1)}, state, own)
