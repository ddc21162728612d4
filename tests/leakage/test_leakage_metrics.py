"""Scores of attacks against formulas written out, brute force and hand-made cases."""

import itertools

import numpy as np
import pytest

from fljax.leakage import metrics

RANDOM = np.random.default_rng(3)


def test_psnr_by_hand_and_its_ceiling():
    np.testing.assert_allclose(metrics.psnr(np.array([1.0, 0.1, 0.01, 1e-4])), [0, 10, 20, 40], atol=1e-12)
    assert metrics.psnr(0.0) == metrics.CEILING


def ssim_by_loops(a, b, side):
    """The definition, window by window."""
    values = []
    for c in range(a.shape[2]):
        for i, j in itertools.product(range(a.shape[0] - side + 1), range(a.shape[1] - side + 1)):
            p, q = a[i : i + side, j : j + side, c].ravel(), b[i : i + side, j : j + side, c].ravel()
            cov = np.cov(p, q)
            top = (2 * p.mean() * q.mean() + 1e-4) * (2 * cov[0, 1] + 9e-4)
            values.append(top / ((p.mean() ** 2 + q.mean() ** 2 + 1e-4) * (cov[0, 0] + cov[1, 1] + 9e-4)))
    return np.mean(values)


@pytest.mark.parametrize("shape", [(8, 8, 1), (9, 11, 3), (4, 6, 2)])
def test_ssim_is_its_definition(shape):
    a, b = RANDOM.uniform(size=(2, *shape))
    assert metrics.ssim(a, b) == pytest.approx(ssim_by_loops(a, b, min(7, *shape[:2])), abs=1e-12)
    assert metrics.ssim(a, a) == pytest.approx(1.0)


def test_the_matching_is_the_best_of_all():
    guesses, truth = RANDOM.uniform(size=(5, 3)), RANDOM.uniform(size=(4, 3))
    rows, columns = metrics.match(guesses, truth)
    cost = lambda chosen: sum(np.sum((guesses[g] - truth[t]) ** 2) for t, g in enumerate(chosen))  # noqa: E731
    best = min(itertools.permutations(range(5), 4), key=cost)
    assert [best[t] for t in columns] == rows.tolist()


def test_recovery_counts_no_example_twice():
    truth = np.array([[0.0], [0.02], [1.0]])
    found = metrics.recovery([np.array([[0.01]])], [truth], 0.0, 1.0, None)
    assert found.count == 3 and found.share == pytest.approx(1 / 3)  # one guess, near two examples
    assert found.mse == pytest.approx((0.01**2 + 0.01**2 + 0.99**2) / 3)
    assert metrics.recovery([np.zeros((0, 1))], [truth], 0.0, 1.0, None).mse == pytest.approx(
        np.mean((truth - 0.5) ** 2)
    )


def test_recovery_is_in_units_of_the_range():
    truth = RANDOM.uniform(size=(4, 2, 2, 1))
    guess = truth[::-1] + 0.05
    a = metrics.recovery([guess], [truth], 0.0, 1.0, (2, 2, 1))
    b = metrics.recovery([10 * guess - 5], [10 * truth - 5], -5.0, 5.0, (2, 2, 1))
    assert a == pytest.approx(b) and a.psnr == pytest.approx(-20 * np.log10(0.05)) and a.share == 1


def test_reduction():
    assert metrics.reduction(30.0, 30.0, 10.0) == 0
    assert metrics.reduction(10.0, 30.0, 10.0) == 1
    assert metrics.reduction(35.0, 30.0, 10.0) == pytest.approx(-0.25)  # leakier than without
    assert metrics.reduction(9.0, 10.5, 10.0) is None


def test_label_scores_by_hand():
    guessed, true = [np.array([1, 1, 2]), np.array([3])], [np.array([1, 4, 4]), np.array([3])]
    assert metrics.label_f1(guessed, true) == pytest.approx((2 * 1 / 4 + 1) / 2)
    assert metrics.label_hits(guessed, true) == pytest.approx(2 / 4)


def test_auc_and_tpr_by_counting_pairs():
    inside, outside = RANDOM.integers(0, 6, 40) + 0.0, RANDOM.integers(0, 5, 30) + 0.0  # with ties
    pairs = [(a > b) + 0.5 * (a == b) for a in inside for b in outside]
    assert metrics.auc(inside, outside) == pytest.approx(np.mean(pairs))
    inside, outside = RANDOM.normal(0.5, 1, 60), RANDOM.normal(size=50)  # without ties
    for fpr in (0.0, 0.1, 0.5):
        tpr = metrics.tpr_at(inside, outside, fpr)
        cuts = [np.mean(inside > c) for c in np.unique(outside) if np.mean(outside > c) <= fpr]
        assert tpr == pytest.approx(max(cuts))


def test_the_error_of_an_auc_is_its_spread():
    values = [metrics.auc(RANDOM.normal(size=30), RANDOM.normal(size=50)) for _ in range(2000)]
    # The spread of 2,000 draws has a relative error of 1.6 %: 10 % are six of them, a false alarm below 1e-8.
    assert np.std(values) == pytest.approx(metrics.auc_error(30, 50), rel=0.1)
