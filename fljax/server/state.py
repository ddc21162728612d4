"""What a round hands on, what is observed of it, and a round with every intermediate value kept."""

from __future__ import annotations

from typing import Any, NamedTuple

from fljax.core.types import Array, Cohort, Params, PyTree
from fljax.server.traffic import Bytes


class RoundState(NamedTuple):
    """Everything that a round hands to the next one.

    params: the shared parameters. server: state of the server optimiser. algorithm: server-side state of the local
    algorithm. transforms, aggregator, submodel: states of those stages. clients: (local, transform, choice of neurons)
    states of all clients, leaves [N, ...].
    """

    params: Params
    server: PyTree
    algorithm: PyTree
    transforms: PyTree
    aggregator: PyTree
    submodel: PyTree
    clients: PyTree


class RoundInfo(NamedTuple):
    """What is only observed: the simulator's oracle view, never an input of a later round.

    contacted: clients that received the model. answered: those that were available. participants: those that
    contributed; the others' updates were not finite and counted as exactly zero.
    uplink_values, downlink_values: () int32 numbers sent by, and to, one client (of the widest tier). A client receives
    the (sub-)model and the state of the algorithm (SCAFFOLD's c) whole.
    uplink, downlink: bytes of all clients of the round together, as the transforms write them down.
    client: means over the participants. server: values of the server's stages, and of the masks.
    classes: {name: [D]} what each class of devices did, where classes are given (see ``observe.count_work``).
    """

    contacted: Array
    answered: Array
    participants: Array
    uplink_values: Array
    downlink_values: Array
    uplink: Bytes
    downlink: Bytes
    client: dict[str, Array]
    server: dict[str, Array]
    classes: dict[str, Array]


class Transcript(NamedTuple):
    """A round with every intermediate value kept, for sensitivity replay and for adversaries' views.

    cohort, alive [C], payloads [C, ...] as sent: all three in the order of execution; pre_noise: the payloads' sum,
    before any decoding; public: every value that privacy assumes to be public (bounds, noise std, support, expected
    cohort); released: the decoded total; neurons: {group: [C, n]} 0/1, whose neurons each client kept, or None without
    masks.
    """

    cohort: Cohort
    alive: Array
    payloads: PyTree
    pre_noise: PyTree
    public: dict[str, Any]
    released: PyTree
    neurons: dict[str, Array] | None = None
