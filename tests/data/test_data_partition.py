"""Partitioners: exact cover, determinism, no empty client, the laws they promise."""

import numpy as np
import pytest

from fljax.core.check import FljaxError
from fljax.data import partition as P

N_EXAMPLES = 1000
LABELS = np.random.default_rng(0).integers(0, 7, N_EXAMPLES)
FEATURES = np.random.default_rng(1).normal(size=(N_EXAMPLES, 3)).astype(np.float32)

MAKERS = {
    "iid": lambda clients, seed: P.iid(N_EXAMPLES, clients, seed=seed),
    "dirichlet": lambda clients, seed: P.dirichlet(LABELS, clients, alpha=0.1, seed=seed),
    "shards": lambda clients, seed: P.shards(LABELS, clients, shards_per_client=2, seed=seed),
    "lognormal": lambda clients, seed: P.quantity_skew(N_EXAMPLES, clients, skew=2.0, seed=seed),
    "power_law": lambda clients, seed: P.quantity_skew(N_EXAMPLES, clients, skew=1.5, law="power_law", seed=seed),
    "feature_shift": lambda clients, seed: P.feature_shift(FEATURES, clients, seed=seed)[0],
}


def assert_exact_cover(split, n):
    assert np.array_equal(np.sort(split.order), np.arange(n))  # every example once: disjoint and complete
    assert split.offsets[0] == 0 and split.offsets[-1] == n and (np.diff(split.offsets) >= 0).all()


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("clients", [1, 7, 500])
def test_exact_cover_and_never_empty(name, clients):
    split = MAKERS[name](clients, 3)
    assert_exact_cover(split, N_EXAMPLES)
    assert split.population == clients and split.sizes.min() >= 1


@pytest.mark.parametrize("name", MAKERS)
def test_the_seed_decides_everything(name):
    a, b, other = MAKERS[name](20, 5), MAKERS[name](20, 5), MAKERS[name](20, 6)
    assert np.array_equal(a.order, b.order) and np.array_equal(a.offsets, b.offsets)
    assert not np.array_equal(a.order, other.order)


@pytest.mark.parametrize("name", ["iid", "dirichlet", "lognormal", "feature_shift"])
def test_a_partition_does_not_touch_the_global_generator(name):
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    MAKERS[name](20, 5)
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_iid_sizes_differ_by_at_most_one():
    sizes = P.iid(1000, 7, seed=0).sizes
    assert sizes.max() - sizes.min() == 1


def test_500_clients_at_alpha_0_1_on_1430_examples():
    split = P.dirichlet(np.arange(1430) % 10, 500, alpha=0.1, seed=0)
    assert_exact_cover(split, 1430)
    assert split.sizes.min() == 1 and split.moved > 0
    raw = P.dirichlet(np.arange(1430) % 10, 500, alpha=0.1, seed=0, allow_empty=True)
    assert raw.sizes.min() == 0 and raw.moved == 0
    assert split.moved == (raw.sizes == 0).sum()  # only what had to be moved


def test_the_repair_takes_from_the_largest_clients_only():
    raw = P.dirichlet(LABELS, 100, alpha=0.1, seed=2, allow_empty=True).sizes
    filled = P.dirichlet(LABELS, 100, alpha=0.1, seed=2, min_size=4).sizes
    assert filled.min() == 4
    givers = filled < raw
    level = filled[givers].max()
    assert filled[givers].min() >= level - 1  # the givers end at one level
    assert raw[~givers].max() <= level  # and nobody who was above it gave nothing


