"""Which clients keep how much: classes by device, by what a client holds, or drawn anew, and what a tier may not do."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from fljax.config import Experiment
from fljax.core.check import FljaxError
from fljax.data import Dataset
from fljax.server.clients import Tiers, divide_among_tiers
from fljax.sim.devices import shares


def make_tiers(experiment: Experiment, rates: tuple[float, ...], dataset: Dataset, population: int) -> Tiers:
    """The classes of an experiment's clients.

    Classes by size or labels follow from a client's own data and public bounds alone, so that nobody else's class moves
    with them; the shares that denominators use are declared. With ``report_epsilon`` each client reports its class
    once, truthfully with probability ``e^eps / (e^eps + K - 1)`` of K classes, else one of the others, and keeps to
    that (Warner 1965; Kairouz, Bonawitz, Ramage 2016).

    Args:
      rates: relative, of each class. population: N, with guests, who have no data and the first class.
    """
    d, declared = experiment.dropout, shares(experiment, len(rates))
    if d.tiers_by == "devices":
        place = divide_among_tiers(population, declared)
        return Tiers(rates, place, d.tiers_redrawn, declared=declared if d.tiers_redrawn else None)
    values = client_sizes(dataset) if d.tiers_by == "size" else label_diversity(dataset)
    place = np.zeros(population, np.int32)
    place[: len(values)] = np.searchsorted(np.asarray(d.tier_bounds), values, side="right")
    if d.report_epsilon is not None:
        place = randomised_response(np.random.default_rng(experiment.data.seed), place, len(rates), d.report_epsilon)
        return Tiers(rates, place, chosen_by="paid", report_epsilon=d.report_epsilon, declared=declared)
    return Tiers(rates, place, chosen_by=d.tier_data, declared=declared)


def client_sizes(dataset: Dataset) -> np.ndarray:
    """[N] examples of each client."""
    return np.asarray(dataset.train.sizes)


def label_diversity(dataset: Dataset) -> np.ndarray:
    """[N] float64: the exponential of the entropy of each client's labels, at most its number of classes; 0 for none.

    Raises:
      FljaxError: the data set is not one of single labels.
    """
    y, ends = np.asarray(dataset.train.y), np.asarray(dataset.train.offsets)
    if dataset.task != "classification" or y.ndim != 1:
        raise FljaxError('Expected dropout.tiers_by="labels" with one label for each example. Use "size".')

    def one(labels: np.ndarray) -> float:
        share = np.bincount(labels) / max(len(labels), 1)
        share = share[share > 0]
        return math.exp(-np.sum(share * np.log(share))) if len(labels) else 0.0

    return np.array([one(y[a:b]) for a, b in itertools.pairwise(ends)])


def randomised_response(rng: np.random.Generator, place: np.ndarray, count: int, epsilon: float) -> np.ndarray:
    """[N] reported classes: the true one with probability ``e^eps / (e^eps + count - 1)``, else another uniformly."""
    lie = rng.random(len(place)) >= 1 / (1 + (count - 1) * math.exp(-epsilon))
    return np.where(lie, (place + rng.integers(1, count, len(place))) % count, place).astype(np.int32)


def noise_trap(experiment: Experiment, trust: str) -> tuple[str, ...]:
    """A caveat where a denominator makes the clients' own noise larger than dense uploads would; () elsewhere.

    Averaged over the holders of a coordinate, a share pi of the clients, noise of each client's own has at least 1/pi
    times the variance that it has in dense uploads, where all masks with one denominator have pi times (Jensen).
    """
    d, kind = experiment.dropout, experiment.server.denominator
    differ = d.source in ("random_per_client", "self_released", "exact") or d.tiers != (1.0,)
    if trust != "local" or kind not in ("count", "inverse") or not differ:
        return ()
    held = d.widest
    if not isinstance(d.tiers, str):
        tiers = d.relative_tiers()
        held *= float(np.dot(tiers, shares(experiment, len(tiers))))
    return (
        f"server.denominator = {kind!r} divides the clients' own noise by few holders: the average has at least "
        f"{1 / held:.3g} times the noise of dense uploads. With 'expected' it has {held:.3g} times.",
    )


def check_tiers(experiment: Experiment, groups: Any) -> None:
    """Raises FljaxError where a tier would keep no neuron of a layer: only the layer's least number would be left."""
    d = experiment.dropout
    if d.source == "none" or groups is None:
        return
    tiers = (1.0,) if isinstance(d.tiers, str) else d.relative_tiers()
    for group, n in groups.sizes:
        if min(tiers) * d.widest * n < 0.5:
            raise FljaxError(
                f"Expected dropout.keep_rate={d.widest:g} and dropout.tiers={tiers} to keep one of the {n} neurons of "
                f"group {group!r}. Raise the smallest to {0.5 / n / d.widest:.3g} or more."
            )
