"""Room for what is kept between rounds, asked for before any of it is made."""

from __future__ import annotations

import jax

from fljax.config import Experiment
from fljax.core import memory
from fljax.sim.build import Program


def check_state(experiment: Experiment, program: Program, limit: int | None) -> None:
    """Whether the state that a run begins with fits into memory; nothing is computed.

    Args:
      limit: free bytes, or None for no check.

    Raises:
      FljaxError: it does not fit; with the bytes of its parts, and how many clients would fit, where their states are
        most of it.
    """
    state, population = _shapes(experiment, program), program.sampler.population
    whole, params, clients = (memory.size_of(part) for part in (state, state.params, state.clients))
    server = whole - params - clients
    remedy = "Use a smaller model."
    if limit is not None and 2 * clients > whole:
        fits = int((memory.SHARE * limit - params - server) * population / clients)
        remedy = f"Use {fits:,} clients or fewer." if fits > 0 else "Use a smaller model and fewer clients."
    parts = [(params, "of parameters"), (server, "of the server"), (clients, f"of {population:,} clients")]
    told = ", ".join(f"{memory.said(size)} {of}" for size, of in parts)
    memory.check_room(f"the state of a run ({told})", whole, limit, remedy)


def check_trials(experiment: Experiment, program: Program, width: int) -> None:
    """Whether the states of so many trials at a time fit into memory; nothing is computed.

    Raises:
      FljaxError: they do not; with a width that does.
    """
    limit, each = memory.free(), memory.size_of(_shapes(experiment, program))
    fits = width if limit is None else int(memory.SHARE * limit / each)
    remedy = f"Use perf.trials_per_batch={fits}." if fits else "Use a smaller model."
    memory.check_room(f"the states of {width} trials", width * each, limit, remedy)


def _shapes(experiment: Experiment, program: Program):
    """The state of one run as ShapeDtypeStructs."""
    return jax.eval_shape(program.round.init, jax.random.key(0), program.model.shapes(), experiment.hparams())
