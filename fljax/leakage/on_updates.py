"""Attacks on updates, run and scored: labels, quotients of the first layer, inversion by gradient descent."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fljax.leakage import metrics
from fljax.leakage.analytic import invert_first_layer
from fljax.leakage.inversion import invert, real_examples
from fljax.leakage.labels import infer_labels, label_rule
from fljax.leakage.views import AdversaryView
from fljax.leakage.work import (
    Work,
    base_lines,
    is_sum,
    labels_of,
    no_update,
    numpy_seed,
    own_key,
    score,
    scored,
    skipped,
    truths_of,
)

MOST_EXAMPLES = 64
"""Examples behind one client's update that are inverted at the most."""
MOST_TOGETHER = 1024
"""Examples behind one sum that are inverted at the most."""
PICTURES = 8
"""Examples that a page shows."""


def attack_labels(work: Work) -> dict[str, Any]:
    """Labels from the last bias: of the view, of bare updates, and drawn at random."""
    if (none := no_update(work)) is not None:
        return none
    scene = work.scene
    guessed, bare = (infer_labels(own_key(work, "labels"), v) for v in (work.view, work.plain))
    rule = label_rule(work.view)
    if guessed is None or bare is None or rule is None:
        return skipped("the output layer is not sent, or there are no classes")
    true = labels_of(work)
    random = np.random.default_rng(numpy_seed(work))
    drawn = np.stack([random.permutation(scene.protocol.num_classes)[row] for row in np.maximum(guessed, 0)])
    return {
        **_labels_of(guessed, true),
        "by_rule": _labels_of(rule, true),
        "chance": _labels_of(np.where(guessed >= 0, drawn, -1), true),
        "no_defence": _labels_of(bare, scene.labels()),
    }


def _labels_of(guessed: np.ndarray, true: list[np.ndarray]) -> dict[str, float]:
    each = [g[g >= 0] for g in guessed]
    return {"f1": metrics.label_f1(each, true), "share": metrics.label_hits(each, true)}


def attack_analytic(work: Work) -> dict[str, Any]:
    """Quotients of the first dense layer: of the view, of bare updates, and as many public images."""
    if (none := no_update(work)) is not None:
        return none
    found, bare = invert_first_layer(work.view), invert_first_layer(work.plain)
    if found is None or bare is None:
        return skipped("the first layer is not dense, or is not sent")
    candidates = [np.asarray(x)[np.asarray(told)] for x, told in zip(*found, strict=True)]
    lines = base_lines(work, [len(c) for c in candidates])
    plain = [np.asarray(x)[np.asarray(told)] for x, told in zip(*bare, strict=True)]
    return scored(work, score(work, candidates, truths_of(work)), score(work, plain, work.scene.truths()), lines)


def attack_inversion(work: Work) -> dict[str, Any]:
    """Gradient inversion by an adversary that knows the masks; by one that does not; and of bare updates."""
    if (none := no_update(work)) is not None:
        return none
    if (reason := _hopeless(work)) is not None:
        return skipped(reason)
    guesses = inverted(work, work.view)
    plain = inverted(work, work.plain)
    lines = base_lines(work, [len(g) for g in guesses])
    result = scored(work, score(work, guesses, truths_of(work)), score(work, plain, work.scene.truths()), lines)
    blind = ignoring_masks(work)
    if blind is not None:
        seen = score(work, inverted(work, blind), truths_of(work))
        result["ignoring_masks"] = seen._asdict()
    effort = {"iterations": work.effort.iterations, "restarts": work.effort.restarts}
    return result | effort | {"pictures": _pictures(work, guesses, plain)}


def _pictures(work: Work, guesses: list[np.ndarray], bare: list[np.ndarray]) -> dict[str, Any] | None:
    """The first examples beside what was made of them, in [0, 1]; None where examples are no images."""
    protocol, truths = work.scene.protocol, truths_of(work)
    if protocol.image is None:
        return None
    shown = truths[0] if is_sum(work) else np.concatenate([t[:1] for t in truths])
    shown = shown[:PICTURES]

    def nearest(pools: list[np.ndarray], k: int) -> np.ndarray:
        pool = pools[min(k, len(pools) - 1)]
        return pool[np.argmin(np.sum(np.square(pool - shown[k]), axis=tuple(range(1, pool.ndim))))]

    def listed(images: Any) -> list:
        scaled = (np.stack(images) - protocol.low) / (protocol.high - protocol.low)
        return np.round(scaled.astype(np.float64), 3).reshape(-1, *protocol.image).tolist()

    rows = {"original": listed(shown), "seen": listed([nearest(guesses, k) for k in range(len(shown))])}
    return rows if is_sum(work) else rows | {"bare": listed([nearest(bare, k) for k in range(len(shown))])}


def _hopeless(work: Work) -> str | None:
    """Why nothing is inverted, or None."""
    uploads, protocol = work.view.uploads, work.scene.protocol
    assert uploads is not None
    if protocol.loss.name != "classification" or not np.issubdtype(work.scene.x.dtype, np.floating):
        return "inputs that are real numbers with class labels are inverted, nothing else"
    longest, clients = int(np.max(uploads.sizes)), uploads.sizes.shape[1]
    if longest > MOST_EXAMPLES or longest * clients > MOST_TOGETHER:
        return (
            f"an update mixes {longest} examples of {clients} client(s); at most {MOST_EXAMPLES} of one and "
            f"{MOST_TOGETHER} of a sum are inverted. Try --data.examples_per_client 4"
        )
    return None


def inverted(work: Work, view: AdversaryView) -> list[np.ndarray]:
    """Reconstructions of every update of a view, without padding."""
    uploads = view.need("uploads")
    labels = infer_labels(own_key(work, "labels"), view)
    if labels is None:  # the adversary draws them
        most = int(np.max(uploads.sizes)) * uploads.sizes.shape[1]
        random = np.random.default_rng(numpy_seed(work))
        labels = random.integers(0, view.protocol.num_classes, (uploads.sizes.shape[0], most))
    images, _ = invert(own_key(work, "inversion"), view, labels, work.effort)
    most = labels.shape[1] // uploads.sizes.shape[1]
    real = np.asarray(jax.vmap(lambda s: real_examples(s, most))(uploads.sizes))
    return [image[keep] for image, keep in zip(np.asarray(images), real, strict=True)]


def ignoring_masks(work: Work) -> AdversaryView | None:
    """The view of an adversary that takes masked updates for whole ones; None where nothing is masked."""
    uploads = work.view.uploads
    if uploads is None or work.scene.program.submodel is None:
        return None
    return work.view._replace(uploads=uploads._replace(mask=jax.tree.map(jnp.ones_like, uploads.mask)))
