"""Files of a results folder: Parquet tables and JSON, whole on the disk or not there, and their digests.

A file is written under a hidden temporary name in the same folder, flushed, and renamed. Whoever reads sees the old
file or the new one. Parquet is written and read by DuckDB. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from fljax.core.check import FljaxError

Columns = dict[str, np.ndarray]

_SPECIAL = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns what goes wrong while files are written, such as a full disk, into one line with the remedy."""
    import duckdb

    try:
        yield
    except (OSError, duckdb.IOException) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise FljaxError(
            f"Expected to write to {str(folder)!r}: {reason}. What is finished is kept: make room (or choose another "
            "--out), and the same command goes on from there."
        ) from None


def write_table(path: Path, columns: Columns) -> None:
    """Writes columns as Parquet and flushes the file; not atomic by itself."""
    with _writer().cursor() as connection:
        # DuckDB finds the dictionary of arrays by the name of the local variable.
        connection.execute(f"COPY (SELECT * FROM columns) TO {quote(path)} (FORMAT parquet, COMPRESSION zstd)")
    flush(path)


def write_json(path: Path, value: Any) -> None:
    """Writes plain data as strict JSON, atomically."""
    write_atomically(path, json.dumps(encode(value), indent=1, allow_nan=False) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file under a temporary name, flushes it and renames it over the old one."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    flush(path.parent)


def read_json(path: Path) -> Any:
    """Reads what ``write_json`` wrote.

    Raises FljaxError in one line where the file is missing or damaged.
    """
    try:
        return decode(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        raise FljaxError(f"Expected {str(path)!r} to be valid JSON: {reason}. Run the experiment again.") from None


def flush(path: Path) -> None:
    """Makes a file, or the entries of a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(value: Any) -> str:
    """SHA-256 of plain data."""
    return hashlib.sha256(json.dumps(encode(value), sort_keys=True).encode()).hexdigest()


def remove(path: Path) -> None:
    """Removes a file or a folder with all it holds, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@cache
def _writer() -> Any:
    """The DuckDB that writes all tables of this process: to begin one takes longer than to write a shard."""
    return connect()


def connect() -> Any:
    """A DuckDB in memory that never reaches for the network: no extension is fetched behind the user's back."""
    import duckdb

    return duckdb.connect(config={"autoinstall_known_extensions": "false"})


def quote(path: Path) -> str:
    """A path as a text of SQL."""
    return "'" + str(path).replace("'", "''") + "'"


def as_table(table: str, columns: Mapping[str, Any], required: Sequence[str]) -> Columns:
    """The columns as arrays that Parquet can hold, checked.

    Args:
      table: name for messages. columns: equally long. required: columns of integers that have to be there.
    """
    arrays = {name: as_column(f"{table}[{name!r}]", values) for name, values in columns.items()}
    if missing := [name for name in required if name not in arrays]:
        raise FljaxError(f"Expected {table} to have a column {missing[0]!r}, found {', '.join(arrays) or 'none'}.")
    for name, array in arrays.items():
        if len(array) != len(arrays["trial"]):
            raise FljaxError(
                f"Expected {table}[{name!r}] of {len(array)} rows to have as many as 'trial' ({len(arrays['trial'])})."
            )
    for name in required:
        if arrays[name].dtype.kind not in "iu":
            raise FljaxError(f"Expected {table}[{name!r}] of type {arrays[name].dtype} to hold integers.")
    return arrays


def as_column(name: str, values: Any) -> np.ndarray:
    """One column: numbers keep their type, a list with gaps becomes float64, text becomes objects of str or None."""
    try:
        array = np.asarray(values)
    except ValueError:  # numpy's refusal of ragged lists is several lines long
        raise FljaxError(f"Expected {name} to be one-dimensional, of numbers or text.") from None
    if array.ndim == 1 and array.dtype.kind in "OU":
        items = array.tolist()
        if all(v is None or isinstance(v, (int, float)) for v in items):
            return np.array([math.nan if v is None else v for v in items], np.float64)
        if all(v is None or isinstance(v, str) for v in items):
            return np.array(items, object)
    if array.ndim != 1 or array.dtype.kind not in "biuf":
        raise FljaxError(
            f"Expected {name} of type {array.dtype}, shape {array.shape} to be one-dimensional, of numbers or text."
        )
    return array.astype(np.float32) if array.dtype == np.float16 else array


def plain(values: Any) -> np.ndarray:
    """A column as DuckDB returns it, without mask: missing numbers are NaN, missing text is empty."""
    mask = np.ma.getmaskarray(values)
    data = np.ma.getdata(values)
    if data.dtype.kind == "O":
        items = ["" if gone or item is None else item for item, gone in zip(data.tolist(), mask, strict=True)]
        return np.array(items, str) if all(isinstance(item, str) for item in items) else data
    if not mask.any() or data.dtype.kind not in "biuf":
        return data
    return np.where(mask, np.nan, data.astype(np.float32 if data.dtype == np.float32 else np.float64))


def encode(value: Any) -> Any:
    """Plain data for strict JSON: numpy numbers and arrays become Python's, inf and NaN their reserved words."""
    if isinstance(value, Mapping):
        return {str(k): encode(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(v) for v in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return encode(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, Path):
        return str(value)
    raise FljaxError(f"Expected manifest value {value!r} to be plain data, found {type(value).__name__}.")


def decode(value: Any) -> Any:
    """The inverse of ``encode``."""
    if isinstance(value, dict):
        return {k: decode(v) for k, v in value.items()}
    if isinstance(value, list):
        return [decode(v) for v in value]
    return _SPECIAL.get(value, value) if isinstance(value, str) else value
