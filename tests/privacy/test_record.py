"""Record level: the sum of clipped gradients, its noise, and what a client's steps are worth."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import private_rounds as tiny
import pytest

from fljax.config import validate
from fljax.core.check import FljaxError
from fljax.core.transform import Noise
from fljax.core.types import Hparams, SamplingLaw
from fljax.data.federated import Batch, Dataset, Examples, FederatedData
from fljax.privacy.mechanisms import make_event
from fljax.privacy.record import EVERY_TURN, private_gradient, smallest_client, state_record_privacy, with_size
from fljax.sim.build import build, calibrated, resolve

S, Z, SIZE = 0.3, 1.7, 5
KEY = jax.random.key(4)
CLAIM = Noise("gaussian", 1.5, "record", (("batch", 8.0), ("steps", 4.0), ("capacity", 39.0)))


# ---- the step --------------------------------------------------------------------------------------------------------


def loss(params, x, y, key):
    del key
    return tiny.training().loss.per_example(tiny.model().apply(params, x, None), y)[0]


@cache
def step():
    pytest.importorskip("jax_privacy")
    return jax.jit(lambda *args: private_gradient(KEY, loss, *args))


def params():
    shapes = tiny.model().shapes()
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), jnp.float32), shapes)


ONES = jax.tree.map(lambda s: jnp.ones(s.shape), tiny.model().shapes())


def batch(**changes) -> Batch:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(SIZE, tiny.FEATURES)).astype(np.float32)
    x[0] *= 1e-2
    y = rng.integers(0, tiny.CLASSES, SIZE).astype(np.int32)
    parts = {"x": x, "y": y, "mask": np.array([1, 1, 1, 0, 1], np.float32)} | changes
    return Batch(*(jnp.asarray(parts[name]) for name in ("x", "y", "mask")))


def gradients(of: Batch, mask=ONES) -> np.ndarray:
    """[B, P] float64, one example after the other."""
    one = jax.jit(jax.grad(loss))
    rows = [one(params(), of.x[i : i + 1], of.y[i : i + 1], None) for i in range(SIZE)]
    return np.stack([tiny.flat(jax.tree.map(jnp.multiply, row, mask)) for row in rows])


def summed(of: Batch, clip=S, mask=ONES) -> np.ndarray:
    return tiny.flat(step()(params(), of, jnp.float32(clip), jnp.float32(0.0), mask)[0])


def clipped(rows, clip=S):
    return rows * np.minimum(1.0, clip / np.linalg.norm(rows, axis=1, keepdims=True))


def test_every_example_is_clipped_on_its_own():
    """Against a loop in float64: some gradients are below S and stay, one slot is padding."""
    rows = gradients(batch())
    norms = np.linalg.norm(rows, axis=1)
    clip = float(np.median(norms))
    np.testing.assert_allclose(summed(batch(), clip), clipped(rows, clip)[[0, 1, 2, 4]].sum(0), atol=1e-6)
    np.testing.assert_allclose(summed(batch(), np.inf), rows[[0, 1, 2, 4]].sum(0), atol=1e-5)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_one_example_moves_the_sum_by_at_most_the_clip(scale):
    """Present or absent, whatever it is."""
    x = np.array(batch().x)
    x[2] *= scale
    present, absent = batch(x=x), batch(x=x, mask=np.array([1, 1, 0, 0, 1], np.float32))
    moved = np.linalg.norm(summed(present) - summed(absent))
    assert moved <= S * (1 + 1e-5)
    assert scale < 1 or moved > 0.99 * S


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_an_example_that_is_not_finite_counts_as_absent(bad):
    x = np.array(batch().x)
    x[1, 2] = bad
    without = batch(mask=np.array([1, 0, 1, 0, 1], np.float32))
    np.testing.assert_array_equal(summed(batch(x=x)), summed(without))


def test_a_gradient_that_is_finite_in_part_counts_as_zero_as_a_whole():
    """[nan, 1, 2] is not [0, 1, 2]."""
    pytest.importorskip("jax_privacy")
    x = jnp.array([[np.nan, 1.0, 2.0], [0.1, 0.0, 0.0]])
    of = Batch(x, jnp.zeros((2, 1)), jnp.ones(2))
    start = {"a": jnp.zeros(3)}
    total, _ = private_gradient(KEY, lambda p, x, y, k: jnp.sum(p["a"] * x[0]), start, of, 1.0, jnp.float32(0.0))
    np.testing.assert_allclose(total["a"], [0.1, 0.0, 0.0], rtol=1e-6)


def test_what_is_in_padding_does_not_matter():
    x = np.array(batch().x)
    x[3] = np.nan
    np.testing.assert_array_equal(summed(batch(x=x)), summed(batch()))


def test_a_mask_is_applied_before_the_clip_and_to_the_noise():
    mask = jax.tree.map(lambda x: jnp.asarray(np.arange(x.size).reshape(x.shape) % 2, jnp.float32), ONES)
    rows = gradients(batch(), mask)
    np.testing.assert_allclose(summed(batch(), S, mask), clipped(rows)[[0, 1, 2, 4]].sum(0), atol=1e-6)
    noisy = tiny.flat(step()(params(), batch(), jnp.float32(S), jnp.float32(Z), mask)[0])
    assert np.all(noisy[tiny.flat(mask) == 0] == 0) and np.all(noisy[tiny.flat(mask) == 1] != 0)


def test_noise_has_the_standard_deviation_z_times_s():
    """50 parameters x 400 keys, within 5 standard errors: false alarm 6e-7. It is the same with and without data."""
    pytest.importorskip("jax_privacy")
    empty = batch(mask=np.zeros(SIZE, np.float32))

    def one(key, of):
        return private_gradient(key, loss, params(), of, jnp.float32(S), jnp.float32(Z))[0]

    keys = jax.random.split(KEY, 400)
    run = jax.jit(lambda of: jax.vmap(lambda k: one(k, of))(keys))
    noise = np.concatenate([np.asarray(x, np.float64).reshape(400, -1) for x in jax.tree.leaves(run(empty))], axis=1)
    for leaf in (noise[:, :3], noise[:, 10:], noise):
        assert abs(leaf.std() / (Z * S) - 1) < 5 / np.sqrt(2 * leaf.size)
    assert np.abs(np.corrcoef(noise.T) - np.eye(noise.shape[1])).max() < 6.5 / np.sqrt(400)  # leaves, coordinates
    full = np.concatenate([np.asarray(x, np.float64).reshape(400, -1) for x in jax.tree.leaves(run(batch()))], axis=1)
    np.testing.assert_allclose(full - noise, np.broadcast_to(summed(batch()), full.shape), atol=2e-6)


# ---- events ----------------------------------------------------------------------------------------------------------


def claim(z, batch, steps, capacity):
    return Noise("gaussian", z, "record", (("batch", batch), ("steps", steps), ("capacity", capacity)))


def pld(event, delta):
    import dp_accounting as dp

    accountant = dp.pld.PLDAccountant(dp.NeighboringRelation.ADD_OR_REMOVE_ONE, 1e-4)
    return accountant.compose(event).get_epsilon(delta)


def poisson_event(rate, z, steps):
    import dp_accounting as dp

    return dp.SelfComposedDpEvent(dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(z)), steps)


def test_epsilon_of_one_client_is_that_of_the_literature():
    """q = 0.01, z = 2, 10,000 steps: 2.162774; ten examples in batches of sixteen: Gaussian, analytic 4.377178."""
    event = make_event(EVERY_TURN, with_size(claim(2.0, 100.0, 20.0, 188.0), 10_000), 500)
    assert (event.rounds, event.rate, event.truncation) == (10_000, 0.01, (10_000, 188))
    np.testing.assert_allclose(pld(event.dp_event, 1e-5), 2.162774, rtol=1e-4)
    event = make_event(EVERY_TURN, with_size(claim(10.0, 16.0, 10.0, 56.0), 10), 10)
    assert (event.rounds, event.rate, event.truncation) == (100, 1.0, None)
    np.testing.assert_allclose(pld(event.dp_event, 1e-5), 4.377178, rtol=1e-4)
    assert (event.unit, event.trust, event.relation) == ("example", "record", "add_or_remove_one")


SIZES = [5, 8, 12, 20, 20, 0, 30, 200]
LAW = SamplingLaw("fixed_size", 0.5, len(SIZES))


@cache
def stated():
    return state_record_privacy(LAW, CLAIM, 10, 1e-3, SIZES)


def test_the_statement_is_that_of_the_worst_client_and_no_quantile_is_below_the_truth():
    """Every client by dp_accounting itself, without the cut of large batches: 40 steps at its own rate."""
    said = stated()
    truth = np.sort([pld(poisson_event(min(1.0, 8 / n), 1.5, 40), 1e-3) for n in SIZES if n])
    np.testing.assert_allclose(said.epsilon, truth[-1], rtol=1e-4)
    assert said.distribution["max"] == said.epsilon
    np.testing.assert_allclose(said.distribution["min"], truth[0], rtol=1e-3)
    shares = {"q25": 0.25, "median": 0.5, "q75": 0.75, "q90": 0.9}
    for name, share in shares.items():
        assert said.distribution[name] >= np.quantile(truth, share) * (1 - 1e-4)
        assert np.any(np.isclose(said.distribution[name], truth, rtol=1e-3))


def test_the_statement_says_what_it_is_about():
    said = stated()
    assert (said.status, said.unit, said.trust, said.population) == ("valid", "example", "record", len(SIZES))
    assert "10 turns of 4 local steps, Poisson batches of 8 out of 5 examples" in said.sampler
    assert "against the server" in said.sampler
    assert any("public" in c for c in said.caveats) and any("least protection" in c for c in said.caveats)
    assert "per example" in said.sentence()


def test_participations_are_those_that_the_server_sees():
    """A cyclic order bounds them by its turns; Poisson cohorts do not amplify against the server."""
    cyclic = state_record_privacy(SamplingLaw("cyclic", 0.5, 8), CLAIM, 10, 1e-3, [5])
    assert "5 turns" in cyclic.sampler and cyclic.epsilon < stated().epsilon
    poisson = state_record_privacy(SamplingLaw("truncated_poisson", 0.01, 8, 3), CLAIM, 10, 1e-3, [5])
    assert poisson.epsilon == stated().epsilon


def test_delta_has_to_protect_the_largest_client():
    said = state_record_privacy(LAW, CLAIM, 10, None, [5, 30])
    np.testing.assert_allclose(said.delta, 35**-1.1, rtol=1e-12)
    assert any("No delta was given" in c for c in said.caveats)
    refused = state_record_privacy(LAW, CLAIM, 10, 1 / 30, [5, 30])
    assert (refused.status, refused.epsilon) == ("refused", None) and "1/30" in refused.reason
    assert state_record_privacy(LAW, CLAIM, 10, 0.033, [5, 30]).status == "valid"
    nobody = state_record_privacy(LAW, CLAIM, 10, 1e-3, [0, 0])
    assert nobody.status == "refused" and "examples" in nobody.reason


def test_without_noise_or_with_a_reason_there_is_no_epsilon():
    none = state_record_privacy(LAW, CLAIM._replace(multiplier=0.0), 10, 1e-3, SIZES)
    assert (none.status, none.epsilon, none.unit) == ("none", None, "example")
    refused = state_record_privacy(LAW, CLAIM, 10, 1e-3, SIZES, ["because"])
    assert (refused.status, refused.reason, refused.unit) == ("refused", "because", "example")
    little = state_record_privacy(LAW, CLAIM._replace(multiplier=1e-4), 10, 1e-3, SIZES)
    assert little.status == "refused" and "more noise" in little.reason


def test_the_question_of_the_smallest_client():
    law, noise, delta = smallest_client(LAW, CLAIM, None, SIZES)
    assert noise == with_size(CLAIM, 5) == with_size(with_size(CLAIM, 7), 5) and law.population is None
    np.testing.assert_allclose(delta, sum(SIZES) ** -1.1)


# ---- experiments -----------------------------------------------------------------------------------------------------

TREE = {
    "rounds": 6,
    "model": {"name": "mlp", "hidden": [3]},
    "client": {"steps": 3, "batch_size": 8},
    "server": {"denominator": "realised", "weights": "examples"},
    "sampler": {"kind": "fixed_size", "cohort": 2},
    "privacy": {"mechanism": "record_gaussian", "epsilon": 3.0, "clip": 1.0, "delta": 1e-3},
}


@cache
def program():
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(4), [12, 20, 30, 40])
    x, y = rng.normal(size=(len(owner), 4)).astype(np.float32), rng.integers(0, 3, len(owner))
    train = FederatedData.from_ids(x, y, owner)
    data = Dataset("random", "classification", train, Examples(jnp.asarray(x[:8]), jnp.asarray(y[:8])), 3, (4,))
    return build(validate(TREE), data)


def test_an_experiment_is_calibrated_for_its_smallest_client_and_says_so():
    hparams, said = resolve(validate(TREE), program())
    assert 2.9 < said.epsilon <= 3.0 and said.noise_multiplier == hparams.noise_multiplier
    assert "out of 12 examples" in said.sampler and said.distribution["min"] < said.distribution["max"] <= 3.0
    truth = pld(poisson_event(8 / 12, hparams.noise_multiplier, 18), 1e-3)
    np.testing.assert_allclose(said.epsilon, truth, rtol=1e-4)


def test_a_budget_stops_the_run_at_the_smallest_clients_epsilon():
    z = calibrated([validate(TREE)], program())[0]
    tree = TREE | {"rounds": 50, "privacy": {**TREE["privacy"], "epsilon": None, "noise_multiplier": z, "budget": 3.0}}
    said = resolve(validate(tree), program())[1]
    assert said.rounds == 6 and said.epsilon <= 3.0


def test_the_claim_of_the_round_is_the_clients_alone():
    claimed = program().round.claims(Hparams(noise_multiplier=1.5, clip=1.0), program().params(0))
    assert claimed.reason is None and claimed.noise.trust == "record"
    assert dict(claimed.noise.detail) == {"batch": 8.0, "steps": 3.0, "capacity": 39.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"client": {"epochs": 1, "batch_size": 8}}, "Set client.steps"),
        ({"client": {"steps": 3}}, "Set client.batch_size"),
        ({"client": {"steps": 3, "batch_size": 8, "algorithm": "scaffold"}}, 'client.algorithm = "fedavg"'),
        ({"privacy": {"mechanism": "record_gaussian", "epsilon": 3.0}}, "finite clip"),
    ],
)
def test_experiments_that_cannot_be_promised_are_refused(change, message):
    with pytest.raises(FljaxError, match=message):
        build(validate(TREE | change), program().dataset)
