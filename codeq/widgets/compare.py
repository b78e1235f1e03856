"""`RunComparer`: settings, learning curves and layers of any number of runs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from html import escape
from math import nan
from typing import TYPE_CHECKING, Any

import ipywidgets  # type: ignore[import-untyped]
import pandas as pd

from codeq import plots
from codeq.analysis.comparison import differing_settings, distinct_names, join_layers
from codeq.analysis.network import run_notes
from codeq.analysis.recorded import recorded_history, recorded_layers, unreadable
from codeq.analysis.selection import run_labels
from codeq.common.console import compression
from codeq.common.errors import CodeqError
from codeq.plots.comparison import MAX_RUNS
from codeq.runs import Run
from codeq.runs.references import find_runs, require_runs
from codeq.runs.tables import complete_lines
from codeq.widgets import figures
from codeq.widgets.panel import DESCRIPTION, Panel, PictureCache, render

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VIEWS = ("learning curves", "layers")
ROWS = 6  # of the list that are visible without scrolling
# Title, factor and digits of the columns of layers in numbers.
QUANTITIES = {
    "bits": ("bits", 1, 0),
    "zero_weights": ("zero weights (%)", 100, 1),
    "dead_filters": ("dead filters (%)", 100, 1),
    "structured_bops": ("structured BOPs (10⁶)", 1e-6, 1),
}


class RunComparer(Panel):
    """List of runs, and what differs between the selected ones: settings, learning curves, and layers.

    The runs are named by the settings in which they differ. Status, curves and layers of a run that is still training
    are those of one moment, when it was first compared since the last *Refresh*.

    Parameters
    ----------
    runs : sequence of Run
        Runs of the list, in any state; those without a recorded epoch are left out, and one that is given several
        times, perhaps through a symbolic link, is listed at its last place. The last two are selected initially.

    Attributes
    ----------
    reference : Text
        Folder, study, glob or parts of names, see `codeq.analysis.find_runs`: the list shows the runs that it names,
        all selected. Empty: the list shows the runs given at the start.
    selected : SelectMultiple
        The compared runs.
    view : ToggleButtons
        Picture that is shown: ``learning curves`` or ``layers``.
    refresh : Button
        Read all runs again, which may still be training, and list new ones of `reference`.

    Examples
    --------
    >>> RunComparer([]).text.value
    '<div ...><b>No run with a recorded epoch is listed: a comparison needs two.</b></div>'
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        given = require_runs(runs)
        self._given = list({run.folder.resolve(): run for run in reversed(given)}.values())[::-1]
        self.runs: list[Run] = []
        self._problem = ""
        self._updating = False
        style: dict[str, Any] = {"style": DESCRIPTION, "layout": ipywidgets.Layout(width="640px", max_width="100%")}
        hint = "folder, study, glob or parts of names; empty: the runs given at the start"
        self.reference = ipywidgets.Text(description="list runs of", placeholder=hint, continuous_update=False, **style)
        self.selected = ipywidgets.SelectMultiple(description="compare", rows=ROWS, **style)
        self.view = ipywidgets.ToggleButtons(description="picture", options=VIEWS, style=DESCRIPTION)
        self.refresh = ipywidgets.Button(description="Refresh", tooltip="read the runs again")
        super().__init__([self.reference, self.selected, self.view, self.refresh])
        self._image = PictureCache(64, lambda *state: render(self._draw, *state))
        self._settings = lru_cache(maxsize=64)(lambda chosen: differing_settings(self._runs(chosen)))
        self._names = lru_cache(maxsize=64)(lambda chosen: distinct_names(self._runs(chosen), self._settings(chosen)))
        self._layers = lru_cache(maxsize=64)(self._common_layers)
        # The status is read before the history: a run that is done has all of its epochs.
        self._recorded = lru_cache(maxsize=256)(lambda k: (self.runs[k].status, recorded_history(self.runs[k])))
        self._last_layers = lru_cache(maxsize=256)(self._read_layers)
        self._notes = lru_cache(maxsize=256)(lambda index: run_notes(self.runs[index]))
        self._damage = lru_cache(maxsize=256)(lambda index: unreadable(self._history, index))
        self._layer_damage = lru_cache(maxsize=256)(lambda index: unreadable(self._last_layers, index))
        self._list()
        self.reference.observe(self._list, "value")
        for control in (self.selected, self.view):
            control.observe(self._redraw, "value")
        self.refresh.on_click(self._list)

    def _list(self, change: Any = None) -> None:
        """List the runs that `reference` names and read them anew; runs that were selected before remain selected."""
        tables = (self._settings, self._names, self._layers, self._recorded, self._last_layers, self._notes)
        for cache in (self._image, *tables, self._damage, self._layer_damage):
            cache.cache_clear()
        before = {self.runs[index].folder for index in self.selected.value}
        self._problem = ""
        try:
            found = find_runs(self.reference.value) if self.reference.value.strip() else self._given
        except CodeqError as error:
            found, self._problem = [], str(error)
        self.runs = [run for run in found if _is_recorded(run)]
        everything = list(range(len(self.runs)))
        kept = [index for index in everything if self.runs[index].folder in before]
        named = isinstance(change, dict)  # the reference has changed
        self._updating = True  # not a selection by the user
        try:
            self.selected.index = ()  # the browser must not select, for a moment, what a shorter list does not have
            self.selected.options = list(zip(run_labels(self.runs), everything, strict=True))
            self.selected.value = everything if named and self.reference.value.strip() else kept or everything[-2:]
        finally:
            self._updating = False
        self._redraw()

    def _runs(self, chosen: Sequence[int]) -> list[Run]:
        return [self.runs[index] for index in chosen]

    def _history(self, index: int) -> pd.DataFrame:
        return self._recorded(index)[1]

    def _read_layers(self, index: int) -> pd.DataFrame:
        """Read the last layers of a run that are not later than its history."""
        layers = recorded_layers(self.runs[index])
        known = layers[layers["epoch"] <= self._history(index)["epoch"].iloc[-1]]
        return known[known["epoch"] == known["epoch"].max()]

    def settings(self) -> pd.DataFrame:
        """Return the settings in which the compared runs differ, see `codeq.analysis.differing_settings`."""
        return self._settings(self._readable())

    def layers(self) -> pd.DataFrame:
        """Return the layers that all compared runs have, see `codeq.analysis.common_layers`."""
        return self._layers(self._readable())[0]

    def _common_layers(self, chosen: tuple[int, ...]) -> tuple[pd.DataFrame, int]:
        names = dict(zip(chosen, self._names(chosen), strict=True))
        known = [index for index in chosen if not self._layer_damage(index)]
        return join_layers([self._last_layers(index) for index in known], [names[index] for index in known])

    def figure(self) -> Figure:
        """Return the displayed figure."""
        problem = self._no_picture()
        return figures.message(problem) if problem else self._draw(self._readable(), self.view.value)

    def _draw(self, chosen: tuple[int, ...], view: str) -> Figure:
        if view == "layers":
            return plots.compared_layers(self._layers(chosen)[0])
        return plots.compared_curves(dict(zip(self._names(chosen), map(self._history, chosen), strict=True)))

    def _redraw(self, _: Any = None) -> None:
        if self._updating:
            return
        image = b"" if self._no_picture() else self._image(self._readable(), self.view.value)
        self.show(image, self.summary(), "" if self._too_few_or_many() else self._tables())

    def _too_few_or_many(self) -> str:
        """Return why the selection is not compared; empty if it is."""
        count = len(self.selected.value)
        if self._problem:
            return self._problem
        if not self.runs:
            return "No run with a recorded epoch is listed: a comparison needs two."
        if len(self.runs) == 1:
            return f"Only {run_labels(self.runs)[0]} is listed: a comparison needs two runs with a recorded epoch."
        if count < 2:
            chosen = f"only {self.selected.label[0]} is selected" if count else "no run is selected"
            return f"A comparison needs two runs; {chosen}. Select several with the Ctrl or Shift key."
        if count > MAX_RUNS:
            return f"{count} runs are selected; one picture distinguishes at most {MAX_RUNS}."
        labels = run_labels(self.runs)
        gone = [labels[index] for index in self.selected.value if not _is_recorded(self.runs[index])]
        if gone:
            return f"Moved or removed since the list was made: {', '.join(gone)}. Refresh lists those that are there."
        if len(self._readable()) < 2:
            return f"Fewer than two of the selected runs can be read. {' '.join(self._left_out())}"
        return ""

    def _readable(self) -> tuple[int, ...]:
        """Return the selected runs that are compared: one that cannot be read costs itself alone."""
        return tuple(index for index in self.selected.value if not self._damage(index))

    def _left_out(self) -> list[str]:
        labels = run_labels(self.runs)
        found = {index: self._damage(index) for index in self.selected.value}
        if self.view.value == "layers":
            found = {index: why or self._layer_damage(index) for index, why in found.items()}
        return [f"{labels[index]} is left out: {why}." for index, why in found.items() if why]

    def _no_picture(self) -> str:
        """Return why there is no picture; empty if there is one."""
        problem = self._too_few_or_many()
        if problem or self.view.value != "layers":
            return problem
        if sum(not self._layer_damage(index) for index in self._readable()) < 2:
            return "Fewer than two of the selected runs have layers that can be read."
        return "" if len(self.layers()) else "The selected runs have no layer in common."

    def summary(self) -> list[str]:
        """Return the text summary of the comparison."""
        if problem := self._too_few_or_many():
            return [problem]
        chosen = self._readable()
        names, settings = self._names(chosen), self.settings()
        no_picture = self._no_picture()
        differing = f"Settings that differ: {', '.join(settings.index)}." if len(settings) else "No setting differs."
        drawn = [
            name
            for name, index in zip(names, chosen, strict=True)
            if self.view.value != "layers" or not self._layer_damage(index)
        ]
        return [
            f"{self.view.value.capitalize()} of {len(drawn)} runs: {'; '.join(drawn)}.",
            *self._left_out(),
            *([no_picture] if no_picture else self._of_layers() if self.view.value == "layers" else []),
            *(
                _results(name, self.runs[index], *self._recorded(index))
                for name, index in zip(names, chosen, strict=True)
            ),
            differing,
            *(
                f"Note on {name}: {note}"
                for name, index in zip(names, chosen, strict=True)
                for note in self._notes(index)
            ),
        ]

    def _of_layers(self) -> list[str]:
        table, others = self._layers(self._readable())
        costs = table.pivot(index="layer", columns="run", values="structured_bops")
        spread = (costs.max(axis=1) - costs.min(axis=1)) / 1e6
        lines = ["No layer's structured BOPs differ."]
        if spread.any():
            layer = str(spread.idxmax())
            of_layer = costs.T[layer]
            least, most = of_layer.idxmin(), of_layer.idxmax()
            lines = [
                f"The largest difference in structured BOPs is in {layer}: {spread.max():,.1f} million more in {most} "
                f"than in {least}."
            ]
        missing = f"{others} layers are not in all runs with the same number of filters, and are left out."
        return [*lines, *([missing] if others else [])]

    def _tables(self) -> str:
        names, settings = self._names(self._readable()), self.settings()
        parts = []
        if len(settings):
            parts.append(_as_html("settings that differ", settings.set_axis(names, axis="columns"), opened=True))
        if self.view.value == "layers" and not self._no_picture():
            parts.append(_as_html("all layers in numbers", _readable_layers(self.layers())))
        return "".join(parts)


