"""Loader of the HDF5 files of TensorFlow Federated: one group per client, one dataset per feature."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fljax.core.check import FljaxError, one_of, positive
from fljax.data.adapters import INPUTS, LABELS
from fljax.data.base import Folder, Source, bad_file, brief, package
from fljax.data.tables import own_arrays
from fljax.data.text import PAD, VOCABULARY_SIZE, encode, sequences

TEXT = "snippets"
"""The feature of TFF's Shakespeare: the lines of a role."""


def tff(data_dir: str | Path | None = None, *, x: str = "", y: str = "", length: int = 80) -> Source:
    """Federated data as TensorFlow Federated keeps them: ``examples/<client>/<feature>`` in HDF5, natural clients.

    Reads ``*train*.h5`` and, if there is one, ``*test*.h5``, such as ``fed_emnist_train.h5`` (pixels, label) or
    ``fed_cifar100_train.h5`` (image, label). Bytes are taken as pixels and divided by 255; floats stay as they are (in
    TFF's EMNIST the paper is 1 and the ink 0). Text (``snippets``) becomes sequences for next-character prediction.

    Args:
      data_dir: the folder with the files, or a folder with them under ``tff/``.
      x, y: features of the inputs and the labels; by default those of the usual names.
      length: L, characters of a sequence of text.

    Source: google-parallel/tensorflow-federated, ``simulation/datasets``.
    """
    positive(length=length)
    h5py, folder = package("h5py", "hdf5"), Folder("tff", data_dir).path
    train = _file(folder, "train")
    content = _read(h5py, train, x, y, length)
    if list(folder.glob("*test*.h5")):
        content |= {f"test_{key}": values for key, values in _read(h5py, _file(folder, "test"), x, y, length).items()}
    task = "next_char" if content["y"].ndim == 2 and content["y"].dtype.kind == "i" else None
    source = own_arrays("tff", train, content, task)
    return source._replace(num_classes=VOCABULARY_SIZE) if task else source


def _file(folder: Path, split: str) -> Path:
    found = sorted(folder.glob(f"*{split}*.h5"))
    if len(found) != 1:
        raise FljaxError(
            f"Expected one file *{split}*.h5 in {folder}, found {len(found)}. Name its folder by data_dir=."
        )
    return found[0]


def _read(h5py: Any, path: Path, x: str, y: str, length: int) -> dict[str, np.ndarray]:
    """x, y and client_id of one file."""
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    names: list[str] = []
    try:
        with h5py.File(path, "r") as file:
            if "examples" not in file:
                raise bad_file(path, f"expected a group 'examples', found {brief(sorted(file))}", "Is this a TFF file?")
            for name, client in sorted(file["examples"].items()):
                part = _client(path, name, client, x, y, length)
                if part is not None:
                    parts.append(part)
                    names.append(name)
    except (OSError, RuntimeError) as error:
        raise bad_file(path, f"not a readable HDF5 file ({str(error)[:80]})", "Download it again.") from None
    if not parts:
        raise bad_file(path, "expected clients with examples, found none")
    owner = np.repeat(np.asarray(names), [len(labels) for _, labels in parts])
    try:
        return {
            "x": np.concatenate([p for p, _ in parts]),
            "y": np.concatenate([p for _, p in parts]),
            "client_id": owner,
        }
    except ValueError as error:
        raise bad_file(path, f"expected features of one shape for all clients ({error})") from None


def _client(path: Path, name: str, client: Any, x: str, y: str, length: int) -> tuple[np.ndarray, np.ndarray] | None:
    """(x, y) of one client; None for one without examples."""
    if x == TEXT or (not x and TEXT in client):
        lines = [line.decode("utf-8", "replace") for line in client[TEXT][()]]
        tokens, targets = sequences(encode("\n".join(lines)), length)
        return (tokens, targets) if (targets != PAD).any() else None
    chosen = []
    for key, asked, usual in (("x", x, INPUTS), ("y", y, LABELS)):
        if asked:
            one_of(client, **{key: asked})
        feature = asked or next((f for f in usual if f in client), None)
        if feature is None:
            raise bad_file(path, f"client {brief(name)} has features {brief(sorted(client))}", f"Choose one by {key}=.")
        chosen.append(client[feature][()])
    if len(chosen[0]) != len(chosen[1]):
        raise bad_file(path, f"client {brief(name)} has {len(chosen[0])} inputs and {len(chosen[1])} labels")
    return (chosen[0], chosen[1]) if len(chosen[0]) else None
