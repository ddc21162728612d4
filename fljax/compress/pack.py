"""One upload as bytes, on the host: proof that the bytes that a round counts are bytes that can be sent.

A message is one string of bits, filled up to whole bytes: the scales of the leaves (32 bits each, if values are
quantised), the positions, and the values in the order of the positions.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fljax.core.check import FljaxError, in_range, one_of

POSITIONS = ("all", "listed", "public", "seed")
"""``all`` values are sent; the positions of some are ``listed``; they are ``public``; or a ``seed`` of 64 bits makes
them."""


class Layout(NamedTuple):
    """How an upload is written; public, and known to both sides.

    sizes: coordinates of each leaf (of its part of the support, where neurons are dropped); n is their sum.
    count: k, how many values are sent.
    bits: of one value: 32 (float32), 2 to 16 (levels of ``quantise``) or 1 (``sign_quantise``).
    positions: one of ``POSITIONS``.
    """

    sizes: tuple[int, ...]
    count: int
    bits: int = 32
    positions: str = "all"

    @property
    def size(self) -> int:
        """n, the coordinates that could be sent."""
        return sum(self.sizes)

    @property
    def index_bits(self) -> int:
        """Bits of one index, ceil(log2 n)."""
        return (self.size - 1).bit_length()

    @property
    def bitmap(self) -> bool:
        """True if a bitmap is shorter than a list of indices."""
        return self.size <= self.count * self.index_bits


def num_bytes(layout: Layout) -> int:
    """Length of a message: ``ceil((k bits + scales + positions) / 8)``, the formula of ``RoundInfo.uplink_bytes``."""
    layout = _checked(layout)
    listed = min(layout.size, layout.count * layout.index_bits)
    extra = {"all": 0, "listed": listed, "public": 0, "seed": 64}[layout.positions]
    scales = 32 * len(layout.sizes) if layout.bits < 32 else 0
    return -(-(layout.count * layout.bits + extra + scales) // 8)


def encode(
    layout: Layout, values: np.ndarray, scales: np.ndarray | None = None, sent: np.ndarray | None = None, seed: int = 0
) -> bytes:
    """Writes one upload.

    Args:
      layout: how.
      values: [n] float32, zero where nothing is sent; quantised values are multiples of their leaf's scale.
      scales: [leaves] float32, the step (``quantise``) or the mean magnitude (``sign_quantise``) of each leaf.
      sent: [n] bool with k True, needed where positions are public or come from a seed.
      seed: below 2^64.

    Returns:
      ``num_bytes(layout)`` bytes.

    Raises:
      FljaxError: more than k values are not zero, or some are that are not sent; scales or sent are missing.
    """
    layout, values = _checked(layout), np.asarray(values, np.float32)
    order = _order(layout, values, sent)
    parts = []
    if layout.bits < 32:
        parts.append(_bits(_scales(layout, scales).view(np.uint32), 32))
    if layout.positions == "seed":
        parts.append(_bits(np.array([seed >> 32, seed & 0xFFFFFFFF]), 32))
    elif layout.positions == "listed" and layout.bitmap:
        parts.append(np.isin(np.arange(layout.size), order).astype(np.uint8))
    elif layout.positions == "listed":
        parts.append(_bits(order, layout.index_bits))
    parts.append(_bits(_codes(layout, values, scales)[order], layout.bits))
    return np.packbits(np.concatenate(parts)).tobytes()


def decode(layout: Layout, message: bytes, sent: np.ndarray | None = None) -> np.ndarray:
    """Reads one upload: the [n] float32 values that were written, bit by bit.

    Args:
      layout, sent: as for ``encode``.
      message: ``num_bytes(layout)`` bytes.

    Raises:
      FljaxError: another length; sent is missing.
    """
    layout = _checked(layout)
    if len(message) != num_bytes(layout):
        raise FljaxError(f"Expected a message of {num_bytes(layout)} bytes, found {len(message)}. Check the layout.")
    stream = np.unpackbits(np.frombuffer(message, np.uint8))
    scales = None
    if layout.bits < 32:
        scales, stream = _take(stream, len(layout.sizes), 32)
        scales = scales.astype(np.uint32).view(np.float32)
    if layout.positions == "listed":
        if layout.bitmap:
            order, stream = np.flatnonzero(stream[: layout.size]), stream[layout.size :]
        else:
            order, stream = _take(stream, layout.count, layout.index_bits)
    else:
        order = _known(layout, sent)
        stream = stream[64:] if layout.positions == "seed" else stream
    codes, _ = _take(stream, layout.count, layout.bits)
    values = np.zeros(layout.size, np.float32)
    values[order] = _values(layout, codes[: len(order)], order, scales)
    return values


def _checked(layout: Layout) -> Layout:
    """The layout, in which nothing is said about positions where all values are sent."""
    one_of(POSITIONS, positions=layout.positions)
    in_range(0, layout.size, count=layout.count)
    if layout.bits != 32:
        in_range(1, 16, bits=layout.bits)
    if layout.positions == "all" and layout.count != layout.size:
        raise FljaxError(f"Expected count={layout.count} to be all {layout.size} values. Name the positions.")
    return layout._replace(positions="all") if layout.count == layout.size else layout


def _known(layout: Layout, sent: np.ndarray | None) -> np.ndarray:
    """Positions that both sides know."""
    if layout.positions == "all":
        return np.arange(layout.size)
    if sent is None or int(np.sum(sent)) != layout.count:
        raise FljaxError(f"Expected sent to name the {layout.count} positions: the message does not hold them.")
    return np.flatnonzero(sent)


def _order(layout: Layout, values: np.ndarray, sent: np.ndarray | None) -> np.ndarray:
    """The k positions to write; where fewer values are not zero, the first is repeated, which changes nothing."""
    nonzero = np.flatnonzero(values)
    if layout.positions != "listed":
        order = _known(layout, sent)
        if not np.isin(nonzero, order).all():
            raise FljaxError("Expected values to be zero wherever nothing is sent. Check sent.")
        return order
    if len(nonzero) > layout.count:
        raise FljaxError(f"Expected at most count={layout.count} values, found {len(nonzero)}. Raise count.")
    filling = np.resize(nonzero[:1] if len(nonzero) else [0], layout.count - len(nonzero))
    return np.concatenate([nonzero, filling]).astype(np.int64)


def _scales(layout: Layout, scales: np.ndarray | None) -> np.ndarray:
    if scales is None or len(scales) != len(layout.sizes):
        raise FljaxError(f"Expected {len(layout.sizes)} scales for quantised values, one for each leaf.")
    return np.asarray(scales, np.float32)


def _codes(layout: Layout, values: np.ndarray, scales: np.ndarray | None) -> np.ndarray:
    """Values -> unsigned integers: the bits of a float32, level + s, or 1 for minus."""
    if layout.bits == 32:
        return values.view(np.uint32)
    if layout.bits == 1:
        return (values < 0).astype(np.uint32)
    step = np.repeat(_scales(layout, scales), layout.sizes)
    levels = np.rint(np.divide(values, step, out=np.zeros_like(values), where=step > 0)).astype(np.int64)
    return levels + 2 ** (layout.bits - 1) - 1


def _values(layout: Layout, codes: np.ndarray, order: np.ndarray, scales: np.ndarray | None) -> np.ndarray:
    """The inverse of ``_codes`` at the positions in ``order``."""
    if layout.bits == 32:
        return codes.astype(np.uint32).view(np.float32)
    step = np.repeat(_scales(layout, scales), layout.sizes)[order]
    if layout.bits == 1:
        return np.where(codes == 1, -step, step)
    return (codes - (2 ** (layout.bits - 1) - 1)).astype(np.float32) * step


def _bits(numbers: np.ndarray, width: int) -> np.ndarray:
    """Unsigned integers [m] -> their bits [m * width], highest first."""
    shifts = np.arange(width - 1, -1, -1, dtype=np.uint64)
    return ((np.asarray(numbers, np.uint64)[:, None] >> shifts) & np.uint64(1)).astype(np.uint8).ravel()


def _take(stream: np.ndarray, count: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(count integers of width bits from the front of the bits, the rest)."""
    front = stream[: count * width].reshape(count, width).astype(np.int64)
    weights = np.int64(1) << np.arange(width - 1, -1, -1, dtype=np.int64)
    return np.sum(front * weights, axis=1), stream[count * width :]
