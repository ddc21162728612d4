"""What all sections are: frozen models, in which traced fields are marked."""

from __future__ import annotations

from typing import NamedTuple

from pydantic import BaseModel, ConfigDict


class Traced(NamedTuple):
    """Marks a field as traced, and names the number of ``Hparams`` that it becomes."""

    name: str


class Section(BaseModel):
    """Frozen, and without unknown keys; the texts under the fields are their help."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
