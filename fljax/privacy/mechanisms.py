"""From a noise and a sampling law to the event that an accountant composes, one function for each trust model.

| trust | noise | sampler | event | relation |
|---|---|---|---|---|
| central | gaussian | any | ``events.sampled_gaussian`` | that of the sampler |
| central | tree | cyclic | turns x height x Gaussian(z) | replace_special |
| central | banded | cyclic | turns x Gaussian(z), the strategy has columns of norm at most 1 | replace_special |
| central | banded | cyclic_poisson | ceil(T/b) x PoissonSampled(q, Gaussian(z)) | add_or_remove_one |
| local | gaussian | any | (uploads of one client) x Gaussian(z/2) | replace_one |
| local | pure | any | (uploads of one client) x RandomizedResponse(epsilon_0) | replace_one |
| distributed | discrete_gaussian, skellam | full, fixed_size, cyclic | own RDP curve | replace_one |
| record | gaussian | any | (turns x steps) x PoissonSampled(B/n, Gaussian(z)), n of a client | add_or_remove_one |

Sources: tree: Kairouz et al., arXiv 2103.00039; banded: Choquette-Choo et al., arXiv 2306.08153; randomised response as
the worst pure mechanism: Kairouz, Oh, Viswanath, arXiv 1311.0776.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fljax.core.check import FljaxError
from fljax.core.transform import Noise
from fljax.core.types import SamplingLaw
from fljax.privacy.events import Event, check_run, cohort_of, participations, sampled_gaussian

GAUSSIAN = Noise("gaussian", 1.0)
"""Central Gaussian noise, the mechanism of a bare number."""


def as_noise(noise: Noise | float, template: Noise = GAUSSIAN) -> Noise:
    """A noise as it is, or a bare multiplier as that of the template."""
    return noise if isinstance(noise, Noise) else template._replace(multiplier=float(noise))


def make_event(law: SamplingLaw, noise: Noise | float, rounds: int) -> Event:
    """Derives the event from what ran.

    Args:
      law: how cohorts were drawn.
      noise: what was added; a bare number is z of central Gaussian noise.
      rounds: T >= 1.

    Returns:
      The event, with the relation, unit and population to which its epsilon refers.

    Raises:
      FljaxError: an unknown law, a value out of range, or a mechanism that does not support the sampler.
    """
    given = as_noise(noise)
    check_run(law, given.multiplier, rounds)
    build = EVENTS.get((given.trust, given.kind))
    if build is None:
        raise FljaxError(f"Expected noise {given.kind!r} under trust {given.trust!r} to be one of {_known()}.")
    event = build(law, given, int(rounds))
    beside = _beside(event, given, int(rounds))
    return replace(event, beside=beside) if beside else event


def choices(rounds: int, warmup: int, every: int) -> int:
    """How many private choices of masks T rounds pay for: clients vote in the round before each, in the last one too.

    Args:
      warmup: dense rounds before the first mask. every: rounds between two choices, 0 for one choice after the warm-up.
    """
    if every == 0:
        return int(1 <= warmup <= rounds)
    first = warmup or every
    return 0 if rounds < first else (rounds - first) // every + 1


def reports(rounds: int, warmup: int, every: int, turns: int) -> int:
    """How often a client reports its positions in T rounds: once after every choice in which it takes part.

    Args:
      warmup: dense rounds before the first mask. every: rounds between two choices, 0 for one choice.
      turns: of a client at the most.
    """
    left = max(0, rounds - warmup)
    return min(turns, -(-left // every) if every else min(left, 1))


def _beside(event: Event, noise: Noise, rounds: int) -> tuple[Event, ...]:
    """What the detail of a noise says was released beside the rounds, each of it without amplification by sampling.

    ``choice_range`` eta, ``choice_picks`` k, ``choice_warmup``, ``choice_every``: neurons chosen one after the other by
    the exponential mechanism, each choice of range eta where a client is added or removed (twice that where one is
    replaced, since its votes may fall as well as rise). ``report_epsilon``: a client's class, reported once.
    ``positions_epsilon``, ``positions_warmup``, ``positions_every``: a client's mask, reported after every choice.
    """
    detail = dict(noise.detail)
    same = replace(event, noise=0.0, rounds=1, rate=1.0, truncation=None, detail=(), live="pld")
    parts = []
    if "choice_range" in detail:
        width = detail["choice_range"] * (2.0 if event.relation == "replace_one" else 1.0)
        times = choices(rounds, int(detail["choice_warmup"]), int(detail["choice_every"]))
        picks = times * int(detail["choice_picks"])
        if picks:
            parts.append(replace(same, mechanism="bounded_range", noise=1.0 / width, rounds=picks))
    if "report_epsilon" in detail:
        parts.append(replace(same, mechanism="pure", noise=1.0 / detail["report_epsilon"]))
    if "positions_epsilon" in detail:
        times = reports(rounds, int(detail["positions_warmup"]), int(detail["positions_every"]), event.rounds)
        if times:
            parts.append(replace(same, mechanism="pure", noise=1.0 / detail["positions_epsilon"], rounds=times))
    if parts and event.mechanism not in ("gaussian", "pure"):
        raise FljaxError(f"Expected noise {noise.kind!r} to be Gaussian beside a private choice of masks or classes.")
    return tuple(parts)


def _known() -> str:
    return ", ".join(f"{trust} {kind}" for trust, kind in EVENTS)


def _central(law: SamplingLaw, noise: Noise, rounds: int) -> Event:
    scale = dict(noise.detail).get("noise_scale", 1.0)
    if scale == 1.0:
        return replace(sampled_gaussian(law, noise.multiplier, rounds), population=law.population)
    return _rescaled(law, noise.multiplier, rounds, scale)


def _rescaled(law: SamplingLaw, z: float, rounds: int, scale: float) -> Event:
    """A cohort of C that stands for one of C / scale: the same rate in a population of N / scale."""
    if law.kind not in ("poisson", "truncated_poisson"):
        raise FljaxError(f"Expected noise_scale={scale!r} to be 1 for sampler {law.kind!r}. Use Poisson cohorts.")
    population = None if law.population is None else round(law.population / scale)
    simulated = SamplingLaw("poisson", law.rate, population)
    event = sampled_gaussian(simulated, z, rounds)
    words = f"{event.sampler} of a simulated population, for which {law.population} clients stand"
    return replace(event, sampler=words, population=population)


def _local(law: SamplingLaw, noise: Noise, rounds: int) -> Event:
    """Every upload is private on its own; the server sees who sends, so that sampling amplifies nothing."""
    uploads = participations(law, rounds)
    pure = noise.kind == "pure"
    return Event(
        kind=law.kind,
        relation="replace_one",
        sampler=f"every client noises its own upload, at most {uploads} of them, no amplification by sampling",
        rate=1.0,
        noise=noise.multiplier if pure else noise.multiplier / 2,  # any update may become any other: 2 S
        rounds=uploads,
        accountant_relation="replace_one" if pure else "add_or_remove_one",
        live="pld" if pure else "rdp",
        mechanism="pure" if pure else "gaussian",
        trust="local",
        population=law.population,
    )


def _distributed(law: SamplingLaw, noise: Noise, rounds: int) -> Event:
    """Shares of integer noise in a cohort whose size is certain; a client is replaced by another."""
    if law.kind not in ("fixed_size", "full", "cyclic"):
        raise FljaxError(
            f"Expected sampler={law.kind!r} to draw cohorts of a fixed size for distributed noise, whose shares are "
            "cut for them. Use fixed_size, full or cyclic."
        )
    turns, rate, words = participations(law, rounds), 1.0, "no amplification by sampling"
    if law.kind == "fixed_size":
        cohort = cohort_of(law)
        rate = cohort / law.population if cohort and law.population else float(law.rate)
        words = f"cohorts of fixed size without replacement, a share {rate:g} of the clients, not known to the observer"
    return Event(
        kind=law.kind,
        relation="replace_one",
        sampler=f"a secure sum of at most {turns} uploads of a client; {words}",
        rate=rate,
        noise=noise.multiplier,  # the accountant doubles the sensitivity itself
        rounds=turns,
        accountant_relation="replace_one",
        mechanism=noise.kind,
        detail=noise.detail,
        trust="distributed",
        population=law.population,
    )


def _tree(law: SamplingLaw, noise: Noise, rounds: int) -> Event:
    """Each turn of a client is in one tree, where at most ``height`` nodes contain it."""
    apart = _separation(law, noise)
    epoch = int(dict(noise.detail).get("epoch", apart))
    if epoch > apart:
        raise FljaxError(
            f"Expected epoch={epoch} <= {apart}, the rounds until a client comes again. Use smaller trees."
        )
    height = min(epoch, rounds).bit_length()
    event = _central(law, noise, rounds)
    words = f"{event.sampler}; trees of height {height} over {epoch} rounds"
    return replace(event, rounds=event.rounds * height, sampler=words)


def _banded(law: SamplingLaw, noise: Noise, rounds: int) -> Event:
    """Turns at least b rounds apart meet disjoint rows of a strategy whose columns have norm at most 1."""
    bands = int(dict(noise.detail).get("bands", 1))
    apart = law.groups if law.kind == "cyclic_poisson" else _separation(law, noise)
    if bands > apart:
        raise FljaxError(f"Expected bands={bands} <= {apart}, the rounds until a client comes again. Use fewer bands.")
    event = _central(law, noise, rounds)
    return replace(event, sampler=f"{event.sampler}; a strategy of {bands} bands")


def _separation(law: SamplingLaw, noise: Noise) -> int:
    """Fewest rounds between two turns of one client."""
    if law.kind != "cyclic":
        raise FljaxError(f"Expected sampler={law.kind!r} to be 'cyclic' for {noise.kind} noise. Set sampler.kind.")
    cohort = cohort_of(law)
    if cohort and law.population:
        return law.population // cohort
    return max(1, int((1 + 1e-6) / float(law.rate)))  # the slack undoes rounding of the rate


def _record(law: SamplingLaw, noise: Noise, rounds: int) -> Event:
    """Every step of every participation samples among the n examples of one client, ``size`` of the detail.

    Without a size, that of a client whose batches are all of its examples: the most that any client spends.
    """
    known = dict(noise.detail)
    batch, steps, turns = known["batch"], int(known["steps"]), participations(law, rounds)
    size, capacity = int(known.get("size", batch)), int(known["capacity"])
    rate = min(1.0, batch / size)
    cut = f", cut off uniformly at {capacity}" if size > capacity else ""
    return Event(
        kind=law.kind,
        relation="add_or_remove_one",
        sampler=f"{turns} turns of {steps} local steps, Poisson batches of {batch:g} out of {size} examples{cut}",
        rate=rate,
        noise=noise.multiplier,
        rounds=turns * steps,
        truncation=(size, capacity) if size > capacity else None,
        live="pld" if size > capacity else "rdp",
        unit="example",
        trust="record",
    )


EVENTS: dict[tuple[str, str], Callable[[SamplingLaw, Noise, int], Event]] = {
    ("central", "gaussian"): _central,
    ("central", "tree"): _tree,
    ("central", "banded"): _banded,
    ("record", "gaussian"): _record,
    ("local", "gaussian"): _local,
    ("local", "pure"): _local,
    ("distributed", "discrete_gaussian"): _distributed,
    ("distributed", "skellam"): _distributed,
}
"""(trust, kind) -> builder of the event; every mechanism that fljax has is listed here."""
