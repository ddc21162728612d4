"""Data that other libraries hold: Hugging Face datasets, partitions of flwr-datasets, and anything that looks alike.

The objects are read by what they can do, so that none of these libraries is imported here; ``load_dataset`` takes what
the adapters return in place of a name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fljax.core.check import FljaxError, one_of
from fljax.data.base import Folder, Source, bad_file, package
from fljax.data.tables import own_arrays

INPUTS = ("image", "img", "x", "features", "pixels", "input_ids")
LABELS = ("label", "labels", "y", "target", "fine_label")
"""Columns that are looked for where none is named, best first."""


def from_hf(
    data: Any,
    *,
    x: str = "",
    y: str = "",
    client_id: str = "",
    train: str = "train",
    test: str = "test",
    task: str | None = None,
    name: str = "hf",
) -> Source:
    """The columns of a Hugging Face dataset as a source.

    ``fljax.load_dataset(fljax.data.from_hf(datasets.load_dataset("ylecun/mnist")), clients=100)``

    Args:
      data: a ``datasets.Dataset``, or a ``DatasetDict`` of splits; or any object with ``column_names`` and columns by
        name, or a plain dict of columns.
      x, y: columns of the inputs and the labels; by default those of the usual names. Bytes are taken as pixels and
        divided by 255, pictures without a channel get one.
      client_id: column of the natural clients ("": there are none).
      train, test: splits of a ``DatasetDict``; without a test split a tenth of the examples is held out.
      task: as for the data set ``npz``.
      name: of the result.

    Errors: FljaxError in one line for a column or a split that is not there, and for values that are not numbers.
    """
    split = isinstance(data, Mapping) and not hasattr(data, "info") and x not in data and train in data
    parts = data if split else {train: data}
    columns = _columns(parts[train])
    chosen = {"x": _choose(columns, x, INPUTS, "x"), "y": _choose(columns, y, LABELS, "y")}
    if client_id:
        one_of(columns, client_id=client_id)
        chosen["client_id"] = client_id
    content = {key: _array(parts[train], column) for key, column in chosen.items()}
    if content["y"].dtype.kind not in "biuf":
        raise FljaxError(f"Expected numbers in column {chosen['y']!r}, found text. Encode it as class numbers first.")
    if test in parts:
        there = _columns(parts[test])
        content |= {f"test_{key}": _array(parts[test], c) for key, c in chosen.items() if c in there}
    return own_arrays(name, name, _with_channels(content), task)


def from_flwr(
    partitions: Any,
    *,
    test: Any = None,
    x: str = "",
    y: str = "",
    split: str = "train",
    task: str | None = None,
    name: str = "flwr",
) -> Source:
    """The partitions of flwr-datasets as natural clients: partition i is client i.

    Args:
      partitions: anything with ``num_partitions`` and ``load_partition(i)``, such as a partitioner; or a
        ``FederatedDataset``, whose ``partitioners[split]`` is one. A partition is what ``from_hf`` takes.
      test: the test data, or the name of a split of a ``FederatedDataset``; None: a tenth of each client's examples.
      x, y, task, name: as for ``from_hf``.
      split: of a ``FederatedDataset``.
    """
    count, load = _loader(partitions, split)
    clients = [load(i) for i in range(count)]
    if not clients:
        raise FljaxError("Expected at least one partition, found num_partitions=0.")
    columns = _columns(clients[0])
    chosen = {"x": _choose(columns, x, INPUTS, "x"), "y": _choose(columns, y, LABELS, "y")}
    content = {key: np.concatenate([_array(c, column) for c in clients]) for key, column in chosen.items()}
    content["client_id"] = np.repeat(np.arange(count), [len(_array(c, chosen["y"])) for c in clients])
    if test is not None:
        held = partitions.load_split(test) if isinstance(test, str) else test
        content |= {f"test_{key}": _array(held, column) for key, column in chosen.items()}
    return own_arrays(name, name, _with_channels(content), task)


def hf(
    data_dir: str | Path | None = None, *, x: str = "", y: str = "", client_id: str = "", test: str = "test"
) -> Source:
    """A Hugging Face dataset that ``save_to_disk`` wrote; nothing is downloaded.

    Args:
      data_dir: its folder, or a folder with it under ``hf/``.
      x, y, client_id, test: as for ``from_hf``.
    """
    library, folder = package("datasets", "hf"), Folder("hf", data_dir).path
    try:
        found = library.load_from_disk(str(folder))
    except (OSError, ValueError) as error:
        remedy = "Write the folder with save_to_disk of the package datasets."
        raise bad_file(folder, f"not a saved dataset ({str(error)[:80]})", remedy) from None
    source = from_hf(found, x=x, y=y, client_id=client_id, test=test)
    return source._replace(description=f"Hugging Face dataset in {folder.name}")


def _loader(partitions: Any, split: str) -> tuple[int, Callable[[int], Any]]:
    """(number of partitions, i -> partition)."""
    if hasattr(partitions, "num_partitions") and hasattr(partitions, "load_partition"):
        return int(partitions.num_partitions), partitions.load_partition
    if hasattr(partitions, "partitioners") and hasattr(partitions, "load_partition"):
        one_of(partitions.partitioners, split=split)
        partitions.load_partition(0, split)  # assigns the data, which the number of natural partitions depends on
        count = int(partitions.partitioners[split].num_partitions)
        return count, lambda i: partitions.load_partition(i, split)
    found = type(partitions).__name__
    raise FljaxError(f"Expected an object with num_partitions and load_partition, found {found}. Give a partitioner.")


def _columns(part: Any) -> list[str]:
    names = getattr(part, "column_names", None)
    if names is None and isinstance(part, Mapping):
        names = list(part)
    if not isinstance(names, list | tuple):
        raise FljaxError(
            f"Expected a dataset with column_names, found {type(part).__name__}. Choose one of its splits."
        )
    return list(names)


def _choose(columns: list[str], asked: str, usual: tuple[str, ...], what: str) -> str:
    """The column that was asked for, or the first of the usual names that is there."""
    if asked:
        one_of(columns, **{what: asked})
        return asked
    found = next((name for name in usual if name in columns), None)
    if found is None:
        raise FljaxError(f"Expected {what}= to name one of the columns {', '.join(columns)}. None has a usual name.")
    return found


def _array(part: Any, column: str) -> np.ndarray:
    """One column as an array [n, ...]."""
    view = part.with_format("numpy") if hasattr(part, "with_format") else part
    values = view[column]
    if isinstance(values, np.ndarray) and values.dtype != object:
        return values
    rows = [np.asarray(value) for value in values]
    if not rows:
        raise FljaxError(f"Expected examples in column {column!r}, found none.")
    shapes = {row.shape for row in rows}
    if len(shapes) > 1:
        two = " and ".join(map(str, sorted(shapes)[:2]))
        raise FljaxError(f"Expected values of one shape in column {column!r}, found {two}. Resize or pad them first.")
    return np.stack(rows)


def _with_channels(content: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Pictures of bytes without a channel get one, as the models expect."""
    pictures = content["x"].dtype == np.uint8 and content["x"].ndim == 3
    return {k: v[..., None] if pictures and k in ("x", "test_x") and v.ndim == 3 else v for k, v in content.items()}
