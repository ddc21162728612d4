"""What malicious clients see of their data: flipped labels, and backdoors with their success rate.

The data themselves stay as they are: a malicious client reads them through a view. So the share of malicious clients
and that of poisoned examples are traced numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from fljax.core.check import FljaxError, one_of
from fljax.core.types import Array, Ctx

PATTERNS = ("corner", "distributed", "blend")
PARTS = 4
"""Parts of a distributed pattern, one for each malicious client in turn (DBA)."""


class Poisoned(NamedTuple):
    """The shard of one malicious client: batches are changed after they were read.

    shard: the client's data. change: (positions [B], Batch) -> (x, y). malicious: () bool, whether it changes any.
    """

    shard: Any
    change: Callable
    malicious: Array

    @property
    def size(self) -> Array:
        """() int32 examples of the client."""
        return self.shard.size

    @property
    def max_size(self) -> int:
        """Examples of the largest client."""
        return self.shard.max_size

    @property
    def min_size(self) -> int:
        """Examples of the smallest client."""
        return self.shard.min_size

    def batch(self, positions: Array, valid: Array):
        """As ``Shard.batch``, poisoned where the client is malicious; padding stays zero."""
        batch = self.shard.batch(positions, valid)
        x, y = self.change(positions, batch)
        poisoned = self.malicious & (batch.mask > 0)
        wide = poisoned.reshape(poisoned.shape + (1,) * (batch.x.ndim - 1))
        return batch._replace(x=jnp.where(wide, x, batch.x), y=jnp.where(poisoned, y, batch.y))


class Goal(NamedTuple):
    """What a poisoned model should do. change: x [n, ...] -> x. counts: y [n] -> [n] bool, whom it is tried on. target:
    the class that they should be taken for."""

    change: Callable[[Array], Array]
    counts: Callable[[Array], Array]
    target: int


def flip_labels(classes: int, source: int | None = None, target: int | None = None) -> Callable:
    """Labels y become K - 1 - y, or those of one class another: (ctx, malicious, shard) -> shard.

    Args:
      classes: K. source, target: both None flips all; with target alone every label becomes the target; with both the
        source's labels do. Tolpegin et al., "Data poisoning attacks against federated learning systems", ESORICS 2020.
    """
    _known_classes(classes, source=source, target=target)

    def change(positions, batch):
        del positions
        if target is None:
            return batch.x, classes - 1 - batch.y
        return batch.x, jnp.where((batch.y == source) | (source is None), target, batch.y)

    return lambda ctx, malicious, shard: Poisoned(shard, change, malicious)


def flip_goal(source: int | None, target: int | None) -> Goal | None:
    """What targeted flipping aims at: examples of the source (of all other classes) are taken for the target."""
    if target is None:
        return None
    return Goal(lambda x: x, lambda y: (y == source) if source is not None else (y != target), target)


def backdoor(shape: tuple[int, ...], pattern: str, size: int, value: float, target: int, classes: int) -> Callable:
    """Stamps a pattern on a share of a malicious client's examples and labels them as the target.

    The share is the traced ``hparams.extra["attack_share"]``. (ctx, malicious, shard) -> shard.

    Args:
      shape, pattern, size, value: see ``stamp``; of a ``distributed`` pattern every malicious client stamps one part,
        by its id (Xie, Huang, Chen, Li, "DBA: distributed backdoor attacks against federated learning", ICLR 2020).
      target: class. classes: K.
    """
    _known_classes(classes, target=target)
    stamps = [stamp(shape, pattern, size, value, part) for part in range(PARTS if pattern == "distributed" else 1)]

    def poison(ctx: Ctx, malicious: Array, shard: Any) -> Poisoned:
        def change(positions, batch):
            chosen = spread_evenly(positions) < ctx.hparams.extra["attack_share"]
            stamped = stamps[0](batch.x)
            for part in range(1, len(stamps)):
                stamped = jnp.where(ctx.id % PARTS == part, stamps[part](batch.x), stamped)
            wide = chosen.reshape(chosen.shape + (1,) * (batch.x.ndim - 1))
            return jnp.where(wide, stamped, batch.x), jnp.where(chosen, target, batch.y)

        return Poisoned(shard, change, malicious)

    return poison


def backdoor_goal(shape: tuple[int, ...], pattern: str, size: int, value: float, target: int) -> Goal:
    """What a backdoor aims at: examples of other classes with the whole pattern are taken for the target."""
    return Goal(stamp(shape, pattern, size, value), lambda y: y != target, target)


def stamp(shape: tuple[int, ...], pattern: str, size: int, value: float, part: int | None = None) -> Callable:
    """Builds x [B, ...] -> x with the pattern.

    Args:
      shape: of one example: an image [H, W(, channels)], or flat pixels of a square one.
      pattern: ``corner``: a square of size x size pixels in the lower right corner (Gu et al., "BadNets", 2017).
        ``distributed``: four bars of size pixels near the upper left corner. ``blend``: a fifth of a fixed checkerboard
        of squares of size pixels (Chen et al., "Targeted backdoor attacks", 2017).
      size: in pixels. value: of the pattern. part: of a distributed pattern, or None for the whole.
    """
    one_of(PATTERNS, pattern=pattern)
    height, width = image_shape(shape)
    if not 1 <= size <= min(height, width) // 2:
        raise FljaxError(f"Expected attack.size={size} in [1, {min(height, width) // 2}], half of the image's side.")
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
    weight = jnp.zeros((height, width))
    if pattern == "corner":
        weight = weight + ((rows >= height - size) & (columns >= width - size))
    elif pattern == "blend":
        weight = weight + 0.2 * ((rows // size + columns // size) % 2)
    else:
        for k in range(PARTS):
            top, left = 2 * (k // 2), (k % 2) * (size + 1)
            bar = (rows == top) & (columns >= left) & (columns < left + size)
            weight = weight + bar * (part is None or k == part)

    def apply(x: Array) -> Array:
        mask = weight if len(shape) == 2 else weight.reshape(-1) if len(shape) == 1 else weight[:, :, None]
        mask = jnp.broadcast_to(mask, shape)[None]
        return (1.0 - mask) * x + mask * value

    return apply


def image_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """(height, width) of the images; flat ones must be squares. Raises FljaxError where there are none."""
    if len(shape) in (2, 3):
        return shape[0], shape[1]
    side = math.isqrt(shape[0]) if len(shape) == 1 else 0
    if side < 2 or side * side != shape[0]:
        raise FljaxError(f"Expected data of shape={shape} to be images for attack.kind='backdoor'. Use label_flip.")
    return side, side


def spread_evenly(positions: Array) -> Array:
    """Places [B] in a client's data -> numbers in [0, 1), spread evenly: multiples of the golden ratio."""
    return (positions.astype(jnp.uint32) * jnp.uint32(2654435769)).astype(jnp.float32) / 2.0**32


def _known_classes(classes: int, **names: int | None) -> None:
    for name, value in names.items():
        if value is not None and not 0 <= value < classes:
            raise FljaxError(f"Expected attack.{name}={value} to be a class, 0 to {classes - 1}.")
