"""Attack: whose update follows from sums and from who took part, without any single upload.

If a client sends the same vector whenever it takes part (its data do not change, the model hardly does), round t gives
the server ``s_t = sum_i A_ti u_i`` with A the public 0/1 matrix of who took part. Client i is exposed, its vector
solved for, if and only if the unit vector e_i lies in the row space of A. So et al., "Securing secure
aggregation: mitigating multi-round privacy leakage in federated learning", AAAI 2023.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fljax.leakage.views import AdversaryView

TOLERANCE = 1e-8


class Exposure(NamedTuple):
    """rank: of the participation matrix. clients: [N] bool, exposed ones. first_round: rounds after which the first
    client is exposed, or None."""

    rank: int
    clients: np.ndarray
    first_round: int | None


def exposed_clients(cohorts: np.ndarray) -> tuple[int, np.ndarray]:
    """(rank, [N] bool whether e_i is in the row space) of a 0/1 matrix [T, N].

    e_i is in the row space iff its projection on it, the i-th diagonal entry of V V', has length 1.
    """
    matrix = np.asarray(cohorts, np.float64)
    if not matrix.any():
        return 0, np.zeros(matrix.shape[1], bool)
    _, sizes, rows = np.linalg.svd(matrix, full_matrices=False)
    rank = int(np.sum(sizes > sizes[0] * max(matrix.shape) * np.finfo(np.float64).eps))
    return rank, np.sum(np.square(rows[:rank]), axis=0) > 1.0 - TOLERANCE


def exposure(view: AdversaryView) -> Exposure:
    """Who is exposed after all rounds, and when the first client was: more rounds never hide anybody again."""
    cohorts = np.asarray(view.need("cohorts"))
    rank, clients = exposed_clients(cohorts)
    if not clients.any():
        return Exposure(rank, clients, None)
    low, high = 1, len(cohorts)  # the row space only grows: bisection
    while low < high:
        middle = (low + high) // 2
        if exposed_clients(cohorts[:middle])[1].any():
            high = middle
        else:
            low = middle + 1
    return Exposure(rank, clients, low)
