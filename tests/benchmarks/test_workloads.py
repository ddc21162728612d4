"""The workloads are what their names say, and what their speed is derived from is counted right."""

import jax
import numpy as np
import pytest

import fljax
from benchmarks.programs import Measured, speed, spread, turns
from benchmarks.workloads import (
    WORKLOADS,
    Variant,
    central,
    char_lstm_text,
    cohort_cnn,
    emnist_sizes,
    equal_twin,
    long_tailed_mlp,
    long_tailed_sizes,
    make_round,
    ragged,
    tiny_mlp,
)


def test_emnist_sizes_have_the_published_mean_and_maximum():
    sizes = emnist_sizes(3400)
    assert len(sizes) == 3400
    assert sizes.max() == 418
    assert abs(sizes.sum() - 671_585) < 0.005 * 671_585


def test_long_tailed_sizes_span_a_factor_of_a_hundred_and_are_lognormal():
    sizes = np.sort(long_tailed_sizes(50))
    assert sizes[-1] == 100 * sizes[0]
    assert sizes.sum() % (50 * 10) == 0
    # quantiles of a lognormal law: the median is the geometric mean of any pair of opposite quantiles
    assert np.abs(np.log(sizes * sizes[::-1] / np.median(sizes) ** 2)).max() < 0.3
    assert sizes.mean() > 1.5 * np.median(sizes)


def test_equal_twin_has_the_same_examples_evenly():
    work = long_tailed_mlp()
    twin = equal_twin(work)
    assert twin.data.sizes.sum() == work.data.sizes.sum()
    assert twin.data.min_size == twin.data.max_size
    assert twin.examples_per_round == work.examples_per_round == 4000
    assert work.steps_per_round == np.ceil(work.data.sizes / 10).sum()


def test_flops_of_the_cnn_by_hand():
    forward = 2 * (26 * 26 * 32 * 9 + 24 * 24 * 64 * 9 * 32 + 9216 * 128 + 128 * 10)
    assert cohort_cnn(clients=50).flops_per_round == 3 * forward * 50 * 5 * 10


@pytest.mark.parametrize("name", sorted(WORKLOADS))
def test_small_version_has_the_clients_asked_for(name):
    work = WORKLOADS[name](clients=6, cohort=3)
    assert (work.data.population, work.cohort) == (6, 3)
    assert work.data.x.dtype == (np.int32 if name.endswith("_text") else np.float32)
    assert work.name == name


def test_text_predicts_the_next_character_and_is_counted():
    work = char_lstm_text(clients=2, cohort=2)
    np.testing.assert_array_equal(work.data.x[:, 1:], work.data.y[:, :-1])
    assert work.data.x.min() > 0  # 0 is padding, which the loss leaves out
    per_character = 4 * 256 * (8 + 256) + 4 * 256 * (256 + 256) + 256 * 98
    assert work.flops_per_round == 3 * 80 * 2 * per_character * 2 * 20


def test_bfloat16_is_what_clients_and_the_central_program_compute_in():
    work, key = tiny_mlp(clients=4, cohort=2), jax.random.key(0)
    x, y = work.data.x[:20].reshape(2, 10, 64), work.data.y[:20].reshape(2, 10)
    for precision in ("float32", "bfloat16"):
        round_, hparams = make_round(work, Variant(precision=precision), fljax.PerfFlags())
        state = round_.init(key, work.model.init(key), hparams)
        traced = jax.make_jaxpr(round_.step)(0, key, state, work.data, hparams)
        alone = jax.make_jaxpr(central(work, precision))(state.params, x, y)
        assert {"bf16[" in str(traced), "bf16[" in str(alone)} == {precision == "bfloat16"}
        new, _ = jax.eval_shape(round_.step, 0, key, state, work.data, hparams)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(new.params)} == {"float32"}


def test_ragged_clients_own_the_sizes_given():
    data = ragged(np.array([3, 1, 7]), (2,), 4)
    assert list(data.sizes) == [3, 1, 7]
    assert data.x.shape == (11, 2)


def test_turns_alternate_and_drop_the_first():
    log = []

    def program(name, seconds):
        return Measured(None, 0.0, lambda: log.append(name) or next(seconds))

    seen = turns([program("a", iter([9.0, 1.0, 2.0])), program("b", iter([8.0, 3.0, 4.0]))], 2)
    assert log == ["a", "b"] * 3
    assert seen.tolist() == [[1.0, 3.0], [2.0, 4.0]]


def test_speed_is_work_over_time():
    work, seconds, peak = tiny_mlp(), np.array([0.02, 0.01, 0.04]), np.array([0.1, 0.1, 0.2])
    found = speed(work, seconds, peak, size=1000)
    flops = 3 * 2 * (64 * 64 + 64 * 10) * 20 * 10 * 10
    assert found["steady_s_per_round"] == 0.02
    assert found["examples_per_s"] == pytest.approx(2000 / 0.02)
    assert found["flop_per_s"] == pytest.approx(flops / 0.02)
    rates = flops / seconds / (2e9 / peak)
    assert found["share_of_matmul_peak"] == pytest.approx(np.median(rates))
    assert found["matmul_peak_flop_per_s"] == pytest.approx(2e10)


def test_spread_is_the_distance_of_the_quartiles():
    found = spread(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert found["quartile_spread"] == pytest.approx(2 / 3)
    assert (found["fastest_s_per_round"], found["slowest_s_per_round"]) == (1.0, 5.0)
