"""The data of all clients as one packed array, and the view of it that one client sees.

Clients hold different amounts of data. A padded array ``[N, max size, ...]`` would waste memory and time on padding, so
the examples of all clients lie one client after the other, and ``offsets`` says where each begins:
client ``k`` owns the rows ``offsets[k] : offsets[k + 1]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fljax.core import html
from fljax.core.check import FljaxError

if TYPE_CHECKING:
    from fljax.data.streamed import StreamedData
    from fljax.data.summary import PartitionSummary

Array = jax.Array


class Batch(NamedTuple):
    """Examples of one client: x [B, ...], y [B, ...], mask [B] float32 (1 on examples, 0 on padding; padding is 0)."""

    x: Array
    y: Array
    mask: Array


class Shard(NamedTuple):
    """The data of ONE client: the rows ``start : start + size`` of the packed arrays.

    Make it inside the function that is vmapped over clients: there ``x`` and ``y`` are shared by all clients. A shard
    that is returned from a vmapped function would copy the packed arrays once for each client.

    Attributes:
      x, y: packed arrays of all clients, [n_total, ...].
      start, size: () int32, the first row and the number of rows of this client.
      max_size, min_size: examples of the largest and of the smallest client; Python ints, for static shapes.
    """

    x: Array
    y: Array
    start: Array
    size: Array
    max_size: int
    min_size: int

    def batch(self, positions: Array, valid: Array) -> Batch:
        """The examples at these places of the client's data.

        Args:
          positions: [B] int, places within the shard, 0 .. size - 1.
          valid: [B] bool, False on padding.

        Returns:
          A Batch. Its mask is 1 where ``valid`` holds and the place lies within the shard; elsewhere mask, x and y are
          exact zeros.

        Guarantees: no value of another client can get out, whatever the positions are. Zeros are *selected*, not
        multiplied, so that a NaN in another client's rows stays there.
        """
        inside = valid & (positions >= 0) & (positions < self.size)
        rows = jnp.clip(self.start + positions, 0, self.x.shape[0] - 1)
        return Batch(_select(inside, self.x[rows]), _select(inside, self.y[rows]), inside.astype(jnp.float32))


def _select(keep: Array, values: Array) -> Array:
    """Values [B, ...] where keep [B], else 0 of the same type."""
    keep = keep.reshape(keep.shape + (1,) * (values.ndim - keep.ndim))
    return jnp.where(keep, values, jnp.zeros((), values.dtype))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FederatedData:
    """The data of N clients, packed and on the device: an argument of the compiled program, never a closure of it.

    Attributes:
      x, y: [n_total, ...] examples and labels, client after client; floats are float32, integers int32.
      offsets: [N + 1] int32, client k owns the rows ``offsets[k] : offsets[k + 1]``.
      population: N (static).
      max_size, min_size: examples of the largest and of the smallest client (static). 0 = some client is empty.
    """

    x: Array
    y: Array
    offsets: Array
    population: int = field(metadata={"static": True})
    max_size: int = field(metadata={"static": True})
    min_size: int = field(metadata={"static": True})

    def at(self, t: Array) -> FederatedData:
        """The data of round t: all of them, whichever it is (see ``streamed.Window``)."""
        del t
        return self

    def take(self, slot: Array, client_id: Array) -> Shard:
        """The shard of one client; works on traced ids, under vmap, scan and jit.

        Args:
          slot: () int32, the client's place in the cohort; resident data do not need it.
          client_id: () int32. N (an empty slot), and any other id outside ``0 .. N - 1``, gives a shard of size 0.
        """
        del slot
        known = (client_id >= 0) & (client_id < self.population)
        row = jnp.clip(client_id, 0, self.population - 1)
        start = self.offsets[row]
        size = jnp.where(known, self.offsets[row + 1] - start, 0)
        return Shard(self.x, self.y, start, size, self.max_size, self.min_size)

    def size_of(self, client_ids: Array) -> Array:
        """Number of examples of clients: ids [C] -> [C] int32; 0 for an id outside ``0 .. N - 1``."""
        return sizes_of(self.offsets, client_ids)

    @property
    def sizes(self) -> np.ndarray:
        """[N] int64, examples of each client, on the host."""
        return np.diff(np.asarray(self.offsets).astype(np.int64))

    @staticmethod
    def from_clients(clients: Sequence[tuple[np.ndarray, np.ndarray]]) -> FederatedData:
        """Packs one (x [M_k, ...], y [M_k, ...]) pair per client; clients may be empty (M_k = 0).

        Errors: no clients; a client whose x and y differ in length; clients whose examples differ in shape.
        """
        if not clients:
            raise FljaxError("Expected at least one client, found an empty list. Give one (x, y) pair per client.")
        pairs = [(np.asarray(x), np.asarray(y)) for x, y in clients]
        for k, (x, y) in enumerate(pairs):
            _same_length(x, y, f" of client {k}")
            if x.shape[1:] != pairs[0][0].shape[1:] or y.shape[1:] != pairs[0][1].shape[1:]:
                raise FljaxError(
                    f"Expected examples of client {k} to have the shapes of client 0, x {pairs[0][0].shape[1:]} and y "
                    f"{pairs[0][1].shape[1:]}, found {x.shape[1:]} and {y.shape[1:]}. Give all clients one shape."
                )
        offsets = np.concatenate([[0], np.cumsum([len(x) for x, _ in pairs])])
        return packed(np.concatenate([x for x, _ in pairs]), np.concatenate([y for _, y in pairs]), offsets)

    @staticmethod
    def from_ids(x: np.ndarray, y: np.ndarray, client_ids: np.ndarray) -> FederatedData:
        """Packs examples by the client that each belongs to, in the order of the sorted distinct ids.

        Args:
          x, y: [n, ...] examples and labels.
          client_ids: [n] numbers or strings. Within a client the examples keep their order.
        """
        x, y, ids = np.asarray(x), np.asarray(y), np.asarray(client_ids)
        if ids.shape != (len(x),):
            raise FljaxError(f"Expected client_ids of shape ({len(x)},), one id per example, found {ids.shape}.")
        _, owner, counts = np.unique(ids, return_inverse=True, return_counts=True)
        offsets = np.concatenate([[0], np.cumsum(counts)])
        return FederatedData.from_indices(x, y, (np.argsort(owner, kind="stable"), offsets))

    @staticmethod
    def from_indices(x: np.ndarray, y: np.ndarray, indices: Sequence[np.ndarray] | tuple[Any, ...]) -> FederatedData:
        """Packs the chosen examples.

        Args:
          x, y: [n, ...] examples and labels.
          indices: a list of N index arrays, or a tuple ``(order, offsets)`` as a Partition holds it: client k gets the
            examples ``order[offsets[k] : offsets[k + 1]]``.

        Errors: an index outside ``0 .. n - 1``; offsets that do not rise from 0 to the length of order.
        """
        x, y = np.asarray(x), np.asarray(y)
        _same_length(x, y, "")
        if isinstance(indices, tuple):
            order, offsets = (np.asarray(part) for part in indices[:2])
        else:
            order = np.concatenate([np.zeros(0, np.int64), *(np.asarray(part, np.int64) for part in indices)])
            offsets = np.concatenate([[0], np.cumsum([len(part) for part in indices])])
        if len(order) and (order.min() < 0 or order.max() >= len(x)):
            raise FljaxError(f"Expected indices in [0, {len(x)}), found {order.min()} .. {order.max()}.")
        if len(offsets) < 2 or offsets[0] != 0 or offsets[-1] != len(order) or (np.diff(offsets) < 0).any():
            raise FljaxError(f"Expected offsets that rise from 0 to {len(order)} over at least one client.")
        return packed(x[order], y[order], offsets)

    def _repr_html_(self) -> str:
        return html.card("FederatedData", html.paragraph(_cells(self)))


def sizes_of(offsets: Array, client_ids: Array) -> Array:
    """Examples of clients, from offsets [N + 1]: 0 for an id outside ``0 .. N - 1``; int32 of the shape of the ids."""
    known = (client_ids >= 0) & (client_ids < offsets.shape[0] - 1)
    row = jnp.clip(client_ids, 0, offsets.shape[0] - 2)
    return jnp.where(known, offsets[row + 1] - offsets[row], 0)


def _same_length(x: np.ndarray, y: np.ndarray, whose: str) -> None:
    if x.ndim < 1 or y.ndim < 1 or len(x) != len(y):
        raise FljaxError(f"Expected as many labels as examples, found x{whose} {x.shape} and y{whose} {y.shape}.")


def packed(x: np.ndarray, y: np.ndarray, offsets: np.ndarray) -> FederatedData:
    """Moves packed host arrays x, y [n_total, ...] to the device; client k owns the rows offsets[k] : offsets[k + 1].

    Errors: 2^31 examples or more.
    """
    if not len(x):  # a gather needs one row to point at, even when no client owns it
        x, y = np.zeros((1, *x.shape[1:]), x.dtype), np.zeros((1, *y.shape[1:]), y.dtype)
    if len(x) >= 2**31:
        raise FljaxError(f"Expected fewer than 2**31 examples, found {len(x)}. Use fewer clients or a cap per client.")
    sizes = np.diff(offsets)
    return FederatedData(
        on_device(x),
        on_device(y),
        jnp.asarray(offsets, jnp.int32),
        population=len(sizes),
        max_size=int(sizes.max()),
        min_size=int(sizes.min()),
    )


def on_device(values: np.ndarray) -> Array:
    """The array on the device, as ``narrow`` makes it."""
    return jnp.asarray(narrow(values))


def narrow(values: np.ndarray) -> np.ndarray:
    """The array as devices hold it: floats as float32, integers and booleans as int32.

    Errors: any other type (text, objects); an integer that int32 cannot hold.
    """
    values = np.asarray(values)
    if values.dtype.kind == "f":
        return values.astype(np.float32, copy=False)
    if values.dtype.kind not in "biu":
        raise FljaxError(f"Expected numbers, found an array of type {values.dtype}. Convert it to float32 or int32.")
    if values.dtype.itemsize >= 4 and values.size and (values.max() > 2**31 - 1 or values.min() < -(2**31)):
        raise FljaxError(f"Expected integers that fit int32, found {values.min()} .. {values.max()}.")
    return values.astype(np.int32, copy=False)


class Examples(NamedTuple):
    """Plain arrays on the device: x [n, ...], y [n, ...]."""

    x: Array
    y: Array


@dataclass(frozen=True)
class Dataset:
    """Everything an experiment needs to know of its data: a bundle on the host, not an argument of compiled code.

    Attributes:
      name: as in the registry.
      task: ``classification`` (y [n] int32), ``regression`` (y float32) or ``next_char`` (x, y [n, L] int32; 0 = pad).
      train: the clients that train; StreamedData where the examples stay on the host.
      test: the global test set.
      num_classes: K; 1 for regression.
      input_shape: shape of one example, without the batch.
      client_test: each training client's own held-out examples, same N and order as ``train``; None if not asked for.
      unseen: clients that never train; None if not asked for.
      description: what the data are and how they were split, in one line.
      licence: licence and source of the data.
    """

    name: str
    task: str
    train: FederatedData | StreamedData
    test: Examples
    num_classes: int
    input_shape: tuple[int, ...]
    client_test: FederatedData | None = None
    unseen: FederatedData | None = None
    description: str = ""
    licence: str = ""

    def summary(self) -> PartitionSummary:
        """Sizes and labels of the training clients."""
        from fljax.data.summary import PartitionSummary  # the view of the data is no part of the compute path

        labels = None if self.task == "regression" else np.asarray(self.train.y)
        ignore = 0 if self.task == "next_char" else None
        return PartitionSummary.of(self.train.sizes, labels, self.num_classes, ignore=ignore)

    def _repr_html_(self) -> str:
        """For notebooks: sizes, what is held by whom in numbers, and the sizes and labels as bars."""
        seen = self.summary()
        rows = [("task", f"{self.task}, {self.num_classes} classes, input {self.input_shape}")]
        rows += [("train", _cells(self.train)), ("test", f"{len(self.test.x)} examples")]
        held = (("client_test", self.client_test), ("unseen", self.unseen))
        rows += [(name, _cells(data)) for name, data in held if data is not None]
        rows += [row for row in seen.rows() if row[0] not in ("clients", "examples")]
        plots = [html.bars(np.sort(seen.sizes)[::-1], f"examples of each of {len(seen.sizes)} clients")]
        if seen.histogram is not None:
            plots.append(html.bars(seen.histogram.sum(axis=0), f"examples of each of {self.num_classes} labels"))
        remarks = [
            html.paragraph(self.description),
            *([html.paragraph(self.licence, soft=True)] if self.licence else []),
        ]
        return html.card(self.name, *remarks, html.pairs(rows), *plots, note="a data set")


def _cells(data: FederatedData | StreamedData) -> str:
    """Sizes in words, for notebooks."""
    total = int(data.offsets[-1])
    return f"{data.population} clients, {total} examples, {data.min_size} to {data.max_size} each"
