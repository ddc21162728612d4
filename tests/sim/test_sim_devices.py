"""Simulated time and arithmetic, by hand: two classes of devices, their bytes, their operations, their keep rates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_run

from fljax.core.check import FljaxError
from fljax.core.keys import stream
from fljax.sections import ClientConfig
from fljax.sim.devices import GRID, Load, Speed, local_examples, rates_from_resources, tier_rates
from fljax.sim.run import run
from fljax.sweep.record import record_run
from fljax.sweep.store import open_results

FAST, SLOW = Speed(10.0, 20.0, 1e-3), Speed(1.0, 4.0, 2e-4)
DEVICES = {f"devices.{name}": [getattr(FAST, name), getattr(SLOW, name)] for name in Speed._fields}
ROUNDS, HIDDEN, INPUTS, CLASSES = 8, 4, 4, 3


def tiered(**fields):
    """Two classes, half and half; of four neurons the fast one keeps three quarters, the slow one half as many: two."""
    own = {"rounds": ROUNDS, "dropout.source": "random", "dropout.tiers": [1.0, 0.5], "privacy.mechanism": "none"}
    free = {"sampler.rate": 0.2, "privacy.noise_multiplier": None, "privacy.clip": float("inf")}
    return small_run.experiment(**own, **free, **DEVICES, **fields)


@pytest.fixture(scope="module")
def outcome():
    return run(tiered(), quiet=True)


def by_hand(outcome):
    """(seconds, operations, bytes up) of every round, from who came, what they hold and how wide their models are."""
    program, key, h = outcome.program, jax.random.key(0), outcome.experiment.hparams().arrays()
    sizes = np.diff(np.asarray(program.dataset.train.offsets))
    golden = (np.arange(len(sizes)) * (np.sqrt(5) - 1) / 2) % 1.0
    slow = golden >= 0.5
    seconds, flops, sent = [], [], []
    for t in range(ROUNDS):
        cohort = program.sampler.sample(stream(key, "sample"), jnp.int32(t), h)
        took = []
        for k in np.asarray(cohort.ids)[np.asarray(cohort.real)]:
            kept = HIDDEN if t == 0 else 2 if slow[k] else 3  # the first round is dense
            values = kept * (INPUTS + 1 + CLASSES) + CLASSES
            work = 3 * 2 * kept * (INPUTS + CLASSES) * sizes[k]
            speed = SLOW if slow[k] else FAST
            down = up = 4 * values  # uniform weights and a public denominator: no weight travels
            took.append(
                8 * down / (1e6 * speed.downlink) + work / (1e9 * speed.compute) + 8 * up / (1e6 * speed.uplink)
            )
            flops.append((t, work))
            sent.append((t, up))
        seconds.append(max(took, default=0.0))
    total = [np.bincount([t for t, _ in x], [v for _, v in x], ROUNDS) for x in (flops, sent)]
    return np.array(seconds), *total


def test_a_run_takes_as_long_as_its_slowest_clients(outcome):
    seconds, flops, sent = by_hand(outcome)
    np.testing.assert_allclose(outcome.history["simulated_s"], np.cumsum(seconds), rtol=1e-12)
    np.testing.assert_array_equal(outcome.history["simulated_flops"], np.cumsum(flops))
    assert outcome.communication["uplink_bytes"] == sent.sum()
    assert outcome.summary()["simulated"] == {
        "seconds": pytest.approx(seconds.sum()),
        "client_flops": pytest.approx(flops.sum()),
    }
    assert not any(name.startswith("class_") for name in outcome.history)
    fast = [s for s in seconds if 0 < s < 0.5 * seconds.max()]
    assert fast, "a round without a slow client is there to be short"


def test_results_keep_the_simulated_time(outcome, tmp_path):
    record_run(tmp_path / "small", outcome)
    results = open_results(tmp_path / "small")
    assert results.trials["simulated_s"].tolist() == [outcome.history["simulated_s"][-1]]
    assert results.trials["simulated_flops"].tolist() == [outcome.history["simulated_flops"][-1]]
    assert results.curves["simulated_s"].tolist() == outcome.history["simulated_s"][[2, 5, 7]].tolist()


@pytest.mark.parametrize(
    ("fields", "epochs", "steps"),
    [({}, 1, None), ({"epochs": 3}, 3, None), ({"steps": 5}, None, 5), ({"steps": 2, "batch_size": None}, None, 2)],
)
def test_examples_are_those_of_the_batches(fields, epochs, steps):
    """Batch after batch, an epoch after another, as many as the client takes."""
    client = ClientConfig(**{"batch_size": 4, **fields})
    longest, sizes = 9, np.arange(10)
    expected = []
    for n in sizes:
        batch = 4 if client.batch_size else longest
        epoch = [min(batch, n - start) for start in range(0, n, batch)]
        taken = epoch * epochs if steps is None else (epoch * steps)[:steps]
        expected.append(sum(taken))
    assert local_examples(client, False, longest, jnp.asarray(sizes)).tolist() == expected


def test_examples_of_other_algorithms():
    sizes = jnp.array([0, 3, 9])
    assert local_examples(ClientConfig(algorithm="ditto", epochs=2), False, 9, sizes).tolist() == [0, 12, 36]
    assert local_examples(ClientConfig(algorithm="fedsgd", epochs=2), False, 9, sizes).tolist() == [0, 3, 9]
    record = ClientConfig(steps=5, batch_size=4)
    assert local_examples(record, True, 9, sizes).tolist() == [0, 15, 20]


def square(rate):
    """Bytes fall with the share of the neurons, operations with its square."""
    return Load(1e6 * rate, 1e9 * rate**2, 1e6 * rate)


def test_rates_let_the_classes_finish_together():
    """The fast class takes 1.2 s with all; 8e-6 * 1e6 / 80 = 0.1 s a way and 1e9 / 1e9 = 1 s of work."""
    fast = Speed(80.0, 80.0, 1.0)
    # half the speed: 0.4 r + 2 r^2 <= 1.2 up to r = 0.68, 5/8 on the grid; a hundredth: nothing meets it
    half, tenth = Speed(40.0, 40.0, 0.5), Speed(0.8, 0.8, 0.01)
    assert rates_from_resources([fast, half, tenth], square) == (1.0, 5 / 8, GRID[-1])
    # a slow link alone: 16 * 0.1 r + r^2 + 0.1 r <= 1.2 up to r = 0.535
    assert rates_from_resources([fast, Speed(5.0, 80.0, 1.0)], square) == (1.0, 0.5)
    assert rates_from_resources([fast, half], square, deadline=3.0) == (1.0, 1.0)
    with pytest.raises(FljaxError, match="deadline=1 s"):
        rates_from_resources([fast, half], square, deadline=1.0)
    with pytest.raises(FljaxError, match="grid"):
        rates_from_resources([fast], square, grid=(0.5, 0.25))


def test_tiers_follow_from_resources():
    """By hand for the largest client: bytes and operations of 4, 3, 2, 1 neurons on either device."""
    e = tiered().replace(**{"dropout.tiers": "resources", "dropout.keep_rate": 1.0})
    program = small_run.program()
    most = program.dataset.train.max_size

    def seconds(speed, kept):
        values = 8 * kept + 3
        work = 6 * kept * (INPUTS + CLASSES) * most
        return 32e-6 * values * (1 / speed.downlink + 1 / speed.uplink) + work / (1e9 * speed.compute)

    meets = [r for r in GRID if seconds(SLOW, max(1, round(4 * r))) <= seconds(FAST, 4)]
    assert tier_rates(e, program.model, program.dataset) == (1.0, max([*meets, GRID[-1]]))
    near = e.replace(**{f"devices.{n}": [getattr(FAST, n), 0.6 * getattr(FAST, n)] for n in Speed._fields})
    kept = max(k for k in (1, 2, 3, 4) if seconds(FAST, k) <= 0.6 * seconds(FAST, 4))
    rate = max(r for r in GRID if round(4 * r) == kept)
    assert tier_rates(near, program.model, program.dataset) == (1.0, rate) and 1 < kept < 4


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"devices.uplink": [1.0, 2.0]}, "one number for each class"),
        ({**DEVICES, "devices.shares": [0.5, 0.4]}, "shares that sum to 1"),
        ({**DEVICES, "dropout.tiers": [1.0, 0.5, 0.25]}, "give 2 tiers"),
        ({"dropout.tiers": "resources"}, "needs devices.uplink"),
        (
            {**DEVICES, "devices.shares": [0.5, 0.5], "dropout.tiers": [1.0, 0.5], "dropout.tier_shares": [0.5, 0.5]},
            "same",
        ),
        ({**DEVICES, "devices.compute": [1.0, 0.0]}, "greater than 0"),
    ],
)
def test_classes_that_contradict_each_other_are_refused(fields, said):
    with pytest.raises(FljaxError, match=said):
        small_run.experiment(**fields)


def test_one_number_stands_for_one_class():
    one = small_run.experiment(**{"devices.uplink": 5, "devices.downlink": 20.0, "devices.compute": 1})
    assert (one.devices.uplink, one.devices.downlink, one.devices.compute) == ((5.0,), (20.0,), (1.0,))
