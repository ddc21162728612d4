"""Attacks on everything else, run and scored: positions, the final model, who took part."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fljax.data.federated import FederatedData
from fljax.leakage import metrics
from fljax.leakage.labels import made_up_clients
from fljax.leakage.membership import Pool, calibrated_scores, loss_scores, round_scores
from fljax.leakage.participation import exposure
from fljax.leakage.positions import Shadows, dominant, guess_labels
from fljax.leakage.scene import all_cohorts, bare_update, choices, chosen_by_clients
from fljax.leakage.work import Work, numpy_seed, own_key, skipped

CANDIDATES = 2000
"""Examples that membership is asked of, at the most, in and out each."""
CLIENTS = 100
"""Clients that participation is asked of, at the most, in and out each."""
SHADOWS = 1000
"""Clients that the adversary makes up."""
FPR = 0.01


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
    data = scene.data
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
    test, data = scene.program.dataset.test, scene.data
    config = scene.experiment.data
    concentration = config.alpha if config.partition == "dirichlet" else np.inf if config.partition == "iid" else 0.5
    size = int(np.median(data.sizes))
    y = np.asarray(test.y)
    rows = made_up_clients(np.random.default_rng(numpy_seed(work)), y, SHADOWS, max(size, 1), concentration)
    own = FederatedData.from_indices(np.asarray(test.x), y, list(rows))
    ids = jnp.arange(SHADOWS)
    keys = jax.random.split(own_key(work, "positions"), SHADOWS)
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
    random = np.random.default_rng(numpy_seed(work))
    train, test = scene.data, scene.program.dataset.test
    shuffled = random.permutation(len(test.y))
    own, outside = np.split(shuffled, [len(shuffled) // 2])
    inside = random.choice(len(train.y), min(CANDIDATES, len(train.y)), replace=False)
    outside = outside[:CANDIDATES]
    x = jnp.concatenate([train.x[inside], test.x[outside]])
    candidates = Pool(x, jnp.concatenate([train.y[inside], test.y[outside]]))
    mine = own[:CANDIDATES]
    scores = {
        "loss": loss_scores(view, candidates),
        "calibrated": calibrated_scores(
            own_key(work, "membership"), view, candidates, Pool(test.x[mine], test.y[mine])
        ),
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
