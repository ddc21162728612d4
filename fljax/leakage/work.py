"""What attacks are handed by the harness, and how they are scored beside their base lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from fljax.core.types import Key
from fljax.leakage import metrics
from fljax.leakage.inversion import Effort
from fljax.leakage.scene import Scene
from fljax.leakage.views import AdversaryView

NAMES = ("labels", "analytic", "inversion", "positions", "membership", "participation", "exposure")
"""Attacks, in the order in which they are reported."""


class Work(NamedTuple):
    """What every attack is handed by the harness. plain: the view of the same round without any defence."""

    scene: Scene
    view: AdversaryView
    plain: AdversaryView
    effort: Effort
    key: Key


def skipped(reason: str) -> dict[str, Any]:
    """The result of an attack that has nothing to go by."""
    return {"skipped": reason}


def no_update(work: Work) -> dict[str, Any] | None:
    """The result of an attack on updates where none is seen, or None where one is."""
    return None if work.view.uploads is not None else skipped(f"the {work.view.adversary} sees no update")


def own_key(work: Work, attack: str) -> Key:
    """A key of its own for every attack."""
    return jax.random.fold_in(work.key, NAMES.index(attack))


def numpy_seed(work: Work) -> list[int]:
    """Seed of NumPy's draws from the adversary's key."""
    return np.asarray(jax.random.key_data(work.key)).astype(np.uint64).tolist()


def is_sum(work: Work) -> bool:
    """Whether the view holds the sum of several clients."""
    return work.view.uploads is not None and work.view.uploads.sizes.shape[1] > 1


def round_examples(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """All examples of the living clients of the round: (x [n, ...], y [n])."""
    data, alive = scene.data, np.asarray(scene.transcript.alive)
    offsets = np.asarray(data.offsets)
    ids = np.asarray(scene.transcript.cohort.ids)[alive]
    rows = np.concatenate([np.arange(offsets[k], offsets[k + 1]) for k in ids])
    return np.asarray(data.x)[rows], np.asarray(data.y)[rows]


def truths_of(work: Work) -> list[np.ndarray]:
    """The examples behind every update of the view."""
    return [round_examples(work.scene)[0]] if is_sum(work) else work.scene.truths()


def labels_of(work: Work) -> list[np.ndarray]:
    """The labels behind every update of the view."""
    return [round_examples(work.scene)[1]] if is_sum(work) else work.scene.labels()


def score(work: Work, guesses: Sequence[np.ndarray], truths: Sequence[np.ndarray]) -> metrics.Recovery:
    """How close guesses come to the truth, in the range of the inputs."""
    protocol = work.scene.protocol
    return metrics.recovery(guesses, truths, protocol.low, protocol.high, protocol.image)


def base_lines(work: Work, counts: Sequence[int]) -> dict[str, metrics.Recovery]:
    """What guessing without a look at the updates reaches: the mean of public images; as many other public images."""
    scene, truths = work.scene, truths_of(work)
    public = np.asarray(scene.program.dataset.test.x)
    random = np.random.default_rng(numpy_seed(work))
    others = [public[random.integers(0, len(public), max(n, 1))] for n in counts]
    mean = public.mean(0, keepdims=True)
    return {
        "mean_image": score(work, [mean] * len(truths), truths),
        "other_images": score(work, others, truths),
    }


def scored(
    work: Work, found: metrics.Recovery, bare: metrics.Recovery, lines: dict[str, metrics.Recovery]
) -> dict[str, Any]:
    """An attack's result beside its base lines; the reduction is relative to the better of them."""
    base = max(line.psnr for line in lines.values())
    return {
        **found._asdict(),
        "leakage_reduction": metrics.reduction(found.psnr, bare.psnr, base),
        "no_defence": bare._asdict(),
        "base_lines": {name: line._asdict() for name, line in lines.items()},
        "together": is_sum(work),
    }
