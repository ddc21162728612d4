"""Experiments as data: frozen, validated, hashable. The same models serve TOML files, flags and notebooks.

A number marked ``Traced`` becomes a traced input of the compiled program: sweeping it never recompiles. Everything
else is structure: experiments that differ in structure are different programs.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, Field, ValidationError, model_validator

from fljax.core import html
from fljax.core.check import FljaxError
from fljax.core.types import Hparams
from fljax.sections import (
    AttackConfig,
    ChannelConfig,
    ClientConfig,
    CompressConfig,
    DataConfig,
    DevicesConfig,
    DropoutConfig,
    HeConfig,
    ModelConfig,
    PerfConfig,
    PrivacyConfig,
    RobustConfig,
    SamplerConfig,
    Section,
    SecureConfig,
    ServerConfig,
    SweepConfig,
    Traced,
)
from fljax.sections.secure import WORDS, unfit_for_words

WRITTEN = ("none", "fisher", "random", "ordered", "rolling", "magnitude", "public")
"""Sources of masks whose uploads ``sim/messages.py`` writes: one public mask for all clients."""


class Experiment(Section):
    """One experiment, as a TOML file says it: frozen, and validated as a whole."""

    name: str = "experiment"
    """name, also of the results folder"""
    title: str = ""
    """one line for people"""
    rounds: int = Field(100, ge=1)
    """rounds of training"""
    eval_every: int = Field(10, ge=1)
    """rounds between two evaluations; the last round is always evaluated"""
    seed: int = Field(0, ge=0, lt=2**31)
    """seed of the run: cohorts, initial parameters, local randomness, noise"""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    client: ClientConfig = ClientConfig()
    server: ServerConfig = ServerConfig()
    sampler: SamplerConfig = SamplerConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    dropout: DropoutConfig = DropoutConfig()
    devices: DevicesConfig = DevicesConfig()
    compress: CompressConfig = CompressConfig()
    channel: ChannelConfig = ChannelConfig()
    he: HeConfig = HeConfig()
    secure: SecureConfig = SecureConfig()
    robust: RobustConfig = RobustConfig()
    attack: AttackConfig = AttackConfig()
    sweep: SweepConfig | None = None
    perf: PerfConfig = PerfConfig()
    controls: dict[str, dict[str, float | int | str | bool | tuple[int, ...] | tuple[str, ...]]] = Field({})
    """runs to be shown beside this one, by name: dotted fields that they change"""

    @model_validator(mode="after")
    def _fits_together(self) -> Experiment:
        if self.sweep is not None and self.privacy.budget is not None:
            raise ValueError("privacy.budget stops single runs; in a sweep set privacy.epsilon, which every cell meets")
        if self.privacy.clipping == "adaptive" and self.server.weights != "uniform":
            raise ValueError('privacy.clipping = "adaptive" needs server.weights = "uniform", so that bits count alike')
        if self.privacy.mechanism not in ("none", "record_gaussian") and self.server.denominator == "realised":
            raise ValueError('privacy needs server.denominator = "expected": a realised one releases who came')
        if self.server.denominator in ("count", "floored", "inverse") and self.dropout.source == "none":
            raise ValueError(f'server.denominator = "{self.server.denominator}" needs dropout; set "expected"')
        if self.server.denominator == "inverse" and self.dropout.source in ("exact", "self_released"):
            raise ValueError('server.denominator = "inverse" needs masks whose probability is known; set "floored"')
        if self.compress.on and self.privacy.mechanism.startswith(("local_", "distributed_")):
            raise ValueError("compress needs noise by the server: clients that add their own send all values in full")
        if self.dropout.source == "paid" and self.privacy.mechanism != "central_gaussian":
            raise ValueError('dropout.source = "paid" needs privacy.mechanism = "central_gaussian"')
        if self.dropout.source == "gumbel" and self.privacy.mechanism != "central_gaussian":
            raise ValueError('dropout.source = "gumbel" needs privacy.mechanism = "central_gaussian": a server picks')
        if self.dropout.report_epsilon is not None and not self.privacy.mechanism.startswith("local_"):
            raise ValueError("dropout.report_epsilon pays for what uploads of local noise tell; leave it out")
        if self.dropout.widths and (self.perf.dropout == "compact" or self.client.algorithm == "fedsgd"):
            raise ValueError('dropout.widths change at every local step; set perf.dropout = "masked", and no fedsgd')
        if self.dropout.widths and (self.dropout.rescale or self.client.present_classes):
            raise ValueError("dropout.widths have a loss of their own; leave out dropout.rescale and present_classes")
        if self.dropout.widths and self.privacy.mechanism == "record_gaussian":
            raise ValueError("dropout.widths have a loss of their own, which record_gaussian does not noise by example")
        if self.dropout.source == "self_released" and self.privacy.mechanism != "local_gaussian":
            raise ValueError('dropout.source = "self_released" needs privacy.mechanism = "local_gaussian"')
        if self.dropout.source != "none" and not self.compress.with_masks:
            raise ValueError('with dropout, compress has quantise = "stochastic" alone: masks choose what is sent')
        if self.privacy.mechanism == "record_gaussian" and (self.client.algorithm != "fedavg" or self.client.shared):
            raise ValueError('mechanism = "record_gaussian" needs client.algorithm = "fedavg" and no client.shared')
        if self.dropout.source != "none" and (self.client.algorithm == "ditto" or self.client.shared):
            raise ValueError("dropout.source needs models that are shared whole; leave out client.shared and ditto")
        return self

    @model_validator(mode="after")
    def _messages_can_be_written(self) -> Experiment:
        if self.channel.kind == "none" or self.channel.verify_rounds == 0:
            return self
        remedy = "set channel.verify_rounds = 0 (bytes are counted all the same)"
        if self.privacy.mechanism in ("local_duchi", "local_krr", "local_privunit"):
            raise ValueError(f'the channel does not write uploads of mechanism = "{self.privacy.mechanism}"; {remedy}')
        if self.dropout.source not in WRITTEN or self.dropout.tiers != (1.0,):
            raise ValueError(f"the channel does not write uploads under masks that differ by client; {remedy}")
        return self

    @model_validator(mode="after")
    def _ciphertexts_can_be_added(self) -> Experiment:
        he, mechanism = self.he, self.privacy.mechanism
        if he.kind == "none":
            return self
        if self.secure.masking != "none":
            raise ValueError('he.kind = "ckks" and secure.masking hide the same uploads; use one of them')
        if self.compress.on:
            raise ValueError('he.kind = "ckks" needs floats at the same places in all uploads; leave out compress')
        if mechanism.startswith(("distributed_", "local_")) and mechanism != "local_gaussian":
            raise ValueError(f'he.kind = "ckks" adds floats, not the uploads of "{mechanism}"; set "local_gaussian"')
        if self.dropout.source not in ("none", *WRITTEN) or self.dropout.tiers != (1.0,):
            raise ValueError('he.kind = "ckks" needs one public mask for all clients; set dropout.source = "fisher"')
        if he.share < 1 and self.dropout.source != "none":
            raise ValueError("he.share < 1 chooses coordinates, dropout neurons; use one of them")
        if self.server.denominator not in ("expected", "realised") and he.share < 1:
            raise ValueError('he.share < 1 needs server.denominator = "expected" or "realised"')
        if he.least is not None and not self.he_splits_noise:
            raise ValueError('he.least belongs to he.share < 1 with mechanism = "local_gaussian"; leave it out')
        if self.he_splits_noise and self.sampler.kind not in ("fixed_size", "full", "cyclic"):
            raise ValueError('he.share < 1 with local noise needs sampler.kind = "fixed_size", "full" or "cyclic"')
        if self.he_splits_noise and self.server.weight_cap is not None:
            raise ValueError("he.share < 1 with local noise needs equal weights; leave out server.weight_cap")
        return self

    @property
    def host_sums(self) -> bool:
        """True where the host makes the sums of a round, with real keys and messages."""
        return self.he.mode == "exact" or self.secure.mode == "protocol"

    @property
    def he_splits_noise(self) -> bool:
        """True where encrypted coordinates get shares of the noise, and those in clear all of it from each client."""
        he = self.he
        return he.kind != "none" and he.share < 1 and self.privacy.mechanism == "local_gaussian"

    @model_validator(mode="after")
    def _streamed_data_are_of_one_run(self) -> Experiment:
        if self.sweep is not None and self.host_sums:
            raise ValueError('he.mode = "exact" and secure.mode = "protocol" are for single runs; a sweep has no host')
        if self.data.streamed and self.sweep is not None:
            raise ValueError("data.streamed is for single runs: a sweep shares resident data; leave it out")
        if self.perf.chunk == "probe" and self.sweep is not None:
            raise ValueError('perf.chunk = "probe" measures single runs, not batches of trials; set it to a number')
        if self.perf.chunk == "probe" and self.host_sums:
            raise ValueError('perf.chunk = "probe" does not measure sums that the host makes; set it to a number')
        return self

    @model_validator(mode="after")
    def _robust_rules_see_updates(self) -> Experiment:
        rule, d = self.robust.rule, self.dropout
        if rule == "none":
            return self
        if self.privacy.mechanism.startswith("distributed"):
            raise ValueError(
                f'robust.rule = "{rule}" needs a server that sees updates, and privacy.mechanism = '
                f'"{self.privacy.mechanism}" one that sees a sum alone; set robust.rule = "none", or local noise'
            )
        if self.server.denominator != "expected" or self.server.weights != "uniform":
            raise ValueError('robust.rule needs server.denominator = "expected" and weights = "uniform": it averages')
        if self.privacy.clipping == "adaptive":
            raise ValueError('robust.rule returns no count of clipped clients; set privacy.clipping = "flat"')
        same = d.source in ("none", "fisher", "random", "ordered", "rolling", "magnitude", "public")
        if not same or d.tiers != (1.0,) or d.widths or self.compress.sparsify == "topk":
            raise ValueError("robust.rule compares updates of the same coordinates; leave out masks of a client's own")
        if self.perf.dropout == "compact":
            raise ValueError('robust.rule sees every update in full; set perf.dropout = "masked"')
        if rule in ("centred_clipping", "foolsgold", "fltrust") and self.client.algorithm == "scaffold":
            raise ValueError(f'robust.rule = "{rule}" knows updates alone; set client.algorithm = "fedavg"')
        if rule == "fltrust" and self.data.unseen_clients == 0:
            raise ValueError(
                'robust.rule = "fltrust" takes the server\'s data from clients that never train; set '
                "data.unseen_clients"
            )
        if rule == "fltrust" and (self.client.shared or self.client.algorithm == "ditto"):
            raise ValueError('robust.rule = "fltrust" needs models that are shared whole; leave out client.shared')
        return self

    @model_validator(mode="after")
    def _attacks_have_a_target(self) -> Experiment:
        kind = self.attack.kind
        if kind == "none":
            return self
        if self.privacy.mechanism.startswith("distributed"):
            raise ValueError("attack sends real numbers, and distributed mechanisms integers; use another mechanism")
        if self.server.weights != "uniform" or self.server.denominator not in ("expected", "realised"):
            raise ValueError('attack needs server.weights = "uniform", so that an update is what is sent')
        if self.perf.dropout == "compact":
            raise ValueError('attack replaces updates one by one; set perf.dropout = "masked"')
        if self.attack.optimised and self.robust.rule == "fltrust":
            raise ValueError('attack.optimised cannot try "fltrust", whose data the adversary does not have')
        return self

    @model_validator(mode="after")
    def _tiers_are_classes(self) -> Experiment:
        d, count = self.dropout, len(self.devices.uplink)
        if count and (d.tiers_redrawn or d.tiers_by != "devices"):
            raise ValueError("devices are fixed classes; leave out dropout.tiers_redrawn and dropout.tiers_by")
        if d.tiers == "resources" and count == 0:
            raise ValueError('dropout.tiers = "resources" needs devices.uplink, devices.downlink and devices.compute')
        if count and d.tiers not in ("resources", (1.0,)) and len(d.tiers) != count:
            raise ValueError(f"dropout.tiers and devices are the same classes; give {count} tiers, or none")
        if self.devices.shares is not None and d.tier_shares is not None:
            raise ValueError("devices.shares and dropout.tier_shares are the same shares; leave one of them out")
        if count and d.tier_shares is not None and len(d.tier_shares) != count:
            raise ValueError(f"dropout.tier_shares and devices are the same classes; give {count} shares, or none")
        return self

    @model_validator(mode="after")
    def _sums_are_secure(self) -> Experiment:
        if (problem := unfit_for_words(self)) is not None:
            raise ValueError(problem)
        return self

    def replace(self, **fields: Any) -> Experiment:
        """A copy with dotted fields replaced, validated anew: ``replace(**{"privacy.epsilon": 2, "rounds": 10})``."""
        tree = self.model_dump(exclude_unset=True)
        for name, value in fields.items():
            node = tree
            *parents, leaf = name.split(".")
            for parent in parents:
                if not isinstance(node.get(parent), dict):
                    node[parent] = {}
                node = node[parent]
            node[leaf] = value
        return validate(tree)

    def control(self, name: str) -> Experiment:
        """The named control: this experiment with the control's fields, and without controls of its own."""
        return self.replace(**{**self.controls[name], "name": f"{self.name}_{name}", "controls": {}})

    def hparams(self) -> Hparams:
        """The traced numbers; a target epsilon stands as noise 0 until it is calibrated."""
        values = {mark.name: value for mark, _, value in _marked(self)}
        if (upload := values.pop("upload_epsilon")) is not None:
            values["noise_multiplier"] = 1.0 / upload
        numbers: dict[str, Any] = {k: 0.0 if v is None else v for k, v in values.items()}
        del numbers["support_keep"]
        words = {name: numbers.pop(name) for name in WORDS}
        tiers = () if isinstance(self.dropout.tiers, str) else self.dropout.relative_tiers()
        extra = {f"tier_{k}": rate for k, rate in enumerate(tiers)} if len(tiers) > 1 else {}
        if self.secure.masking != "none":
            extra |= words | {"value_range": self.secure.value_range or self.privacy.clip}
        marks = {n: numbers.pop(n) for n in list(numbers) if n.startswith(("robust_", "attack_"))}
        if self.robust.rule != "none":
            extra |= {n: v for n, v in marks.items() if n.startswith("robust_")}
        if self.attack.kind != "none":
            extra |= {n: v for n, v in marks.items() if n.startswith("attack_")}
            extra["attack_strength"] = self.attack.strength_of_kind
        return Hparams(**numbers | {"keep_rate": self.dropout.widest}, extra=extra)

    def structure(self) -> str:
        """What decides which program is compiled: every field that is neither traced, nor a seed, nor speed."""
        tree = self.model_dump(mode="json", exclude={"name", "title", "seed", "sweep", "perf", "controls"})
        for _, (section, field), _ in _marked(self):
            del tree[section][field]
        d = self.dropout
        if self.perf.dropout == "compact":  # shapes follow from these
            tree["compact"] = (d.keep_rate, d.support_keep, d.warmup_rounds)
        elif not isinstance(d.tiers, str):  # their rates are traced
            tree["dropout"]["tiers"] = len(d.tiers)
        if d.source == "gumbel":  # epsilon follows from these
            tree["choices"] = (d.keep_rate, d.support_keep, d.choice_rho, d.warmup_rounds, d.refresh_rounds)
        if self.secure.positions == "ldp":  # and from these
            tree["reports"] = (d.warmup_rounds, d.refresh_rounds, self.sampler.availability < 1)
        tree["distilled"] = d.distill is not None
        for field in ("epsilon", "delta"):
            del tree["privacy"][field]
        return json.dumps(tree, sort_keys=True)

    def fingerprint(self) -> str:
        """Hash of everything that can change a result; flags of speed and names are left out."""
        tree = self.model_dump(mode="json", exclude={"name", "title", "perf", "controls"})
        for field in ("dir", "streamed"):
            tree["data"].pop(field)
        return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]

    def _repr_html_(self) -> str:
        """For notebooks: what was set, section by section, and which numbers never recompile."""
        tree = self.model_dump(exclude_unset=True, exclude={"name", "title"})
        plain = {k: v for k, v in tree.items() if not isinstance(v, dict)}
        rows: list[tuple[str, Any]] = [] if "rounds" in plain else [("rounds", self.rounds)]
        rows += plain.items()
        for section, fields in tree.items():
            if isinstance(fields, dict) and fields:
                rows.append((f"[{section}]", ", ".join(f"{k} = {_short(v)}" for k, v in fields.items())))
        traced = [f"{s}.{f}" for _, (s, f), _ in _marked(self) if f in tree.get(s, {})]
        note = f"Never recompiled when changed: {', '.join(traced)}." if traced else ""
        body = html.pairs(rows) + (html.paragraph(note, soft=True) if note else "")
        return html.card(self.title or self.name, body, note=f"an experiment, {self.name}")


