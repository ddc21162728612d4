"""One run of an experiment: built, compiled, driven chunk by chunk, checkpointed and resumable."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from fljax.config import Experiment
from fljax.core.check import FljaxError
from fljax.core.types import Params
from fljax.privacy.statement import PrivacyStatement
from fljax.sim import checkpoint, hosts
from fljax.sim.build import Program, build, privacy_ledger, resolve
from fljax.sim.devices import make_clock, totals
from fljax.sim.engine import Running, Schedule, Timing, bytes_sent, compile_call, drive, finals, make_call, steady
from fljax.sim.evaluate import held_data, make_evaluate
from fljax.sim.feed import make_feed
from fljax.sim.mesh import client_mesh
from fljax.sim.progress import Progress, said

CHECKPOINT = ".checkpoint.npz"


@dataclass(frozen=True)
class Outcome:
    """A finished run.

    experiment, program: what ran. statement: what may be said about its privacy. params: the final shared model.
    history: metrics by name, [T]; evaluation metrics are NaN in rounds without one. timing: seconds.
    """

    experiment: Experiment
    program: Program
    statement: PrivacyStatement
    params: Params
    history: dict[str, np.ndarray]
    timing: Timing

    @property
    def stopped(self) -> str:
        """Why the run ended before the rounds it was asked for; empty if it did not."""
        done, asked = len(self.history["participants"]), self.experiment.rounds
        budget = self.experiment.privacy.budget
        return "" if done == asked else f"stopped after {done} of {asked} rounds: the next would exceed ε = {budget:g}"

    @property
    def final(self) -> dict[str, float]:
        """The evaluation metrics after the last round."""
        return {name: float(v) for name, v in finals(self.history).items()}

    @property
    def communication(self) -> dict[str, int]:
        """Bytes sent by all clients together, and to them."""
        up, down = bytes_sent(self.history)
        return {"uplink_bytes": int(up), "downlink_bytes": int(down)}

    @property
    def simulated(self) -> dict[str, float]:
        """Seconds that the rounds would take on the devices, and the clients' operations; {} without devices."""
        return totals(self.history)

    def summary(self) -> dict:
        """What ``fljax run --json`` prints: final, privacy, communication, simulated (with devices), timing."""
        timing = {"compile_s": self.timing.compile_s, "steady_s_per_round": self.timing.steady_s_per_round}
        parts = {"final": self.final, "privacy": self.statement.to_dict(), "stopped": self.stopped}
        parts["communication"] = self.communication
        parts["execution"] = {"chunk": self.program.chunk, "padding_waste": self.program.waste}
        if self.simulated:
            parts["simulated"] = self.simulated
        return {"name": self.experiment.name, **parts, "timing": timing}

    def _repr_html_(self) -> str:
        cells = "".join(f"<tr><th>{name}</th><td>{value:.4f}</td></tr>" for name, value in self.final.items())
        return f"<b>{self.experiment.name}</b><table>{cells}</table><p>{self.statement.sentence()}</p>"


