"""Loaders of image datasets: digits (inside the package), MNIST, Fashion-MNIST, MNIST by writer, CIFAR-10, FEMNIST.

Images are float32 in [0, 1], NHWC; digits are rows of 64 pixels. Labels are int32.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fljax.core.check import FljaxError
from fljax.data.base import IMAGE_CLASSES, Folder, Source, bad_file, check_labels
from fljax.data.formats import Leaf, read_cifar, read_idx, read_leaf, read_npz

DIGITS_TRAIN = 1430
FEMNIST_CLASSES = 62
FEMNIST_PIXELS = 28 * 28
WRITER_COLUMN = 2


def digits(data_dir: str | Path | None = None, image: bool = False) -> Source:
    """1,797 handwritten digits of 8 x 8 pixels, the only dataset that needs no files.

    x is [n, 64] = pixel / 16, or with ``image`` [n, 8, 8, 1], as convolutions want it. The rows of ``digits.npz`` were
    shuffled once, by ``numpy.random.default_rng(0).permutation(1797)``; the first 1,430 train and the last 367 test, so
    the split does not depend on the NumPy version.

    Args:
      data_dir: not used.
      image: keep rows and columns.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository,
      doi 10.24432/C50P49, CC BY 4.0; the copy that scikit-learn ships (the test part of the original).
    """
    del data_dir
    content = read_npz(Path(__file__).with_name("digits.npz"))
    x, y = content["x"].astype(np.float32) / np.float32(16), content["y"].astype(np.int32)
    x = x.reshape(-1, 8, 8, 1) if image else x
    return Source(
        name="digits",
        task="classification",
        x=x[:DIGITS_TRAIN],
        y=y[:DIGITS_TRAIN],
        client_ids=None,
        test_x=x[DIGITS_TRAIN:],
        test_y=y[DIGITS_TRAIN:],
        test_client_ids=None,
        num_classes=IMAGE_CLASSES,
        description="UCI handwritten digits, 8 x 8 pixels",
        licence="CC BY 4.0; E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, doi 10.24432/C50P49",
    )


def mnist(data_dir: str | Path | None = None) -> Source:
    """MNIST: 60,000 + 10,000 handwritten digits [n, 28, 28, 1] from the four original idx files."""
    folder = Folder("mnist", data_dir)
    return _idx_images(folder, "MNIST handwritten digits", "CC BY-SA 3.0; Y. LeCun, C. Cortes and C. Burges")


def fashion_mnist(data_dir: str | Path | None = None) -> Source:
    """Fashion-MNIST: 60,000 + 10,000 pictures of clothes [n, 28, 28, 1] from the four original idx files."""
    folder = Folder("fashion_mnist", data_dir)
    return _idx_images(folder, "Fashion-MNIST pictures of clothes", "MIT; Zalando SE, H. Xiao, K. Rasul, R. Vollgraf")


def mnist_by_writer(data_dir: str | Path | None = None) -> Source:
    """MNIST with the people who wrote the digits as clients: the writer ids of QMNIST.

    Row i of ``qmnist-train-labels-idx2-int`` describes MNIST's training image i, and the first 10,000 rows of
    ``qmnist-test-labels-idx2-int`` its test images (checked: their classes have to agree). No writer is in both, so the
    test clients are other people than the training clients.

    Source: C. Yadav and L. Bottou, Cold case: the lost MNIST digits, NeurIPS 2019.
    """
    folder = Folder("mnist_by_writer", data_dir)
    source = _idx_images(folder, "", "")
    return source._replace(
        client_ids=_writers(folder, "train", source.y),
        test_client_ids=_writers(folder, "test", source.test_y),
        description="MNIST handwritten digits, clients are the writers",
        licence="CC BY-SA 3.0 (MNIST: Y. LeCun, C. Cortes, C. Burges); QMNIST labels BSD 3-clause (Facebook)",
    )


def cifar10(data_dir: str | Path | None = None) -> Source:
    """CIFAR-10: 50,000 + 10,000 colour pictures [n, 32, 32, 3], from the binary version (``data_batch_1.bin`` ...)."""
    folder = Folder("cifar10", data_dir)
    if not list(folder.path.glob("*.bin*")) and list(folder.path.glob("**/data_batch_1")):
        raise FljaxError(
            f"Expected CIFAR-10 in its binary version in {folder.path}, found the Python version, which is pickled and "
            "is not read. Get cifar-10-binary.tar.gz."
        )
    parts = [read_cifar(folder.file(f"data_batch_{i}.bin")) for i in range(1, 6)]
    test_x, test_y = read_cifar(folder.file("test_batch.bin"))
    return Source(
        name="cifar10",
        task="classification",
        x=_scaled(np.concatenate([x for x, _ in parts])),
        y=np.concatenate([y for _, y in parts]),
        client_ids=None,
        test_x=_scaled(test_x),
        test_y=test_y,
        test_client_ids=None,
        num_classes=IMAGE_CLASSES,
        description="CIFAR-10 colour pictures",
        licence="no stated licence; A. Krizhevsky, Learning multiple layers of features from tiny images, 2009",
    )


def femnist(data_dir: str | Path | None = None) -> Source:
    """FEMNIST: handwritten digits and letters [n, 28, 28, 1] in 62 classes, clients are the writers.

    Reads all ``.json`` and ``.json.gz`` files of ``train/`` and ``test/`` as LEAF's scripts write them. As in LEAF the
    paper is 1 and the ink 0, the other way round than in MNIST. When the split was made by sample, each writer has test
    examples of his own, which are numbered as in the training part.

    Source: Caldas et al., LEAF: a benchmark for federated settings, 2018; NIST Special Database 19.
    """
    folder = Folder("femnist", data_dir)
    train, test = _leaf_split(folder, "train"), _leaf_split(folder, "test")
    number = {user: k for k, user in enumerate(sorted(set(train.users) | set(test.users)))}
    ids, test_ids = (np.asarray([number[user] for user in part.users])[part.owner] for part in (train, test))
    return Source(
        name="femnist",
        task="classification",
        x=train.x.reshape(-1, 28, 28, 1),
        y=train.y,
        client_ids=ids,
        test_x=test.x.reshape(-1, 28, 28, 1),
        test_y=test.y,
        test_client_ids=test_ids,
        num_classes=FEMNIST_CLASSES,
        description="FEMNIST handwritten characters, clients are the writers",
        licence="BSD 2-clause (LEAF, S. Caldas et al.); the images of NIST SD 19 are in the public domain",
    )


def _scaled(pixels: np.ndarray) -> np.ndarray:
    """Bytes -> float32 in [0, 1]."""
    return pixels.astype(np.float32) / np.float32(255)


def _idx_images(folder: Folder, description: str, licence: str) -> Source:
    """The four files that MNIST and its relatives consist of."""
    parts = []
    for split in ("train", "t10k"):
        image_file = folder.file(f"{split}-images-idx3-ubyte", f"{split}-images.idx3-ubyte")
        label_file = folder.file(f"{split}-labels-idx1-ubyte", f"{split}-labels.idx1-ubyte")
        images = read_idx(image_file, 0x08, (None, 28, 28))
        labels = check_labels(label_file, read_idx(label_file, 0x08, (None,)), IMAGE_CLASSES)
        if len(images) != len(labels):
            raise bad_file(label_file, f"expected {len(images)} labels, one per image, found {len(labels)}")
        parts.append((_scaled(images)[..., None], labels))
    (x, y), (test_x, test_y) = parts
    return Source(folder.name, "classification", x, y, None, test_x, test_y, None, IMAGE_CLASSES, description, licence)


def _writers(folder: Folder, split: str, labels: np.ndarray) -> np.ndarray:
    """[n] writer of each MNIST image. QMNIST columns: 0 class, 1 cohort, 2 writer, ...; 8 in all."""
    path = folder.file(f"qmnist-{split}-labels-idx2-int")
    table = read_idx(path, 0x0C, (None, 8))
    if len(table) < len(labels) or (split == "train" and len(table) != len(labels)):
        raise bad_file(path, f"expected {len(labels)} rows, one per MNIST image, found {len(table)}")
    table = table[: len(labels)]
    wrong = np.flatnonzero(table[:, 0] != labels)
    if len(wrong):
        row = wrong[0]
        raise bad_file(
            path,
            f"expected class {labels[row]} (MNIST's label) in row {row}, column 0, found {table[row, 0]}",
            "Use the QMNIST labels that belong to these MNIST files.",
        )
    return table[:, WRITER_COLUMN]


def _leaf_split(folder: Folder, split: str) -> Leaf:
    paths = sorted(p for ending in ("*.json", "*.json.gz") for p in (folder.path / split).glob(ending))
    if not paths:
        raise FljaxError(
            f"Dataset 'femnist' needs LEAF files {split}/*.json or {split}/*.json.gz, none found in {folder.path}. "
            "Put them there, or name another folder by FLJAX_DATA or data_dir=."
        )
    leaf = read_leaf(paths, FEMNIST_PIXELS, FEMNIST_CLASSES)
    if leaf.x.min() < 0 or leaf.x.max() > 1:
        raise bad_file(folder.path / split, f"expected pixels in [0, 1], found {leaf.x.min():g} .. {leaf.x.max():g}")
    return leaf
