"""Shamir's secret sharing: all subsets of t shares recover, fewer tell nothing, a changed share is found out."""

import itertools

import numpy as np
import pytest

from fljax.core.check import FljaxError
from fljax.secure.shamir import PRIME, SECRET_BYTES, Share, commit, recover, split

SECRET = bytes(range(SECRET_BYTES))


def seeded(seed: int):
    """draw(m): uniform integers below m, the same in every run."""
    rng = np.random.default_rng(seed)
    return lambda m: int.from_bytes(rng.bytes(64), "big") % m


def solve(shares) -> int:
    """Oracle: the constant of the polynomial through the shares, by elimination in their Vandermonde matrix."""
    n = len(shares)
    rows = [[pow(i, k, PRIME) for k in range(n)] + [value] for i, value in shares]
    for k in range(n):
        pivot = next(r for r in range(k, n) if rows[r][k])
        rows[k], rows[pivot] = rows[pivot], rows[k]
        inverse = pow(rows[k][k], -1, PRIME)
        rows[k] = [x * inverse % PRIME for x in rows[k]]
        for r in range(n):
            if r != k:
                rows[r] = [(x - rows[r][k] * y) % PRIME for x, y in zip(rows[r], rows[k], strict=True)]
    return rows[0][-1]


def test_the_field_is_one():
    """Miller-Rabin with 40 bases: a composite passes with probability below 4^-40."""
    d, r = PRIME - 1, 0
    while d % 2 == 0:
        d, r = d // 2, r + 1
    draw = seeded(0)
    for _ in range(40):
        x = pow(2 + draw(PRIME - 3), d, PRIME)
        powers = [x := x if k == 0 else x * x % PRIME for k in range(r)]
        assert powers[0] == 1 or PRIME - 1 in powers
    assert PRIME > 2 ** (8 * SECRET_BYTES)


@pytest.mark.parametrize(("count", "threshold"), [(1, 1), (3, 2), (5, 3), (6, 6)])
def test_all_subsets_of_t_shares_recover_and_agree_with_elimination(count, threshold):
    shares = split(SECRET, count, threshold, seeded(1))
    for subset in itertools.combinations(shares, threshold):
        assert recover(subset, threshold, commit(SECRET)) == SECRET
        assert solve(subset) == int.from_bytes(SECRET, "big")
    assert recover(shares[::-1], threshold) == SECRET


def test_the_largest_and_the_smallest_secret_are_shared():
    for secret in (b"\xff" * SECRET_BYTES, b"\0" * SECRET_BYTES):
        assert recover(split(secret, 4, 3, seeded(2))[1:], 3) == secret


def test_fewer_than_t_shares_fail_and_tell_nothing():
    """With t - 1 shares every secret has exactly one polynomial through it: none is ruled out, none is likelier."""
    shares = split(SECRET, 5, 3, seeded(3))
    with pytest.raises(FljaxError, match="at least 3 shares, found 2"):
        recover(shares[:2], 3)
    guess = _value_at(0, [(i, v) for i, v in shares[:2]])
    assert guess != int.from_bytes(SECRET, "big"), "two shares of three must not lie on a line through the secret"
    for other in (0, 1, 2**255, PRIME - 1):  # a third share that makes the secret this one
        slope = [Share(i, v) for i, v in shares[:2]]
        through = [Share(4, _value_at(4, [(0, other), *slope]))]
        assert solve([*slope, *through]) == other
    first = {split(SECRET, 5, 3)[0].value for _ in range(20)}
    assert len(first) == 20, "the shares of one secret are drawn anew"


def _value_at(x, points):
    """Lagrange at x in exact fractions modulo p, as an oracle."""
    total = 0
    for i, v in points:
        factor = v
        for j, _ in points:
            if j != i:
                factor = factor * (x - j) * pow(i - j, -1, PRIME) % PRIME
        total += factor
    return total % PRIME


def test_single_shares_are_uniform():
    """Top four bits of 2000 first shares of one secret: chi-squared of 15 degrees below 66 (false alarm 2e-8)."""
    draw = seeded(4)
    tops = np.array([split(SECRET, 2, 2, draw)[0].value >> 252 for _ in range(2000)]) % 16
    counts = np.bincount(tops, minlength=16)
    assert np.sum((counts - 125.0) ** 2 / 125.0) < 66


def test_a_changed_share_is_found_out():
    shares = split(SECRET, 5, 3, seeded(5))
    for k in range(5):
        bad = [s._replace(value=(s.value + 1) % PRIME) if i == k else s for i, s in enumerate(shares)]
        with pytest.raises(FljaxError, match="changed"):
            recover(bad, 3)  # further shares do not fit
    bad = [shares[0]._replace(value=shares[0].value ^ 1), *shares[1:3]]
    with pytest.raises(FljaxError, match="changed"):
        recover(bad, 3, commit(SECRET))  # nor does the commitment


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: split(b"short", 3, 2), "32 bytes, found 5"),
        (lambda: split(SECRET, 3, 4), "threshold=4 in"),
        (lambda: split(SECRET, 3, 0), "threshold=0 in"),
        (lambda: recover([Share(1, 5), Share(1, 6)], 2), "one share of each party"),
        (lambda: recover([Share(0, 5), Share(1, 6)], 2), "one share of each party"),
    ],
)
def test_bad_input_is_one_line(call, message):
    with pytest.raises(FljaxError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
