"""All attacks on one experiment: its real round as an adversary sees it, beside base lines and no defence at all."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fljax.config import Experiment
from fljax.core.check import one_of, positive
from fljax.core.keys import stream
from fljax.core.types import Key, Params
from fljax.data.federated import FederatedData
from fljax.leakage import metrics
from fljax.leakage.analytic import invert_first_layer
from fljax.leakage.inversion import Effort, invert, real_examples
from fljax.leakage.labels import infer_labels, label_rule, made_up_clients
from fljax.leakage.membership import Pool, calibrated_scores, loss_scores, round_scores
from fljax.leakage.participation import exposure
from fljax.leakage.positions import Shadows, dominant, guess_labels
from fljax.leakage.result import Leakage
from fljax.leakage.scene import (
    Scene,
    all_cohorts,
    bare_update,
    choices,
    chosen_by_clients,
    default_round,
    make_view,
    ones_like_uploads,
    set_scene,
)
from fljax.leakage.views import ADVERSARIES, DEFENCES, AdversaryView, Uploads, declared, visible
from fljax.sim.progress import said

MOST_EXAMPLES = 64
"""Examples behind one client's update that are inverted at the most."""
MOST_TOGETHER = 1024
"""Examples behind one sum that are inverted at the most."""
CANDIDATES = 2000
"""Examples that membership is asked of, at the most, in and out each."""
CLIENTS = 100
"""Clients that participation is asked of, at the most, in and out each."""
SHADOWS = 1000
"""Clients that the adversary makes up."""
FPR = 0.01


class Work(NamedTuple):
    """What every attack is handed by the harness. plain: the view of the same round without any defence."""

    scene: Scene
    view: AdversaryView
    plain: AdversaryView
    effort: Effort
    key: Key


def leakage(
    experiment: Experiment,
    *,
    adversary: str = "server",
    assume: Sequence[str] = (),
    attacks: Sequence[str] = (),
    round: int | None = None,
    victims: int = 24,
    effort: Effort = Effort(),
    seed: int = 0,
    quiet: bool = True,
) -> Leakage:
    """Lets an adversary attack a real round, and the final model, of an experiment.

    Args:
      experiment: without a sweep.
      adversary: a key of ``ADVERSARIES``.
      assume: defences that are not in the experiment and are taken as given, keys of ``DEFENCES``.
      attacks: keys of ``ATTACKS``; none: all.
      round: the round that is attacked, from 0; default the first with masks, else 0.
      victims: clients of the round that are attacked, at the most.
      effort: of the iterative inversion.
      seed: of the adversary's own draws.
      quiet: nothing on stderr.

    Returns:
      A Leakage: what every attack reached, or why it had nothing to go by.

    Raises:
      FljaxError: unknown names, a sweep, streamed data, a round that does not exist or is empty.
    """
    one_of(ADVERSARIES, adversary=adversary)
    for name in assume:
        one_of(DEFENCES, assume=name)
    for name in attacks:
        one_of(ATTACKS, attacks=name)
    positive(victims=victims, iterations=effort.iterations, restarts=effort.restarts)
    wanted = [name for name in ATTACKS if not attacks or name in attacks]
    t = default_round(experiment) if round is None else round
    with said(f"attacking round {t} as {adversary}", quiet):
        scene, final = set_scene(experiment, t, victims, "membership" in wanted)
        return attack(scene, final, adversary, assume, wanted, effort, seed)


def attack(
    scene: Scene,
    final: Params | None,
    adversary: str,
    assume: Sequence[str],
    attacks: Sequence[str],
    effort: Effort = Effort(),
    seed: int = 0,
) -> Leakage:
    """Attacks a scene that is set already; arguments as for ``leakage``, final: the model after the last round."""
    start = time.perf_counter()
    defences = [*declared(scene.experiment), *assume]
    work = _prepare(scene, adversary, defences, final, effort, stream(jax.random.key(seed), "leakage"))
    return Leakage(
        name=scene.experiment.name,
        adversary=adversary,
        defences=tuple(defences),
        views={name: visible(name, defences) for name in ADVERSARIES},
        round=int(scene.ctx.round),
        victims=len(scene.victims),
        examples=float(np.mean(scene.sizes)),
        statement=scene.statement,
        found={name: ATTACKS[name](work) for name in attacks},
        seed=seed,
        seconds=time.perf_counter() - start,
    )


