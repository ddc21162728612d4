"""What a partition looks like: sizes and labels of the clients, as numbers, as a table and as a figure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fljax.core import html

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class PartitionSummary:
    """Sizes and labels of the clients of a partition.

    Attributes:
      sizes: [N] examples of each client.
      histogram: [N, K] how often each client holds each label; None for regression.
      effective_labels: [N] effective number of labels of each client, ``exp(H)`` of the entropy H of its own label
        frequencies: 1 = one label only, K = all equally often, 0 = an empty client. None for regression.
    """

    sizes: np.ndarray
    histogram: np.ndarray | None
    effective_labels: np.ndarray | None

    @staticmethod
    def of(
        sizes: np.ndarray, labels: np.ndarray | None, num_classes: int, ignore: int | None = None
    ) -> PartitionSummary:
        """Counts.

        Args:
          sizes: [N] examples of each client.
          labels: [n, ...] int labels of the packed examples, client after client (rows beyond the sum of the sizes are
            left out); None for regression.
          num_classes: K.
          ignore: a label that does not count (padding).
        """
        sizes = np.asarray(sizes, np.int64)
        if labels is None:
            return PartitionSummary(sizes, None, None)
        labels = np.asarray(labels)[: sizes.sum()]
        owner = np.repeat(np.arange(len(sizes)), sizes)
        owner = np.broadcast_to(owner.reshape(-1, *[1] * (labels.ndim - 1)), labels.shape).reshape(-1)
        labels = labels.reshape(-1).astype(np.int64)
        if ignore is not None:
            owner, labels = owner[labels != ignore], labels[labels != ignore]
        cells = len(sizes) * num_classes
        histogram = np.bincount(owner * num_classes + labels, minlength=cells).reshape(len(sizes), num_classes)
        return PartitionSummary(sizes, histogram, _effective(histogram))

    def rows(self) -> list[tuple[str, str]]:
        """The table as (name, value) pairs."""
        rows = [
            ("clients", str(len(self.sizes))),
            ("examples", str(int(self.sizes.sum()))),
            ("empty clients", str(int((self.sizes == 0).sum()))),
            ("examples of a client", _quartiles(self.sizes)),
        ]
        if self.effective_labels is not None:
            filled = self.effective_labels[self.sizes > 0]
            rows.append(("effective labels of a client", _quartiles(filled) if len(filled) else "none"))
        return rows

    def __str__(self) -> str:
        rows = self.rows()
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)

    def _repr_html_(self) -> str:
        """For notebooks: the table, and the sizes of the clients as bars."""
        plots = html.bars(np.sort(self.sizes)[::-1], f"examples of each of {len(self.sizes)} clients")
        return html.card("Partition", html.pairs(self.rows()), plots)


def _effective(histogram: np.ndarray) -> np.ndarray:
    """[N, K] counts -> [N] exp(entropy), 0 for an empty client."""
    total = histogram.sum(axis=1, keepdims=True)
    share = histogram / np.maximum(total, 1)
    entropy = -(share * np.log(np.where(share > 0, share, 1.0))).sum(axis=1)
    return np.where(total[:, 0] > 0, np.exp(entropy), 0.0)


def _quartiles(values: np.ndarray) -> str:
    low, first, middle, third, high = np.round(np.quantile(values, [0, 0.25, 0.5, 0.75, 1]), 2)
    return f"min {low:.6g}, quartiles {first:.6g} / {middle:.6g} / {third:.6g}, max {high:.6g}"


def plot_partition(summary: PartitionSummary, most: int = 200) -> Figure:
    """Sizes of the clients and, for labels, a heat map of each client's label frequencies.

    Args:
      summary: of a partition.
      most: draw at most so many clients, evenly spaced in the order of their sizes.

    Returns:
      A matplotlib Figure that no global state refers to: nothing has to be closed.
    """
    from matplotlib.figure import Figure

    by_size = np.argsort(summary.sizes, kind="stable")
    shown = by_size[np.unique(np.linspace(0, len(by_size) - 1, min(most, len(by_size))).astype(int))]
    panels = 1 if summary.histogram is None else 2
    figure = Figure(figsize=(5.0 * panels, 3.2), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, panels))
    axes[0].bar(np.arange(len(shown)), summary.sizes[shown], width=1.0)
    axes[0].set(xlabel="clients, by size", ylabel="examples", title=f"{len(summary.sizes)} clients")
    if summary.histogram is not None:
        counts = summary.histogram[shown]
        share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        image = axes[1].imshow(share.T, aspect="auto", interpolation="nearest", origin="lower", vmin=0, vmax=1)
        axes[1].set(xlabel="clients, by size", ylabel="label", title="label frequencies")
        figure.colorbar(image, ax=axes[1])
    return figure
