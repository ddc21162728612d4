"""All loaders of source data by name. Each has the signature ``loader(data_dir=None, *, options) -> Source``.

Loaders run on the host and return NumPy arrays. They live in ``images``, ``tables``, ``text`` and ``synthetic``; the
parsers of the file formats are in ``formats``.
"""

from __future__ import annotations

from fljax.data.base import FOLDER_VARIABLE, Source
from fljax.data.images import cifar10, digits, fashion_mnist, femnist, mnist, mnist_by_writer
from fljax.data.mapped import npy
from fljax.data.synthetic import synthetic
from fljax.data.tables import heart_disease, npz
from fljax.data.text import shakespeare

__all__ = [
    "FOLDER_VARIABLE",
    "Source",
    "cifar10",
    "digits",
    "fashion_mnist",
    "femnist",
    "heart_disease",
    "mnist",
    "mnist_by_writer",
    "npy",
    "npz",
    "shakespeare",
    "synthetic",
]
