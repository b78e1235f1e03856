"""`StudyExplorer`: scatter plot of the runs of a study, from which a run is opened."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import ipywidgets  # type: ignore[import-untyped]
import numpy as np

from codeq.common.errors import CodeqError, quote
from codeq.runs import Run
from codeq.runs.settings import SEED
from codeq.runs.text_table import format_cell
from codeq.studies.groups import varied_keys
from codeq.studies.results import CHOSEN_BY, read_again
from codeq.widgets import figures
from codeq.widgets.clicks import nearest, places
from codeq.widgets.liveness import LivenessExplorer
from codeq.widgets.panel import DESCRIPTION, Panel, PictureCache, render_located, slider
from codeq.widgets.study_figure import scatter

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

RELATIVE = {f"relative BOPs, {kind}": f"compression/{kind}_bops_ratio" for kind in ("unstructured", "structured")}
NOTHING = "–"
# Values of a slider that has no run at its positions: one with a single position is an error in the browser.
PADDING: list[tuple[str, int]] = [(NOTHING, -1), (NOTHING + " ", -2)]
EVERYTHING = (-np.inf, np.inf)


class StudyExplorer(Panel):
    """Scatter plot of runs with a choice of axes, colour and filter; a selected run is opened in `LivenessExplorer`.

    A click on a point selects and opens its run. The slider *run* moves through the shown points from left to right,
    also with the arrow keys.

    Parameters
    ----------
    table : DataFrame
        As `codeq.studies.collect` returns it; its rows may be selected and sorted.

    Raises
    ------
    CodeqError
        If `table` is something else.

    Attributes
    ----------
    x, y : Dropdown
        Columns of numbers on the axes.
    color : Dropdown
        Column that colours the points, or none.
    filter : Dropdown
        Column of numbers that `range` limits, or none.
    range : FloatRangeSlider
        Smallest and largest value of the column `filter` among the shown runs. An end of the slider is no limit.
    point : SelectionSlider
        The selected run.
    open_run : Button
        Opens the selected run below the figure.
    refresh : Button
        Reads status and metrics of the runs again, which may still be training.
    opened : VBox
        Contains the `LivenessExplorer` of the opened run.

    Examples
    --------
    >>> from codeq import ExperimentConfig
    >>> from codeq.studies import collect
    >>> _ = Run.create(ExperimentConfig("new", run_dir="outputs/s/new"))
    >>> StudyExplorer(collect("outputs/s")).text.value
    '<div ...><b>None of 1 runs has recorded an epoch.</b></div>'
    """

    def __init__(self, table: pd.DataFrame) -> None:
        # Rows are identified by their position, as those read again are.
        self._collected = _require_table(table).reset_index(drop=True)
        self.table = _with_relative_bops(self._collected)
        numbers = _numeric(self.table)
        self._keys = [*varied_keys(self.table), *([SEED] if SEED in table else []), "status"]
        style: dict[str, Any] = {"style": DESCRIPTION, "layout": ipywidgets.Layout(width="440px", max_width="100%")}
        across = next((name for name in RELATIVE if name in numbers), numbers[0] if numbers else None)
        upward = next((name for name in (_accuracy(self.table), "eval/accuracy") if name in numbers), across)
        self.x = ipywidgets.Dropdown(description="x axis", options=numbers, value=across, **style)
        self.y = ipywidgets.Dropdown(description="y axis", options=numbers, value=upward, **style)
        colours = _optional([*self._keys, *numbers])
        self.color = ipywidgets.Dropdown(description="colour", options=colours, value=self._keys[0], **style)
        self.filter = ipywidgets.Dropdown(description="filter by", options=_optional(numbers), value="", **style)
        self.range = slider(
            ipywidgets.FloatRangeSlider, "between", min=0.0, max=1.0, disabled=True, readout_format=".4g"
        )
        self.point = slider(ipywidgets.SelectionSlider, "run", options=PADDING)
        self.open_run = ipywidgets.Button(description="Open run", tooltip="show the channels of the selected run below")
        self.refresh = ipywidgets.Button(description="Refresh", tooltip="read the runs again")
        self.opened = ipywidgets.VBox()
        buttons = ipywidgets.HBox([self.open_run, self.refresh])
        controls = [self.x, self.y, self.color, self.filter, self.range, self.point, buttons]
        super().__init__(controls, [self.opened], self._on_click)
        self._image = PictureCache(128, lambda *state: render_located(self._draw, self._places, *state))
        self._at: list[tuple[float, float]] = []  # of the shown points in the picture
        self._interval = EVERYTHING  # that the filter lets through; new values do not change it
        self._updating = False
        self._set_range()
        for control in (self.x, self.y):
            control.observe(self._list_points, "value")
        self.filter.observe(self._take_filter, "value")
        self.range.observe(self._take_range, "value")
        for control in (self.color, self.point):
            control.observe(self._redraw, "value")
        self.open_run.on_click(self._open)
        self.refresh.on_click(self._read_again)

    def _read_again(self, _: Any = None) -> None:
        """Read the runs again. Axes, colour, filter and the selected run stay; columns that are new can be chosen.

        The interval of the filter stays, too, also where no run has a value in it any more.
        """
        self.table = _with_relative_bops(read_again(self._collected))
        self._image.cache_clear()
        numbers = _numeric(self.table)
        self._updating = True  # not a choice by the user
        try:
            for control, first in ((self.x, next(iter(RELATIVE))), (self.y, _accuracy(self.table))):
                before = control.value
                control.options = numbers
                control.value = next((name for name in (before, first, *numbers) if name in numbers), None)
            for control, names in ((self.color, [*self._keys, *numbers]), (self.filter, numbers)):
                before = control.value
                control.options = _optional(names)
                control.value = before if before in names else ""
        finally:
            self._updating = False
        self._set_range()

    def shown(self) -> pd.DataFrame:
        """Return the rows of the shown runs: both coordinates are finite, and the filter holds. By x, then y."""
        if self.x.value is None:
            return self.table.head(0)
        used = [self.x.value, self.y.value, *([self.filter.value] if self.filter.value else [])]
        good = np.isfinite(self.table[used].to_numpy(dtype=float)).all(axis=1)
        if self.filter.value:
            low, high = self._interval
            good &= self.table[self.filter.value].between(low - self._room, high + self._room).to_numpy()
        return self.table[good].sort_values([self.x.value, self.y.value], kind="stable")

    @property
    def _selected(self) -> int | None:
        return self.point.value if self.point.value >= 0 else None

    def figure(self) -> Figure:
        """Return the displayed figure."""
        return self._draw(*self._state()) if len(self.shown()) else figures.message(self.summary()[0])

    def _state(self) -> tuple[Any, ...]:
        return self.x.value, self.y.value, self.color.value, tuple(self.shown().index), self._selected

    def _draw(self, x: str, y: str, color: str, rows: tuple[int, ...], selected: int | None) -> Figure:
        return scatter(self.table.loc[list(rows)], x, y, color or None, selected)

    def _places(self, figure: Figure) -> list[tuple[float, float]]:
        return places(figure.axes[0], self.shown()[[self.x.value, self.y.value]].to_numpy(dtype=float))

    def _on_click(self, x: float, y: float) -> None:
        found = nearest(self._at, x, y)
        if found is not None:
            self.point.value = int(self.shown().index[found])
            self._open()

    @property
    def _room(self) -> float:
        """Return by how much values may differ from the ends of the range, because a slider rounds to its steps."""
        return 1e-9 * max(abs(self.range.min), abs(self.range.max))

    def _take_filter(self, _: Any = None) -> None:
        if not self._updating:
            self._interval = EVERYTHING
            self._set_range()

    def _take_range(self, _: Any = None) -> None:
        if not self._updating:
            low, high = self.range.value
            self._interval = (
                low if low > self.range.min + self._room else -np.inf,
                high if high < self.range.max - self._room else np.inf,
            )
            self._list_points()

    def _set_range(self) -> None:
        """Let the range slider span all values of the filter's column, and the chosen interval in any case."""
        if not self.filter.value:
            self._interval = EVERYTHING
        values = self.table[self.filter.value].to_numpy(dtype=float) if self.filter.value else np.array([0.0, 1.0])
        values = values[np.isfinite(values)]  # others are not shown; a slider cannot reach infinity
        limits = [*values.tolist(), *(end for end in self._interval if np.isfinite(end))]
        low, high = min(limits), max(limits)
        self._updating = True
        self.range.disabled = not self.filter.value or low == high
        high = high if high > low else low + 1.0
        chosen = max(low, self._interval[0]), min(high, self._interval[1])
        self.range.min, self.range.max = min(low, self.range.min), max(high, self.range.max)  # never min above max
        self.range.value = chosen
        self.range.min, self.range.max, self.range.step = low, high, (high - low) / 100
        self.range.value = chosen
        self._updating = False
        self._list_points()

    def _list_points(self, _: Any = None) -> None:
        """Let the slider of runs contain the shown ones, and keep the selected one if it is among them."""
        if self._updating:
            return
        before, rows = self.point.value, self.shown()
        options = [(str(rows.loc[row, "run"]), int(row)) for row in rows.index]
        known = {row for _, row in options}
        padded = [*options, *PADDING[: max(2 - len(options), 0)]]
        self._updating = True
        self.point.options = padded
        self.point.value = before if before in known else padded[0][1]
        self._updating = False
        self.point.disabled = len(options) < 2
        self.open_run.disabled = not options
        self._redraw()

    def _redraw(self, _: Any = None) -> None:
        if not self._updating:
            image, self._at = self._image(*self._state()) if len(self.shown()) else (b"", [])
            self.show(image, self.summary())

    def _open(self, _: Any = None) -> None:
        if self._selected is not None:
            try:
                opened = LivenessExplorer(Run.open(str(self.table.loc[self._selected, "folder"])))
            except CodeqError as error:  # the folder was moved, say; nobody sees an exception of a button
                opened = ipywidgets.HTML(escape(str(error)))
            before, self.opened.children = self.opened.children, (opened,)
            for widget in before:
                widget.close()

    def summary(self) -> list[str]:
        """Return the text summary: how many runs are shown, and the values of the selected one."""
        rows, total = self.shown(), len(self.table)
        if self.x.value is None:
            return [f"None of {total} runs has recorded an epoch."]
        if not len(rows):
            return [f"None of {total} runs is shown: the filter leaves none with a value on both axes."]
        if self._selected is None:
            return [f"{len(rows)} of {total} runs shown."]
        run = self.table.loc[self._selected]
        names = dict.fromkeys(
            [*varied_keys(self.table), self.x.value, self.y.value, self.filter.value, self.color.value]
        )
        if CHOSEN_BY in self.table and any(str(name).startswith("best/") for name in names):
            names[CHOSEN_BY] = None  # where no split is set aside, the test images
        values = "; ".join(f"{name}: {format_cell(name, _plain(run[name]))}" for name in names if name)
        reason = f" ({run['reason']})" if run["reason"] else ""
        return [f"{len(rows)} of {total} runs shown; selected: {run['run']}, {run['status']}{reason}.", values]


