"""Cohort samplers: pure functions of (key, round). The law that the accountant uses comes from the same object.

Every sampler returns ids [C] with empty slots (id N) last. C is static; where the number of participants is random,
the capacity is chosen so that truncation practically never happens, and where it does, it hits every client alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fljax.core.check import FljaxError, in_range, one_of, positive
from fljax.core.types import Array, Cohort, Hparams, Key, SamplingLaw


class Sampler(NamedTuple):
    """Who takes part in a round.

    name: poisson | fixed_size | full | cyclic | cyclic_poisson.
    population: N. capacity: C, static.
    sample: (key, t, hparams) -> Cohort     key is the run's sampling key, t the round
    expected: (hparams) -> ()               expected cohort size, a public constant
    law: (hparams) -> SamplingLaw           for the accountant, with concrete numbers
    """

    name: str
    population: int
    capacity: int
    sample: Callable[[Key, Array, Hparams], Cohort]
    expected: Callable[[Hparams], Array]
    law: Callable[[Hparams], SamplingLaw]


def poisson_capacity(population: int, rate: float) -> int:
    """Slots for a Poisson cohort: ``min(N, ceil(qN + 5 sqrt(qN)))``.

    The probability of an overflow is below 1e-5 for cohorts of 10 and more expected clients, and below 1e-3 for any.
    """
    mean = population * rate
    return min(population, math.ceil(mean + 5 * math.sqrt(mean)))


def poisson(population: int, max_rate: float, capacity: int | None = None) -> Sampler:
    """Every client takes part independently with probability q = ``hparams.sampling_rate`` (traced, q <= max_rate).

    Each client draws a uniform score and is in if it is below q. If more than C are in, the C smallest scores stay,
    a uniformly random subset (never the lowest ids); the accountant is told of the truncation.

    Args:
      population: N.
      max_rate: the largest q that will be used; it fixes the capacity.
      capacity: C, default ``poisson_capacity(N, max_rate)``; fewer slots than that are refused.
    """
    positive(population=population)
    in_range(0, 1, closed="right", sampling_rate=max_rate)
    least = poisson_capacity(population, max_rate)
    slots = least if capacity is None else min(capacity, population)
    if slots < least:
        raise FljaxError(f"Expected capacity={capacity} >= {least} = qN + 5 sqrt(qN). Leave it out for this value.")

    def sample(key, t, hparams):
        scores = jax.random.uniform(jax.random.fold_in(key, t), (population,))
        lowest, ids = jax.lax.top_k(-scores, slots)
        real = -lowest < hparams.sampling_rate
        return Cohort(jnp.where(real, ids, population), real)

    def law(hparams):
        kind = "poisson" if slots >= population else "truncated_poisson"
        return SamplingLaw(kind, float(hparams.sampling_rate), population, slots if kind != "poisson" else None)

    return Sampler("poisson", population, slots, sample, lambda h: h.sampling_rate * population, law)


def fixed_size(population: int, cohort: int) -> Sampler:
    """Exactly ``cohort`` clients a round, drawn without replacement, every subset alike."""
    in_range(1, population, cohort=cohort, remedy=f"The population has {population} clients.")

    def sample(key, t, hparams):
        del hparams
        scores = jax.random.uniform(jax.random.fold_in(key, t), (population,))
        return Cohort(jax.lax.top_k(scores, cohort)[1], jnp.ones(cohort, bool))

    return _exact("fixed_size", population, cohort, sample)


def full(population: int) -> Sampler:
    """Every client in every round."""
    positive(population=population)

    def sample(key, t, hparams):
        del key, t, hparams
        return Cohort(jnp.arange(population), jnp.ones(population, bool))

    return _exact("full", population, population, sample)


def cyclic(population: int, cohort: int) -> Sampler:
    """Round robin over one random order of the clients: round t takes the next ``cohort`` of them, wrapping around."""
    in_range(1, population, cohort=cohort, remedy=f"The population has {population} clients.")

    def sample(key, t, hparams):
        del hparams
        order = jax.random.permutation(key, population)
        return Cohort(order[(t * cohort + jnp.arange(cohort)) % population], jnp.ones(cohort, bool))

    return _exact("cyclic", population, cohort, sample)


def cyclic_poisson(population: int, groups: int, max_rate: float) -> Sampler:
    """Groups of clients take turns, and in its turn every client of a group is in independently with probability q.

    Client k belongs to group k mod b; round t draws from group t mod b with q = ``hparams.sampling_rate`` (traced), so
    that a client comes again after b rounds at the earliest. The cohort has q N / b expected clients; where more are in
    than there are slots, a uniformly random subset stays, as in ``poisson``.

    Reference: Choquette-Choo et al., arXiv 2306.08153, Algorithm 2.

    Args:
      population: N. groups: b. max_rate: the largest q that will be used; it fixes the capacity.
    """
    in_range(1, population, groups=groups, remedy=f"The population has {population} clients.")
    in_range(0, 1, closed="right", sampling_rate=max_rate)
    largest = -(-population // groups)
    slots = poisson_capacity(largest, max_rate)

    def sample(key, t, hparams):
        ids = t % groups + groups * jnp.arange(largest)
        scores = jax.random.uniform(jax.random.fold_in(key, t), (largest,))
        lowest, place = jax.lax.top_k(-jnp.where(ids < population, scores, 2.0), slots)
        real = -lowest < hparams.sampling_rate
        return Cohort(jnp.where(real, ids[place], population), real)

    def law(hparams):
        capacity = slots if slots < largest else None
        return SamplingLaw("cyclic_poisson", float(hparams.sampling_rate), population, capacity, groups)

    expected = population / groups
    return Sampler("cyclic_poisson", population, slots, sample, lambda h: h.sampling_rate * expected, law)


def _exact(name: str, population: int, cohort: int, sample: Callable) -> Sampler:
    law = SamplingLaw(name, cohort / population, population)
    return Sampler(name, population, cohort, sample, lambda h: jnp.float32(cohort), lambda h: law)


def make_sampler(
    kind: str, population: int, *, rate: float | None = None, cohort: int | None = None, groups: int = 1
) -> Sampler:
    """A sampler by name: ``poisson`` needs a rate, ``cyclic_poisson`` also groups, ``fixed_size`` and ``cyclic`` a
    cohort, ``full`` nothing."""
    one_of(["poisson", "fixed_size", "full", "cyclic", "cyclic_poisson"], sampler=kind)
    if kind in ("poisson", "cyclic_poisson"):
        if rate is None:
            raise FljaxError(f"Expected sampler={kind!r} to come with a sampling rate. Set sampler.rate.")
        return poisson(population, rate) if kind == "poisson" else cyclic_poisson(population, groups, rate)
    if kind == "full":
        return full(population)
    if cohort is None:
        raise FljaxError(f"Expected sampler={kind!r} to come with a cohort size. Set sampler.cohort.")
    return (fixed_size if kind == "fixed_size" else cyclic)(population, cohort)


def bernoulli_availability(keys: Key, ids: Array, t: Array, hparams: Hparams) -> Array:
    """Which clients answer: independently with probability ``hparams.availability``; keys [C] -> bool [C]."""
    del ids, t
    return jax.vmap(jax.random.uniform)(keys) < hparams.availability
