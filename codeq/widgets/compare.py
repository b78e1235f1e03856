"""`RunComparer`: two runs, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import ipywidgets  # type: ignore[import-untyped]
import pandas as pd

from codeq.runs import Run
from codeq.widgets import figures
from codeq.widgets.panel import DESCRIPTION, Panel, drawn, paragraphs

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def layer_differences(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Put the layers of two runs side by side; only layers of the same name and size are compared.

    Parameters
    ----------
    first, second : DataFrame
        As `Run.last_layers`: a row a layer.

    Returns
    -------
    DataFrame
        `layer`; then for A and for B the ``bits``, the ``density`` and the ``dead`` filters (fractions) and the
        structured ``BOPs`` of one input, as ``bits A``, ``bits B``, ….

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
    """Two lists to pick runs from, and what differs between their last epochs.

    Parameters
    ----------
    runs : sequence of Run
        At least two of them with a recorded epoch; the last two are picked first.

    Attributes
    ----------
    first, second : Dropdown
        Run A and run B.

    Examples
    --------
    >>> RunComparer([]).text.value
    '<div ...><b>Two runs with a recorded epoch are needed to compare; there is none.</b></div>'
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = [run for run in runs if len(run.layers)]
        names = [run.folder.name for run in self.runs]
        # Folders of the same name in different places are told apart by the place.
        labels = [
            str(run.folder) if names.count(name) > 1 else name for run, name in zip(self.runs, names, strict=True)
        ]
        options = [(label, place) for place, label in enumerate(labels)]
        layout = ipywidgets.Layout(width="560px", max_width="100%")
        style: dict[str, Any] = {"options": options, "style": DESCRIPTION, "layout": layout}
        count = len(options)
        self.first = ipywidgets.Dropdown(description="run A", value=max(count - 2, 0) if count else None, **style)
        self.second = ipywidgets.Dropdown(description="run B", value=count - 1 if count else None, **style)
        super().__init__([self.first, self.second])
        self._picture = lru_cache(maxsize=64)(lambda *pair: drawn(self._draw, *pair))
        self._layers = lru_cache(maxsize=64)(lambda place: self.runs[place].last_layers())
        self._differences = lru_cache(maxsize=64)(lambda *pair: layer_differences(*map(self._layers, pair)))
        if count > 1:
            for control in (self.first, self.second):
                control.observe(self._redraw, "value")
        self._redraw()

    def figure(self) -> Figure:
        """Return the picture that is shown, as a matplotlib `Figure`."""
        table = self.table()
        return self._draw(self.first.value, self.second.value) if len(table) else figures.message(self.summary()[0])

    def table(self) -> pd.DataFrame:
        """Return the differences that are shown, see `layer_differences`."""
        if len(self.runs) < 2:
            return pd.DataFrame()
        return self._differences(self.first.value, self.second.value)

    def _draw(self, first: int, second: int) -> Figure:
        return figures.comparison(
            self._differences(first, second), self.runs[first].folder.name, self.runs[second].folder.name
        )

    def _redraw(self, _: Any = None) -> None:
        table = self.table()
        picture = self._picture(self.first.value, self.second.value) if len(table) else b""
        self.show(picture, paragraphs(self.summary(), _as_html(table) if len(table) else ""))

    def summary(self) -> list[str]:
        """Return in words what differs."""
        if len(self.runs) < 2:
            found = f"there is only {self.runs[0].folder.name}" if self.runs else "there is none"
            return [f"Two runs with a recorded epoch are needed to compare; {found}."]
        picked = self.runs[self.first.value], self.runs[self.second.value]
        table, (a, b) = self.table(), picked
        sides = [self._layers(self.first.value), self._layers(self.second.value)]
        left_out = sum(len(side) for side in sides) - 2 * len(table)
        missing = f"{left_out} layers have no counterpart of the same name and size." if left_out else ""
        if not len(table):
            return [f"{a.folder.name} and {b.folder.name} have no layer in common.", missing]
        return [
            f"A: {a.folder.name}, B: {b.folder.name}",
            *(_one(name, run) for name, run in zip("AB", picked, strict=True)),
            f"From A to B: mean bits {_change(table, 'bits'):+.2f} a layer, density "
            f"{100 * _change(table, 'density'):+.1f} and dead filters {100 * _change(table, 'dead'):+.1f} percentage "
            "points, each the mean over layers.",
            _largest(table),
            *([missing] if missing else []),
        ]


def _one(name: str, run: Run) -> str:
    last = run.history.iloc[-1]
    return (
        f"{name}: {run.status}, epoch {int(last['epoch']) + 1} of {run.config.epochs}, accuracy "
        f"{last['eval/accuracy']:.2%} after the last one; BOPs "
        f"÷ {last['compression/unstructured_bops_ratio']:.1f} unstructured, "
        f"÷ {last['compression/structured_bops_ratio']:.1f} structured."
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
    return f"<details><summary>every layer in numbers</summary><div style='overflow-x:auto'>{html}</div></details>"
