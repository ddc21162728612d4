"""Several processes, one program: what differs between them is refused before anything is compiled.

JAX does not compare the programs of its processes. Where they differ in a length, one waits for ever for a sum that the
other never makes; where they differ in a number, the run goes on and means nothing.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jaxlib
import numpy as np

import fljax
from fljax.config import Experiment
from fljax.core.check import FljaxError
from fljax.data.federated import Dataset, Examples
from fljax.sim import hosts

OWN = ("title", "data.dir")
"""Fields that processes may have each their own of: the files themselves are compared."""
SHOWN = 3
"""Differences, and values of each, that a message names."""
SWITCHES = (
    "enable_x64",
    "default_prng_impl",
    "threefry_partitionable",
    "default_matmul_precision",
    "numpy_rank_promotion",
)
"""JAX's settings that programs depend on."""

FAILED = "failed"
Told = dict[str, Any]
Begun = TypeVar("Begun")


def alike(experiment: Experiment, begin: Callable[[], Begun], found: Callable[[Begun], Told]) -> Begun:
    """What ``begin()`` returns, where all processes were told the same before it, and found the same in it.

    Where it raises in one process the others hear of it, and end as well.

    Args:
      experiment: of this process. begin: what comes before compilation. found: what it found, by name.

    Raises FljaxError with the names that differ, values and processes: the same one in all of them.
    """
    if not hosts.several():
        return begin()
    check_devices()
    check_told("experiment", hosts.gather(asked(experiment)), "Start all of them with {usual}.")
    try:
        begun = begin()
        mine = found(begun)
    except Exception as error:
        hosts.gather({FAILED: str(error)})
        raise
    everyone = hosts.gather(mine)
    for process, theirs in enumerate(everyone):
        if FAILED in theirs:
            raise FljaxError(f"Process {process} of this run cannot begin: {theirs[FAILED]}")
    check_told("data and checkpoint", everyone, "Give all of them the same files, and one results folder.")
    return begun


def asked(experiment: Experiment) -> Told:
    """What this process was told, by name: the fields of its experiment, versions and settings."""
    versions = {"fljax": fljax.__version__, "jax": jax.__version__, "jaxlib": jaxlib.__version__}
    switches = {f"jax_{name}": getattr(jax.config, f"jax_{name}") for name in SWITCHES}
    fields = _flat(experiment.model_dump(mode="json"))
    return versions | {"platform": jax.default_backend()} | switches | {n: v for n, v in fields.items() if n not in OWN}


def found_data(dataset: Dataset) -> Told:
    """What this process read, by name: shapes, and checksums of sizes and labels, which are cheap."""
    parts = {"train": dataset.train, "test": dataset.test, "client_test": dataset.client_test, "unseen": dataset.unseen}
    told: Told = {}
    for name, part in parts.items():
        if part is None:
            continue
        told[f"shape of {name}"] = list(part.x.shape)
        told[f"checksum of {name}.y"] = _checksum(part.y)
        if not isinstance(part, Examples):
            told[f"checksum of {name}.sizes"] = _checksum(part.sizes)
    return told


def check_devices() -> None:
    """Raises FljaxError unless all processes have as many devices; all know of all, so that nobody has to tell."""
    counts = sorted(Counter(d.process_index for d in jax.devices()).items(), key=lambda entry: entry[1])
    (few, least), (many, most) = counts[0], counts[-1]
    if least != most:
        raise FljaxError(
            f"Expected as many devices in every process, found {least} in process {few} and {most} in process {many}. "
            f"Show {least} to each, by JAX_LOCAL_DEVICE_IDS, CUDA_VISIBLE_DEVICES or JAX_NUM_CPU_DEVICES."
        )


def check_told(what: str, everyone: list[Told], remedy: str) -> None:
    """Raises FljaxError unless all processes told the same.

    Args:
      what: they told. everyone: values by name, of every process; a name may be missing.
      remedy: a sentence, in which {usual} stands for the values that most of them have, or the first ones.
    """
    names = list(dict.fromkeys(name for told in everyone for name in told))
    values = {name: [_text(told[name]) if name in told else "unset" for told in everyone] for name in names}
    differ = {name: of for name, of in values.items() if len(set(of)) > 1}
    if not differ:
        return
    shown = list(differ)[:SHOWN]
    usual = ", ".join(f"{name}={Counter(differ[name]).most_common(1)[0][0]}" for name in shown)
    more = f"; and {len(differ) - SHOWN} more" if len(differ) > SHOWN else ""
    raise FljaxError(
        f"Expected the same {what} in all processes, found {'; '.join(_found(n, differ[n]) for n in shown)}{more}. "
        + remedy.format(usual=usual)
    )


def _found(name: str, values: list[str]) -> str:
    """A name that differs: its values, each with the processes that have it."""
    owners = {value: [k for k, v in enumerate(values) if v == value] for value in dict.fromkeys(values)}
    parts = []
    for value, (first, *others) in list(owners.items())[:SHOWN]:
        parts.append(f"{value} in process {first}" + (f" and {len(others)} more" if others else ""))
    return f"{name}={', '.join(parts)}"


def _text(value: Any) -> str:
    text = "unset" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _flat(tree: Told, prefix: str = "") -> Told:
    """A nested dict by dotted names."""
    flat: Told = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _checksum(values: Any) -> str:
    return f"{zlib.crc32(np.ascontiguousarray(np.asarray(values)).tobytes()):08x}"
