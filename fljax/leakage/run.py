"""All attacks on one experiment: its real round as an adversary sees it, beside base lines and no defence at all."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fljax.config import Experiment
from fljax.core.check import one_of, positive
from fljax.core.keys import stream
from fljax.core.types import Key, Params
from fljax.leakage.inversion import Effort
from fljax.leakage.on_runs import attack_exposure, attack_membership, attack_participation, attack_positions
from fljax.leakage.on_updates import attack_analytic, attack_inversion, attack_labels
from fljax.leakage.result import Leakage
from fljax.leakage.scene import Scene, default_round, make_view, ones_like_uploads, set_scene
from fljax.leakage.views import ADVERSARIES, DEFENCES, AdversaryView, Uploads, declared, visible
from fljax.leakage.work import NAMES, Work
from fljax.sim.progress import said

ATTACKS: dict[str, Callable[[Work], dict[str, Any]]] = {
    "labels": attack_labels,
    "analytic": attack_analytic,
    "inversion": attack_inversion,
    "positions": attack_positions,
    "membership": attack_membership,
    "participation": attack_participation,
    "exposure": attack_exposure,
}
"""Attacks by name."""


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
        one_of(NAMES, attacks=name)
    positive(victims=victims, iterations=effort.iterations, restarts=effort.restarts)
    wanted = [name for name in NAMES if not attacks or name in attacks]
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
    work = prepare(scene, adversary, defences, final, effort, stream(jax.random.key(seed), "leakage"))
    found = {name: ATTACKS[name](work) for name in attacks}
    pictures = found.get("inversion", {}).pop("pictures", None)
    return Leakage(
        name=scene.experiment.name,
        adversary=adversary,
        defences=tuple(defences),
        views={name: visible(name, defences) for name in ADVERSARIES},
        round=int(scene.ctx.round),
        victims=len(scene.victims),
        examples=float(np.mean(scene.sizes)),
        statement=scene.statement,
        found=found,
        seed=seed,
        seconds=time.perf_counter() - start,
        pictures=pictures,
    )


def prepare(scene: Scene, adversary: str, defences: list[str], final: Params | None, effort: Effort, key: Key) -> Work:
    """Cuts the two views that attacks are compared on."""
    view = make_view(scene, adversary, defences, final)
    ones = ones_like_uploads(scene, len(scene.victims))
    sizes = jnp.asarray(scene.sizes).reshape(-1, 1)
    plain = AdversaryView(
        adversary, scene.protocol, model=scene.state.params, uploads=Uploads(scene.bare, ones, sizes), final=final
    )
    return Work(scene, view, plain, effort, key)
