"""`WhatIf`: a trained run with other dead-zones and bit-widths, measured without training."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets  # type: ignore[import-untyped]
from torch import Tensor

from codeq.analysis.budget import solve_budget
from codeq.analysis.network import input_size_of
from codeq.analysis.requantize import Requantized, Requantizer
from codeq.analysis.subset import evaluation_images, evaluation_subset
from codeq.common.errors import CodeqError
from codeq.runs import Run
from codeq.runs.checkpoints import CheckpointName
from codeq.widgets import figures
from codeq.widgets.initial_config import save_start
from codeq.widgets.panel import DESCRIPTION, Panel, render, slider
from codeq.widgets.scaling import scale_to_mean
from codeq.widgets.summary_text import describe_costs
from codeq.widgets.trail import Trail, TriedPoint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ALL = "all layers"
Key = tuple[tuple[tuple[str, float], ...], tuple[tuple[str, int], ...]]
TRAINED: Key = ((), ())


class WhatIf(Panel):
    """Sliders for dead-zone and bit-width of all layers or one; the checkpoint is requantized with them.

    For all layers, a slider shows the mean and scales the settings by one factor, within their limits, so that layers
    keep their differences.

    Trained weights and BatchNorm statistics are kept: the results are those of requantization alone, without the
    training that would recover accuracy.

    Parameters
    ----------
    run : Run
        With a checkpoint; otherwise the summary gives the reason and all controls are disabled.
    checkpoint : {"last", "best"}
        Checkpoint of the last epoch, or of the one with the highest evaluation accuracy.
    max_images : int
        Largest number of evaluation images for the accuracy, see `evaluation_images`.

    Attributes
    ----------
    layer : Dropdown
        Layers that the sliders set.
    dead_zone : FloatSlider
        ``d / (2 R)``: no dead-zone at 0; at 1 only the largest 1 % of the weights remain.
    bits : IntSlider
        Bit-width.
    reset, refresh, measure, save : Button
        Restore the trained settings; read the checkpoint again, for a run that is still training; measure the accuracy;
        write a configuration that continues from here.
    budget, solve : BoundedFloatText, Button
        Relative BOPs in percent, and the search for dead-zones and bits that keep them.
    progress : IntProgress
        Progress of a measurement.
    trail : Trail
        Settings with a measured accuracy, and the list that returns to them.
    """

    def __init__(self, run: Run, checkpoint: CheckpointName = "last", max_images: int = 1000) -> None:
        self.run = run
        self.checkpoint = checkpoint
        self.max_images = max_images
        self.problem = ""
        self._dead_zone: dict[str, float] = {}
        self._bits: dict[str, int] = {}
        self._tried: dict[Key, TriedPoint] = {}
        self._batches: list[tuple[Tensor, Tensor]] = []
        self._start_zones: dict[str, float | None] = {}
        self._start_bits: dict[str, int] = {}
        self._setting_sliders = False
        self._evaluated = lru_cache(maxsize=64)(lambda key: self.requantizer.evaluate(dict(key[0]), dict(key[1])))
        self._image = lru_cache(maxsize=256)(lambda key: render(self._draw, key))
        self._make_controls()
        row = {"flex_flow": "row wrap"}
        buttons = [self.reset, self.refresh, self.measure, self.budget, self.solve, self.progress]
        rows = [buttons, [self.save, self.file, self.status]]
        controls = [self.layer, self.dead_zone, self.bits, *(ipywidgets.HBox(items, layout=row) for items in rows)]
        self.trail = Trail(self._return_to)
        super().__init__(controls, [self.trail])
        self._listen()
        self._load()

    def _load(self, _: Any = None) -> None:
        """Read the checkpoint; changed settings stay."""
        for store in (self._evaluated.cache_clear, self._image.cache_clear, self._tried.clear):
            store()
        self.problem = ""
        try:
            model = self.run.load_model(self.checkpoint)
            self.requantizer = Requantizer(model, input_size_of(model, self.run.config.img_size))
        except CodeqError as error:
            self.problem = str(error)
        buttons = [self.reset, self.measure, self.budget, self.solve, self.save, self.file]
        for control in (self.layer, self.dead_zone, self.bits, *buttons):
            control.disabled = bool(self.problem)
        if not self.problem:
            trained = self.requantizer.trained
            if self.layer.options != (ALL, *trained):
                self.layer.options = [ALL, *trained]
            self.bits.max = 16 if max(setting.bits for setting in trained.values()) > 8 else 8
            self._move_sliders()
        self._redraw()

    def _make_controls(self) -> None:
        wide = ipywidgets.Layout(width="440px", max_width="100%")
        self.layer = ipywidgets.Dropdown(description="set", options=[ALL], style=DESCRIPTION, layout=wide)
        self.dead_zone = slider(ipywidgets.FloatSlider, "dead-zone d/2R", min=0, max=1, step=0.01)
        self.bits = slider(ipywidgets.IntSlider, "bit-width", min=2, max=8)
        self.reset = ipywidgets.Button(description="Reset", tooltip="restore the trained dead-zones and bits")
        self.refresh = ipywidgets.Button(
            description="Refresh", tooltip="read the checkpoint of a running training again"
        )
        self.measure = ipywidgets.Button(description="Accuracy", tooltip=f"on up to {self.max_images} images")
        limits = {"value": 3.0, "min": 0.01, "max": 100, "step": 0.5, "layout": {"width": "220px"}}
        self.budget = ipywidgets.BoundedFloatText(description="relative BOPs (%)", style=DESCRIPTION, **limits)
        self.solve = ipywidgets.Button(description="Solve", tooltip="dead-zones and bits per layer for this budget")
        self.progress = ipywidgets.IntProgress(min=0, max=1, layout={"width": "180px", "visibility": "hidden"})
        self.save = ipywidgets.Button(description="Save as config")
        self.file = ipywidgets.Text(
            placeholder="default: a new file in outputs/what_if/", layout={"width": "320px", "max_width": "100%"}
        )
        self.status = ipywidgets.HTML(layout={"flex": "1 1 300px", "margin": "2px 0 0 12px"})  # a Label truncates

    def _listen(self) -> None:
        self.layer.observe(self._move_sliders, "value")
        self.dead_zone.observe(self._take_dead_zone, "value")
        self.bits.observe(self._take_bits, "value")
        self.reset.on_click(lambda _: self._return_to(TRAINED))
        self.refresh.on_click(self._load)
        self.measure.on_click(lambda _: self._attempt("Measuring …", self.accuracy))
        self.solve.on_click(lambda _: self._attempt("Solving …", lambda: self.solve_budget(self.budget.value / 100)))
        self.save.on_click(lambda _: self._attempt("", lambda: self.save_config(self.file.value.strip() or None)))

    @property
    def key(self) -> Key:
        """Settings that differ from the trained ones, as a hashable value."""
        return tuple(sorted(self._dead_zone.items())), tuple(sorted(self._bits.items()))

    def _chosen(self) -> list[str]:
        return list(self.requantizer.trained) if self.layer.value == ALL else [self.layer.value]

    def _take_dead_zone(self, change: Any) -> None:
        if not self._setting_sliders:
            names = [name for name, zone in self._start_zones.items() if zone is not None]
            zones = scale_to_mean([self._start_zones[name] or 0.0 for name in names], change["new"], 0, 1)
            self._dead_zone |= dict(zip(names, zones, strict=True))
            self._redraw()

    def _take_bits(self, change: Any) -> None:
        if not self._setting_sliders:
            bits = scale_to_mean(list(self._start_bits.values()), change["new"], self.bits.min, self.bits.max)
            self._bits |= dict(zip(self._start_bits, map(round, bits), strict=True))
            self._redraw()

    def _return_to(self, key: Key) -> None:
        self._dead_zone, self._bits = dict(key[0]), dict(key[1])
        self._move_sliders()
        self._redraw()

    def _move_sliders(self, _: Any = None) -> None:
        """Move the sliders to the current settings; for all layers to their mean.

        Until the next call, all movements of a slider scale the settings of this moment, which keeps the differences
        between layers.
        """
        trained = self.requantizer.trained
        self._start_zones = {name: self._dead_zone.get(name, trained[name].dead_zone) for name in self._chosen()}
        self._start_bits = {name: self._bits.get(name, trained[name].bits) for name in self._chosen()}
        known = [zone for zone in self._start_zones.values() if zone is not None]
        bits = self._start_bits.values()
        self._setting_sliders = True  # not a change by the user
        try:
            self.dead_zone.disabled = not known
            self.dead_zone.value = round(sum(known) / len(known), 2) if known else 0.0
            self.bits.value = round(sum(bits) / len(bits))
        finally:
            self._setting_sliders = False

    @property
    def now(self) -> Requantized:
        """Measurements with the current settings."""
        return self._evaluated(self.key)

    def figure(self) -> Figure:
        """Return the displayed figure."""
        return figures.message(self.summary()[0]) if self.problem else self._draw(self.key)

    def _draw(self, key: Key) -> Figure:
        return figures.what_if(self._evaluated(key).result.layers, self._evaluated(TRAINED).result.layers)

    def _redraw(self) -> None:
        self.show(b"" if self.problem else self._image(self.key), self.summary())
        self.trail.update(self._tried, self.key)

    def summary(self) -> list[str]:
        """Return a text summary of accuracy and cost, in comparison with the trained settings."""
        if self.problem:
            return [f"{self.run.folder.name} cannot be requantized: {self.problem}"]
        return [
            f"{self.run.folder.name}, checkpoint '{self.checkpoint}', {self._name(self.key)}",
            f"Accuracy: {self._describe_accuracy()}",
            *describe_costs(self.now, self._evaluated(TRAINED)),
        ]

    def _name(self, key: Key) -> str:
        changed = len(dict(key[0]).keys() | dict(key[1]).keys())
        return f"{changed} of {len(self.requantizer.trained)} layers changed" if changed else "as trained"

    def _describe_accuracy(self) -> str:
        if self.key not in self._tried:
            return "press the button to measure (no retraining, BatchNorm statistics are kept)"
        images = f"{sum(len(y) for _, y in self._batches)} {evaluation_images(self.run.config)} images"
        now, trained = self._tried[self.key].accuracy, self._tried[TRAINED].accuracy
        return f"{now:.2%} (trained {trained:.2%}) on {images}, no retraining"

    def accuracy(self) -> float:
        """Measure the accuracy with the current settings, and with the trained ones for comparison.

        Raises
        ------
        CodeqError
            If the data set is missing.
        """
        self._batches = self._batches or evaluation_subset(self.run.config, self.max_images)
        todo = [key for key in dict.fromkeys([TRAINED, self.key]) if key not in self._tried]
        self.progress.value, self.progress.max = 0, max(len(todo), 1) * len(self._batches)
        self.progress.layout.visibility = "visible"
        try:
            for key in todo:
                found = self.requantizer.evaluate(dict(key[0]), dict(key[1]), self._counted()).result
                assert found.test_accuracy is not None
                self._tried[key] = TriedPoint(self._name(key), 1 / found.unstructured_bops_ratio, found.test_accuracy)
        finally:
            self.progress.layout.visibility = "hidden"
        self._redraw()
        return self._tried[self.key].accuracy

    def _counted(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self._batches:
            yield batch
            self.progress.value += 1

    def save_config(self, path: str | os.PathLike[str] | None = None) -> Path:
        """Write a configuration that continues from these weights, dead-zones and bits, see `save_start`.

        Parameters
        ----------
        path : path, optional
            Relative to the project; default a new file in ``outputs/what_if``.

        Returns
        -------
        Path
            The file.

        Raises
        ------
        CodeqError
            If the file exists or cannot be written, or layers differ in bits that are not learned.
        """
        return save_start(self.run, self.requantizer, self._dead_zone, self._bits, path)

    def solve_budget(self, relative_bops: float) -> None:
        """Set the dead-zones and bits that `codeq.analysis.solve_budget` finds; errors as of that function."""
        self.progress.layout.visibility = "visible"
        try:
            found = solve_budget(self.run, relative_bops, True, self.max_images, self.checkpoint, self._show_progress)
        finally:
            self.progress.layout.visibility = "hidden"
        self._dead_zone, self._bits = found.dead_zone, found.bits
        self._move_sliders()
        self.accuracy()

    def _show_progress(self, done: int, total: int) -> None:
        self.progress.value, self.progress.max = done, total

    def _attempt(self, doing: str, act: Callable[[], object]) -> None:
        """Do what a button is for, and show why it failed or where its file is."""
        try:
            self.status.value = doing
            done = act()
            trains = f"Saved. Train with: <code>codeq train --config {escape(str(done))}</code>"
            self.status.value = trains if isinstance(done, Path) else ""
        except (CodeqError, OSError) as error:
            self.status.value = escape(str(error))
