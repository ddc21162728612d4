"""Experiments on the command line: finding them by name, and overriding any of their fields by a flag.

Flags are parsed to plain values and validated by the same models as files, so that every mistake gets the same one
line, wherever it was made.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any, get_args

import fljax
from fljax import config
from fljax.cli.parse import flags, meant
from fljax.config import Experiment
from fljax.core.check import FljaxError, one_of
from fljax.sections import Section


def experiment_folders() -> list[Path]:
    """Where experiments are looked for by name: ./experiments, then those that come with fljax."""
    package = Path(fljax.__file__).parent
    folders = [Path("experiments"), package.parent / "experiments", package / "_experiments"]
    found: dict[Path, Path] = {}
    for folder in folders:
        if folder.is_dir():
            found.setdefault(folder.resolve(), folder)
    return list(found.values())


def shipped() -> dict[str, Path]:
    """All experiments by name; the first folder wins."""
    files: dict[str, Path] = {}
    for folder in experiment_folders():
        for path in sorted(folder.glob("*.toml")):
            files.setdefault(path.stem, path)
    return files


def load_experiment(name: str | os.PathLike[str]) -> Experiment:
    """An experiment by path (``my/file.toml``) or by name.

    Raises FljaxError if there is none, with the closest name.
    """
    name = os.fspath(name)
    if name.endswith(".toml") or "/" in name:
        return config.load(name)
    files = shipped()
    one_of(files, experiment=name)
    return config.load(files[name])


def split_files(words: list[str]) -> tuple[list[str], list[str]]:
    """(words, files) of a command line with ``@file``: the first may name the experiment, the others override fields.

    ``@ file`` is ``@file``.
    """
    joined: list[str] = []
    for word in words:
        if joined and joined[-1] == "@":
            joined[-1] += word
        else:
            joined.append(word)
    if joined and joined[0].startswith("@"):
        path = joined[0][1:]
        joined[0] = path if "/" in path else f"./{path}"  # a path, never a name
    files = [word for word in joined if word.startswith("@")]
    return [word for word in joined if not word.startswith("@")], files


def read_fields(path: str) -> dict[str, Any]:
    """The fields that a TOML file sets, by dotted name: any part of an experiment.

    Raises FljaxError: no such file, not TOML.
    """
    try:
        tree = tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise FljaxError(f"@{path}: cannot be read ({error.strerror}). Give @ and the path of a TOML file.") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise FljaxError(f"@{path}: not a readable TOML file: {error}.") from None
    fields: dict[str, Any] = {}
    for name, value in tree.items():
        nested = isinstance(value, dict) and name not in ("controls",)
        fields |= {f"{name}.{leaf}": v for leaf, v in value.items()} if nested else {name: value}
    return fields


def known_fields() -> list[str]:
    """The dotted names of all fields of an experiment."""
    names: list[str] = []
    for name, info in Experiment.model_fields.items():
        section = section_of(info.annotation)
        names += [name] if section is None else [f"{name}.{leaf}" for leaf in section.model_fields]
    return names


def section_of(annotation: Any) -> type[Section] | None:
    """The section that a field of the experiment is, or None for a plain value."""
    options = [annotation, *get_args(annotation)]
    return next((o for o in options if isinstance(o, type) and issubclass(o, Section)), None)


def check_names(words: list[str], kind: type) -> None:
    """Refuses a flag that is neither of the command nor a field of an experiment, with what was probably meant.

    A wrong name inside of a section is left to the models, which tell all mistakes of an experiment at once.
    """
    fields, own = known_fields(), flags(kind)
    sections = {name.split(".")[0] for name in fields}
    for word in words:
        name = word.removeprefix("--").partition("=")[0].replace("-", "_")
        if not word.startswith("--") or name.split(".")[0] in sections:
            continue
        same = [f"--{field}" for field in fields if field.split(".")[-1] == name]
        hint = f" Perhaps you meant {' or '.join(same)}." if same else meant(word, [*own, *(f"--{f}" for f in fields)])
        raise FljaxError(f"unknown field or flag {word.partition('=')[0]}.{hint} Add --help to see all.")


def parse_overrides(tokens: list[str]) -> dict[str, Any]:
    """``--client.lr 0.3 --model.hidden 32 16`` -> {"client.lr": 0.3, "model.hidden": [32, 16]}.

    Values are read as TOML where that is possible (numbers, true, inf), as text otherwise; ``None`` unsets a field.
    A flag without a value is true.
    """
    values: dict[str, list[str]] = {}
    name = None
    for token in tokens:
        if token.startswith("--"):
            name, _, inline = token[2:].partition("=")
            name = name.replace("-", "_")
            values[name] = [inline] if inline else []
        elif name is None:
            raise FljaxError(f"Expected {token!r} to follow a flag. Override fields as --section.field value.")
        else:
            values[name].append(token)
    return {n: _value(n, texts) for n, texts in values.items()}


def _value(name: str, texts: list[str]) -> Any:
    if not texts:
        return True
    parsed = [_scalar(text) for text in texts]
    many = (
        len(parsed) > 1
        or name in ("client.shared", "model.channels")
        or name.startswith(("sweep.grid", "sweep.zip", "sweep.where"))
    )
    return parsed if many else parsed[0]


def _scalar(text: str) -> Any:
    if text == "None":
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def overridden(
    name: str | Experiment, overrides: list[str], *, data_dir: str | None = None, fast: bool = False
) -> Experiment:
    """The experiment of a command: found, overridden by files and then by flags, validated.

    Args:
      name: of the experiment, or its file; or an experiment.
      overrides: ``@file`` of TOML fields, later ones first to be believed, then ``--section.field value``.
      data_dir: as ``--data.dir``.
      fast: shrink it for a quick look.
    """
    experiment = load_experiment(name) if isinstance(name, str) else name
    fields: dict[str, Any] = {}
    for file in (word for word in overrides if word.startswith("@")):
        fields |= read_fields(file[1:])
    fields |= parse_overrides([word for word in overrides if not word.startswith("@")])
    if data_dir is not None:
        fields["data.dir"] = data_dir
    experiment = experiment.replace(**fields) if fields else experiment
    return shrink(experiment) if fast else experiment


def shrink(experiment: Experiment) -> Experiment:
    """The same experiment, through every step, in seconds: few rounds, two seeds, the ends of every axis."""
    warmup = min(experiment.dropout.warmup_rounds, 2)  # so that neurons are dropped within the few rounds
    fields: dict[str, Any] = {"rounds": min(experiment.rounds, 6), "eval_every": 3, "dropout.warmup_rounds": warmup}
    if experiment.sweep is not None:
        seeds = experiment.sweep.seeds
        fields["sweep.seeds"] = min(seeds, 2) if isinstance(seeds, int) else seeds[:2]
        ends = lambda values: list(dict.fromkeys([values[0], values[-1]]))  # noqa: E731
        fields["sweep.grid"] = {name: ends(values) for name, values in experiment.sweep.grid.items()}
        fields["sweep.zip"] = {name: [v[0], v[-1]] for name, v in experiment.sweep.zip.items()}
        fields["sweep.samples"] = min(experiment.sweep.samples, 4)
        if experiment.sweep.search is not None:
            fields |= {"sweep.search.points": 4, "sweep.search.batch": 2}
    return experiment.replace(**fields)
