"""The fastest execution of a run's clients, found by running a few of its rounds; the answer stays on disk.

The rule (``auto_chunk``) knows the backend, the model's size and the clients' steps, and not the machine. In a run that
is long enough to pay for it, and in any under ``perf.chunk = "probe"``, the rule's batch of clients and its neighbours
are compiled and run in turn. The answer is kept in ``$FLJAX_CACHE/execution`` with all that the speed depends on: a
second run asks nothing and measures nothing.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fljax
from fljax.config import Experiment
from fljax.core import answers, memory, tree
from fljax.core.check import FljaxError
from fljax.core.provenance import cpu_name
from fljax.server.execute import LARGE_ON_CPU
from fljax.sim.build import Program
from fljax.sim.devices import local_steps, round_flops
from fljax.sim.engine import Running
from fljax.sim.progress import said

FOLDER = "execution"
TURNS = 3  # calls of each candidate; the first, of one round, warms up
CALL_S = 0.25  # seconds of a timed call, where its rounds are shorter
TIE = 0.03  # the rule's choice stands unless another is faster by more: noise should not decide
WHOLE = 256  # slots of the largest cohort that is tried as a whole on a CPU
NOT_SPEED = ("data", "rounds", "eval_every", "channel")  # parts of the structure that a round's speed does not hang on


LONG = {"cpu": 2e14}
"""Floating-point operations of a run that is measured unasked: ten minutes and more on two cores, where measuring takes
seconds, or half a minute for large models that are slow to compile."""
LONG_ELSEWHERE = 1e16


class Choice(NamedTuple):
    """Clients per vmapped batch. by: ``rule``, ``asked``, ``probe``, or ``memory`` where no more would have fitted.

    seconds: per round, by candidate, where they were measured in this process.
    """

    chunk: int
    by: str
    seconds: dict[int, float] | None = None

    def entry(self) -> dict[str, Any]:
        """What the header of a checkpoint keeps."""
        return {"chunk": self.chunk, "chosen_by": self.by, "backend": jax.default_backend()}


def recalled(header: dict[str, Any]) -> Choice | None:
    """The choice in the header of a checkpoint. None in an older file, and on another backend, which chooses anew."""
    match header.get("execution"):
        case {"chunk": int(chunk), "chosen_by": str(by), "backend": backend} if backend == jax.default_backend():
            return Choice(chunk, by)
    return None


def measures(experiment: Experiment, program: Program, rounds: int) -> bool:
    """Is the batch of clients measured? Under ``probe``, and where nothing was asked for and the run is long.

    Long is said by operations, so that it does not depend on the machine's mood. Not measured unasked: runs of several
    processes, whose clocks differ, and sums that the host makes.
    """
    if experiment.perf.chunk is not None:
        return experiment.perf.chunk == "probe"
    if jax.process_count() > 1 or experiment.host_sums:
        return False
    return rounds * round_flops(experiment, program) >= LONG.get(jax.default_backend(), LONG_ELSEWHERE)


def check_alone(experiment: Experiment) -> None:
    """Raises FljaxError where several processes would have to agree on what each of them measured."""
    if experiment.perf.chunk == "probe" and (count := jax.process_count()) > 1:
        told = f'Expected perf.chunk="probe" to be a number in a run of {count} processes, whose clocks differ.'
        raise FljaxError(f"{told} Set perf.chunk to a number, or leave it out.")


def candidates(rule: int, num_params: int, capacity: int, devices: int = 1) -> list[int]:
    """Batches of clients that may be the fastest, each once: the rule's, then others.

    On a CPU one, two and four clients for a large model, else a quarter, a half and the double of the rule's, and the
    whole cohort of up to 256; on an accelerator a quarter of the rule's, and the whole cohort.

    Args:
      rule: clients that ``auto_chunk`` takes. num_params: P. capacity: C.
      devices: over which the cohort is spread; no batch is larger than the share of one of them.
    """
    share = -(-capacity // devices)
    if jax.default_backend() != "cpu":
        others = [rule // 4, share]
    elif num_params > LARGE_ON_CPU:
        others = [1, 2, 4]
    else:
        others = [rule // 4, rule // 2, 2 * rule, *([share] if share <= WHOLE else [])]
    return list(dict.fromkeys(max(1, min(size, share)) for size in (rule, *others)))


def fastest(seconds: dict[int, float], rule: int) -> int:
    """The batch with the least seconds; the rule's where it is within 3 % of that."""
    best = min(seconds, key=lambda size: seconds[size])
    return rule if seconds.get(rule, np.inf) <= (1 + TIE) * seconds[best] else best


