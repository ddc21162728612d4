"""What the loaders share: their result, how files are found, and how a bad file is reported."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np

from fljax.core.check import FljaxError

FOLDER_VARIABLE = "FLJAX_DATA"
IMAGE_CLASSES = 10
FOLDERS: dict[str, tuple[str, ...]] = {
    "mnist": ("mnist", "MNIST/raw", "MNIST"),
    "mnist_by_writer": ("mnist", "MNIST/raw", "MNIST"),
    "fashion_mnist": ("fashion_mnist", "fashion-mnist", "FashionMNIST/raw"),
    "cifar10": ("cifar10/cifar-10-batches-bin", "cifar10", "cifar-10-batches-bin", "cifar-10"),
    "femnist": ("femnist_leaf", "femnist"),
    "shakespeare": ("shakespeare",),
    "heart_disease": ("heart_disease", "heart-disease"),
    "tff": ("tff",),
    "hf": ("hf",),
}
"""Data set -> names of the sub-folders in which it is looked for, best first."""


class Source(NamedTuple):
    """A dataset as its publisher made it, on the host, before it is dealt out to clients.

    Attributes:
      name: as in the registry.
      task: ``classification``, ``regression`` or ``next_char``.
      x, y: training examples and labels, [n, ...]; float32 or int32.
      client_ids: [n] the natural client of each training example, or None.
      test_x, test_y: test examples and labels, [n_test, ...].
      test_client_ids: [n_test] the client of each test example, numbered as in client_ids, or None.
      num_classes: K; 1 for regression.
      description: one line.
      licence: licence and publisher, one line.
    """

    name: str
    task: str
    x: np.ndarray
    y: np.ndarray
    client_ids: np.ndarray | None
    test_x: np.ndarray
    test_y: np.ndarray
    test_client_ids: np.ndarray | None
    num_classes: int
    description: str
    licence: str


def bad_file(path: Path | str, problem: str, remedy: str = "") -> FljaxError:
    """The one-line error about a file: its name, what was expected where and what was found, and the remedy.

    Args:
      path: the file.
      problem: "expected ... at ..., found ..."; parts that come from the file are quoted with ``brief``.
      remedy: a sentence.
    """
    return FljaxError(" ".join(f"{path}: {problem}. {remedy}".split()))


def brief(value: object) -> str:
    """A value from a file, quoted and cut, so that it fits into one line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def check_labels(path: Path | str, labels: np.ndarray, num_classes: int, where: str = "entry") -> np.ndarray:
    """Labels as int32, when all are whole numbers in ``0 .. num_classes - 1``; else an error naming the first."""
    labels = np.asarray(labels)
    wrong = np.flatnonzero(~((labels >= 0) & (labels < num_classes) & (labels == np.floor(labels))))
    if len(wrong):
        raise bad_file(
            path,
            f"expected whole labels in 0 .. {num_classes - 1}, found {labels[wrong[0]]:g} at {where} {wrong[0]}",
            "Check that this is the right file.",
        )
    return labels.astype(np.int32)


def check_finite(path: Path | str, values: np.ndarray, name: str) -> np.ndarray:
    """Values as float32, when all are finite in float32; else an error naming the first."""
    with np.errstate(over="ignore"):
        values = np.asarray(values).astype(np.float32)
    wrong = np.argwhere(~np.isfinite(values))
    if len(wrong):
        place = ", ".join(str(i) for i in wrong[0])
        raise bad_file(path, f"expected finite numbers, found {values[tuple(wrong[0])]} at {name}[{place}]")
    return values


def as_floats(x: np.ndarray) -> np.ndarray:
    """Bytes are pixels and become float32 in [0, 1]; other numbers stay what they are."""
    return np.divide(x, np.float32(255), dtype=np.float32) if x.dtype == np.uint8 else x


def stacked(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One (x, y) pair per client -> x, y and the client's number of each example."""
    owner = np.repeat(np.arange(len(parts)), [len(x) for x, _ in parts])
    return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts]), owner


def package(module: str, extra: str) -> ModuleType:
    """An optional package. Raises FljaxError that names the extra where it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise FljaxError(
            f'Reading these data needs the package {module}, which is missing. pip install "fljax[{extra}]"'
        ) from None


class Folder:
    """The folder of one dataset: a sub-folder of the folder that the user named, or that folder itself.

    Args:
      name: of the dataset, for messages.
      data_dir: the folder; None reads the environment variable FLJAX_DATA. It is used itself when it has none of the
        sub-folders of ``FOLDERS``.

    Errors: no folder is named; the folder does not exist.
    """

    def __init__(self, name: str, data_dir: str | Path | None):
        self.name, subfolders = name, FOLDERS[name]
        chosen = data_dir if data_dir is not None else os.environ.get(FOLDER_VARIABLE)
        if not chosen:
            raise FljaxError(
                f"Dataset {name!r} is read from files: set {FOLDER_VARIABLE} or pass data_dir=, the folder that holds "
                f"{subfolders[0]}/."
            )
        root = Path(chosen).expanduser()
        if not root.is_dir():
            origin = "data_dir" if data_dir is not None else FOLDER_VARIABLE
            raise FljaxError(
                f"Expected {origin}={str(chosen)!r} to be an existing folder, the one with {subfolders[0]}/."
            )
        self.path = next((root / sub for sub in subfolders if (root / sub).is_dir()), root)

    def file(self, *names: str) -> Path:
        """The first of these files that exists, plain or with ``.gz``."""
        for name in names:
            for candidate in (self.path / name, self.path / f"{name}.gz"):
                if candidate.is_file():
                    return candidate
        raise FljaxError(
            f"Dataset {self.name!r} needs {' or '.join(names)} (plain or .gz), not found in {self.path}. "
            f"Put it there, or name another folder by {FOLDER_VARIABLE} or data_dir=."
        )
