"""Live progress in a notebook: one display that is updated between compiled calls, without widgets."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

import numpy as np

from fljax.core import html

PANELS = (("test_accuracy", "client_accuracy_mean", "unseen_accuracy"), ("loss", "test_loss"))
"""Metrics that are watched, a panel for each group; those that a run does not have are left out."""


def in_notebook() -> bool:
    """Whether a Jupyter kernel runs this; a plain IPython terminal does not count."""
    module = sys.modules.get("IPython")
    shell = None if module is None else module.get_ipython()
    return shell is not None and hasattr(shell, "kernel")


def open_display() -> Callable[[str], None]:
    """A new display of the notebook's current cell: the function that replaces what it shows by some markup."""
    from IPython.display import display

    handle = display(html.Html(""), display_id=True)
    assert handle is not None, "display_id asks for a handle"
    return lambda markup: handle.update(html.Html(markup))


def live_view(done: int, total: int, text: str, history: Mapping[str, np.ndarray] | None = None) -> str:
    """A bar with its text, and below it the metrics so far as curves over rounds.

    Args:
      done, total: units of work. text: what is known by now.
      history: metrics by name, [rounds done], NaN in rounds without an evaluation; None for a bar alone.
    """
    return html.progress_bar(done, total, text) + (history_view(history) if history else "")


def history_view(history: Mapping[str, np.ndarray]) -> str:
    """The watched metrics as curves over rounds; a metric without a finite value is left out."""
    plots = []
    for names in PANELS:
        seen = {n.replace("_", " "): (np.arange(1, len(history[n]) + 1), history[n]) for n in names if n in history}
        plots.append(html.curves(seen, "over rounds"))
    return "".join(plots)
