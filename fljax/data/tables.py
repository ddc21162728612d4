"""Loaders of tables: the heart disease data of four hospitals, and any user's own .npz file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fljax.core.check import FljaxError, one_of
from fljax.data.base import Folder, Source, as_floats, bad_file, brief, check_finite, check_labels
from fljax.data.formats import read_npz, read_table
from fljax.data.partition import by_id, hold_out, iid

HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")
HEART_COLUMNS = 14
HEART_CLASSES = 5  # 0 = healthy, 1 .. 4 = kinds of narrowing
PRESSURE, CHOLESTEROL = 3, 4
SPLIT_SEED = 0


def heart_disease(data_dir: str | Path | None = None) -> Source:
    """Heart disease in four hospitals (303, 294, 123 and 200 patients): a small cross-silo dataset.

    x is [n, 13], y is 0 (healthy) or 1 (file's target 1 .. 4). Clients 0 .. 3 are Cleveland, Hungary, Switzerland and
    Long Beach VA. A fixed fifth of each hospital's patients is its test part.

    Missing values (``?``, ``-9``, and a blood pressure or cholesterol of 0, which no patient has) get the median of
    their column, and columns are standardised to mean 0 and variance 1. Median, mean and variance are those of the
    training patients of all hospitals together. This preparation is not private: it is outside of any epsilon.

    Source: A. Janosi, W. Steinbrunn, M. Pfisterer, R. Detrano, Heart Disease, UCI Machine Learning Repository,
      doi 10.24432/C52P4X, CC BY 4.0.
    """
    folder = Folder("heart_disease", data_dir, ("heart_disease", "heart-disease"))
    parts = [_hospital(folder.file(f"processed.{name}.data")) for name in HOSPITALS]
    x, y = np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])
    owner = np.repeat(np.arange(len(HOSPITALS)), [len(part) for _, part in parts])
    train, test = hold_out(by_id(owner), 0.2, seed=SPLIT_SEED)
    known = [column[~np.isnan(column)] for column in x[train.order].T]
    median = np.asarray([np.median(column) if len(column) else 0.0 for column in known])
    x = np.where(np.isnan(x), median, x)
    spread = x[train.order].std(axis=0)
    x = ((x - x[train.order].mean(axis=0)) / np.where(spread > 0, spread, 1.0)).astype(np.float32)
    return Source(
        name="heart_disease",
        task="classification",
        x=x[train.order],
        y=y[train.order],
        client_ids=train.owners,
        test_x=x[test.order],
        test_y=y[test.order],
        test_client_ids=test.owners,
        num_classes=2,
        description="UCI heart disease, clients are four hospitals",
        licence="CC BY 4.0; A. Janosi, W. Steinbrunn, M. Pfisterer, R. Detrano, UCI, doi 10.24432/C52P4X",
    )


def _hospital(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """x [n, 13] float64 with NaN where missing, y [n] int32 in {0, 1}."""
    rows = read_table(path, ",", HEART_COLUMNS)
    if rows[0][1][0].strip().lower() in ("x1", "age"):  # UCI's own files have no header line, many copies have one
        rows = rows[1:]
    if not rows:
        raise bad_file(path, "expected patients after the header line, found none")
    values = np.asarray([[_cell(path, line, c, text) for c, text in enumerate(cells)] for line, cells in rows])
    values[values == -9] = np.nan
    features, target = values[:, :-1], values[:, -1]
    vital = features[:, (PRESSURE, CHOLESTEROL)]
    features[:, (PRESSURE, CHOLESTEROL)] = np.where(vital == 0, np.nan, vital)
    return features, (check_labels(path, target, HEART_CLASSES, "column 14 of patient") > 0).astype(np.int32)


def _cell(path: Path, line: int, column: int, text: str) -> float:
    if text.strip() == "?":
        return np.nan
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise bad_file(
            path, f"expected a finite number or '?' in line {line}, column {column + 1}, found {brief(text)}"
        )
    return value


def npz(data_dir: str | Path | None = None, *, task: str | None = None) -> Source:
    """A user's own data: an .npz file with arrays x, y, and optionally client_id, test_x, test_y, test_client_id.

    Floats become float32 and integers int32, but x of type uint8 is taken as pixels and divided by 255. Without test
    arrays a fixed random tenth is the test part: of each client where there are client ids, else of all examples.

    Args:
      data_dir: the .npz file itself, or a folder with exactly one.
      task: ``classification`` (y [n] integers from 0), ``regression`` (y [n] or [n, d] floats) or ``next_char``
        (x, y [n, L] integers, 0 is padding). None infers it from y: [n] integers are classes, floats are regression.

    Errors: a missing array; lengths that differ; numbers that are not finite; labels below 0; arrays of Python objects,
      which are never unpickled.
    """
    path = _npz_path(data_dir)
    content = read_npz(path)
    for key in ("x", "y"):
        if key not in content:
            raise bad_file(path, f"expected an array {key!r}, found {brief(sorted(content))}")
    if ("test_x" in content) != ("test_y" in content):
        raise bad_file(path, f"expected both or neither of test_x and test_y, found {brief(sorted(content))}")
    if task is None:
        task = "regression" if content["y"].dtype.kind == "f" else "classification"
    one_of(("classification", "regression", "next_char"), task=task)
    x, y, ids = _npz_part(path, content, "", task)
    if "test_x" in content:
        test_x, test_y, test_ids = _npz_part(path, content, "test_", task)
        _same_examples(path, (x, y), (test_x, test_y))
    else:
        whole = by_id(ids) if ids is not None else iid(len(x), 1, seed=SPLIT_SEED)
        train, test = hold_out(whole, 0.1, seed=SPLIT_SEED)
        test_x, test_y, test_ids = x[test.order], y[test.order], None if ids is None else ids[test.order]
        x, y, ids = x[train.order], y[train.order], None if ids is None else ids[train.order]
    tops = [int(part.max()) for part in (x, y, test_x, test_y) if part.size and part.dtype.kind == "i"]
    label_top = max(tops) if task == "next_char" else max(int(y.max()), int(test_y.max()) if len(test_y) else 0)
    num_classes = 1 if task == "regression" else label_top + 1
    return Source(
        "npz", task, x, y, ids, test_x, test_y, test_ids, num_classes, f"data of {path.name}", "as the user's own file"
    )


def _npz_path(data_dir: str | Path | None) -> Path:
    if data_dir is None:
        raise FljaxError("Dataset 'npz' is one file: pass data_dir=, the path of the .npz file.")
    path = Path(data_dir).expanduser()
    if not path.is_dir():
        return path
    files = sorted(path.glob("*.npz"))
    if len(files) != 1:
        raise FljaxError(f"Expected one .npz file in {path}, found {len(files)}. Pass data_dir=, the path of the file.")
    return files[0]


def _npz_part(
    path: Path, content: dict[str, np.ndarray], prefix: str, task: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """x, y and ids of the training or of the test part, checked and converted."""
    names = [f"{prefix}{key}" for key in ("x", "y", "client_id")]
    x, y, ids = content[names[0]], content[names[1]], content.get(names[2])
    for name, value in zip(names, (x, y, ids), strict=True):
        if value is not None and (value.ndim < 1 or len(value) != len(x) or not len(value)):
            raise bad_file(path, f"expected {name!r} with one entry per example of {names[0]!r}, found {value.shape}")
    if ids is not None and (ids.ndim != 1 or ids.dtype.kind not in "iuUS"):
        raise bad_file(
            path, f"expected {names[2]!r} to be one number or text per example, found {ids.dtype} {ids.shape}"
        )
    x = _numbers(path, x, names[0], pixels=True)
    if task == "regression":
        return x, check_finite(path, _numbers(path, y, names[1]), names[1]), ids
    if y.dtype.kind not in "iu" or y.shape != (x.shape if task == "next_char" else (len(x),)):
        raise bad_file(path, f"expected integer labels in {names[1]!r} for task {task}, found {y.dtype} {y.shape}")
    tokens = (x, y) if task == "next_char" else (y,)
    if any(part.dtype.kind == "f" or part.min() < 0 for part in tokens):
        raise bad_file(path, f"expected integers >= 0 in {names[1]!r} (and x of text), found others")
    return x, _numbers(path, y, names[1]), ids


def _numbers(path: Path, values: np.ndarray, name: str, pixels: bool = False) -> np.ndarray:
    """float32 or int32; bytes of pixels become float32 in [0, 1]."""
    if values.dtype.kind == "f":
        return check_finite(path, values, name)
    if values.dtype.kind not in "biu":
        raise bad_file(path, f"expected numbers in {name!r}, found type {values.dtype}")
    if pixels and values.dtype == np.uint8:
        return as_floats(values)
    if values.max() > 2**31 - 1 or values.min() < -(2**31):
        raise bad_file(path, f"expected integers that fit int32 in {name!r}, found {values.min()} .. {values.max()}")
    return values.astype(np.int32)


def _same_examples(path: Path, train: tuple[np.ndarray, ...], test: tuple[np.ndarray, ...]) -> None:
    for name, a, b in zip("xy", train, test, strict=True):
        if a.shape[1:] != b.shape[1:] or a.dtype != b.dtype:
            found = f"{b.dtype} {b.shape[1:]}"
            raise bad_file(path, f"expected test_{name} like {name}, {a.dtype} {a.shape[1:]}, found {found}")
