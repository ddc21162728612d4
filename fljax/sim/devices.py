"""The time that a round would take on real devices, and the arithmetic that the clients do.

A client of class k that answers in a round takes

    8e-6 down / downlink_k  +  flops / (1e9 compute_k)  +  8e-6 up / uplink_k   seconds,

with the bytes as they are counted on the wire, speeds in Mbit/s and GFLOP/s, and ``flops`` three times the forward pass
of its (sub-)model (forward, gradient of the activations, gradient of the weights) for every example it trains on. A
round takes as long as the slowest client that answered. Server, waiting for clients that never answer, and what works
element by element take no time. It is computed on the host, after the run, from what each class did in each round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from fljax.config import Experiment
from fljax.core import tree
from fljax.core.check import FljaxError
from fljax.core.types import Array
from fljax.dropout.sources import EXAMPLES
from fljax.models import Model
from fljax.models.flops import model_flops
from fljax.sections import ClientConfig, DevicesConfig
from fljax.server.clients import divide_among_tiers
from fljax.server.observe import Devices

History = dict[str, np.ndarray]

PASSES = 3
"""Forward passes that a training step costs: one forward, two backward."""
GRID = tuple(k / 8 for k in range(8, 0, -1))
"""Keep rates that resources choose from: public, the same for everybody."""
CLOCK = ("simulated_s", "simulated_flops")
"""Names in a history, both running totals: seconds, and floating-point operations of all clients."""


class Speed(NamedTuple):
    """One class of devices. uplink, downlink: Mbit/s. compute: GFLOP/s."""

    uplink: float
    downlink: float
    compute: float

    def seconds(self, down: Any, flops: Any, up: Any) -> Any:
        """What a client takes for so many bytes down, operations, and bytes up; numbers or arrays of them."""
        return 8e-6 * down / self.downlink + flops / (1e9 * self.compute) + 8e-6 * up / self.uplink


class Load(NamedTuple):
    """What one client does in a round. down, up: bytes. flops: operations."""

    down: float
    flops: float
    up: float


def speeds(config: DevicesConfig) -> list[Speed]:
    """The classes of an experiment; none where no speeds are given."""
    return [Speed(*one) for one in zip(config.uplink, config.downlink, config.compute, strict=True)]


def shares(experiment: Experiment, count: int) -> tuple[float, ...]:
    """Share of the clients in each of ``count`` classes: of devices, of tiers, else equal."""
    return experiment.devices.shares or experiment.dropout.tier_shares or (1.0 / count,) * count


def counted_devices(experiment: Experiment, population: int, longest: int) -> Devices | None:
    """The classes whose work a round counts, or None where no devices are given. longest: examples of a client."""
    count = len(experiment.devices.uplink)
    if count == 0:
        return None
    place = divide_among_tiers(population, shares(experiment, count))
    record = experiment.privacy.mechanism == "record_gaussian"
    return Devices(place, count, lambda sizes: local_examples(experiment.client, record, longest, sizes))


def local_steps(client: ClientConfig, sizes: np.ndarray) -> np.ndarray:
    """Local steps of clients with so many examples, [N] each: ``epochs ceil(n / B)``, or the number that is given."""
    if client.steps is not None:
        return np.full(sizes.shape, client.steps)
    batch = sizes.max() if client.batch_size is None else client.batch_size
    return (client.epochs or 1) * np.maximum(-(-sizes // max(batch, 1)), 1)


def local_examples(client: ClientConfig, record: bool, longest: int, sizes: Array) -> Array:
    """Examples that clients pass through the model in a round, each as often as it is used: int32 like sizes.

    Args:
      record: private at record level; then ``steps min(B, n)``, the expected number.
      longest: examples of the largest client, the batch where none is given. sizes: n of each client.

    ``epochs n``, or for S steps of batches of B, ``m = ceil(n / B)`` to an epoch: ``(S // m) n + (S % m) B``.
    Ditto trains twice; FedSGD looks at every example once. A client without examples does nothing.
    """
    if client.algorithm == "fedsgd":
        return sizes
    models = 2 if client.algorithm == "ditto" else 1
    if client.steps is None:
        return models * (client.epochs or 1) * sizes
    batch = longest if client.batch_size is None else min(client.batch_size, longest)
    if record:
        return client.steps * jnp.minimum(batch, sizes)
    epoch = jnp.maximum(-(-sizes // batch), 1)
    whole, rest = client.steps // epoch, client.steps % epoch
    return models * (whole * sizes + rest * batch)


# ---- the clock ------------------------------------------------------------------------------------------------------


def make_clock(experiment: Experiment, model: Model, dataset: Any) -> Callable[[History], History]:
    """Builds (history of one trial) -> the same with ``simulated_s`` and ``simulated_flops`` for the classes' work.

    Both are running totals [T] float64. Without devices the history stays as it is.
    """
    classes, forward = speeds(experiment.devices), forward_flops(experiment, model, dataset)
    groups = [] if model.groups is None else [group for group, _ in model.groups.sizes]
    asked = min(EXAMPLES, dataset.train.max_size)  # that a client's own scores are computed from

    def one(history: History, k: int, kind: Speed) -> tuple[np.ndarray, np.ndarray]:
        """([T] seconds of the slowest client of a class, [T] operations of all of them)."""
        mark = f"class_{k}_"
        seen = {n.removeprefix(mark): np.asarray(v, np.float64) for n, v in history.items() if n.startswith(mark)}
        kept = [seen[f"kept_{group}"] for group in groups if f"kept_{group}" in seen]
        each = PASSES * np.array([forward(tuple(map(int, row))) for row in zip(*kept, strict=True)] or [forward(())])
        scores = PASSES * asked * forward(())
        slowest = each * seen["most_examples"] + scores * (seen["scored"] > 0)
        seconds = kind.seconds(seen["down"], slowest, seen["up"])
        return np.where(seen["answered"] > 0, seconds, 0.0), each * seen["examples"] + scores * seen["scored"]

    def clock(history: History) -> History:
        if not classes:
            return history
        seconds, flops = zip(*(one(history, k, kind) for k, kind in enumerate(classes)), strict=True)
        rest = {name: v for name, v in history.items() if not name.startswith("class_")}
        totals = (np.cumsum(np.max(seconds, axis=0)), np.cumsum(np.sum(flops, axis=0)))
        return rest | dict(zip(CLOCK, totals, strict=True))

    return clock


def forward_flops(experiment: Experiment, model: Model, dataset: Any) -> Callable[[tuple[int, ...]], int]:
    """(neurons kept, in the order of the groups; () for all) -> operations of one forward pass for one example.

    Clients that send the kept neurons but train all of them pass the whole model.
    """
    small = experiment.dropout.source != "none" and experiment.dropout.forward == "submodel"
    groups = () if model.groups is None else tuple(group for group, _ in model.groups.sizes)

    @cache
    def forward(kept: tuple[int, ...]) -> int:
        counts = dict(zip(groups, kept, strict=True)) if kept and small else None
        return model_flops(model, dataset.input_shape, counts, dataset.train.x.dtype)

    return forward


def round_flops(experiment: Experiment, program: Any) -> float:
    """Floating-point operations of an expected cohort's local training in a dense round. program: a ``Program``."""
    train, record = program.dataset.train, experiment.privacy.mechanism == "record_gaussian"
    examples = np.asarray(local_examples(experiment.client, record, train.max_size, jnp.asarray(train.sizes)))
    expected = float(program.sampler.expected(experiment.hparams())) / program.sampler.population
    return 3.0 * forward_flops(experiment, program.model, program.dataset)(()) * expected * float(examples.sum())


def totals(history: History) -> dict[str, float]:
    """``seconds`` and ``client_flops`` at the end of a run; {} where they were not simulated."""
    names = dict(zip(CLOCK, ("seconds", "client_flops"), strict=True))
    return {names[name]: float(history[name][-1]) for name in CLOCK if name in history}


# ---- keep rates from resources --------------------------------------------------------------------------------------


def rates_from_resources(
    classes: Sequence[Speed],
    load: Callable[[float], Load],
    grid: Sequence[float] = GRID,
    deadline: float | None = None,
) -> tuple[float, ...]:
    """Relative keep rate of each class, so that the classes finish together as nearly as a grid allows.

    ``r_k = max {r in grid: t_k(r) <= T}``, or the smallest rate of the grid where none meets it; T is the deadline, by
    default the time ``min_k t_k(1)`` of the fastest class with the whole share. Rates depend on resources alone, never
    on data, so that they are public.

    Args:
      classes: speeds. load: (relative rate) -> what a client with it does in a round.
      grid: rates in (0, 1], 1 among them. deadline: seconds.

    Raises:
      FljaxError: no class meets the deadline with rate 1, to which the others are relative.

    Source: the idea of keep rates that follow communication and computation ("C2-aware") of Wen, Jeon, Huang,
    "Federated dropout: a simple approach for enabling federated learning on resource constrained devices", 2021.
    """
    rising = sorted(grid)
    if not rising or rising[-1] != 1.0 or rising[0] <= 0:
        raise FljaxError(f"Expected grid={tuple(grid)} in (0, 1] to hold 1. Add it.")
    times = np.array([[kind.seconds(*load(rate)) for rate in rising] for kind in classes])
    limit = times[:, -1].min() if deadline is None else deadline
    if times[:, -1].min() > limit:
        raise FljaxError(
            f"Expected deadline={limit:g} s to be met by one class with all its share, the fastest takes "
            f"{times[:, -1].min():g} s. Lower the keep rate or allow more time."
        )
    return tuple(max([rising[0], *(r for r, t in zip(rising, row, strict=True) if t <= limit)]) for row in times)


def tier_rates(experiment: Experiment, model: Model, dataset: Any) -> tuple[float, ...]:
    """Relative keep rates of an experiment's tiers, computed where they are to follow from resources.

    The load is that of the largest client, a public constant, with ``dropout.keep_rate`` times the relative rate;
    parameters travel as floats, and nothing beside them is counted.
    """
    tiers = experiment.dropout.tiers
    if not isinstance(tiers, str):
        return experiment.dropout.relative_tiers()
    groups = model.groups
    if groups is None:
        raise FljaxError('Expected dropout.tiers="resources" with a model of neuron groups. Use another model.')
    forward, keep = forward_flops(experiment, model, dataset), experiment.dropout.widest
    longest, record = dataset.train.max_size, experiment.privacy.mechanism == "record_gaussian"
    examples = int(local_examples(experiment.client, record, longest, jnp.int32(longest)))
    whole = 4.0 * tree.num_elements(model.shapes())

    def load(rate: float) -> Load:
        counts = groups.counts(float(np.float32(keep) * np.float32(rate)))
        sent = 4.0 * tree.num_elements(groups.shapes(model.shapes(), counts))
        down = sent if experiment.dropout.forward == "submodel" else whole
        return Load(down, PASSES * examples * forward(tuple(counts.values())), sent)

    return rates_from_resources(speeds(experiment.devices), load)
