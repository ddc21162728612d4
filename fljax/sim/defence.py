"""From the sections ``robust`` and ``attack`` to parts of the round, and what is made of who was caught."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from fljax import robust
from fljax.config import Experiment
from fljax.core.check import FljaxError
from fljax.core.transform import Aggregator
from fljax.core.types import Adversary, LocalUpdate
from fljax.data import Dataset, FederatedData
from fljax.robust import attacks, poison
from fljax.robust.poison import Goal
from fljax.robust.rows import Before
from fljax.sections import AttackConfig, RobustConfig
from fljax.server.sampler import Sampler

LEAST_ROWS = {
    "trimmed_mean": (2, 1),
    "mean_around_median": (2, 1),
    "krum": (2, 3),
    "multi_krum": (2, 3),
    "bulyan": (4, 3),
    "divide_and_conquer": (2, 1),
    "adaptive_norm_bound": (2, 1),
    "nearest_neighbour_mixing": (2, 1),
}
"""Rule or stage -> (a, b): it needs n >= a f + b rows."""
ATTACK = ("attack_fraction", "attack_strength", "attack_start", "attack_share")
"""Traced numbers of an attack."""

History = dict[str, np.ndarray]


# ---- the rule -------------------------------------------------------------------------------------------------------


def make_aggregator(experiment: Experiment, dataset: Dataset, local: LocalUpdate, population: int) -> Aggregator | None:
    """The robust rule of an experiment, or None for the plain sum."""
    r = experiment.robust
    if r.rule == "none":
        return None
    if r.rule == "foolsgold":
        return robust.foolsgold(population)
    before = _before(r)
    if r.rule == "fltrust":
        return robust.fltrust(local, _root(dataset, r.root_examples), before)
    make: dict[str, Callable[[], Aggregator]] = {
        "mean": lambda: robust.mean(before),
        "median": lambda: robust.median(before),
        "trimmed_mean": lambda: robust.trimmed_mean(None, before),
        "mean_around_median": lambda: robust.mean_around_median(None, before),
        "sign_majority": lambda: robust.sign_majority(None, before),
        "krum": lambda: robust.krum(None, r.neighbors, r.power, before),
        "multi_krum": lambda: robust.multi_krum(None, r.chosen, r.neighbors, r.power, before),
        "bulyan": lambda: robust.bulyan(None, r.neighbors, r.power, before),
        "geometric_median": lambda: robust.geometric_median(r.steps or 64, r.nu, r.start, before),
        "centred_clipping": lambda: robust.centred_clipping(None, r.steps or 3, before),
        "divide_and_conquer": lambda: robust.divide_and_conquer(None, r.remove, r.dimensions, r.iterations, before),
        "flame": lambda: robust.flame(None, before),
    }
    return make[r.rule]()


def _before(r: RobustConfig) -> list[Before]:
    """The stages before the rule: groups of secure sums come first, as nothing else is seen."""
    make: dict[str, Callable[[], Before]] = {
        "norm_bound": robust.norm_bound,
        "adaptive_norm_bound": robust.adaptive_norm_bound,
        "nearest_neighbour_mixing": robust.nearest_neighbour_mixing,
        "bucketing": lambda: robust.bucketing(r.bucket),
    }
    groups = [robust.secure_groups(r.groups)] if r.groups > 1 else []
    return groups + [make[name]() for name in r.before]


def _root(dataset: Dataset, count: int) -> FederatedData:
    """The server's own examples: evenly spread over those of the clients that never train."""
    assert dataset.unseen is not None  # Experiment validates
    total = int(dataset.unseen.offsets[-1])
    rows = np.linspace(0, total - 1, min(count, total)).round().astype(int)
    return FederatedData.from_clients([(np.asarray(dataset.unseen.x)[rows], np.asarray(dataset.unseen.y)[rows])])


