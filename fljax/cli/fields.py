"""The fields of an experiment for people and for editors: what they mean, their types, ranges, units and defaults."""

from __future__ import annotations

import math
import textwrap
import types
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from fljax.cli.arguments import section_of
from fljax.config import Experiment
from fljax.sections import Traced

UNITS = {
    "rounds": "rounds",
    "eval_every": "rounds",
    "data.clients": "clients",
    "data.examples_per_client": "examples",
    "data.unseen_clients": "clients",
    "data.client_test_fraction": "share",
    "data.shards_per_client": "shards",
    "model.hidden": "units",
    "model.channels": "channels",
    "model.embedding": "dimensions",
    "client.lr_decay": "per round",
    "client.epochs": "epochs",
    "client.steps": "steps",
    "client.batch_size": "examples",
    "server.lr_decay": "per round",
    "server.lr_warmup": "rounds",
    "server.least_holders": "clients",
    "server.weight_cap": "examples",
    "sampler.rate": "probability",
    "sampler.cohort": "clients",
    "sampler.availability": "probability",
    "privacy.clip": "L2 norm",
    "privacy.clip_quantile": "share",
    "privacy.bits": "bits",
    "privacy.integer_step": "clips",
    "privacy.min_survivors": "clients",
    "privacy.delta": "probability",
    "dropout.query_share": "share",
    "dropout.public_examples": "examples",
    "dropout.keep_rate": "share",
    "dropout.explore": "share",
    "dropout.warmup_rounds": "rounds",
    "dropout.refresh_rounds": "rounds",
    "dropout.hysteresis": "standard deviations",
    "dropout.tiers": "share of keep_rate",
    "dropout.tier_shares": "share",
    "devices.uplink": "Mbit/s",
    "devices.downlink": "Mbit/s",
    "devices.compute": "GFLOP/s",
    "devices.shares": "share",
    "compress.keep": "share",
    "compress.bits": "bits",
    "secure.value_bits": "bits",
    "secure.bits": "bits",
    "secure.corrupt": "share",
    "secure.dropout": "share",
    "secure.degree": "clients",
    "secure.threshold": "clients",
    "secure.leave_before_keys": "share",
    "secure.leave_after_upload": "share",
    "perf.chunk": "clients",
    "perf.devices": "devices",
    "perf.trial_devices": "groups of devices",
    "perf.rounds_per_call": "rounds",
    "perf.seconds_per_call": "s",
    "perf.trials_per_batch": "trials",
}
"""Units of the fields that have one; other numbers are pure."""

SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


class Described(NamedTuple):
    """One field: dotted name, type in words, range and unit ("" for none), default, meaning, traced or not."""

    name: str
    kind: str
    limits: str
    unit: str
    default: Any
    text: str
    traced: bool


def sections() -> Iterator[tuple[str, str, list[Described]]]:
    """(name, meaning, fields) of every section; the fields outside of a section come first, under the name ""."""
    plain = [
        _described(name, info) for name, info in Experiment.model_fields.items() if section_of(info.annotation) is None
    ]
    yield "", "The experiment itself.", plain
    for name, info in Experiment.model_fields.items():
        section = section_of(info.annotation)
        if section is not None:
            fields = [_described(f"{name}.{leaf}", field) for leaf, field in section.model_fields.items()]
            yield name, (section.__doc__ or "").strip(), fields


def _described(name: str, info: FieldInfo) -> Described:
    inside = [m for option in get_args(info.annotation) for m in getattr(option, "__metadata__", ())]
    marks = [*info.metadata, *inside]
    bounds = [f"{sign} {getattr(m, key):g}" for m in marks for key, sign in SIGNS.items() if hasattr(m, key)]
    text = " ".join((info.description or "").split())
    traced = any(isinstance(m, Traced) for m in info.metadata)
    kind = " or ".join(dict.fromkeys(_words(info.annotation)))
    return Described(name, kind, ", ".join(bounds), UNITS.get(name, ""), info.default, text, traced)


def _words(annotation: Any) -> Iterator[str]:
    """``int``, ``list of number``, ``one of a, b``: the forms that a value may have; None is said by the default."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        for option in inside:
            if option is not type(None):
                yield from _words(option)
    elif origin is Literal:
        yield "|".join(map(str, inside))
    elif origin is tuple:
        yield f"list of {' or '.join(_words(inside[0]))}"
    elif origin is dict:
        yield "table"
    elif hasattr(annotation, "__metadata__"):
        yield from _words(inside[0])
    else:
        yield {int: "int", float: "number", str: "text", bool: "true|false"}.get(annotation, str(annotation))


def shown(value: Any) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return " ".join(map(shown, value)) or "nothing"
    if isinstance(value, dict):
        return ", ".join(value) or "nothing"
    return f"{value:g}" if isinstance(value, float) else str(value) or "nothing"


def fields_text(experiment: Experiment, width: int = 80, only: str | None = None) -> str:
    """All fields by section: flag, type, unit, range, the experiment's value, the default, and what it means.

    Args:
      experiment: whose values are shown. width: of a line. only: one section instead of all.
    """
    said = [f"Fields that can be overridden, with their values in {experiment.name}."]
    said.append("Fields with * are inputs of the compiled program: a new value never compiles again.")
    for name, meaning, fields in sections():
        if only is not None and name != only:
            continue
        part = experiment if not name else getattr(experiment, name)
        said.append("\n" + textwrap.fill(f"{name or 'experiment'}: {meaning}", width, subsequent_indent="  "))
        for field in fields:
            value = field.default if part is None else getattr(part, field.name.split(".")[-1])
            said.append(_head(field, value))
            said.append(textwrap.fill(field.text, width, initial_indent=" " * 6, subsequent_indent=" " * 6))
    return "\n".join(said)


def _head(field: Described, value: Any) -> str:
    """``--client.lr * number, > 0 = 0.3 (default 0.1)``."""
    flag = "  --" + field.name.replace("_", "-") + (" *" if field.traced else "")
    facts = ", ".join(fact for fact in (f"{field.kind} [{field.unit}]".replace(" []", ""), field.limits) if fact)
    default = "" if value == field.default else f" (default {shown(field.default)})"
    return f"{flag} {facts} = {shown(value)}{default}"


def schema() -> dict[str, Any]:
    """The JSON schema of experiment files, with units and traced marks, and without defaults that JSON cannot say."""
    whole = Experiment.model_json_schema()
    whole["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    parts = {section.__name__: name for name, section in _named_sections()}
    for title, part in [("", whole), *whole["$defs"].items()]:
        prefix = f"{parts.get(title, title)}." if title else ""
        for leaf, entry in part.get("properties", {}).items():
            _annotate(entry, f"{prefix}{leaf}")
    return _finite(whole)


def _named_sections() -> Iterator[tuple[str, Any]]:
    for name, info in Experiment.model_fields.items():
        section = section_of(info.annotation)
        if section is not None:
            yield name, section


def _finite(value: Any) -> Any:
    """The value without entries that are infinite, which JSON has no word for."""
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if not (isinstance(v, float) and not math.isfinite(v))}
        return {k: _finite(v) for k, v in kept.items()}
    return [_finite(v) for v in value] if isinstance(value, list) else value


def _annotate(entry: dict[str, Any], name: str) -> None:
    if name in UNITS:
        entry["x-unit"] = UNITS[name]
    if name.startswith("devices.") and entry.get("type") == "array":
        entry["anyOf"] = [{"type": "number"}, {"type": "array", "items": entry.pop("items")}]
        del entry["type"]
