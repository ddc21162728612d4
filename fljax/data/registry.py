"""Datasets by name: load the files, deal the examples out to clients, hold some out, move all to the device."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fljax.core import memory
from fljax.core.check import FljaxError, in_range, non_negative, one_of, positive
from fljax.data import partition as partitions
from fljax.data import sources
from fljax.data.base import Folder, as_floats
from fljax.data.federated import Dataset, Examples, FederatedData, on_device, packed
from fljax.data.partition import Partition
from fljax.data.sources import Source
from fljax.data.streamed import StreamedData

PARTITIONS = ("iid", "dirichlet", "shards", "quantity_skew", "feature_shift", "natural")


class DatasetInfo(NamedTuple):
    """An entry of the registry.

    Attributes:
      description: one line.
      needs_files: whether the user has to bring files.
      loader: ``loader(data_dir, **options) -> Source``.
      default_clients: N where neither the call nor the data say it.
      files: beginnings of the names of files that it cannot be read without.
    """

    description: str
    needs_files: bool
    loader: Callable[..., Source]
    default_clients: int | None = None
    files: tuple[str, ...] = ()


IDX = ("train-images", "train-labels", "t10k-images", "t10k-labels")
DATASETS: dict[str, DatasetInfo] = {
    "digits": DatasetInfo("1,797 handwritten digits of 8 x 8 pixels, inside the package", False, sources.digits, 143),
    "synthetic": DatasetInfo("Synthetic(alpha, beta) of FedProx, natural clients", False, sources.synthetic),
    "mnist": DatasetInfo("70,000 handwritten digits (idx files)", True, sources.mnist, 600, IDX),
    "mnist_by_writer": DatasetInfo(
        "MNIST with 539 writers as clients (QMNIST)",
        True,
        sources.mnist_by_writer,
        files=(*IDX, "qmnist-train-labels", "qmnist-test-labels"),
    ),
    "fashion_mnist": DatasetInfo("70,000 pictures of clothes (idx files)", True, sources.fashion_mnist, 600, IDX),
    "cifar10": DatasetInfo(
        "60,000 colour pictures (binary version)", True, sources.cifar10, 500, ("data_batch_1.bin", "test_batch.bin")
    ),
    "femnist": DatasetInfo(
        "handwritten characters, 62 classes, clients are writers (LEAF)",
        True,
        sources.femnist,
        files=("train/*.json", "test/*.json"),
    ),
    "shakespeare": DatasetInfo(
        "next character of 36 plays, clients are roles (TSV)",
        True,
        sources.shakespeare,
        files=("shakespeare_lines.tsv",),
    ),
    "heart_disease": DatasetInfo(
        "heart disease, clients are four hospitals (CSV)",
        True,
        sources.heart_disease,
        files=("processed.cleveland.data", "processed.va.data"),
    ),
    "tff": DatasetInfo("federated HDF5 files of TensorFlow Federated", True, sources.tff, files=("*train*.h5",)),
    "hf": DatasetInfo("a Hugging Face dataset saved on disk", True, sources.hf, 100, ("*.json",)),
    "npy": DatasetInfo("your own arrays x, y, ... as .npy files, mapped and not read", True, sources.npy, 100),
    "npz": DatasetInfo("your own arrays x, y, client_id in one .npz file", True, sources.npz, 100),
}
OWN_CLIENTS = 100
"""N for a source of one's own without natural clients, where the call does not say it."""


def missing_files(name: str, data_dir: str | Path | None = None) -> str:
    """Which files of a data set are not where they are looked for; "" if they are there. They are not read."""
    try:
        folder = Folder(name, data_dir).path
    except FljaxError as error:
        return str(error)
    lacking = [file for file in DATASETS[name].files if not any(folder.glob(f"{file}*"))]
    return f"missing {', '.join(lacking)} in {folder}" if lacking else ""


