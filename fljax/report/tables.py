"""Tables of a results folder: mean, standard deviation and confidence interval over the seeds of each cell."""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fljax.core import check
from fljax.core.check import FljaxError
from fljax.report import text
from fljax.sweep.store import Results

if TYPE_CHECKING:
    from rich.console import Console

# Two-sided 95 % quantiles of Student's t for 1 to 30 degrees of freedom.
_T95 = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
    *(2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423),
)


@dataclass(frozen=True, eq=False)
class Table:
    """One metric by cell. Rows are the values of one axis, columns the combinations of the others.

    Attributes:
      metric: a column of trials.
      row_axis: the axis of the rows; None for a single row.
      column_axes: the axes of the columns.
      row_values: the values of the row axis, rising.
      column_values: the combinations of the column axes that were run.
      mean, std, count: over the trials of a cell that have a finite value, [rows, columns]; std has n - 1 below the
        line and is NaN for one trial; mean is NaN for none.
      missing: trials of a cell without a finite value.
      refused: cells with a trial whose ε was refused.
    """

    metric: str
    row_axis: str | None
    column_axes: tuple[str, ...]
    row_values: tuple[Any, ...]
    column_values: tuple[tuple, ...]
    mean: np.ndarray
    std: np.ndarray
    count: np.ndarray
    missing: np.ndarray
    refused: np.ndarray

    @property
    def half_width(self) -> np.ndarray:
        """Half the width of the 95 % confidence interval of the mean (Student's t); NaN for fewer than two trials."""
        return np.vectorize(half_width, otypes=[float])(self.std, self.count)

    @property
    def row_name(self) -> str:
        """The label of the row axis; ε is called a target where one was refused."""
        name = text.axis_label(self.row_axis) if self.row_axis else ""
        return f"target {name}" if self.row_axis == text.EPSILON and self.refused.any() else name

    @property
    def row_labels(self) -> list[str]:
        """The text of each row's value; empty for the only row of a table without a row axis."""
        return [text.value_label(self.row_axis, v) if self.row_axis else "" for v in self.row_values]

    @property
    def headers(self) -> list[tuple[str, list[tuple[str, int]]]]:
        """One line of headers per column axis: its label, and each value with the number of columns it spans."""
        lines = []
        for depth, axis in enumerate(self.column_axes):
            # A value spans columns only as long as the values above it stay the same.
            runs = [(key, len(list(run))) for key, run in itertools.groupby(v[: depth + 1] for v in self.column_values)]
            spans = [(text.value_label(axis, key[-1]), width) for key, width in runs]
            lines.append((text.axis_label(axis), spans))
        return lines

    @property
    def best(self) -> list[int | None]:
        """The column of the best mean of each row; None for a row without a value or with nothing to compare."""
        sign = 1 if text.higher_is_better(self.metric) else -1
        scores = [np.where(np.isfinite(row), sign * row, -np.inf) for row in self.mean]
        return [int(s.argmax()) if len(s) > 1 and np.isfinite(s.max()) else None for s in scores]

    @property
    def notes(self) -> list[str]:
        """What a reader must know: number of seeds, missing values, refused privacy."""
        low, high = int((self.count + self.missing).min()), int((self.count + self.missing).max())
        seeds = f"{low}" if low == high else f"{low} to {high}"
        lines = [f"Mean ± standard deviation over {seeds} {'seed' if seeds == '1' else 'seeds'}."]
        if high == 1:
            lines = ["One seed: no standard deviation."]
        if self.missing.any():
            lines.append(f"{int(self.missing.sum())} trials without a finite value are left out of the means.")
        if self.refused.any():
            lines.append("† No ε is claimed for this cell: its privacy statement says why.")
        return lines

    def text(self, row: int, column: int) -> str:
        """The text of a cell: mean ± std, with a dagger where its ε was refused; empty for a cell that was not run."""
        if self.count[row, column] + self.missing[row, column] == 0:
            return ""
        body = text.mean_std_text(self.metric, self.mean[row, column], self.std[row, column])
        return body + (" †" if self.refused[row, column] else "")

    @property
    def texts(self) -> list[list[str]]:
        """The texts of all cells by row."""
        return [[self.text(r, k) for k in range(len(self.column_values))] for r in range(len(self.row_values))]

    def records(self) -> list[dict[str, Any]]:
        """One dictionary per cell that was run: axis values, metric, n, missing, mean, std, ci95, epsilon_refused."""
        records = []
        widths = self.half_width
        for (r, row), (k, column) in itertools.product(enumerate(self.row_values), enumerate(self.column_values)):
            if self.count[r, k] + self.missing[r, k]:
                cell = ({self.row_axis: row} if self.row_axis else {}) | dict(
                    zip(self.column_axes, column, strict=True)
                )
                numbers = {"n": int(self.count[r, k]), "missing": int(self.missing[r, k])}
                numbers |= {"mean": float(self.mean[r, k]), "std": float(self.std[r, k]), "ci95": float(widths[r, k])}
                records.append(cell | {"metric": self.metric} | numbers | {"epsilon_refused": bool(self.refused[r, k])})
        return records

    def to_csv(self) -> str:
        """The records as CSV with a header line; missing numbers are empty, ε = inf is ``inf``."""
        return records_csv(self.records())

    def to_latex(self) -> str:
        """The table for a paper (package booktabs), the best mean of each row in bold."""
        lines = [r"\begin{tabular}{l" + "r" * len(self.column_values) + "}", r"\toprule"]
        for label, spans in self.headers or [("", [(text.metric_label(self.metric), 1)])]:
            cells = [rf"\multicolumn{{{width}}}{{c}}{{{latex(value)}}}" for value, width in spans]
            lines.append(" & ".join([latex(label), *cells]) + r" \\")
        lines.append(r"\midrule")
        for label, best, texts in zip(self.row_labels, self.best, self.texts, strict=True):
            cells = [latex(body) for body in texts]
            if best is not None:
                cells[best] = rf"\textbf{{{cells[best]}}}"
            name = f"{self.row_name} = {label}" if self.row_axis else ""
            lines.append(" & ".join([latex(name), *cells]) + r" \\")
        notes = latex(f"{text.metric_label(self.metric)}. {' '.join(self.notes)}")
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", f"% {notes}"]) + "\n"