def _require_table(table: object) -> pd.DataFrame:
    import pandas as pd

    if not isinstance(table, pd.DataFrame) or (len(table) and not {"run", "status", "folder"} <= set(table.columns)):
        raise CodeqError(f"table={quote(table)} is no table of runs: codeq.studies.collect(STUDY) returns one")
    return table


def _accuracy(table: pd.DataFrame) -> str:
    """Return the column of accuracies that compares all runs: with a validation split, `eval/…` is of other images."""
    mixed = CHOSEN_BY in table and table[CHOSEN_BY].nunique() > 1
    return "test/accuracy" if mixed else "eval/accuracy"


def _optional(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return the options of a list of columns of which none may be chosen."""
    return [(NOTHING, ""), *((name, name) for name in dict.fromkeys(names))]


def _with_relative_bops(table: pd.DataFrame) -> pd.DataFrame:
    """Add BOPs relative to the dense 32-bit network (fractions) beside their inverse, which is recorded."""
    return table.assign(**{name: 1 / table[key].astype(float) for name, key in RELATIVE.items() if key in table})


def _numeric(table: pd.DataFrame) -> list[str]:
    """Return the columns with at least one finite number, without those of layers; none before the first epoch."""
    if "epoch" not in table:
        return []
    names = [str(name) for name in table.columns if table[name].dtype.kind in "iuf" and "layers/" not in str(name)]
    return [name for name in names if np.isfinite(table[name].to_numpy(dtype=float)).any()]


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