def load_dataset(
    name: str | Source,
    *,
    data_dir: str | Path | None = None,
    clients: int | None = None,
    partition: str | None = None,
    alpha: float = 0.5,
    shards_per_client: int = 2,
    skew: float = 1.0,
    law: str = "lognormal",
    shift: float = 0.5,
    noise: float = 0.0,
    seed: int = 0,
    unseen_clients: int = 0,
    client_test_fraction: float = 0.0,
    examples_per_client: int | None = None,
    allow_empty: bool = False,
    streamed: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Dataset:
    """A dataset, dealt out to clients and on the device. The same arguments give the same data, bit for bit.

    The steps, each with its own random stream of ``seed``: split the training examples into clients; cap; choose the
    clients that never train; hold out each training client's own test examples. The global test set is the publisher's
    and stays whole.

    Args:
      name: one of DATASETS; or a Source, such as ``from_hf`` and ``from_flwr`` make of other libraries' data.
      data_dir: folder with the files; None reads FLJAX_DATA. For ``npz``: the file itself.
      clients: how many clients to make, those that never train included. None: the natural ones, or a default (digits:
        143). With ``natural``: how many of the natural clients to use, chosen at random.
      partition: iid, dirichlet, shards, quantity_skew, feature_shift or natural. None: natural where the data have
        natural clients, else iid.
      alpha: of dirichlet.
      shards_per_client: of shards.
      skew, law: of quantity_skew.
      shift, noise: of feature_shift.
      seed: of the split; the training has another.
      unseen_clients: so many clients never train and are returned as ``unseen``.
      client_test_fraction: share of each training client's own examples that is held out as ``client_test`` (at least 1
        of a client with 2 or more). 0: ``client_test`` is the publisher's, where the natural clients have test examples
        of their own (femnist, shakespeare, heart_disease, synthetic), else None.
      examples_per_client: keep at most so many random examples of each client, before anything is held out.
      allow_empty: permit clients without examples.
      streamed: the training examples stay on the host, and those of each cohort travel (see ``StreamedData``).
      options: arguments of the loader, e.g. ``{"length": 40}`` for shakespeare.

    Errors: FljaxError in one line for a wrong argument, a missing file or a file that breaks its format.
    """
    if isinstance(name, str):
        one_of(DATASETS, name=name)
    in_range(0, 1, closed="left", client_test_fraction=client_test_fraction)
    partitions.whole(seed=seed, unseen_clients=unseen_clients)
    non_negative(seed=seed, unseen_clients=unseen_clients)
    source = _load(name, data_dir, options or {}) if isinstance(name, str) else name
    if partition is None:
        partition = "iid" if source.client_ids is None else "natural"
    one_of(PARTITIONS, partition=partition)
    settings = {"alpha": alpha, "shards_per_client": shards_per_client, "skew": skew, "law": law}
    settings |= {"shift": shift, "noise": noise, "allow_empty": allow_empty}
    x, split, names = _split(source, partition, clients, seed, settings)
    if examples_per_client is not None:
        split = partitions.cap(split, examples_per_client, seed=seed)
    description = _describe(source, partition, settings, split, seed)
    return _bundle(
        source._replace(x=x, description=description),
        split,
        names,
        unseen_clients,
        client_test_fraction,
        seed,
        streamed,
    )


def _bundle(
    source: Source,
    split: Partition,
    names: np.ndarray | None,
    unseen_clients: int,
    fraction: float,
    seed: int,
    streamed: bool,
) -> Dataset:
    """Chooses who never trains and what is held out, and moves everything to the device."""
    training, unseen = _choose_unseen(split.population, unseen_clients, seed)
    train, client_test = split.select(training), None
    if fraction > 0:
        train, held = partitions.hold_out(train, fraction, seed=seed)
        client_test = _resident(source.x, source.y, held)
    elif names is not None:
        client_test = _natural_test(source, names[training])
    return Dataset(
        name=source.name,
        task=source.task,
        train=StreamedData.from_indices(source.x, source.y, train)
        if streamed
        else _resident(source.x, source.y, train),
        test=Examples(on_device(as_floats(source.test_x)), on_device(source.test_y)),
        num_classes=source.num_classes,
        input_shape=tuple(source.x.shape[1:]),
        client_test=client_test,
        unseen=_resident(source.x, source.y, split.select(unseen)) if unseen_clients else None,
        description=source.description,
        licence=source.licence,
    )


def _resident(x: np.ndarray, y: np.ndarray, split: Partition) -> FederatedData:
    """The examples of a partition on the device; of a memory-mapped file these are all that is read."""
    _check_room(x, split)
    return packed(as_floats(x[split.order]), y[split.order], split.offsets)


def _check_room(x: np.ndarray, split: Partition) -> None:
    """Raises FljaxError unless the inputs of a partition fit on the device, and on the host while they travel."""
    numbers = math.prod(x.shape[1:])
    host, device = numbers * (x.itemsize + (4 if x.dtype == np.uint8 else 0)), numbers * 4
    needed = [(device, memory.free()), (host, memory.free_on_host())]
    if jax.default_backend() == "cpu":
        needed = [(host + device, needed[0][1])]
    for each, limit in needed:
        fits = 0 if limit is None else int(memory.SHARE * limit / each) // split.population
        fewer = f", or data.examples_per_client={fits}" if fits else ""
        remedy = f"Use data.streamed=true in a single run{fewer}."
        memory.check_room(f"{len(split.order):,} examples", len(split.order) * each, limit, remedy)


def _load(name: str, data_dir: str | Path | None, options: Mapping[str, Any]) -> Source:
    """The loader's result; an option that the loader does not have is an error that names those it has."""
    loader = DATASETS[name].loader
    known = [key for key in inspect.signature(loader).parameters if key != "data_dir"]
    for key in options:
        if not known:
            raise FljaxError(f"Expected no options for dataset {name!r}, which has none, found {key!r}.")
        one_of(known, option=key)
    return loader(data_dir, **options)


def _split(
    source: Source, kind: str, clients: int | None, seed: int, settings: Mapping[str, Any]
) -> tuple[np.ndarray, Partition, np.ndarray | None]:
    """x (changed by a feature shift), the partition, and with natural clients their ids [N]."""
    if kind == "natural":
        return source.x, *_natural(source, clients, seed)
    n, number = len(source.x), clients
    if number is None and source.client_ids is not None:
        number = len(np.unique(source.client_ids))
    if number is None:
        known = DATASETS.get(source.name)
        number = min((known.default_clients if known else OWN_CLIENTS) or n, n)
    allow_empty = settings["allow_empty"]
    if kind == "feature_shift":
        split, x = partitions.feature_shift(
            source.x, number, shift=settings["shift"], noise=settings["noise"], seed=seed, allow_empty=allow_empty
        )
        return x, split, None
    if kind == "iid":
        split = partitions.iid(n, number, seed=seed, allow_empty=allow_empty)
    elif kind == "dirichlet":
        split = partitions.dirichlet(source.y, number, alpha=settings["alpha"], seed=seed, allow_empty=allow_empty)
    elif kind == "shards":
        split = partitions.shards(source.y, number, shards_per_client=settings["shards_per_client"], seed=seed)
    else:
        split = partitions.quantity_skew(
            n, number, skew=settings["skew"], law=settings["law"], seed=seed, allow_empty=allow_empty
        )
    return source.x, split, None


def _natural(source: Source, clients: int | None, seed: int) -> tuple[Partition, np.ndarray]:
    """The natural clients, or a random choice of them in their order, and their ids."""
    if source.client_ids is None:
        raise FljaxError(f"Dataset {source.name!r} has no natural clients. Use another partition, for example iid.")
    split, names = partitions.by_id(source.client_ids), np.unique(source.client_ids)
    if clients is None:
        return split, names
    partitions.whole(clients=clients)
    positive(clients=clients)
    if clients > len(names):
        raise FljaxError(f"Expected clients={clients} <= {len(names)}, the natural clients of {source.name}.")
    chosen = np.sort(np.random.default_rng([seed, 4]).choice(len(names), clients, replace=False))
    return split.select(chosen), names[chosen]


def _choose_unseen(population: int, unseen: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Clients that train and clients that never do, both in ascending order."""
    if unseen >= population:
        raise FljaxError(f"Expected unseen_clients={unseen} < {population} clients, so that some can train.")
    shuffled = np.random.default_rng([seed, 5]).permutation(population)
    return np.sort(shuffled[unseen:]), np.sort(shuffled[:unseen])


def _natural_test(source: Source, names: np.ndarray) -> FederatedData | None:
    """The publisher's test examples of these clients; None unless all test clients are training clients."""
    if (
        source.test_client_ids is None
        or source.client_ids is None
        or not np.isin(source.test_client_ids, source.client_ids).all()
    ):
        return None
    chosen = np.isin(source.test_client_ids, names)
    owner = np.where(chosen, np.searchsorted(names, source.test_client_ids), len(names))  # the rest: one client more
    sizes = np.bincount(owner, minlength=len(names) + 1)
    everyone = Partition(np.argsort(owner, kind="stable"), np.concatenate([[0], np.cumsum(sizes)]))
    return _resident(source.test_x, source.test_y, everyone.select(np.arange(len(names))))


_SHOWN = {
    "dirichlet": ("alpha",),
    "shards": ("shards_per_client",),
    "quantity_skew": ("law", "skew"),
    "feature_shift": ("shift", "noise"),
}


def _describe(source: Source, kind: str, settings: Mapping[str, Any], split: Partition, seed: int) -> str:
    """What the data are and how they were split, in one line."""
    numbers = ", ".join(f"{key}={settings[key]}" for key in _SHOWN.get(kind, ()))
    moved = f", {split.moved} examples moved so that no client is empty" if split.moved else ""
    inner = f"({numbers})" if numbers else ""
    return f"{source.description}; {split.population} clients by {kind}{inner}, seed {seed}{moved}"
