"""Sections of how an experiment runs: sweeps, and flags of speed."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, NonNegativeInt, field_validator, model_validator

from fljax.sections.base import Section

Value = float | int | str | bool | tuple[float | int | str | bool, ...]
"""What an axis of a sweep may hold: a value of a field, or a list for a field that is one."""


class DrawnConfig(Section):
    """Values of a field that are drawn: from low to high, or from a choice."""

    low: float | None = Field(None, allow_inf_nan=False)
    """smallest value"""
    high: float | None = Field(None, allow_inf_nan=False)
    """largest value"""
    scale: Literal["linear", "log"] = "linear"
    """uniform in the value, or in its logarithm"""
    integer: bool = False
    """whole numbers, both ends included"""
    choice: tuple[Value, ...] = ()
    """one of these, each as likely, instead of low and high"""

    @model_validator(mode="after")
    def _one_distribution(self) -> DrawnConfig:
        if (self.low is None) != (self.high is None) or (self.low is None) == (not self.choice):
            raise ValueError("a drawn field needs low and high, or a choice; give one of the two")
        if self.low is None or self.high is None:
            if (self.scale, self.integer) != ("linear", False):
                raise ValueError("scale and integer belong to low and high; leave them out beside a choice")
            return self
        if self.low >= self.high:
            raise ValueError(f"low = {self.low:g} must be below high = {self.high:g}")
        if self.scale == "log" and self.low <= 0:
            raise ValueError(f'scale = "log" needs low > 0, found {self.low:g}')
        if self.integer and (self.low % 1 or self.high % 1):
            raise ValueError(f"integer needs whole ends, found {self.low:g} and {self.high:g}")
        return self


class SearchConfig(Section):
    """Adaptive search: batches of points, each chosen by what the ones before reached (extra `sweep`)."""

    over: dict[str, DrawnConfig] = Field({})
    """fields that are searched over, by dotted name"""
    objectives: dict[str, Literal["max", "min"]] = Field({"test_accuracy": "max"})
    """final metrics to be made large or small; epsilon, uplink_bytes and downlink_bytes count too. Several: a front"""
    points: int = Field(64, ge=1)
    """points of each study"""
    batch: int = Field(16, ge=1)
    """points that are asked for, and run, together"""
    sampler: Literal["auto", "random", "tpe", "nsga2"] = "auto"
    """how points are chosen (auto: tpe for one objective, nsga2 for several)"""
    seed: int = Field(0, ge=0, lt=2**31)
    """seed of the choice"""

    @model_validator(mode="after")
    def _complete(self) -> SearchConfig:
        if not self.over or not self.objectives:
            raise ValueError("search needs over, the fields to search, and at least one of objectives")
        return self


class SweepConfig(Section):
    """The trials of a sweep: every combination of its axes that passes where, for every seed."""

    seeds: int | tuple[int, ...] = 1
    """number of seeds (0, 1, ...) or their list"""
    grid: dict[str, tuple[Value, ...]] = Field({})
    """axes by dotted field name; every combination is a trial"""
    zip: dict[str, tuple[Value, ...]] = Field({})
    """fields that change together, as one more axis: lists of equal length"""
    random: dict[str, DrawnConfig] = Field({})
    """fields that are drawn independently, as one more axis of `samples` points"""
    sobol: dict[str, DrawnConfig] = Field({})
    """fields that are drawn evenly (scrambled Sobol points), on the same axis"""
    samples: int = Field(16, ge=1)
    """points of random and sobol"""
    sample_seed: int = Field(0, ge=0, lt=2**31)
    """seed of random and sobol"""
    where: tuple[str, ...] = ()
    """conditions that a cell has to meet, over dotted fields: "client.lr * client.steps <= 1.5" """
    search: SearchConfig | None = None
    """adaptive search, one study for every cell of the other axes"""


class PerfConfig(Section):
    """Speed, and nothing but speed: no field here may change a result."""

    chunk: NonNegativeInt | Literal["probe", "rule"] | None = None
    """clients per vmapped batch: 1 one by one, 0 the whole cohort, rule: by backend, model and clients, probe: the
    fastest of a few by measurement, which is kept on disk (default: probe in long single runs, else rule)"""
    devices: int = Field(1, ge=1)
    """devices over which the clients of a round are spread"""
    trial_devices: int = Field(1, ge=1)
    """groups of such devices, over which the trials of a sweep's batch are spread"""
    rounds_per_call: int = Field(25, ge=1)
    """rounds per compiled call at most; progress and checkpoints happen in between"""
    seconds_per_call: float = Field(5.0, gt=0)
    """calls have fewer rounds where more would take longer than this, by measurement (inf: never fewer)"""
    trials_per_batch: int = Field(50, ge=1)
    """trials per vmapped batch of a sweep"""
    dropout: Literal["masked", "compact"] = "masked"
    """masked: the whole model with dropped neurons at zero, keep rates are traced; compact: physically small models,
    one program for every keep rate"""

    @field_validator("chunk", mode="before")
    @classmethod
    def _number_or_word(cls, chunk: Any) -> Any:
        if chunk in (None, "probe", "rule") or (type(chunk) is int and chunk >= 0):
            return chunk
        raise ValueError(f'{chunk!r} should be a number of clients, 0 for all of them, "probe" or "rule"')
