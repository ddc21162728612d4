"""How much was recovered: PSNR, SSIM, matching of guesses to the truth, F1 of labels, ROC. On the host, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

RECOVERED = 0.01
"""An example counts as recovered below this mean squared error, in units of the squared range of the inputs: 20 dB."""
CEILING = 60.0
"""PSNR is cut here, in dB: exact guesses would have an infinite one, and would decide every mean."""
WINDOW = 7
"""Side of the window of SSIM; smaller for smaller images."""


class Recovery(NamedTuple):
    """How close guesses come, over all true examples. psnr: mean, dB. psnr_std: over the examples. share: of those with
    a mean squared error below ``RECOVERED``. mse: mean. ssim: mean, or None where examples are no images. count: how
    many true examples."""

    psnr: float
    psnr_std: float
    share: float
    mse: float
    ssim: float | None
    count: int


def psnr(mse: np.ndarray | float) -> np.ndarray:
    """``10 log10(1 / mse)`` dB for values in a range of length 1, at most ``CEILING``."""
    return -10.0 * np.log10(np.maximum(mse, 10 ** (-CEILING / 10)))


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Structural similarity of two images [H, W, c] with values in [0, 1]; 1 for equal ones.

    Mean over all windows of ``(2 m_a m_b + c1)(2 s_ab + c2) / ((m_a^2 + m_b^2 + c1)(s_a^2 + s_b^2 + c2))`` with
    c1 = 0.01^2, c2 = 0.03^2, uniform weights and sample variances. Wang et al., IEEE Transactions on Image Processing
    13(4), 2004.
    """
    side = min(WINDOW, *a.shape[:2])
    windows = [np.lib.stride_tricks.sliding_window_view(v.astype(np.float64), (side, side), (0, 1)) for v in (a, b)]
    mean_a, mean_b = (w.mean((-2, -1)) for w in windows)
    scale = side * side / max(side * side - 1, 1)
    var_a, var_b = (scale * w.var((-2, -1)) for w in windows)
    both = scale * ((windows[0] * windows[1]).mean((-2, -1)) - mean_a * mean_b)
    c1, c2 = 0.01**2, 0.03**2
    top = (2 * mean_a * mean_b + c1) * (2 * both + c2)
    return float(np.mean(top / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))))


def match(guesses: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs guesses with true examples so that the total squared error is smallest.

    Args:
      guesses: [n, ...]. truth: [m, ...].

    Returns:
      (guess of each pair, true example of each pair), both [min(n, m)]: the Hungarian assignment.
    """
    flat = [np.reshape(v, (len(v), -1)).astype(np.float64) for v in (guesses, truth)]
    cost = np.sum(np.square(flat[0][:, None] - flat[1][None]), axis=-1)
    return linear_sum_assignment(cost)


def recovery(
    guesses: Sequence[np.ndarray], truths: Sequence[np.ndarray], low: float, high: float, image: tuple | None
) -> Recovery:
    """Compares guesses with the truth, victim by victim, by the best matching.

    A true example that no guess is left for counts with the error of its nearest guess, and not as recovered twice.

    Args:
      guesses: per victim [n, ...]; n may be 0, which recovers nothing and is scored as a guess of the middle.
      truths: per victim [m, ...]. low, high: the range of the inputs. image: (H, W, c) of one, or None.
    """
    errors, alike, shares = [], [], []
    for guess, truth in zip(guesses, truths, strict=True):
        guess = np.full((1, *truth.shape[1:]), 0.5 * (low + high)) if len(guess) == 0 else guess
        guess, truth = ((np.asarray(v, np.float64) - low) / (high - low) for v in (guess, truth))
        rows, columns = match(guess, truth)
        nearest = np.array([np.argmin(np.mean(np.square(guess - t), axis=tuple(range(1, t.ndim + 1)))) for t in truth])
        matched = np.zeros(len(truth), bool)
        nearest[columns], matched[columns] = rows, True
        mse = np.mean(np.square(guess[nearest] - truth), axis=tuple(range(1, truth.ndim)))
        errors.append(mse)
        shares.append(matched & (mse < RECOVERED))
        if image is not None:
            pairs = zip(guess[nearest], truth, strict=True)
            alike += [ssim(np.reshape(g, image), np.reshape(t, image)) for g, t in pairs]
    mse, share = np.concatenate(errors), np.concatenate(shares)
    values = psnr(mse)
    return Recovery(
        float(values.mean()),
        float(values.std()),
        float(share.mean()),
        float(mse.mean()),
        float(np.mean(alike)) if alike else None,
        len(mse),
    )


def reduction(defended: float, bare: float, base: float) -> float | None:
    """``1 - (PSNR_defended - PSNR_base) / (PSNR_bare - PSNR_base)``: 0 = as leaky as without a defence, 1 = no better
    than the base line, negative = leakier. None where the attack without a defence gains less than 1 dB."""
    return None if bare - base < 1.0 else 1.0 - (defended - base) / (bare - base)


def label_f1(guessed: Sequence[np.ndarray], true: Sequence[np.ndarray]) -> float:
    """Mean over victims of ``2 |G & Y| / (|G| + |Y|)`` for the sets G of guessed and Y of true labels."""
    scores = []
    for g, y in zip(guessed, true, strict=True):
        a, b = set(np.asarray(g).tolist()), set(np.asarray(y).tolist())
        scores.append(2 * len(a & b) / max(len(a) + len(b), 1))
    return float(np.mean(scores))


def label_hits(guessed: Sequence[np.ndarray], true: Sequence[np.ndarray]) -> float:
    """Share of the true labels, counted with their repetitions, that are among the guessed ones."""
    hit = [sum(min(np.sum(g == k), np.sum(y == k)) for k in np.unique(y)) for g, y in zip(guessed, true, strict=True)]
    return float(np.sum(hit) / sum(len(y) for y in true))


def auc(members: np.ndarray, others: np.ndarray) -> float:
    """Area under the ROC curve: probability that a member scores above a non-member, ties counted half."""
    ranks = _ranks(np.concatenate([members, others]))[: len(members)]
    n, m = len(members), len(others)
    return float((ranks.sum() - n * (n + 1) / 2) / (n * m))


def auc_error(n: int, m: int) -> float:
    """Standard error of the AUC of n members and m others that do not differ: ``sqrt((n + m + 1) / (12 n m))``."""
    return float(np.sqrt((n + m + 1) / (12 * n * m)))


def tpr_at(members: np.ndarray, others: np.ndarray, fpr: float) -> float:
    """Share of members above the threshold that at most a share ``fpr`` of the others exceeds."""
    allowed = int(np.floor(fpr * len(others)))
    return float(np.mean(members > np.sort(others)[::-1][allowed]))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values share their mean rank."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[place]
