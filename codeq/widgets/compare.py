"""`RunComparer`: layer-wise comparison of two runs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import nan
from typing import TYPE_CHECKING, Any

import ipywidgets  # type: ignore[import-untyped]
import pandas as pd

from codeq.analysis.network import run_notes
from codeq.analysis.recorded import last_layers, recorded_history
from codeq.analysis.selection import run_labels
from codeq.common.console import compression
from codeq.common.errors import CodeqError
from codeq.runs import Run
from codeq.widgets import figures
from codeq.widgets.panel import DESCRIPTION, Panel, paragraphs, render

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def layer_differences(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Join the layers of two runs that have the same name and number of filters.

    Parameters
    ----------
    first, second : DataFrame
        As `Run.last_layers`: one row per layer.

    Returns
    -------
    DataFrame
        `layer`; for A and B the ``bits``, ``density`` and ``dead`` filters (fractions) and structured ``BOPs`` of one
        input, as ``bits A``, ``bits B``, ….

    Examples
    --------
    >>> columns = {"layer": ["a"], "density": [0.5], "filters": [4], "dead_filters": [1], "structured_bops": [9]}
    >>> one, other = pd.DataFrame(columns | {"bits": [8]}), pd.DataFrame(columns | {"bits": [3]})
    >>> layer_differences(one, other)[["layer", "bits A", "bits B"]].to_dict("records")
    [{'layer': 'a', 'bits A': 8, 'bits B': 3}]
    """
    both = first.merge(second, on=["layer", "filters"], suffixes=(" A", " B"))
    table = pd.DataFrame({"layer": both["layer"]})
    for run in "AB":
        table[f"bits {run}"] = both[f"bits {run}"]
        table[f"density {run}"] = both[f"density {run}"]
        table[f"dead {run}"] = both[f"dead_filters {run}"] / both["filters"]
        table[f"BOPs {run}"] = both[f"structured_bops {run}"]
    return table


class RunComparer(Panel):
    """Two lists to choose runs from, and the differences between their last epochs.

    Parameters
    ----------
    runs : sequence of Run
        At least two with a recorded epoch; the last two are selected initially. Others are ignored.

    Attributes
    ----------
    first, second : Dropdown
        Run A and run B.

    Examples
    --------
    >>> RunComparer([]).text.value
    '<div ...><b>A comparison needs two runs with a recorded epoch; there is none.</b></div>'
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = [run for run in runs if _is_recorded(run)]
        self.labels = run_labels(self.runs)
        options = [(label, index) for index, label in enumerate(self.labels)]
        layout = ipywidgets.Layout(width="560px", max_width="100%")
        style: dict[str, Any] = {"options": options, "style": DESCRIPTION, "layout": layout}
        count = len(options)
        self.first = ipywidgets.Dropdown(description="run A", value=max(count - 2, 0) if count else None, **style)
        self.second = ipywidgets.Dropdown(description="run B", value=count - 1 if count else None, **style)
        super().__init__([self.first, self.second])
        self._image = lru_cache(maxsize=64)(lambda *pair: render(self._draw, *pair))
        self._layers = lru_cache(maxsize=64)(lambda index: last_layers(self.runs[index]))
        self._notes = lru_cache(maxsize=64)(lambda index: run_notes(self.runs[index]))
        self._differences = lru_cache(maxsize=64)(lambda *pair: layer_differences(*map(self._layers, pair)))
        if count > 1:
            for control in (self.first, self.second):
                control.observe(self._redraw, "value")
        self._redraw()

    def figure(self) -> Figure:
        """Return the displayed figure."""
        table = self.table()
        return self._draw(self.first.value, self.second.value) if len(table) else figures.message(self.summary()[0])

    def table(self) -> pd.DataFrame:
        """Return the displayed differences, see `layer_differences`."""
        if len(self.runs) < 2:
            return pd.DataFrame()
        return self._differences(self.first.value, self.second.value)

    def _draw(self, first: int, second: int) -> Figure:
        return figures.comparison(self._differences(first, second), self.labels[first], self.labels[second])

    def _redraw(self, _: Any = None) -> None:
        table = self.table()
        image = self._image(self.first.value, self.second.value) if len(table) else b""
        self.show(image, paragraphs(self.summary(), _as_html(table) if len(table) else ""))

    def summary(self) -> list[str]:
        """Return a text summary of the differences."""
        if len(self.runs) < 2:
            found = f"there is only {self.labels[0]}" if self.runs else "there is none"
            return [f"A comparison needs two runs with a recorded epoch; {found}."]
        table, (a, b) = self.table(), (self.labels[self.first.value], self.labels[self.second.value])
        pair = self.first.value, self.second.value
        sides = [self._layers(side) for side in pair]
        unmatched = sum(len(side) for side in sides) - 2 * len(table)
        missing = f"{unmatched} layers have no counterpart of the same name and size." if unmatched else ""
        if not len(table):
            return [f"{a} and {b} have no layer in common.", missing]
        return [
            f"A: {a}, B: {b}",
            _results("A", self.runs[self.first.value]),
            _results("B", self.runs[self.second.value]),
            f"From A to B: mean bits {_change(table, 'bits'):+.2f} a layer, density "
            f"{100 * _change(table, 'density'):+.1f} and dead filters {100 * _change(table, 'dead'):+.1f} percentage "
            "points, each the mean over layers.",
            _largest(table),
            *([missing] if missing else []),
            *(f"Note on {name}: {note}" for name, side in zip("AB", pair, strict=True) for note in self._notes(side)),
        ]


def _is_recorded(run: Run) -> bool:
    try:
        return bool(len(last_layers(run)) and len(recorded_history(run)))
    except CodeqError:
        return False


def _results(name: str, run: Run) -> str:
    last = run.history.iloc[-1].to_dict()
    try:
        planned = str(run.config.epochs)
    except CodeqError:  # of another version of codeq, or damaged
        planned = "?"
    ratios = [last.get(f"compression/{kind}_bops_ratio", nan) for kind in ("unstructured", "structured")]
    return (
        f"{name}: {run.status}, epoch {int(last['epoch']) + 1} of {planned}, accuracy "
        f"{last.get('eval/accuracy', nan):.2%}; BOPs "
        f"{compression(ratios[0])} unstructured, {compression(ratios[1])} structured."
    )


def _change(table: pd.DataFrame, column: str) -> float:
    return float((table[f"{column} B"] - table[f"{column} A"]).mean())


def _largest(table: pd.DataFrame) -> str:
    change = table["BOPs B"] - table["BOPs A"]
    if not change.any():
        return "No layer's structured BOPs differ."
    row = int(change.abs().argmax())
    most = change.iloc[row] / 1e6
    return f"The largest difference in structured BOPs is in {table['layer'].iloc[row]}: {most:+,.1f} million."


def _as_html(table: pd.DataFrame) -> str:
    shown = pd.DataFrame({"layer": table["layer"]})
    for column, scale, digits in (("bits", 1, 0), ("density", 100, 1), ("dead", 100, 1)):
        unit = " %" if scale == 100 else ""
        for run in "AB":
            shown[f"{column} {run}{unit}"] = (scale * table[f"{column} {run}"]).map(f"{{:.{digits}f}}".format)
    shown["10⁶ BOPs B - A"] = ((table["BOPs B"] - table["BOPs A"]) / 1e6).map("{:+,.1f}".format)
    html = shown.to_html(index=False, border=0)
    return f"<details><summary>all layers in numbers</summary><div style='overflow-x:auto'>{html}</div></details>"
