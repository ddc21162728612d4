"""Robust rules and attacks in plain NumPy, float64, one client at a time, written from the papers' definitions."""

import itertools
import math

import numpy as np
from scipy.stats import norm


def mean(x):
    return x.mean(axis=0)


def median(x):
    return np.median(x, axis=0)


def trimmed_mean(x, f):
    return np.sort(x, axis=0)[f : len(x) - f].mean(axis=0)


def mean_around_median(x, f):
    keep, centre = len(x) - f, np.median(x, axis=0)
    return around(x, centre, keep)


def around(x, centre, keep):
    """Per coordinate the mean of the ``keep`` values closest to the centre; of two that are even the lower first."""
    out = np.zeros(x.shape[1])
    for j in range(x.shape[1]):
        values = sorted(x[:, j], key=lambda v: (abs(v - centre[j]), v))
        out[j] = np.mean(values[:keep])
    return out


def sign_majority(x, step):
    return step * np.sign(np.sign(x).sum(axis=0))


def krum_scores(x, f, neighbors="paper", power=2):
    scores = []
    for i in range(len(x)):
        others = sorted(np.linalg.norm(x[i] - x[j]) ** power for j in range(len(x)) if j != i)
        count = len(x) - f - (2 if neighbors == "paper" else 1)
        scores.append(sum(others[: max(count, 1)]))
    return np.array(scores)


def krum_order(x, f, neighbors="paper", power=2):
    """Rows by their scores; ties (exact ones, of one pair of rows) by the sum of all squared distances."""
    scores = krum_scores(x, f, neighbors, power)
    total = [sum(np.linalg.norm(a - b) ** 2 for b in x) for a in x]
    return sorted(range(len(x)), key=lambda i: (float(f"{scores[i]:.12g}"), total[i]))


def krum(x, f, neighbors="paper", power=2):
    return x[krum_order(x, f, neighbors, power)[0]]


def multi_krum(x, f, chosen=None, neighbors="paper", power=2):
    order = krum_order(x, f, neighbors, power)
    return x[order[: (len(x) - f if chosen is None else chosen)]].mean(axis=0)


def bulyan_picks(x, f, neighbors="paper", power=2):
    left, picks = list(range(len(x))), []
    for _ in range(len(x) - 2 * f):
        picks.append(left.pop(krum_order(x[left], f, neighbors, power)[0]))
    return picks


def bulyan(x, f, neighbors="paper", power=2):
    chosen = x[bulyan_picks(x, f, neighbors, power)]
    return around(chosen, np.median(chosen, axis=0), len(chosen) - 2 * f)


def geometric_median(x, steps=64, nu=1e-6, start="mean"):
    v = x.mean(axis=0) if start == "mean" else np.zeros(x.shape[1])
    for _ in range(steps):
        w = 1 / np.maximum(nu, np.linalg.norm(x - v, axis=1))
        v = (w[:, None] * x).sum(axis=0) / w.sum()
    return v


def centred_clipping(x, tau, steps=3, start=None):
    v = np.zeros(x.shape[1]) if start is None else start
    for _ in range(steps):
        gap = x - v
        v = v + np.mean(gap * np.minimum(1, tau / np.linalg.norm(gap, axis=1))[:, None], axis=0)
    return v


def nearest_neighbour_mixing(x, f):
    out = []
    for row in x:
        order = np.argsort(np.linalg.norm(x - row, axis=1))
        out.append(x[order[: len(x) - f]].mean(axis=0))
    return np.array(out)


def norm_bound(x, bound):
    return x * np.minimum(1, bound / np.linalg.norm(x, axis=1))[:, None]


def adaptive_norm_bound(x, f):
    n = len(x)
    norms = np.sort(np.linalg.norm(x, axis=1))
    return norm_bound(x, norms[n - math.floor(2 * f * (n - f) / n) - 1])


def fltrust(x, guide):
    cosines = x @ guide / (np.linalg.norm(x, axis=1) * np.linalg.norm(guide))
    trust = np.maximum(cosines, 0)
    scaled = x * (np.linalg.norm(guide) / np.linalg.norm(x, axis=1))[:, None]
    return (trust[:, None] * scaled).sum(axis=0) / trust.sum()


def foolsgold_weights(history):
    """The code that the authors published, with its two loops."""
    n = len(history)
    unit = history / np.linalg.norm(history, axis=1, keepdims=True)
    cs = unit @ unit.T - np.eye(n)
    maxcs = np.max(cs, axis=1) + 1e-5
    for i, j in itertools.product(range(n), range(n)):
        if i != j and maxcs[i] < maxcs[j]:
            cs[i][j] = cs[i][j] * maxcs[i] / maxcs[j]
    wv = np.clip(1 - np.max(cs, axis=1), 0, 1)
    wv = wv / np.max(wv)
    wv[wv == 1] = 0.99
    return np.clip(np.log(wv / (1 - wv) + 1e-5) + 0.5, 0, 1)


def divide_and_conquer_all(x, f, remove=1.0):
    """One iteration on all coordinates."""
    moved = x - x.mean(axis=0)
    axis = np.linalg.svd(moved, full_matrices=False)[2][0]
    order = np.argsort((moved @ axis) ** 2)
    return x[order[: len(x) - math.floor(remove * f)]].mean(axis=0)


def flame_members(x):
    """Merges the closest pairs first (single linkage) until a component holds more than half of all."""
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    distances = 1 - unit @ unit.T
    component = list(range(len(x)))
    for _, i, j in sorted((distances[i, j], i, j) for i, j in itertools.combinations(range(len(x)), 2)):
        old, new = component[i], component[j]
        component = [new if c == old else c for c in component]
        members = [k for k, c in enumerate(component) if c == new]
        if len(members) > len(x) / 2:
            return members
    return list(range(len(x)))


def flame(x):
    members, norms = flame_members(x), np.linalg.norm(x, axis=1)
    bound = np.median(norms)
    return norm_bound(x, bound)[members].mean(axis=0)


# ---- attacks: honest rows -> the malicious row ----------------------------------------------------------------------


def hidden_deviations(honest, malicious):
    n = honest + malicious
    s = n // 2 + 1 - malicious
    return norm.ppf((n - malicious - s) / (n - malicious))


def little_is_enough(x, z, sign=-1, ddof=1):
    return x.mean(axis=0) + sign * z * x.std(axis=0, ddof=ddof)


def direction(x, kind):
    mu = x.mean(axis=0)
    return {"std": -x.std(axis=0, ddof=1), "sign": -np.sign(mu), "unit": -mu / np.linalg.norm(mu)}[kind]


def min_max(x, kind):
    """By bisection, as published."""
    mu, p = x.mean(axis=0), direction(x, kind)
    widest = max(np.linalg.norm(a - b) for a in x for b in x)
    return mu + p * bisect(lambda g: max(np.linalg.norm(mu + g * p - a) for a in x) <= widest)


def min_sum(x, kind):
    mu, p = x.mean(axis=0), direction(x, kind)
    most = max(sum(np.linalg.norm(a - b) ** 2 for b in x) for a in x)
    return mu + p * bisect(lambda g: sum(np.linalg.norm(mu + g * p - a) ** 2 for a in x) <= most)


def bisect(fits):
    low, high = 0.0, 1.0
    while fits(high):
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