def _is_recorded(run: Run) -> bool:
    """Return whether an epoch of the run was recorded, without parsing its table: there may be hundreds of runs."""
    try:
        return complete_lines(run.folder / "metrics.csv").count("\n") > 1
    except CodeqError:  # it is listed, and the reason is shown where it is selected
        return True


def _results(name: str, run: Run, status: str, history: pd.DataFrame) -> str:
    last = history.iloc[-1].to_dict()
    try:
        planned = str(run.config.epochs)
    except CodeqError:  # of another version of codeq, or damaged
        planned = "?"
    accuracy = last.get("test/accuracy", last.get("eval/accuracy", nan))  # of the same images in all runs
    ratios = [last.get(f"compression/{kind}_bops_ratio", nan) for kind in ("unstructured", "structured")]
    return (
        f"{name}: {status}, epoch {int(last['epoch']) + 1} of {planned}, test accuracy {accuracy:.2%}; BOPs "
        f"{compression(ratios[0])} unstructured, {compression(ratios[1])} structured."
    )


def _readable_layers(layers: pd.DataFrame) -> pd.DataFrame:
    """Return one row per layer, and for each quantity one column per run, as text."""
    parts, rows, columns = {}, layers["layer"].unique(), layers["run"].unique()
    for column, (title, scale, digits) in QUANTITIES.items():
        values = layers.pivot(index="layer", columns="run", values=column).loc[rows, columns]
        parts[title] = (scale * values).map(f"{{:,.{digits}f}}".format)
    return pd.concat(parts, axis="columns")


def _as_html(title: str, table: pd.DataFrame, opened: bool = False) -> str:
    html = table.to_html(border=0)  # escapes names of runs and layers
    state = " open" if opened else ""
    scrolling = f"<div style='overflow-x:auto' tabindex='0' aria-label='{escape(title)}'>{html}</div>"
    return f"<details{state}><summary>{escape(title)}</summary>{scrolling}</details>"
