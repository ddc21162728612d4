"""Data that stay on the host: the examples of the clients of the next rounds travel to the device, and no others.

For data sets that are larger than the memory of the device, or than that of the machine, where the arrays are
memory-mapped files. Who takes part is known before the round, because a cohort is a pure function of the key and the
round; so the host gathers the examples of the next compiled call while the device computes the one before.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fljax.core.check import FljaxError
from fljax.core.types import Array
from fljax.data.base import as_floats
from fljax.data.federated import Shard, narrow, on_device, sizes_of
from fljax.data.partition import Partition


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Window:
    """The data of the cohorts of R rounds, on the device: an argument of the compiled call in the place of all data.

    Attributes:
      first: () int32, the first of the R rounds.
      x, y: [R, W, ...] examples and labels, client after client; what is left over of the W rows is zero.
      ids: [R, C] int32, the clients of each round in ascending order; N stands for an empty slot.
      starts: [R, C] int32, first row of each.
      offsets: [N + 1] int32, as in ``FederatedData``; it tells the sizes of all clients.
      population, max_size, min_size: N, examples of the largest and of the smallest client (static).
    """

    first: Array
    x: Array
    y: Array
    ids: Array
    starts: Array
    offsets: Array
    population: int = field(metadata={"static": True})
    max_size: int = field(metadata={"static": True})
    min_size: int = field(metadata={"static": True})

    def at(self, t: Array) -> Window:
        """The data of round t, one of the R rounds: the same without the axis R."""
        row = t - self.first
        x, y, ids, starts = self.x[row], self.y[row], self.ids[row], self.starts[row]
        return Window(self.first, x, y, ids, starts, self.offsets, self.population, self.max_size, self.min_size)

    def take(self, slot: Array, client_id: Array) -> Shard:
        """The shard of one client of the round, as ``FederatedData.take``; a client that is not in it has size 0."""
        del slot
        row = jnp.clip(jnp.searchsorted(self.ids, client_id), 0, self.ids.shape[0] - 1)
        size = jnp.where(self.ids[row] == client_id, self.size_of(client_id), 0)
        return Shard(self.x, self.y, self.starts[row], size, self.max_size, self.min_size)

    def size_of(self, client_ids: Array) -> Array:
        """Number of examples of clients, as ``FederatedData.size_of``: of all clients, whether they are here or not."""
        return sizes_of(self.offsets, client_ids)


Make = Callable[[tuple[int, ...], Callable[[tuple[slice, ...]], np.ndarray]], Array]
"""(shape, (slices of it) -> values) -> array: where the values are wanted, whole or in parts."""


def in_one(shape: tuple[int, ...], values: Callable[[tuple[slice, ...]], np.ndarray]) -> Array:
    """The whole array on the device."""
    return jnp.asarray(values((slice(None),) * len(shape)))


@dataclass(frozen=True)
class StreamedData:
    """The data of N clients on the host, in memory or in memory-mapped files.

    Attributes:
      examples: [n, ...] as they lie in memory or in the file; bytes are pixels and become floats in [0, 1].
      labels: [n_total, ...] client after client.
      order: [n_total] which examples they belong to. offsets: [N + 1] int64, client k owns ``order[offsets[k] :
        offsets[k + 1]]``.
    """

    examples: np.ndarray
    labels: np.ndarray
    order: np.ndarray
    offsets: np.ndarray

    @staticmethod
    def from_indices(x: np.ndarray, y: np.ndarray, split: Partition) -> StreamedData:
        """The chosen examples x [n, ...], y [n, ...] of each client; x is not read.

        Errors: more than 2^31 examples; a partition without clients.
        """
        if split.population < 1 or len(split.order) >= 2**31:
            raise FljaxError(f"Expected 1 to 2^31 examples of at least one client, found {len(split.order)}.")
        labels = narrow(np.asarray(y)[split.order])
        return StreamedData(x, labels, np.asarray(split.order), np.asarray(split.offsets))

    @property
    def population(self) -> int:
        """N."""
        return len(self.offsets) - 1

    @property
    def sizes(self) -> np.ndarray:
        """[N] int64, examples of each client."""
        return np.diff(self.offsets)

    @property
    def max_size(self) -> int:
        """Examples of the largest client."""
        return int(self.sizes.max())

    @property
    def min_size(self) -> int:
        """Examples of the smallest client."""
        return int(self.sizes.min())

    @property
    def x(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of all examples, as they would arrive on the device."""
        dtype = jnp.float32 if self.examples.dtype == np.uint8 or self.examples.dtype.kind == "f" else jnp.int32
        return jax.ShapeDtypeStruct((len(self.order), *self.examples.shape[1:]), dtype)

    @property
    def y(self) -> np.ndarray:
        """Labels, client after client."""
        return self.labels

    def rows(self, cohort: int) -> int:
        """W, the examples that a cohort of so many different clients can have at most (at least 1)."""
        return max(1, int(np.sort(self.sizes)[::-1][:cohort].sum()))

    def window_bytes(self, rounds: int, cohort: int) -> int:
        """What the inputs of a window of so many rounds need, for cohorts of so many clients."""
        return 4 * rounds * self.rows(cohort) * math.prod(self.examples.shape[1:])

    def window(self, first: int, ids: np.ndarray, make: Make = in_one, shares: int = 1) -> Window:
        """Gathers the examples of R cohorts and sends them to the device.

        Args:
          first: the first of R rounds. ids: [R, C] clients of each round, N for an empty slot.
          make: puts examples and labels where they belong; what it does not ask for here is not read.
          shares: W is a multiple of it, so that the rows of a round can be divided.

        Returns:
          The Window; its shapes depend on R, C and shares alone, so that nothing is compiled anew.
        """
        ids = np.sort(np.minimum(np.asarray(ids, np.int64), self.population), axis=1)
        width, sizes = -(-self.rows(ids.shape[1]) // shares) * shares, np.append(self.sizes, 0)[ids]
        starts = np.concatenate([np.zeros((len(ids), 1), np.int64), np.cumsum(sizes, axis=1)[:, :-1]], axis=1)
        begins = np.append(self.offsets[:-1], 0)[ids]
        places = [np.repeat(b, count) + _within(count) for b, count in zip(begins, sizes, strict=True)]

        def block(like: Any, read: Callable[[np.ndarray], np.ndarray], index: tuple[slice, ...]) -> np.ndarray:
            """Some rows of some rounds; what is left over is zero."""
            rows = [part[index[1]] for part in places[index[0]]]
            wide = len(range(width)[index[1]])
            out = np.zeros((len(rows), wide, *like.shape[1:]), like.dtype)
            for r, chosen in enumerate(rows):
                out[r, : len(chosen)] = read(chosen)
            return out

        def examples(chosen: np.ndarray) -> np.ndarray:
            return as_floats(self.examples[self.order[chosen]])

        shape = (len(ids), width)
        x = make((*shape, *self.examples.shape[1:]), partial(block, self.x, examples))
        y = make((*shape, *self.labels.shape[1:]), partial(block, self.labels, lambda chosen: self.labels[chosen]))
        parts = [on_device(part) for part in (ids, starts, self.offsets)]
        return Window(
            jnp.int32(first), x, y, *parts, population=self.population, max_size=self.max_size, min_size=self.min_size
        )


def _within(counts: np.ndarray) -> np.ndarray:
    """0 .. c - 1 for every count c, one after the other."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)