def _prepare(scene: Scene, adversary: str, defences: list[str], final: Params | None, effort: Effort, key: Key) -> Work:
    """Cuts the two views that attacks are compared on."""
    view = make_view(scene, adversary, defences, final)
    ones = ones_like_uploads(scene, len(scene.victims))
    sizes = jnp.asarray(scene.sizes).reshape(-1, 1)
    plain = AdversaryView(
        adversary, scene.protocol, model=scene.state.params, uploads=Uploads(scene.bare, ones, sizes), final=final
    )
    return Work(scene, view, plain, effort, key)


def skipped(reason: str) -> dict[str, Any]:
    """The result of an attack that has nothing to go by."""
    return {"skipped": reason}


def _no_update(work: Work) -> dict[str, Any] | None:
    return None if work.view.uploads is not None else skipped(f"the {work.view.adversary} sees no update")


# ---- the attacks, each scored beside its base lines -----------------------------------------------------------------


def attack_labels(work: Work) -> dict[str, Any]:
    """Labels from the last bias: of the view, of bare updates, and drawn at random."""
    if (none := _no_update(work)) is not None:
        return none
    scene = work.scene
    guessed, bare = (infer_labels(_key(work, "labels"), v) for v in (work.view, work.plain))
    rule = label_rule(work.view)
    if guessed is None or bare is None or rule is None:
        return skipped("the output layer is not sent, or there are no classes")
    true = _true_labels(work)
    random = np.random.default_rng(_seed(work))
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
    if (none := _no_update(work)) is not None:
        return none
    found, bare = invert_first_layer(work.view), invert_first_layer(work.plain)
    if found is None or bare is None:
        return skipped("the first layer is not dense, or is not sent")
    candidates = [np.asarray(x)[np.asarray(told)] for x, told in zip(*found, strict=True)]
    lines = _base_lines(work, [len(c) for c in candidates])
    plain = [np.asarray(x)[np.asarray(told)] for x, told in zip(*bare, strict=True)]
    return _scored(work, _score(work, candidates, _truths(work)), _score(work, plain, work.scene.truths()), lines)


def attack_inversion(work: Work) -> dict[str, Any]:
    """Gradient inversion by an adversary that knows the masks; by one that does not; and of bare updates."""
    if (none := _no_update(work)) is not None:
        return none
    if (reason := _hopeless(work)) is not None:
        return skipped(reason)
    guesses = _inverted(work, work.view)
    plain = _inverted(work, work.plain)
    lines = _base_lines(work, [len(g) for g in guesses])
    result = _scored(work, _score(work, guesses, _truths(work)), _score(work, plain, work.scene.truths()), lines)
    blind = _without_masks(work)
    if blind is not None:
        seen = _score(work, _inverted(work, blind), _truths(work))
        result["ignoring_masks"] = seen._asdict()
    return result | {"iterations": work.effort.iterations, "restarts": work.effort.restarts}


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


def _inverted(work: Work, view: AdversaryView) -> list[np.ndarray]:
    """Reconstructions of every update of a view, without padding."""
    uploads = view.need("uploads")
    labels = infer_labels(_key(work, "labels"), view)
    if labels is None:  # the adversary draws them
        most = int(np.max(uploads.sizes)) * uploads.sizes.shape[1]
        random = np.random.default_rng(_seed(work))
        labels = random.integers(0, view.protocol.num_classes, (uploads.sizes.shape[0], most))
    images, _ = invert(_key(work, "inversion"), view, labels, work.effort)
    most = labels.shape[1] // uploads.sizes.shape[1]
    real = np.asarray(jax.vmap(lambda s: real_examples(s, most))(uploads.sizes))
    return [image[keep] for image, keep in zip(np.asarray(images), real, strict=True)]


def _without_masks(work: Work) -> AdversaryView | None:
    """The view of an adversary that takes masked updates for whole ones; None where nothing is masked."""
    uploads = work.view.uploads
    if uploads is None or work.scene.program.submodel is None:
        return None
    return work.view._replace(uploads=uploads._replace(mask=jax.tree.map(jnp.ones_like, uploads.mask)))