def robust_numbers(experiment: Experiment, sampler: Sampler) -> dict[str, float]:
    """``robust_f`` of a trial, checked against what the rule needs; {} where no part of the rule has an f.

    Raises FljaxError: f is too large for the number of rows that a round is expected to have.
    """
    r = experiment.robust
    if not r.needs_f:
        return {}
    hparams = experiment.hparams()
    clients = float(sampler.expected(hparams)) * float(hparams.availability)
    share = experiment.attack.fraction if experiment.attack.kind != "none" else 0.2
    f = math.ceil(share * clients - 1e-6) if r.f is None else r.f
    found = "robust.f" if r.f is not None else "robust.f (which follows from the share of malicious clients)"
    rows = clients / r.groups
    for part in (*r.before, r.rule):
        least = LEAST_ROWS.get(part)
        n = math.floor(rows + 1e-6)
        if least is not None and n < least[0] * f + least[1]:
            most = max((n - least[1]) // least[0], 0)
            raise FljaxError(
                f"Expected {found}={f} to be at most {most}: {part!r} needs n >= {least[0]} f + {least[1]} rows, and a "
                f"round has n={n}. Use a smaller robust.f, more clients, or smaller groups."
            )
        rows = rows / r.bucket if part == "bucketing" else rows
    return {"robust_f": float(f)}


# ---- the attack -----------------------------------------------------------------------------------------------------


def make_attack(experiment: Experiment, dataset: Dataset, population: int) -> Adversary | None:
    """The simulated adversary of an experiment, or None."""
    a = experiment.attack
    if a.kind == "none":
        return None
    view = None
    if a.kind in ("label_flip", "backdoor"):
        if dataset.task != "classification":
            raise FljaxError(f"Expected attack.kind={a.kind!r} to have data with classes, found a {dataset.task} task.")
        view = poison.flip_labels(dataset.num_classes, a.source, a.target)
        if a.kind == "backdoor":
            view = poison.backdoor(*_pattern(a, dataset), a.target or 0, dataset.num_classes)
    return robust.make_adversary(a.kind, population, view, _forge(a))


def _forge(a: AttackConfig) -> attacks.Forge:
    make: dict[str, Callable[[], attacks.Forge]] = {
        "label_flip": attacks.scale_update,
        "backdoor": attacks.scale_update,
        "sign_flip": lambda: attacks.sign_flip(a.of),
        "gaussian": attacks.gaussian,
        "free_rider": attacks.free_rider,
        "ipm": attacks.inner_product,
        "alie": lambda: attacks.little_is_enough(a.z, a.sign, a.ddof),
        "min_max": lambda: attacks.min_max(a.direction),
        "min_sum": lambda: attacks.min_sum(a.direction),
        "mimic": lambda: attacks.mimic(a.choice),
    }
    forge = make[a.kind]()
    return attacks.optimised(forge, a.optimised) if a.optimised else forge


def _pattern(a: AttackConfig, dataset: Dataset) -> tuple[tuple[int, ...], str, int, float]:
    """Shape, kind, size and value of a backdoor's pattern: as bright as the brightest pixel."""
    return dataset.input_shape, a.pattern, a.size, float(jnp.max(dataset.test.x))


def attack_goal(experiment: Experiment, dataset: Dataset) -> Goal | None:
    """What the attack wants of the model, to be evaluated; None where it only wants harm."""
    a = experiment.attack
    if a.kind == "backdoor":
        return poison.backdoor_goal(*_pattern(a, dataset), a.target or 0)
    return poison.flip_goal(a.source, a.target) if a.kind == "label_flip" else None


# ---- who was caught -------------------------------------------------------------------------------------------------

DETECTION = ("detection_precision", "detection_recall", "false_positive_rate", "time_to_detect")


def detection(history: dict[str, Any]) -> dict[str, np.ndarray]:
    """How well the rule told malicious clients apart over a run, from a history with rounds along the last axis.

    Returns:
      {} for a rule that weighs no clients. Else ``detection_precision``: malicious among the rejected;
      ``detection_recall``: rejected among the malicious; ``false_positive_rate``: rejected among the honest; all three
      over all rounds with malicious clients together. ``time_to_detect``: rounds of attack before the first in which at
      least half of the malicious clients were rejected. NaN where there is nothing to divide by, or it never happened.
    """
    if "rejected" not in history or "malicious_seen" not in history:
        return {}
    bad, rejected, caught, seen = (
        np.nan_to_num(np.asarray(history[name], np.float64))
        for name in ("malicious_seen", "rejected", "rejected_malicious", "participants")
    )
    attacked = bad > 0
    total = {name: np.where(attacked, v, 0.0).sum(axis=-1) for name, v in _named(bad, rejected, caught, seen).items()}
    found = attacked & (2 * caught >= bad)
    before = (np.cumsum(attacked, axis=-1) - attacked).astype(float)
    first = np.where(found, before, np.inf).min(axis=-1)
    return {
        "detection_precision": _ratio(total["caught"], total["rejected"]),
        "detection_recall": _ratio(total["caught"], total["bad"]),
        "false_positive_rate": _ratio(total["rejected"] - total["caught"], total["honest"]),
        "time_to_detect": np.where(np.isfinite(first), first, np.nan),
    }


def _named(bad: np.ndarray, rejected: np.ndarray, caught: np.ndarray, seen: np.ndarray) -> dict[str, np.ndarray]:
    return {"bad": bad, "rejected": rejected, "caught": caught, "honest": np.maximum(seen - bad, 0)}


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.where(below > 0, above / np.where(below > 0, below, 1.0), np.nan)
