"""A user's own data as .npy files, of which only what is used is ever read."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fljax.core.check import FljaxError, one_of
from fljax.data.base import Source, as_floats, bad_file, check_finite, check_labels

NAMES = ("x", "y", "test_x", "test_y")


def npy(data_dir: str | Path | None = None, *, task: str | None = None) -> Source:
    """A folder with x.npy, y.npy, test_x.npy, test_y.npy, and client_id.npy [n] where clients are natural.

    x is memory-mapped: with ``streamed`` data it may be larger than the memory of the machine. Bytes (uint8) are pixels
    and become floats in [0, 1] when they are read. It is not searched for numbers that are not finite; a client that
    has one sends an update that is not finite, which is dropped.

    Args:
      data_dir: the folder.
      task: ``classification`` (y [n] integers from 0) or ``regression`` (y [n] or [n, d] floats). None tells by y.

    Errors: a missing file, lengths or shapes that differ, labels that are no whole numbers from 0, Python objects.
    """
    if data_dir is None or not Path(data_dir).expanduser().is_dir():
        raise FljaxError(
            f"Expected data_dir={str(data_dir)!r} to be a folder with {', '.join(f'{name}.npy' for name in NAMES)}."
        )
    folder = Path(data_dir).expanduser()
    x, y, test_x, test_y = (_array(folder / f"{name}.npy", mapped=name == "x") for name in NAMES)
    ids = _array(folder / "client_id.npy") if (folder / "client_id.npy").exists() else None
    for name, part, like in (("y", y, x), ("test_y", test_y, test_x), ("client_id", ids, x)):
        if part is not None and (part.ndim < 1 or len(part) != len(like)):
            found = f"expected one entry for each of {len(like)} examples, found shape {part.shape}"
            raise bad_file(folder / f"{name}.npy", found)
    if test_x.shape[1:] != x.shape[1:] or test_x.dtype != x.dtype:
        found = f"expected {x.dtype} {x.shape[1:]} as in x.npy, found {test_x.dtype} {test_x.shape[1:]}"
        raise bad_file(folder / "test_x.npy", found)
    if task is None:
        task = "regression" if y.dtype.kind == "f" else "classification"
    one_of(("classification", "regression"), task=task)
    if task == "regression":
        y, test_y, classes = (*(check_finite(folder / "y.npy", v, "y") for v in (y, test_y)), 1)
    else:
        classes = int(max(y.max(), test_y.max())) + 1
        y, test_y = (check_labels(folder / "y.npy", v, classes) for v in (y, test_y))
    about, licence = f"data of {folder.name}", "as the user's own files"
    return Source("npy", task, x, y, ids, as_floats(test_x), test_y, None, classes, about, licence)


def _array(path: Path, mapped: bool = False) -> np.ndarray:
    """One .npy file of numbers, mapped or read."""
    try:
        values = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except OSError as error:
        raise bad_file(path, f"cannot be read ({error.strerror or error})") from None
    except (ValueError, EOFError) as error:
        raise bad_file(path, f"expected an array of numbers, found: {error}", "Write it by numpy.save.") from None
    if values.ndim < 1 or not len(values):
        raise bad_file(path, f"expected at least one entry, found shape {values.shape}")
    return values
