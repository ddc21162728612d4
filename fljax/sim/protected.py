"""What protects the messages of an experiment: which checks the host makes, and what is told of them."""

from __future__ import annotations

from typing import Any

from fljax.config import Experiment
from fljax.core import tree
from fljax.core.types import Hparams, Key
from fljax.secure.channel import OVERHEAD
from fljax.sim.agreed import protocol_exchange
from fljax.sim.build import Program
from fljax.sim.channelled import channel_check
from fljax.sim.encrypting import he_check, he_exchange, modelled
from fljax.sim.hosted import Host
from fljax.sim.messages import words_of


def make_host(experiment: Experiment, program: Program, key: Key, numbers: Hparams) -> Host:
    """What the host does beside the compiled program. key, numbers: of the run.

    Raises:
      FljaxError: the package of a protocol is missing; several processes share the run.
    """
    checks = []
    if experiment.channel.kind != "none" and experiment.channel.verify_rounds:
        words = words_of(experiment, program.sampler, _size(program), program.model.groups)
        checks.append(channel_check(experiment, program.sampler.population, words))
    he, exchange = experiment.he, None
    if experiment.secure.mode == "protocol":
        groups = program.model.groups
        exchange = protocol_exchange(experiment, program.sampler, _size(program), key, numbers, groups)
    if he.kind != "none" and he.mode == "exact":
        exchange = he_exchange(experiment, _size(program))
    elif he.kind != "none" and he.verify_rounds:
        checks.append(he_check(experiment))
    return Host(checks, exchange)


def encryption_told(experiment: Experiment, program: Program, host: Host) -> dict[str, dict[str, Any]]:
    """What was encrypted, and what the host found: by part; {} where nothing is encrypted."""
    del program
    told = host.told()
    if experiment.channel.kind != "none" and "channel" not in told:
        told["channel"] = {"kind": experiment.channel.kind, "overhead_bytes": OVERHEAD, "verified_rounds": 0}
    if experiment.he.kind != "none" and "he" not in told:
        told["he"] = modelled(experiment)
    return told


def _size(program: Program) -> int:
    """P, the number of parameters that travel."""
    shared, _ = program.local.split(program.model.shapes())
    return tree.num_elements(shared)