def attack_positions(work: Work) -> dict[str, Any]:
    """The most frequent label of every client, from whose neurons it kept."""
    scene, view = work.scene, work.view
    if scene.program.submodel is None:
        return skipped("no neurons are dropped")
    if not chosen_by_clients(scene):
        return skipped(
            "all clients keep neurons that follow from what was released or is public: they tell nothing new"
        )
    if view.neurons is None:
        return skipped(f"the {view.adversary} does not see positions")
    if scene.protocol.loss.name != "classification":
        return skipped("there are no classes")
    shadows = _shadows(work)
    data = scene.program.dataset.train
    true = dominant(*_label_table(data))
    has = true >= 0
    guessed = guess_labels(view, shadows)[has]
    common = int(np.argmax(np.bincount(np.asarray(shadows.labels))))
    accuracy, chance = float(np.mean(guessed == true[has])), float(np.mean(true[has] == common))
    most = float(np.max(np.bincount(true[has])) / has.sum())
    return {
        "accuracy": accuracy,
        "chance": max(chance, most),
        "times_chance": accuracy / max(chance, most),
        "std_error": float(np.sqrt(max(accuracy * (1 - accuracy), 1e-12) / has.sum())),
        "clients": int(has.sum()),
        "made_up_clients": SHADOWS,
    }


def _label_table(data: FederatedData) -> tuple[np.ndarray, np.ndarray]:
    """Labels of all clients [N, M] and their sizes [N]."""
    offsets, y = np.asarray(data.offsets), np.asarray(data.y)
    sizes = np.diff(offsets)
    places = np.minimum(offsets[:-1, None] + np.arange(max(int(sizes.max()), 1)), len(y) - 1)
    return y[places], sizes


def _shadows(work: Work) -> Shadows:
    """Made-up clients of the adversary's own public examples, whose neurons the experiment's own code chooses."""
    scene = work.scene
    test, data = scene.program.dataset.test, scene.program.dataset.train
    config = scene.experiment.data
    concentration = config.alpha if config.partition == "dirichlet" else np.inf if config.partition == "iid" else 0.5
    size = int(np.median(data.sizes))
    y = np.asarray(test.y)
    rows = made_up_clients(np.random.default_rng(_seed(work)), y, SHADOWS, max(size, 1), concentration)
    own = FederatedData.from_indices(np.asarray(test.x), y, list(rows))
    ids = jnp.arange(SHADOWS)
    keys = jax.random.split(_key(work, "positions"), SHADOWS)
    sub = scene.program.submodel
    assert sub is not None and sub.own is not None
    fresh = jax.tree.map(lambda s: jnp.repeat(s[None], SHADOWS, axis=0), sub.own.init(scene.state.params))
    labels = dominant(y[rows], np.full(SHADOWS, rows.shape[1]))
    return Shadows(choices(scene, keys, ids, fresh, own), jnp.asarray(labels))