def records_csv(records: Sequence[Mapping[str, Any]]) -> str:
    """Dictionaries of the same keys as CSV with a header line; missing numbers are empty, inf is ``inf``."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(records[0])
    for record in records:
        values = [None if isinstance(v, float) and math.isnan(v) else v for v in record.values()]
        writer.writerow([f"{v:.10g}" if isinstance(v, float) else v for v in values])
    return buffer.getvalue()


def half_width(std: float, count: int) -> float:
    """Half the width of the 95 % interval t * std / sqrt(n); NaN for fewer than two values."""
    if count < 2:
        return math.nan
    nu = count - 1
    if nu <= len(_T95):
        quantile = _T95[nu - 1]
    else:  # Cornish-Fisher expansion around the normal quantile, exact to 1e-4 from here on
        z = 1.959964
        quantile = z + (z**3 + z) / (4 * nu) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * nu**2)
    return quantile * std / math.sqrt(count)


def summarise(
    results: Results,
    metric: str = "test_accuracy",
    rows: str | None = text.EPSILON,
    columns: Sequence[str] | None = None,
    where: Mapping[str, Any] | None = None,
) -> Table:
    """Mean, standard deviation and number over the seeds of each cell.

    Args:
      results: of a sweep or of a run (one cell).
      metric: a column of trials.
      rows: the axis of the rows. Where ε was not swept, the default falls back to the first axis.
      columns: the axes of the columns, outermost first; None for all the others.
      where: axis values that select a part of the trials, such as ``{"dropout.source": "fisher"}``.
    Returns:
      The table. Its cells hold trials that differ in nothing but the seed.

    Raises:
      FljaxError: for an unknown name, or where trials of one cell would differ in an axis that is neither in rows nor
        in columns nor fixed by where: their spread would not be one over seeds.
    """
    where = dict(where or {})
    if rows == text.EPSILON and rows not in results.axes:
        rows = next((axis for axis in results.axes if axis not in where and axis not in (columns or ())), None)
    if columns is None:
        columns = [axis for axis in results.axes if axis != rows and axis not in where]
    by = [*([rows] if rows else []), *columns]
    _check_names(results, metric, [*by, *where])
    groups = {key: _select(results, index, where) for key, index in results.groups(by).items()}
    groups = {key: index for key, index in groups.items() if len(index)}
    if not groups:
        raise FljaxError(f"Expected where={where!r} to leave some trials, it leaves none.")
    for axis in set(results.axes) - set(by) - set(where):
        if len(results.groups([axis])) > 1:
            raise FljaxError(f"Expected columns={list(columns)!r} to hold the axis {axis!r} too, or where to fix it.")
    return _table(results, metric, rows, tuple(columns), groups)


def _check_names(results: Results, metric: str, axes: Sequence[str]) -> None:
    numbers = [name for name, values in results.trials.items() if values.dtype.kind in "iuf"]
    check.one_of(numbers, metric=metric)
    for axis in axes:
        check.one_of(results.trials, axis=axis)


def _select(results: Results, index: np.ndarray, where: Mapping[str, Any]) -> np.ndarray:
    for axis, value in where.items():
        column = results.trials[axis][index]
        index = index[np.isnan(column) if value is None else column == value]
    return index


def _table(results: Results, metric: str, rows: str | None, columns: tuple[str, ...], groups: Mapping) -> Table:
    keys = list(groups)
    row_values = list(dict.fromkeys(key[0] for key in keys)) if rows else [None]
    first = {key[1:] if rows else key: i for i, key in reversed(list(enumerate(keys)))}
    order = results.groups(columns)  # rising over the columns alone, whatever the rows they occur in
    column_values = [values for values in order if values in first]
    shape = (len(row_values), len(column_values))
    mean, std = np.full(shape, np.nan), np.full(shape, np.nan)
    count, missing, refused = np.zeros(shape, int), np.zeros(shape, int), np.zeros(shape, bool)
    declined = refused_trials(results)
    for key, index in groups.items():
        cell = (row_values.index(key[0]) if rows else 0, column_values.index(key[1:] if rows else key))
        values = results.trials[metric][index].astype(np.float64)
        finite = values[np.isfinite(values)]
        count[cell], missing[cell] = len(finite), len(values) - len(finite)
        mean[cell] = finite.mean() if len(finite) else np.nan
        std[cell] = finite.std(ddof=1) if len(finite) > 1 else np.nan
        refused[cell] = declined[index].any()
    return Table(metric, rows, columns, tuple(row_values), tuple(column_values), mean, std, count, missing, refused)


def refused_trials(results: Results) -> np.ndarray:
    """[R] bool: trials that were to be private and carry no valid ε."""
    trials = results.trials
    if "epsilon" not in trials or "privacy_status" not in trials:
        return np.zeros(len(trials["trial"]), bool)
    status = trials["privacy_status"]
    claimed = (status == text.CLAIM) & np.isfinite(trials["epsilon"])
    return ~claimed & ~np.isin(status, text.NO_CLAIM_NEEDED)


def main_metric(results: Results) -> str:
    """The metric that a report leads with: the test accuracy where there is one, else the first metric."""
    if not results.metrics:
        raise FljaxError(f"Expected trials of {str(results.folder)!r} to have a metric, found none.")
    return "test_accuracy" if "test_accuracy" in results.metrics else results.metrics[0]


def run_summary(results: Results) -> list[tuple[str, str]]:
    """The one trial of a run as pairs of label and text: metrics, privacy, rounds."""
    trials = results.trials
    pairs = [(text.metric_label(m), text.metric_text(m, float(trials[m][0]))) for m in results.metrics]
    for statement in results.privacy[:1]:
        pairs.append(("ε", text.epsilon_text(statement)))
        if text.has_epsilon(statement):
            pairs.append(("δ", text.small_text(statement.get("delta"))))
    if len(results.curves["round"]):
        pairs.append(("rounds", str(results.curves["round"].max())))
    return pairs


def print_table(table: Table, console: Console | None = None) -> None:
    """Prints a table to the terminal, the best mean of each row in bold; a cell that is there per line if too wide."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = console or Console()
    title, notes = Text(text.metric_label(table.metric)), Text(" ".join(table.notes))
    grid = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title=title, caption=notes)
    names = [text.axis_label(axis) for axis in table.column_axes]
    heads = [
        [text.value_label(axis, value) for axis, value in zip(table.column_axes, values, strict=True)]
        for values in table.column_values
    ]
    room = console.width - 14
    wide = room >= sum(2 + max(6, *map(len, head)) if head else 16 for head in heads)
    if wide:  # the names of the column axes stand above that of the rows, each in the line of its values
        grid.add_column(Text("\n".join([*names, table.row_name])), justify="right", no_wrap=True)
        for head in heads:
            grid.add_column(Text("\n".join([*head, ""])), justify="right", no_wrap=True)
    else:
        for name in [table.row_name, *names, "mean ± std"]:
            grid.add_column(Text(name), justify="right")
    split = wide and room < sum(2 + max(map(len, column)) for column in zip(*table.texts, strict=True))
    for label, best, bodies in zip(table.row_labels, table.best, table.texts, strict=True):
        bodies = [body.replace(" ±", "\n±") if split else body for body in bodies]
        cells = [Text(body, style="bold" if k == best else "") for k, body in enumerate(bodies)]
        filled = [(head, cell) for head, cell in zip(heads, cells, strict=True) if cell.plain]
        for row in [cells] if wide else [[*map(Text, head), cell] for head, cell in filled]:
            grid.add_row(Text(label), *row)
    console.print(grid)


def print_summary(results: Results, console: Console | None = None) -> None:
    """Prints what matters of a results folder: the summary of a run, or the main table of a sweep."""
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = console or Console()
    console.print(Text(str(results.manifest.get("title") or results.name), style="bold"))
    if len(results.trials["trial"]) > 1:
        print_table(summarise(results, main_metric(results)), console)
        return
    grid = RichTable.grid(padding=(0, 2))
    for label, value in run_summary(results):
        grid.add_row(Text(label), Text(value))
    console.print(grid)


def latex(value: str) -> str:
    """Text for LaTeX: special characters escaped, signs as mathematics."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {c: "\\" + c for c in "&%$#_{}"}
    special |= {"±": r"$\pm$", "ε": r"$\varepsilon$", "δ": r"$\delta$", "†": r"$\dagger$", "—": "--", "∞": r"$\infty$"}
    return "".join(special.get(c, c) for c in value)