@pytest.mark.parametrize("min_size", [1, 3, 10])
def test_the_repair_succeeds_up_to_the_last_example(min_size):
    split = P.dirichlet(LABELS, N_EXAMPLES // min_size, alpha=0.01, seed=0, min_size=min_size)
    assert_exact_cover(split, N_EXAMPLES)
    assert split.sizes.min() >= min_size


@pytest.mark.parametrize("alpha", [0.1, 1.0, 10.0])
def test_dirichlet_counts_have_the_promised_mean_and_variance(alpha):
    """Counts of one class over independent draws: Dirichlet-multinomial marginals.

    The variance over clients of the count of one class, averaged over 5,000 draws, is compared with the formula. A z
    test at 5 standard errors, the error estimated from the draws: false-alarm rate about 6e-7 per statistic (the seeds
    are fixed, so the test is either always red or always green).
    """
    n, clients, draws = 60, 5, 5000
    counts = np.stack(
        [P.dirichlet(np.zeros(n, int), clients, alpha=alpha, seed=s, allow_empty=True).sizes for s in range(draws)]
    )
    assert (counts.sum(axis=1) == n).all()
    squares = ((counts - n / clients) ** 2).mean(axis=1)
    expected = n * (1 / clients) * (1 - 1 / clients) * (n + clients * alpha) / (1 + clients * alpha)
    assert abs(squares.mean() - expected) < 5 * squares.std() / np.sqrt(draws)
    first = counts[:, 0]
    assert abs(first.mean() - n / clients) < 5 * first.std() / np.sqrt(draws)


def test_dirichlet_deals_a_class_out_in_random_order():
    split = P.dirichlet(np.zeros(1000, int), 2, alpha=100.0, seed=0)
    first = split.client(0)
    assert abs(first.mean() - 499.5) < 80  # about 500 random indices of 1,000: standard deviation 9; a prefix: 250 off


def test_dirichlet_survives_a_tiny_alpha():
    split = P.dirichlet(LABELS, 30, alpha=1e-4, seed=0, allow_empty=True)
    assert_exact_cover(split, N_EXAMPLES)
    assert (split.sizes > 0).sum() <= 7  # each of the 7 classes lands at (almost surely) one client


def test_alpha_moves_from_few_labels_to_all():
    effective = []
    for alpha in (0.05, 0.5, 100.0):
        split = P.dirichlet(LABELS, 20, alpha=alpha, seed=0)
        effective.append(P.PartitionSummary.of(split.sizes, LABELS[split.order], 7).effective_labels.mean())
    assert effective[0] < effective[1] < effective[2] and effective[0] < 3 and effective[2] > 6


def test_shards_give_few_labels():
    labels = np.repeat(np.arange(10), 100)
    split = P.shards(labels, 50, shards_per_client=2, seed=0)
    kinds = [len(np.unique(labels[split.client(k)])) for k in range(50)]
    assert (split.sizes == 20).all() and max(kinds) == 2 and min(kinds) >= 1
    assert split.client(0).tolist() != list(range(split.client(0)[0], split.client(0)[0] + 20))  # shuffled in a class


@pytest.mark.parametrize("law", ["lognormal", "power_law"])
def test_quantity_skew_follows_its_law(law):
    n, clients = 100_000, 1000
    sizes = np.sort(P.quantity_skew(n, clients, skew=1.0, law=law, seed=0).sizes)[::-1]
    flat = P.quantity_skew(n, clients, skew=0.0, law=law, seed=0).sizes
    assert flat.max() - flat.min() <= 1
    if law == "power_law":  # exact: 1 + (n - N) rank^-1 / H_N, to the nearest example
        weight = 1 / np.arange(1, clients + 1)
        np.testing.assert_allclose(sizes, 1 + (n - clients) * weight / weight.sum(), atol=1)
    else:  # std of log sizes; 1,000 normal draws: sd of the std is 0.022, so 0.15 is 6 sd (rounding included)
        assert abs(np.log(sizes - 1 + 0.5).std() - 1.0) < 0.15


def test_feature_shift_gives_each_client_its_own_pattern():
    x = np.zeros((4000, 2, 2), np.float32)
    split, changed = P.feature_shift(x, 2000, shift=0.5, noise=0.0, seed=0)
    first, second = changed[split.order[0::2]], changed[split.order[1::2]]
    assert np.array_equal(first, second)  # both examples of a client see one pattern
    assert abs(first.std() - 0.5) < 0.02  # 8,000 normal draws: sd of the std is 0.004
    assert not x.any() and np.array_equal(split.order, P.iid(4000, 2000, seed=0).order)
    split, changed = P.feature_shift(x, 2, shift=0.0, noise=1.0, seed=0)
    spread = [changed[split.client(k)].std() for k in range(2)]
    assert abs(spread[0] - 0.5) < 0.03 and abs(spread[1] - 1.0) < 0.06  # noise (k + 1) / N


def test_by_id_keeps_the_order_of_examples():
    split = P.by_id(np.array([30, 10, 30, 20, 10]))
    assert split.order.tolist() == [1, 4, 3, 0, 2] and split.offsets.tolist() == [0, 2, 3, 5]


def test_select_and_cap():
    split = P.by_id(np.array([0, 0, 0, 1, 2, 2]))
    chosen = split.select(np.array([2, 0]))
    assert chosen.client(0).tolist() == [4, 5] and chosen.client(1).tolist() == [0, 1, 2]
    capped = P.cap(split, 2, seed=0)
    assert capped.sizes.tolist() == [2, 1, 2] and set(capped.client(0)) < {0, 1, 2}
    firsts = {tuple(P.cap(split, 1, seed=s).client(0)) for s in range(50)}
    assert firsts == {(0,), (1,), (2,)}  # chosen at random, each can be the one


def test_hold_out_is_per_client_and_leaves_everyone_something():
    split = P.by_id(np.repeat(np.arange(5), [1, 2, 3, 10, 100]))
    kept, held = P.hold_out(split, 0.2, seed=0)
    assert held.sizes.tolist() == [0, 1, 1, 2, 20] and (kept.sizes + held.sizes == split.sizes).all()
    assert np.array_equal(np.sort(np.concatenate([kept.order, held.order])), np.arange(116))
    for k in range(5):
        assert set(kept.client(k)) | set(held.client(k)) == set(split.client(k))
    assert P.hold_out(split, 0.99, seed=0)[0].sizes.tolist() == [1, 1, 1, 1, 1]
    assert not np.array_equal(held.order, P.hold_out(split, 0.2, seed=1)[1].order)


@pytest.mark.parametrize("name", ["iid", "dirichlet", "shards", "quantity_skew", "feature_shift"])
def test_100_000_clients(name):
    """No loop over clients: with one, this test would take minutes. Correctness is asserted, not time."""
    n, clients = 210_000, 100_000
    labels = np.random.default_rng(0).integers(0, 10, n)
    split = {
        "iid": lambda: P.iid(n, clients, seed=0),
        "dirichlet": lambda: P.dirichlet(labels, clients, alpha=0.1, seed=0),
        "shards": lambda: P.shards(labels, clients, seed=0),
        "quantity_skew": lambda: P.quantity_skew(n, clients, skew=2.0, seed=0),
        "feature_shift": lambda: P.feature_shift(np.zeros((n, 2), np.float32), clients, seed=0)[0],
    }[name]()
    assert_exact_cover(split, n)
    assert split.population == clients and split.sizes.min() >= 1


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: P.iid(10, 11, seed=0), ("clients=11", "10 examples", "allow_empty")),
        (lambda: P.iid(10, 0, seed=0), ("clients=0", "> 0")),
        (lambda: P.iid(10, 2.5, seed=0), ("clients=2.5", "whole")),
        (lambda: P.iid(10, 2, seed=-1), ("seed=-1",)),
        (lambda: P.dirichlet(LABELS, 10, alpha=0.0, seed=0), ("alpha=0.0", "> 0")),
        (lambda: P.dirichlet(LABELS, 10, alpha=float("nan"), seed=0), ("alpha=nan",)),
        (lambda: P.dirichlet(LABELS, 10, alpha=float("inf"), seed=0), ("alpha=inf", "iid")),
        (lambda: P.dirichlet(LABELS, 400, alpha=1.0, seed=0, min_size=3), ("clients=400", "at least 3", "1000")),
        (lambda: P.dirichlet(FEATURES, 10, alpha=1.0, seed=0), ("integer label", "float32")),
        (lambda: P.shards(LABELS, 600, shards_per_client=2, seed=0), ("clients=600", "shards_per_client=2", "1000")),
        (lambda: P.quantity_skew(10, 2, skew=-1.0, seed=0), ("skew=-1.0",)),
        (lambda: P.quantity_skew(10, 2, law="normal", seed=0), ("law='normal'", "lognormal")),
        (lambda: P.feature_shift(LABELS[:, None], 10, seed=0), ("float features", "int64")),
        (lambda: P.hold_out(P.iid(10, 2, seed=0), 1.0, seed=0), ("fraction=1.0",)),
        (lambda: P.cap(P.iid(10, 2, seed=0), 0, seed=0), ("examples_per_client=0",)),
        (lambda: P.by_id(np.zeros((2, 2))), ("client_ids",)),
    ],
)
def test_errors_are_one_line(make, words):
    with pytest.raises(FljaxError) as error:
        make()
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


