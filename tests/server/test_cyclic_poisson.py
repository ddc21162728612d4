"""Groups of clients that take turns: who is drawn, and what the accountant is told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fljax.core.check import FljaxError
from fljax.core.types import Hparams, SamplingLaw
from fljax.privacy import make_event
from fljax.server.sampler import cyclic_poisson

KEY = jax.random.key(3)


def test_groups_take_turns_and_draw_independently():
    """20,000 rounds of 11 clients in 3 groups: chi-square of the counts, P(chi2_11 > 50) = 6e-7."""
    sampler, rounds, q = cyclic_poisson(11, 3, 1.0), 20_000, 0.3
    h = Hparams(sampling_rate=q).arrays()
    cohorts = jax.jit(jax.vmap(lambda t: sampler.sample(KEY, t, h)))(jnp.arange(rounds))
    ids, real = np.asarray(cohorts.ids), np.asarray(cohorts.real)
    assert np.all((ids < 11) == real) and np.all(np.diff(real.astype(int), axis=1) <= 0)
    assert np.all((ids % 3 == np.arange(rounds)[:, None] % 3) | ~real)
    for row, there in zip(ids[:500], real[:500], strict=True):
        assert len(set(row[there])) == there.sum()
    counts = np.bincount(ids[real], minlength=11)
    chances = np.array([len(range(k % 3, rounds, 3)) for k in range(11)])
    assert ((counts - q * chances) ** 2 / (chances * q * (1 - q))).sum() < 50
    sizes = real.sum(1)[0::3]  # clients 0, 3, 6, 9
    assert abs(sizes.var() / (4 * q * (1 - q)) - 1) < 5 * np.sqrt(2 / len(sizes)) + 0.01


def test_groups_tell_the_accountant_how_they_draw():
    sampler, h = cyclic_poisson(1000, 4, 0.1), Hparams(sampling_rate=0.05)
    assert sampler.capacity == 50 and float(sampler.expected(h)) == 12.5
    assert sampler.law(h) == SamplingLaw("cyclic_poisson", 0.05, 1000, 50, 4)
    event = make_event(sampler.law(h), 1.0, 10)
    assert (event.rounds, event.truncation, event.live) == (3, (250, 50), "pld")
    assert "cut off uniformly at 50 of 250" in event.sampler
    assert cyclic_poisson(8, 4, 1.0).law(h).capacity is None
    with pytest.raises(FljaxError, match="groups=9"):
        cyclic_poisson(8, 9, 0.5)
    with pytest.raises(FljaxError, match="sampling_rate=0"):
        cyclic_poisson(8, 2, 0.0)
