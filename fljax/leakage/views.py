"""Who sees what: adversaries, what every defence hides from them, and the view that an attack gets.

A defence *declares* what it hides; an attack takes an ``AdversaryView`` and nothing else. What clients send is taken as
it leaves them: clipped, compressed, masked and, under local noise, noised. A server that is trusted with its own noise
(central DP) sees uploads before that noise; a sum alone reaches it only where a secure sum is declared.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from fljax.config import Experiment
from fljax.core.check import FljaxError, one_of
from fljax.core.types import Array, Params, PyTree
from fljax.leakage.protocol import Protocol

ITEMS = {
    "uploads": "every client's upload of the round, as it is sent",
    "positions": "which neurons every client kept",
    "cohorts": "who took part in which round",
    "sum": "the sum of the uploads, before a server's noise",
    "released": "what the server makes of the round: the decoded, noised average",
    "models": "the shared model of every round",
    "final": "the model after the last round",
}
"""What there is to see. All know the code and the configuration; sizes of clients count as known, too."""

ADVERSARIES = {
    "server": "follows the protocol, and looks at whatever reaches it",
    "eavesdropper": "reads all that travels between clients and server",
    "client": "takes part, and looks at the models that it receives",
    "key_holder": "holds the keys of the clients, and reads all that travels",
    "outsider": "gets the final model",
}

_WIRE = ("uploads", "positions", "cohorts", "sum", "released", "models", "final")
_SEES = {
    "server": _WIRE,
    "eavesdropper": _WIRE,
    "client": ("released", "models", "final"),
    "key_holder": _WIRE,
    "outsider": ("final",),
}
"""What is seen where nothing is hidden. Consecutive models tell a client what was released."""


class Defence(NamedTuple):
    """What one measure hides, and from whom.

    hides: adversary -> items. says: one line: what it changes in what is still seen.
    """

    hides: dict[str, tuple[str, ...]]
    says: str


_SINGLE = ("uploads", "positions")

DEFENCES: dict[str, Defence] = {
    "plain": Defence({}, "nothing is hidden and nothing is noised"),
    "central_noise": Defence({}, "the server adds noise: what it releases is noised, what reaches it is not"),
    "local_noise": Defence({}, "every upload is noised before it leaves its client"),
    "record_noise": Defence({}, "every client noises its own training steps"),
    "distributed_noise": Defence(
        {"server": (*_SINGLE, "sum"), "eavesdropper": (*_SINGLE, "sum"), "key_holder": (*_SINGLE, "sum")},
        "shares of noise under a secure sum: what is decoded is noised, single uploads are hidden",
    ),
    "compression": Defence({}, "fewer values, fewer bits; which were sent is told"),
    "shared_masks": Defence({}, "all clients keep the same public neurons"),
    "server_masks": Defence({}, "every client keeps neurons that the server drew for it"),
    "client_masks": Defence({}, "every client keeps neurons of its own choice, and tells which"),
    "partial_sharing": Defence({}, "some parameters never travel"),
    "words": Defence({}, "updates are written as rounded integers, in clear"),
    "shared_key": Defence(
        {"eavesdropper": (*_SINGLE, "sum")},
        "INSECURE: one key for all, which the server and every client hold; differences of uploads are open to all",
    ),
    "one_time_pads": Defence(
        {"server": _SINGLE, "eavesdropper": (*_SINGLE, "sum")},
        "a pad for every client and round; who holds the keys reads single uploads",
    ),
    "secure_sum": Defence(
        {"server": _SINGLE, "eavesdropper": (*_SINGLE, "sum"), "key_holder": (*_SINGLE, "sum")},
        "single uploads are masked by pads of pairs; the server sees their sum, and who took part",
    ),
    "secure_sum_of_positions": Defence(
        {"server": ("uploads",), "eavesdropper": ("uploads", "sum"), "key_holder": ("uploads", "sum")},
        "single uploads are masked by pads of pairs; which neurons every client kept is told, in clear or with lies",
    ),
    "one_time_pads_of_positions": Defence(
        {"server": ("uploads",), "eavesdropper": ("uploads", "sum")},
        "a pad for every client and round; which neurons every client kept is told, in clear or with lies",
    ),
    "channel": Defence(
        {"eavesdropper": (*_SINGLE, "sum", "released", "models")},
        "what travels is encrypted between each client and the server",
    ),
    "encryption": Defence(
        {"server": (*_SINGLE, "sum"), "eavesdropper": (*_SINGLE, "sum")},
        "uploads are added under encryption; who holds the key can read them",
    ),
}
"""Measures by name. What is not in ``hides`` is seen."""


def declared(experiment: Experiment) -> list[str]:
    """The defences that an experiment has, as names of ``DEFENCES``; ``plain`` where there is none."""
    names, privacy, dropout = [], experiment.privacy, experiment.dropout
    if privacy.mechanism != "none":
        trust = privacy.mechanism.split("_")[0]
        noisy = (privacy.noise_multiplier or privacy.upload_epsilon or 0) > 0 or privacy.epsilon is not None
        names += [f"{trust}_noise"] if noisy or trust == "distributed" else []
    if experiment.compress.on:
        names.append("compression")
    if dropout.source != "none":
        own = {"exact": "client_masks", "random_per_client": "server_masks", "self_released": "server_masks"}
        names.append(own.get(dropout.source, "shared_masks"))
    if experiment.client.shared is not None:
        names.append("partial_sharing")
    return [*names, *_encoded(experiment)] or ["plain"]


MASKINGS = {
    "clear": "words",
    "shared_key": "shared_key",
    "otp": "one_time_pads",
    "flashe": "one_time_pads",
    "pairwise": "secure_sum",
    "double_mask": "secure_sum",
}
"""``secure.masking`` -> defence."""


def _encoded(experiment: Experiment) -> list[str]:
    """Defences of the sections that hide single uploads or what travels."""
    secure = experiment.secure
    names = [MASKINGS[secure.masking]] if secure.masking != "none" else []
    # Masks that the server draws for each client it knows; others are told, or not.
    told = experiment.dropout.source == "random_per_client" or secure.positions in ("public", "ldp")
    if told and f"{names[0] if names else ''}_of_positions" in DEFENCES:
        names = [f"{names[0]}_of_positions"]
    names += ["channel"] if experiment.channel.kind != "none" else []
    return names + (["encryption"] if experiment.he.kind != "none" else [])


def visible(adversary: str, defences: Iterable[str]) -> tuple[str, ...]:
    """What an adversary sees under these defences together, in the order of ``ITEMS``.

    Raises FljaxError for an unknown adversary or defence.
    """
    one_of(ADVERSARIES, adversary=adversary)
    hidden: set[str] = set()
    for name in defences:
        one_of(DEFENCES, defence=name)
        hidden |= set(DEFENCES[name].hides.get(adversary, ()))
    return tuple(item for item in ITEMS if item in _SEES[adversary] and item not in hidden)


class Uploads(NamedTuple):
    """Updates that an adversary has before it, each of one client or the sum of several.

    update: tree [U, ...] in the shape of the shared parameters. mask: tree [U, ...], 1 on the coordinates that were
    trained and sent. sizes: [U, G] int32, examples of each of the G clients that an update is the sum of.
    """

    update: PyTree
    mask: PyTree
    sizes: Array


class AdversaryView(NamedTuple):
    """All that an attack may look at; what the adversary does not see is None.

    adversary: a key of ``ADVERSARIES``. protocol: code and configuration, which all know.
    model: the shared parameters that clients received in the round. uploads: of single clients, or their sum.
    neurons: {group: [n_clients, n]} 0/1, whose neurons every client of the federation would keep in this round.
    cohorts: [T, N] bool, who took part when. released: the decoded average of the round, a tree like the model.
    final: the shared parameters after the last round.
    """

    adversary: str
    protocol: Protocol
    model: Params | None = None
    uploads: Uploads | None = None
    neurons: dict[str, Array] | None = None
    cohorts: Any | None = None
    released: PyTree | None = None
    final: Params | None = None

    def need(self, item: str) -> Any:
        """A part of the view. Raises FljaxError where this adversary does not see it."""
        value = getattr(self, item)
        if value is None:
            raise FljaxError(f"Expected adversary={self.adversary!r} to see {item}. Choose another adversary.")
        return value