def test_allow_empty_permits_more_clients_than_examples():
    for split in (
        P.iid(10, 15, seed=0, allow_empty=True),
        P.dirichlet(np.zeros(10, int), 15, alpha=1.0, seed=0, allow_empty=True),
        P.quantity_skew(10, 15, seed=0, allow_empty=True),
        P.feature_shift(np.zeros((10, 1)), 15, seed=0, allow_empty=True)[0],
    ):
        assert_exact_cover(split, 10)
        assert split.population == 15


def test_summary_counts_labels():
    summary = P.PartitionSummary.of([4, 0, 2, 1], np.array([0, 0, 1, 1, 2, 2, 0, 9]), 3)
    assert summary.histogram.tolist() == [[2, 2, 0], [0, 0, 0], [0, 0, 2], [1, 0, 0]]  # the ninth label is not theirs
    np.testing.assert_allclose(summary.effective_labels, [2, 0, 1, 1])
    table = dict(summary.rows())
    assert table["clients"] == "4" and table["empty clients"] == "1" and table["examples"] == "7"
    assert table["examples of a client"] == "min 0, quartiles 0.75 / 1.5 / 2.5, max 4"
    assert "<table" in summary._repr_html_() and "empty clients" in str(summary)


def test_summary_leaves_padding_out_and_handles_regression():
    text = P.PartitionSummary.of([1, 1], np.array([[1, 2, 0], [1, 0, 0]]), 3, ignore=0)
    assert text.histogram.tolist() == [[0, 1, 1], [0, 1, 0]]
    plain = P.PartitionSummary.of([1, 1], None, 1)
    assert plain.histogram is None and "effective" not in str(plain)


def test_plot_shows_sizes_and_labels_without_global_figures():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    open_before = pyplot.get_fignums()
    split = P.dirichlet(LABELS, 300, alpha=0.3, seed=0)
    figure = P.plot_partition(P.PartitionSummary.of(split.sizes, LABELS[split.order], 7), most=50)
    assert len(figure.axes) == 3 and len(figure.axes[0].patches) == 50  # sizes, labels, colour bar
    assert figure.axes[1].images[0].get_array().shape == (7, 50)
    assert len(P.plot_partition(P.PartitionSummary.of(split.sizes, None, 1)).axes) == 1
    assert pyplot.get_fignums() == open_before