def attack_membership(work: Work) -> dict[str, Any]:
    """Training examples against test examples, by the final model."""
    scene, view = work.scene, work.view
    whole = not scene.program.local.split(scene.program.params(0))[1]
    if view.final is None or not whole:
        return skipped("there is no final model that is whole" if not whole else "the final model is not seen")
    random = np.random.default_rng(_seed(work))
    train, test = scene.program.dataset.train, scene.program.dataset.test
    shuffled = random.permutation(len(test.y))
    own, outside = np.split(shuffled, [len(shuffled) // 2])
    inside = random.choice(len(train.y), min(CANDIDATES, len(train.y)), replace=False)
    outside = outside[:CANDIDATES]
    x = jnp.concatenate([train.x[inside], test.x[outside]])
    candidates = Pool(x, jnp.concatenate([train.y[inside], test.y[outside]]))
    mine = own[:CANDIDATES]
    scores = {
        "loss": loss_scores(view, candidates),
        "calibrated": calibrated_scores(_key(work, "membership"), view, candidates, Pool(test.x[mine], test.y[mine])),
    }
    n = len(inside)
    result = {name: _roc(values[:n], values[n:]) for name, values in scores.items()}
    return result | {"chance": {"auc": 0.5, "tpr": FPR}, "fpr": FPR, "members": n, "others": len(outside)}


def _roc(members: np.ndarray, others: np.ndarray) -> dict[str, float]:
    return {
        "auc": metrics.auc(members, others),
        "auc_error": metrics.auc_error(len(members), len(others)),
        "tpr": metrics.tpr_at(members, others, FPR),
    }


def attack_participation(work: Work) -> dict[str, Any]:
    """Who was in the round, from what was released, by an adversary that knows the data of those it asks about."""
    scene, view = work.scene, work.view
    if view.cohorts is not None:
        return {"auc": 1.0, "told": True, "chance": 0.5}
    if view.released is None:
        return skipped(f"the {view.adversary} does not see what was released")
    was_in = all_cohorts(scene)[int(scene.ctx.round)]
    inside, outside = np.flatnonzero(was_in)[:CLIENTS], np.flatnonzero(~was_in)[:CLIENTS]
    if not len(inside) or not len(outside):
        return skipped("all clients or none were in the round")
    ids = jnp.asarray(np.concatenate([inside, outside]))
    scores = round_scores(view, lambda client: bare_update(scene.program, scene.ctx, scene.state, client), ids)
    result = _roc(scores[: len(inside)], scores[len(inside) :])
    return result | {"told": False, "chance": 0.5, "clients_in": len(inside), "clients_out": len(outside)}


def attack_exposure(work: Work) -> dict[str, Any]:
    """Clients whose vectors follow from the sums of all rounds, if they always send the same one."""
    if work.view.cohorts is None:
        return skipped(f"the {work.view.adversary} does not see who took part")
    seen = exposure(work.view)
    return {
        "clients": int(seen.clients.sum()),
        "share": float(seen.clients.mean()),
        "rank": seen.rank,
        "rounds": len(work.view.cohorts),
        "first_round": seen.first_round,
    }


ATTACKS: dict[str, Callable[[Work], dict[str, Any]]] = {
    "labels": attack_labels,
    "analytic": attack_analytic,
    "inversion": attack_inversion,
    "positions": attack_positions,
    "membership": attack_membership,
    "participation": attack_participation,
    "exposure": attack_exposure,
}
"""Attacks by name, in the order in which they are reported."""


# ---- scoring --------------------------------------------------------------------------------------------------------


def _key(work: Work, attack: str) -> Key:
    """A key of its own for every attack."""
    return jax.random.fold_in(work.key, [*ATTACKS].index(attack))


def _seed(work: Work) -> list[int]:
    """Seed of NumPy's draws from the adversary's key."""
    return np.asarray(jax.random.key_data(work.key)).astype(np.uint64).tolist()


def _is_sum(work: Work) -> bool:
    return work.view.uploads is not None and work.view.uploads.sizes.shape[1] > 1


def _round_examples(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """All examples of the living clients of the round: (x [n, ...], y [n])."""
    data, alive = scene.program.dataset.train, np.asarray(scene.transcript.alive)
    offsets = np.asarray(data.offsets)
    ids = np.asarray(scene.transcript.cohort.ids)[alive]
    rows = np.concatenate([np.arange(offsets[k], offsets[k + 1]) for k in ids])
    return np.asarray(data.x)[rows], np.asarray(data.y)[rows]


def _truths(work: Work) -> list[np.ndarray]:
    """The examples behind every update of the view."""
    return [_round_examples(work.scene)[0]] if _is_sum(work) else work.scene.truths()


def _true_labels(work: Work) -> list[np.ndarray]:
    return [_round_examples(work.scene)[1]] if _is_sum(work) else work.scene.labels()


def _score(work: Work, guesses: Sequence[np.ndarray], truths: Sequence[np.ndarray]) -> metrics.Recovery:
    protocol = work.scene.protocol
    return metrics.recovery(guesses, truths, protocol.low, protocol.high, protocol.image)


def _base_lines(work: Work, counts: Sequence[int]) -> dict[str, metrics.Recovery]:
    """What guessing without a look at the updates reaches: the mean of public images; as many other public images."""
    scene, truths = work.scene, _truths(work)
    public = np.asarray(scene.program.dataset.test.x)
    random = np.random.default_rng(_seed(work))
    others = [public[random.integers(0, len(public), max(n, 1))] for n in counts]
    mean = public.mean(0, keepdims=True)
    return {
        "mean_image": _score(work, [mean] * len(truths), truths),
        "other_images": _score(work, others, truths),
    }


def _scored(
    work: Work, found: metrics.Recovery, bare: metrics.Recovery, lines: dict[str, metrics.Recovery]
) -> dict[str, Any]:
    """An attack's result beside its base lines; the reduction is relative to the better of them."""
    base = max(line.psnr for line in lines.values())
    return {
        **found._asdict(),
        "leakage_reduction": metrics.reduction(found.psnr, bare.psnr, base),
        "no_defence": bare._asdict(),
        "base_lines": {name: line._asdict() for name, line in lines.items()},
        "together": _is_sum(work),
    }