def question(experiment: Experiment, program: Program, steps: np.ndarray) -> str:
    """What the speed of a round depends on, as JSON: machine, versions, structure, and what the clients have to do.

    No seed, and no number that is an input of the program. steps: [N] local steps of the clients.
    """
    train, perf, env = program.dataset.train, experiment.perf, os.environ
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    devices = [jax.default_backend(), jax.devices()[0].device_kind, jax.device_count(), perf.devices]
    leaves = tree.named_leaves(program.model.shapes())
    parts = {
        "machine": [*devices, cpu_name(), cores, env.get("XLA_FLAGS", "")],
        "versions": [jax.__version__, fljax.__version__],
        "structure": {name: v for name, v in json.loads(experiment.structure()).items() if name not in NOT_SPEED},
        "model": {name: [x.shape, str(x.dtype)] for name, x in leaves.items()},
        "data": [program.dataset.input_shape, str(train.x.dtype), train.population, train.max_size],
        "clients": [program.chunk, program.sampler.capacity, experiment.data.streamed, perf.dropout],
        "steps": np.quantile(steps, np.linspace(0, 1, 9), method="nearest").tolist(),
    }
    return json.dumps(parts, sort_keys=True)


def measured(programs: dict[int, Callable], running: Running, inputs: tuple, rounds: int) -> dict[int, float]:
    """Seconds per round of each compiled call, the least of its turns, without evaluation.

    They run in turn, so that what else the machine does meets all of them, from where the run is, on copies of its
    state (calls donate theirs). inputs: of ``drive``, behind the start. rounds: that a call may have.
    """
    schedule, key, feed, held, hparams = inputs
    begin, data = running.done, feed.now(running.done)

    def call(size: int, count: int) -> float:
        until = schedule._replace(every=np.int32(2**30), until=np.int32(begin + count))
        state = jax.block_until_ready(jax.tree.map(jnp.copy, running.state))
        start = time.perf_counter()
        jax.block_until_ready(programs[size](np.int32(begin), until, key, state, data, held, hparams))
        return (time.perf_counter() - start) / count

    slowest = max(call(size, 1) for size in programs)
    count = max(1, min(rounds, feed.room(begin), int(CALL_S / slowest)))
    turns = [{size: call(size, count) for size in programs} for _ in range(TURNS - 1)]
    return {size: min(turn[size] for turn in turns) for size in programs}


def probe_chunk(
    experiment: Experiment,
    program: Program,
    compile_at: Callable[[int], Any],
    running: Running,
    inputs: tuple,
    rounds: int,
    quiet: bool = True,
) -> Choice:
    """The fastest batch of clients: from the disk, or else measured, and then kept there.

    The rule's choice where there is no other, where no rounds are left, or where none fits beside a copy of the state.

    Args:
      program: with the rule's batch. compile_at: (batch) -> compiled call. Others: as for ``measured``.
    """
    steps = local_steps(experiment.client, program.dataset.train.sizes)
    num_params = tree.num_elements(program.local.split(program.model.shapes())[0])
    sizes = candidates(program.chunk, num_params, program.sampler.capacity, experiment.perf.devices)
    rule, asked = sizes[0], question(experiment, program, steps)
    known = answers.lookup(FOLDER, asked)
    if type(known) is int and known in sizes:
        return Choice(known, "probe")
    if len(sizes) == 1 or rounds == 0:
        return Choice(rule, "rule")
    with said(f"trying {', '.join(map(str, sorted(sizes)))} clients at a time", quiet):
        programs, room = {size: compile_at(size) for size in sizes}, memory.free()
        if room is not None:
            spare = memory.SHARE * room - memory.size_of(running.state)
            programs = {size: made for size, made in programs.items() if memory.needed(made).more <= spare}
        seconds = measured(programs, running, inputs, rounds) if programs else {}
    if not seconds:
        return Choice(rule, "rule")
    chosen = fastest(seconds, rule)
    answers.store(FOLDER, asked, chosen)
    return Choice(chosen, "probe", seconds)
