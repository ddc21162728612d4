"""Renyi differential privacy of the sampled Gaussian, vectorised over configurations and rounds.

Integer orders alone, which need no numerical integration: an upper bound that is 10 % looser than PLD at the median and
several-fold at small sampling rates over few rounds. It needs no import and takes milliseconds.

Source: Mironov et al., arXiv 1908.10530 (divergence); Canonne et al., arXiv 2004.00010, Prop. 12 (conversion).
"""

from __future__ import annotations

from typing import Any

import numpy as np

ORDERS = (*range(2, 65), 72, 80, 96, 128, 192, 256, 512)


def _rdp(rate: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Renyi divergence of one sampled Gaussian at every order: [n], [n] -> [n, orders].

    RDP(a) = 1/(a-1) log sum_{j=0}^a binom(a, j) (1-q)^(a-j) q^j exp((j^2 - j) / (2 z^2)), integer a >= 2.
    """
    from scipy.special import gammaln, logsumexp, xlog1py, xlogy

    rate, noise = rate[:, None], noise[:, None]
    halved = 0.5 / np.square(np.where(noise > 0, noise, 1.0))
    columns = []
    for order in ORDERS:
        j = np.arange(order + 1)
        binomial = gammaln(order + 1) - gammaln(j + 1) - gammaln(order - j + 1)
        terms = binomial + xlog1py(order - j, -rate) + xlogy(j, rate) + (j * j - j) * halved
        columns.append(logsumexp(terms, axis=1) / (order - 1))
    return np.where(noise > 0, np.maximum(np.stack(columns, axis=1), 0.0), np.inf)


def _convert(rdp: np.ndarray, delta: np.ndarray) -> np.ndarray:
    """(epsilon, delta) from Renyi divergences: [..., orders], [...] -> [...]."""
    orders = np.array(ORDERS, float)
    delta = np.asarray(delta, float)[..., None]
    epsilon = rdp + np.log1p(-1 / orders) - np.log(delta * orders) / (orders - 1)
    # A total variation below delta, by Bretagnolle-Huber from the Kullback-Leibler divergence <= RDP, is epsilon = 0.
    epsilon = np.where(delta**2 + np.expm1(-rdp) > 0, 0.0, epsilon)
    return np.maximum(epsilon.min(axis=-1), 0.0)


def rdp_epsilon(q: Any, z: Any, T: Any, delta: Any, rho: Any = 0.0) -> np.ndarray:
    """Epsilon of T rounds of the Poisson-sampled Gaussian by RDP with integer orders, for arrays of configurations.

    Args:
      q: inclusion probability in (0, 1].
      z: noise multiplier >= 0; 0 gives infinity.
      T: rounds.
      delta: in (0, 1).
      rho: what was released beside the rounds, in zero-concentrated DP.

    Returns:
      float64 of the broadcast shape. 1,000 configurations take a fraction of a second.

    Guarantees:
      An upper bound of the true epsilon under add_or_remove_one.
    """
    q, z, T, delta, rho = np.broadcast_arrays(*(np.asarray(v, float) for v in (q, z, T, delta, rho)))
    pairs, place = np.unique(np.stack([q.ravel(), z.ravel()]), axis=1, return_inverse=True)
    curves = _rdp(pairs[0], pairs[1])[place.ravel()]
    beside = rho.ravel()[:, None] * np.array(ORDERS, float)
    return _convert(T.ravel()[:, None] * curves + beside, delta.ravel()).reshape(q.shape)
