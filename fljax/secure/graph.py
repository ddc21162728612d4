"""Who shares keys with whom: a circulant graph on a random ring of the round's clients, and how dense it has to be.

With a complete graph every client makes a pad with every other one. SecAgg+ needs far fewer: k neighbours on a random
ring, where k and the threshold t of the secret sharing follow from how many clients may be corrupt or drop out.

Source: Bell, Bonawitz, Gascon, Lepoint, Raykova, "Secure single-server aggregation with (poly)logarithmic overhead",
CCS 2020; the rule of its public implementation by Google, with 40 bits of security and 20 bits of correctness.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fljax.core.check import FljaxError, in_range, one_of, positive
from fljax.core.types import Array, Key

SECURITY_BITS, CORRECTNESS_BITS = 40, 20
COMPLETE = 60
"""Up to so many clients the graph is complete."""

ADVERSARIES = ("curious", "semi_malicious")
"""``curious``: the server follows the protocol. ``semi_malicious``: it lies about who dropped out, not while keys are
agreed on."""


class Graph(NamedTuple):
    """Of a round of at most C clients.

    degree: k, neighbours of a client (all others where the round has at most k + 1 clients).
    thresholds: t for a round of n = 0 .. C clients: shares that reveal a secret, and neighbours that have to be there
      at the end. Where it is n nothing can be revealed, and every round is aborted.
    """

    degree: int
    thresholds: tuple[int, ...]

    @property
    def clients(self) -> int:
        """C."""
        return len(self.thresholds) - 1

    @property
    def reach(self) -> int:
        """Distances on the ring at which neighbours are looked for."""
        return max(1, (self.degree + 1) // 2)

    @property
    def threshold(self) -> int:
        """t of a round with all its clients."""
        return self.thresholds[-1]


def choose_graph(
    clients: int,
    corrupt: float = 0.05,
    dropout: float = 0.05,
    adversary: str = "curious",
    degree: int | None = None,
    threshold: int | None = None,
) -> Graph:
    """The graph for rounds of at most so many clients.

    Args:
      clients: C. corrupt, dropout: shares of the clients, gamma and delta, that may be corrupt or drop out.
      adversary: one of ``ADVERSARIES``. degree, threshold: instead of those of the rule.

    Raises:
      FljaxError: no threshold is both private and reachable; degree or threshold impossible.
    """
    positive(clients=clients)
    in_range(0, 1, closed="left", corrupt=corrupt, dropout=dropout)
    one_of(ADVERSARIES, adversary=adversary)
    if degree is not None:
        in_range(1, max(clients - 1, 1), degree=degree, remedy=f"A client has {clients - 1} others to share with.")
        if degree % 2 and degree != clients - 1:
            raise FljaxError(f"Expected degree={degree} to be even, or all other {clients - 1} clients.")
    if degree is None:
        degree, own = _rule(clients, corrupt, dropout, adversary)
    else:
        own = _threshold(clients, degree, corrupt, dropout, adversary)
    if threshold is not None:
        in_range(1, degree, threshold=threshold, remedy=f"It counts neighbours, of which a client has {degree}.")
        return Graph(degree, (0, *[threshold] * clients))
    if own is None:
        raise FljaxError(
            f"Expected degree={degree} to allow a threshold for {clients} clients with corrupt={corrupt:g} and "
            f"dropout={dropout:g} against a {adversary} server. Leave degree out for one that does."
        )
    small = [_small_threshold(n, degree, own, corrupt, dropout, adversary) for n in range(clients)]
    return Graph(degree, (*small, own))


def _small_threshold(n: int, degree: int, whole: int, corrupt: float, dropout: float, adversary: str) -> int:
    """t of a round of n clients, fewer than there could be: a complete graph has one of its own."""
    if n < 2:
        return n
    if n > max(degree + 1, COMPLETE):
        return whole
    own = _threshold(n, min(degree, n - 1), corrupt, dropout, adversary)
    return n if own is None else own


@cache
def _rule(n: int, corrupt: float, dropout: float, adversary: str) -> tuple[int, int]:
    """(degree, threshold) of n clients: the smallest even degree that does, or the complete graph."""
    if n == 1:
        return 1, 1  # nobody to share with: every round is aborted
    degrees = [n - 1] if n <= COMPLETE else [*range(2, n - 1, 2), n - 1]
    for k in degrees:
        if _connected(n, k, corrupt, dropout):
            t = _threshold(n, k, corrupt, dropout, adversary)
            if t is not None:
                return k, t
    raise FljaxError(
        f"Expected corrupt={corrupt:g} and dropout={dropout:g} to leave a threshold for {n} clients against a "
        f"{adversary} server. Lower them, or use more clients."
    )


def _connected(n: int, k: int, corrupt: float, dropout: float) -> bool:
    """Do the honest clients that stay hang together, but for a probability of 2^-41? Two cuts divide a ring."""
    bad = math.floor(corrupt * n) + math.floor(dropout * n)
    if k > bad or k == n - 1:
        return True
    log = math.lgamma
    cut = math.log(n * (n - k - 1) / 2) + log(bad + 1) + log(n - k + 1) - log(n + 1) - log(bad - k + 1)
    return cut < -(SECURITY_BITS + 1) * math.log(2)


def _threshold(n: int, k: int, corrupt: float, dropout: float, adversary: str) -> int | None:
    """The smallest t that corrupt neighbours do not reach and that those who stay do, or None."""
    law = _hypergeometric(n, math.floor(corrupt * n), k)
    above, most = 0.0, k  # P(more than `most` neighbours are corrupt)
    while most > 0 and above + law[most] <= 2.0 ** -(SECURITY_BITS + 1) / n:
        above += law[most]
        most -= 1
    if adversary == "semi_malicious":  # it may ask one half for this secret and the other half for that
        most = math.ceil((most + k - 1.25) / 2)
    law = _hypergeometric(n, math.ceil((1 - dropout) * n), k)
    below, reached = 0.0, 0  # the largest t with P(fewer than t stay) small
    while reached < k and below + law[reached] < 2.0**-CORRECTNESS_BITS / n:
        below += law[reached]
        reached += 1
    return max(most + 1, 2) if reached > most and reached >= 2 else None


def _hypergeometric(n: int, marked: int, k: int) -> list[float]:
    """P(j of k clients, drawn from n without replacement, are among the marked), for j = 0 .. k."""

    def ways(a: int, b: int) -> float:
        return math.lgamma(a + 1) - math.lgamma(b + 1) - math.lgamma(a - b + 1)

    low, high = max(0, k - (n - marked)), min(k, marked)
    total = ways(n, k)
    return [
        math.exp(ways(marked, j) + ways(n - marked, k - j) - total) if low <= j <= high else 0.0 for j in range(k + 1)
    ]


# ---- the ring of a round ---------------------------------------------------------------------------------------------


def ring_places(key: Key, members: Array) -> Array:
    """Places on the ring: the members, [C] bool by slot, are put in random order on 0 .. n - 1, the others behind them.

    The order is drawn anew in every round; slots are sorted by what the simulator knows, and must not tell.
    """
    score = jax.random.uniform(key, members.shape)
    order = jnp.argsort(jnp.where(members, score, 2.0))
    return jnp.zeros(members.shape, jnp.int32).at[order].set(jnp.arange(members.shape[0], dtype=jnp.int32))


def edge_is_there(start: Any, distance: Any, size: Any, degree: int) -> Any:
    """Is (start, start + distance) an edge of the ring of ``size`` members? Every pair of neighbours is one edge.

    For arrays of one shape and for numbers of Python.

    Members at distances up to degree / 2 are neighbours, all where there are at most degree + 1 members. Opposite
    places, at half of an even ring, meet once and not twice.
    """
    near = (distance <= degree // 2) | (size - 1 <= degree)
    once = (2 * distance < size) | ((2 * distance == size) & (start < distance))
    return (start < size) & near & once


def neighbours(graph: Graph, size: int) -> list[list[int]]:
    """On the host: the neighbours of every place on a ring of ``size`` members, sorted."""
    found: list[set[int]] = [set() for _ in range(size)]
    for start in range(size):
        for distance in range(1, graph.reach + 1):
            if bool(edge_is_there(start, distance, size, graph.degree)):
                other = (start + distance) % size
                found[start].add(other)
                found[other].add(start)
    return [sorted(f) for f in found]
