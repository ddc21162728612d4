"""Data that stay on the host: the examples of the clients of the next rounds travel to the device, and no others.

For data sets that are larger than the memory of the device, or than that of the machine, where the arrays are
memory-mapped files. Who takes part is known before the round, because a cohort is a pure function of the key and the
round; so the host gathers the examples of the next compiled call while the device computes the one before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from fljax.core.check import FljaxError
from fljax.core.types import Array
from fljax.data.base import as_floats
from fljax.data.federated import Shard, on_device, sizes_of
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
        return StreamedData(x, np.asarray(y)[split.order], np.asarray(split.order), np.asarray(split.offsets))

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

    def window(self, first: int, ids: np.ndarray) -> Window:
        """Gathers the examples of R cohorts and sends them to the device.

        Args:
          first: the first of R rounds. ids: [R, C] clients of each round, N for an empty slot.

        Returns:
          The Window; its shapes depend on R and C alone, so that nothing is compiled anew.
        """
        ids = np.sort(np.minimum(np.asarray(ids, np.int64), self.population), axis=1)
        width, sizes = self.rows(ids.shape[1]), np.append(self.sizes, 0)[ids]
        starts = np.concatenate([np.zeros((len(ids), 1), np.int64), np.cumsum(sizes, axis=1)[:, :-1]], axis=1)
        x = np.zeros((len(ids), width, *self.examples.shape[1:]), self.x.dtype)
        y = np.zeros((len(ids), width, *self.labels.shape[1:]), self.labels.dtype)
        for r, (clients, count) in enumerate(zip(ids, sizes, strict=True)):
            places = np.repeat(np.append(self.offsets[:-1], 0)[clients], count) + _within(count)
            x[r, : len(places)] = as_floats(self.examples[self.order[places]])
            y[r, : len(places)] = self.labels[places]
        parts = [on_device(part) for part in (x, y, ids, starts, self.offsets)]
        return Window(
            jnp.int32(first), *parts, population=self.population, max_size=self.max_size, min_size=self.min_size
        )


def _within(counts: np.ndarray) -> np.ndarray:
    """0 .. c - 1 for every count c, one after the other."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)