def run(experiment: Experiment, *, out: Path | None = None, resume: bool = False, quiet: bool = False) -> Outcome:
    """Runs an experiment.

    Args:
      experiment: without a sweep.
      out: folder for checkpoints between calls; None keeps nothing on disk.
      resume: continue from the checkpoint in that folder, if there is one; the result is bit-identical to a run that
        was never interrupted.
      quiet: no progress.

    Raises:
      FljaxError: the experiment holds a sweep; the checkpoint belongs to another experiment or is damaged.
    """
    if experiment.sweep is not None:
        raise FljaxError(f"{experiment.name} holds a sweep. Run it with `fljax sweep {experiment.name}`.")
    hosts.join()
    path = None if out is None else out / CHECKPOINT
    header: dict = {"fingerprint": experiment.fingerprint(), "name": experiment.name}
    check_checkpoint(path, header, resume)

    program = build(experiment)
    hparams, statement = resolve(experiment, program)
    header["rounds"] = rounds = statement.rounds or experiment.rounds
    ledger = privacy_ledger(program, hparams, statement)
    numbers, key = hparams.arrays(), jax.random.key(experiment.seed)
    state = program.round.init(key, program.params(experiment.seed), numbers)
    start = Running(0, state, {})
    if resume and path is not None and path.exists():
        start = checkpoint.restore(path, state, {"fingerprint": header["fingerprint"]})
        ledger.check(checkpoint.read_header(path).get("ledger"), start.done, str(path))

    hosts.check_same(experiment.fingerprint(), start.done)
    mesh = client_mesh(experiment.perf.devices)
    spread = lambda tree: hosts.everywhere(tree, mesh)  # noqa: E731
    start, key, numbers = start._replace(state=spread(start.state)), spread(key), spread(numbers)

    length = min(experiment.perf.rounds_per_call, rounds)
    evaluate = make_evaluate(program.model, program.loss, program.local)
    call = make_call(program.round, evaluate, length)
    schedule = spread(Schedule(jnp.int32(rounds), jnp.int32(experiment.eval_every)))
    feed = make_feed(program.dataset.train, program.sampler, key, numbers, rounds, length, spread)
    held = spread(held_data(program.dataset))
    with said("compiling", quiet):
        args = (np.int32(0), schedule, key, start.state, feed.now(start.done), held, numbers)
        executable, compile_s = compile_call(call, *args)

    shown = [f"epsilon {value:.2f} ({ledger.label}, live)" for value in ledger.spent]
    with Progress(rounds, experiment.name, lambda done: shown[done - 1] if shown else "", quiet) as bar:

        def after_call(running: Running) -> None:
            if path is not None and hosts.is_first():
                checkpoint.save(path, running, header | {"ledger": ledger.entry(running.done)})
            bar.update(running.done)

        with hosts.all_alive():
            done, times = drive(executable, start, schedule, key, feed, held, numbers, after_call=after_call)
    timing = Timing(compile_s, steady(times), sum(seconds for _, seconds in times))
    params = program.round.deployed(jnp.int32(rounds - 1), done.state, numbers)
    history = make_clock(experiment, program.model, program.dataset)(done.history)
    history = history | ({"epsilon_spent": ledger.spent} if len(ledger.spent) else {})
    return Outcome(experiment, program, statement, params, history, timing)


def run_controls(experiment: Experiment, quiet: bool = False) -> dict[str, Outcome]:
    """Runs the controls of an experiment, by name; they keep nothing on disk."""
    return {name: run(experiment.control(name), quiet=quiet) for name in experiment.controls}


def beside(outcome: Outcome, controls: dict[str, Outcome]) -> dict[str, dict[str, float]]:
    """The controls in the terms of a summary: final metrics, uplink bytes, and the run's uplink relative to theirs."""
    mine = outcome.communication["uplink_bytes"]

    def line(other: Outcome) -> dict[str, float]:
        sent = other.communication["uplink_bytes"]
        return {**other.final, "uplink_bytes": sent, "uplink_saved": 1.0 - mine / sent if sent else 0.0}

    return {name: line(other) for name, other in controls.items()}


def check_checkpoint(path: Path | None, header: dict, resume: bool) -> None:
    """Refuses a folder with the checkpoint of another experiment, whether it is resumed or would be overwritten.

    Only a finished run of the same name, with other settings, may be overwritten by a run that starts anew.
    """
    if path is None or not path.exists():
        return
    found = checkpoint.read_header(path)
    if found.get("fingerprint") == header["fingerprint"]:
        return
    finished = found.get("done") == found.get("rounds") and found.get("name") == header["name"]
    if resume or not finished:
        raise FljaxError(
            f"{path}: checkpoint of another experiment ({found.get('name')}, {found.get('fingerprint')}), expected "
            f"({header['name']}, {header['fingerprint']}). Choose another folder with --out."
        )
