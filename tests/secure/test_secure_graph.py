"""The graph of a secure sum: published degrees and thresholds, and a ring that is what it says."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from fljax.core.check import FljaxError
from fljax.secure.graph import choose_graph, edge_is_there, neighbours, ring_places


@pytest.mark.parametrize(
    ("clients", "share", "adversary", "expected"),
    [
        (100, 0.05, "curious", (12, 6)),
        (1000, 0.05, "curious", (30, 17)),
        (10**4, 0.05, "curious", (34, 20)),
        (100, 0.05, "semi_malicious", (16, 11)),
        (1000, 0.05, "semi_malicious", (52, 37)),
        (10**4, 0.05, "semi_malicious", (62, 44)),
        (100, 0.33, "curious", (68, 34)),
        (1000, 0.33, "curious", (286, 150)),
    ],
)
def test_the_rule_has_the_values_of_its_reference_implementation(clients, share, adversary, expected):
    graph = choose_graph(clients, share, share, adversary)
    assert (graph.degree, graph.threshold) == expected


def test_the_rule_for_a_million_clients():
    """Without a table for every smaller round."""
    from fljax.secure.graph import _rule

    assert _rule(10**6, 0.05, 0.05, "curious") == (38, 22)


def test_the_threshold_meets_both_of_its_bounds_by_scipy():
    """n = 300: corrupt neighbours reach t with probability below 2^-41 / n, those who stay miss it below 2^-20 / n."""
    n, graph = 300, choose_graph(300, 0.1, 0.1)
    k, t = graph.degree, graph.threshold
    corrupt = stats.hypergeom(n, math.floor(0.1 * n), k)
    staying = stats.hypergeom(n, math.ceil(0.9 * n), k)
    assert corrupt.sf(t - 1) <= 2.0**-41 / n and staying.cdf(t - 1) < 2.0**-20 / n
    assert corrupt.sf(t - 2) > 2.0**-41 / n  # and no smaller one would do
    with pytest.raises(FljaxError, match="allow a threshold for 300 clients"):
        choose_graph(n, 0.1, 0.1, degree=k - 2)


def test_small_rounds_are_complete_graphs_with_thresholds_of_their_own():
    graph = choose_graph(20, 0.25, 0.1, "semi_malicious")
    assert graph.degree == 19 and graph.threshold == math.ceil((5 + 19 - 1.25) / 2) + 1
    assert graph.thresholds[:3] == (0, 1, 2)  # of 1 or 2 clients nobody is summed: there are fewer neighbours than t
    for n in range(3, 21):
        others = neighbours(graph, n)
        assert others == [[j for j in range(n) if j != i] for i in range(n)]
        assert graph.thresholds[n] > math.floor(0.25 * n)


def test_a_sparse_ring_has_its_degree_at_every_size():
    graph = choose_graph(300, 0.05, 0.05)
    for n in (graph.degree, graph.degree + 1, graph.degree + 2, 150, 300):
        others = neighbours(graph, n)
        assert {len(o) for o in others} == {min(graph.degree, n - 1)}
        assert all(i in others[j] for i in range(n) for j in others[i])


def test_every_pair_is_one_edge():
    for size in range(1, 9):
        for degree in (2, 4, 7):
            start, distance = np.indices((9, 4))
            there = np.asarray(edge_is_there(start, distance + 1, size, degree))
            pairs = [tuple(sorted((s, (s + d + 1) % size))) for s, d in zip(*np.nonzero(there), strict=True)]
            assert len(pairs) == len(set(pairs)) and all(a != b for a, b in pairs)


def test_the_ring_is_a_random_order_of_the_members():
    members = jnp.array([True, False, True, True, False, True])
    places = np.stack([ring_places(jax.random.key(k), members) for k in range(40)])
    assert all(sorted(p) == list(range(6)) for p in places)
    assert (places[:, [0, 2, 3, 5]] < 4).all() and len({tuple(p) for p in places}) > 12
    assert set(places[:, 0]) == {0, 1, 2, 3}  # the first slot, with the most data, is nowhere in particular


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"corrupt": 0.6, "dropout": 0.5}, "Lower them, or use more clients"),
        ({"corrupt": 1.0}, r"Expected corrupt=1.0 in \[0, 1\)"),
        ({"adversary": "lazy"}, "Expected adversary='lazy' to be one of curious, semi_malicious"),
        ({"degree": 5}, "Expected degree=5 to be even, or all other 29 clients"),
        ({"degree": 30}, r"Expected degree=30 in \[1, 29\]"),
        ({"threshold": 30}, r"Expected threshold=30 in \[1, 29\]. It counts neighbours"),
    ],
)
def test_impossible_graphs_are_one_line(arguments, message):
    with pytest.raises(FljaxError, match=message) as error:
        choose_graph(30, **arguments)
    assert "\n" not in str(error.value)
    assert choose_graph(30, degree=4, threshold=3).thresholds == (0, *[3] * 30)
