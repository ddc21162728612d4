"""The noise for a target epsilon, one question at a time or many of them in processes.

Noise is searched with RDP, then with a coarse PLD, and the multiplier that is returned was put through the same
``stated_epsilon`` that will be reported, and passed.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from fljax.core.check import FljaxError, finite, one_of, positive
from fljax.core.transform import Noise
from fljax.core.types import SamplingLaw
from fljax.privacy import cache
from fljax.privacy.accounting import (
    COARSE,
    GRID,
    assumes_worst_pair,
    check_accountant,
    epsilon,
    evaluate,
    rough_epsilon,
    stated_epsilon,
)
from fljax.privacy.events import check_delta
from fljax.privacy.mechanisms import GAUSSIAN, as_noise, make_event
from fljax.privacy.rdp import rdp_epsilon

TOLERANCE = 3e-3  # relative, of the noise multiplier; the promise is 5e-3
PARALLEL_FROM = 5  # misses; a process needs seconds to start


class Target(NamedTuple):
    """One question to ``calibrate``: how cohorts are drawn, the wanted epsilon, rounds, delta, and whose multiplier."""

    law: SamplingLaw
    epsilon: float
    rounds: int
    delta: float
    noise: Noise = GAUSSIAN


def calibrate(
    law: SamplingLaw,
    target_epsilon: float,
    rounds: int,
    delta: float,
    noise: Noise = GAUSSIAN,
    *,
    accountant: str = "pld",
) -> float:
    """The smallest noise multiplier whose epsilon does not exceed the target.

    Args:
      law: how cohorts are drawn.
      target_epsilon: > 0, in the neighbouring relation of the law.
      rounds: T >= 1.
      delta: in (0, 1), and below 1/N where the law knows the population N.
      noise: the mechanism; its own multiplier is ignored.
      accountant: as for ``epsilon``.

    Returns:
      z with ``stated_epsilon(law, noise with z, rounds, delta) <= target_epsilon``, and so with ``epsilon`` below it
      too; at most 0.5 % above the smallest such z. With RDP the same of ``epsilon`` by RDP.

    Raises:
      FljaxError: a value out of range, or a target that no noise reaches.
    """
    target = Target(law, target_epsilon, rounds, delta, noise)
    parts = _check(target, accountant)
    return cache.remember(lambda: _search(target, accountant), f"calibrate_{accountant}", **parts)


def calibrate_many(targets: Sequence[Target | tuple]) -> list[float]:
    """``calibrate`` for each target, in their order; equal questions are answered once.

    More than four questions that the disk does not know are divided over processes, one for each core at most. The
    processes are fresh interpreters, which neither run the caller's script again nor touch an accelerator.

    Raises:
      FljaxError: before anything is computed, when any target is not valid.
    """
    asked = [target if isinstance(target, Target) else _as_target(*target) for target in targets]
    questions = [json.dumps(_check(target, "pld"), sort_keys=True) for target in asked]
    misses = {
        question: target
        for question, target in zip(questions, asked, strict=True)
        if cache.lookup("calibrate_pld", **json.loads(question)) is None
    }
    answers: dict[str, float] = {}
    if len(misses) >= PARALLEL_FROM:
        answers = dict(zip(misses, _in_processes(list(misses.values())), strict=True))
    for question, target in zip(questions, asked, strict=True):
        if question not in answers:
            answers[question] = calibrate(*target)
    return [answers[question] for question in questions]


def _as_target(law: SamplingLaw, wanted: float, rounds: int, delta: float, noise: Noise = GAUSSIAN) -> Target:
    return Target(law, wanted, rounds, delta, noise)


def _check(target: Target, accountant: str) -> dict[str, object]:
    """Validates a target and returns what its answer depends on."""
    one_of(("pld", "rdp"), accountant=accountant)
    positive("Use a larger target; without noise epsilon is infinite.", epsilon=target.epsilon)
    finite("For no privacy, use noise_multiplier=0.", epsilon=target.epsilon)
    event = make_event(target.law, as_noise(1.0, target.noise), target.rounds)
    check_delta(target.delta, event.population or target.law.population)
    check_accountant(accountant, event)
    grid = GRID if accountant == "pld" else None
    return {
        "event_at_noise_1": event.key,
        "delta": float(target.delta),
        "relation": event.accountant_relation,
        "proven": assumes_worst_pair(event),
        "grid": grid,
        "epsilon": float(target.epsilon),
    }


def _search(target: Target, accountant: str) -> float:
    """RDP, then PLD at 1e-3, then PLD at 1e-4 until a verified multiplier is close to the boundary."""
    law, wanted, rounds, delta, noise = target

    def gap(measure: Callable[[float], float]) -> Callable[[float], float]:
        return lambda z: math.log(max(measure(z), 1e-9) / wanted)

    def coarse(z: float) -> float:
        return evaluate(make_event(law, as_noise(z, noise), rounds), float(delta), "pld", COARSE, proven=True)

    def fine(z: float) -> float:
        if accountant == "pld":
            return stated_epsilon(law, as_noise(z, noise), rounds, delta)
        return epsilon(law, as_noise(z, noise), rounds, delta, accountant=accountant)

    start, slope = _rdp_start(target), 1.3
    if accountant == "pld":
        # The coarse grid may be unable to reach a tiny target; then the fine one starts from where RDP stood.
        start, slope = _smallest(gap(coarse), start, slope, TOLERANCE / 3) or (start, slope)
    found = _smallest(gap(fine), start, slope, TOLERANCE)
    if found is None:
        raise FljaxError(f"Expected epsilon={wanted!r} to be within reach. Use a larger epsilon, or fewer rounds.")
    return found[0]


def _rdp_start(target: Target) -> float:
    """A multiplier near the target by RDP, from two vectorised scans."""
    event = make_event(target.law, as_noise(1.0, target.noise), target.rounds)

    def rough(multipliers: np.ndarray) -> np.ndarray:
        if event.mechanism == "gaussian":
            return rdp_epsilon(event.rate, event.noise * multipliers, event.rounds, target.delta, event.rho)
        events = [make_event(target.law, as_noise(z, target.noise), target.rounds) for z in multipliers]
        return np.array([rough_epsilon(e, target.delta) for e in events])

    candidates = np.geomspace(0.02, 2e4, 60)
    for _ in range(2):
        values = rough(candidates)
        place = int(np.argmax(values <= target.epsilon)) if values[-1] <= target.epsilon else len(candidates) - 1
        candidates = np.geomspace(candidates[max(place - 1, 0)], candidates[place], 20)
    return float(candidates[-1])


def _smallest(
    gap: Callable[[float], float], start: float, slope: float, tolerance: float
) -> tuple[float, float] | None:
    """The smallest z with gap(z) <= 0 for a falling gap, by a safeguarded secant on log z.

    Args:
      gap: z -> ln(epsilon(z) / target), falling in z.
      start: a first z.
      slope: a first guess of -d gap / d ln z.
      tolerance: accepted relative excess of z.

    Returns:
      (z, slope) where gap(z) <= 0 has been seen; None when 40 evaluations do not find it.
    """
    x, failed, passed, before = math.log(start), -math.inf, math.inf, None
    for _ in range(40):
        value = max(min(gap(math.exp(x)), 50.0), -50.0)
        if before is not None and x != before[0]:
            seen = (before[1] - value) / (x - before[0])
            slope = min(max(seen, 0.3), 50.0)
        failed, passed = (failed, min(passed, x)) if value <= 0 else (max(failed, x), passed)
        if passed - failed <= tolerance or (value <= 0 and -value <= tolerance * slope):
            return math.exp(passed), slope
        before = (x, value)
        step = value / slope + tolerance / 2  # aims at the middle of the accepted interval
        x += max(min(step, 1.0), -1.0)
        if not failed < x < passed:  # outside what is known: halve that, or walk on past a wiggle of the grid
            x = (failed + passed) / 2 if math.isfinite(passed - failed) else before[0] + math.copysign(0.1, value)
    return None


def _in_processes(targets: list[Target]) -> list[float]:
    """Divides targets over fresh interpreters that read JSON and print JSON, each watched by a thread."""
    workers = min(_cores(), len(targets))
    shares = [targets[k::workers] for k in range(workers)]
    answers = [math.nan] * len(targets)
    with ThreadPoolExecutor(workers) as threads:
        for k, answered in enumerate(threads.map(_in_process, shares)):
            # Where a process failed, the same questions again, here: the caller sees the real exception.
            answers[k::workers] = answered or [calibrate(*target) for target in shares[k]]
    return answers


def _in_process(targets: list[Target]) -> list[float] | None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", "from fljax.privacy.calibration import _worker; _worker()"]
    questions = json.dumps([[list(target.law), *target[1:]] for target in targets], default=float)
    done = subprocess.run(command, env=environment, input=questions, capture_output=True, text=True)
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return None


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _noise(kind: str, multiplier: float, trust: str, detail: list) -> Noise:
    return Noise(kind, multiplier, trust, tuple((name, value) for name, value in detail))


def _worker() -> None:
    """One share of ``calibrate_many``, in a process of its own."""
    questions = json.loads(sys.stdin.read())
    answers = [
        calibrate(SamplingLaw(*law), wanted, rounds, delta, _noise(*noise))
        for law, wanted, rounds, delta, noise in questions
    ]
    sys.stdout.write(json.dumps(answers) + "\n")