def _short(value: Any) -> str:
    """A value of a field in one line; deeper tables are written in the manner of TOML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {_short(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(map(_short, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _marked(experiment: Experiment) -> Iterator[tuple[Traced, tuple[str, str], Any]]:
    """(mark, (section, field), value) of every traced field."""
    for section in type(experiment).model_fields:
        part = getattr(experiment, section)
        if not isinstance(part, Section):
            continue
        for field, info in type(part).model_fields.items():
            for mark in info.metadata:
                if isinstance(mark, Traced):
                    yield mark, (section, field), getattr(part, field)


def traced_fields() -> dict[str, str]:
    """Dotted name of every traced field -> its name in Hparams."""
    return {f"{section}.{field}": mark.name for mark, (section, field), _ in _marked(Experiment())}


def validate(tree: dict[str, Any], source: str = "experiment") -> Experiment:
    """A nested dict -> Experiment.

    Raises FljaxError with one line for every unknown key and bad value at once: path, what was found, the remedy.
    """
    try:
        return Experiment.model_validate(tree)
    except ValidationError as error:
        lines = [f"{source}: {_explain(e)}" for e in error.errors()]
        raise FljaxError("\n".join(lines)) from None


def _explain(error: Any) -> str:
    path = [str(p) for p in error["loc"] if not str(p).startswith(("tuple[", "function-"))]
    name = ".".join(path)
    if error["type"] == "extra_forbidden":
        close = difflib.get_close_matches(path[-1], _keys(path[:-1]), n=1)
        return f"unknown key {name}." + (f" Perhaps you meant {close[0]}." if close else " Remove it.")
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if error["type"] == "value_error":
        return f"{name + ': ' if name else ''}{message}."
    return f"{name} = {error['input']!r} should be {message}."


def _keys(path: list[str]) -> list[str]:
    model: Any = Experiment
    for part in path:
        field = model.model_fields.get(part) if isinstance(model, type) and issubclass(model, BaseModel) else None
        if field is None:
            return []
        options = [field.annotation, *get_args(field.annotation)]
        model = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
    return list(model.model_fields) if model is not None else []


def load(path: str | Path) -> Experiment:
    """Reads an experiment from a TOML file.

    Raises FljaxError: no such file, not TOML (with the line), unknown keys and bad values (all at once).
    """
    path = Path(path)
    try:
        tree = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise FljaxError(f"Expected experiment file {path} to exist. `fljax list` shows the shipped ones.") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise FljaxError(f"{path}: not a readable TOML file: {error}.") from None
    return validate({"name": path.stem, **tree}, str(path))
