"""`WhatIf`: a trained run with other dead-zones and bit-widths, measured without training."""

from __future__ import annotations

import os
from collections.abc import Iterator
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
from codeq.widgets.panel import DESCRIPTION, Panel, paragraphs, render, slider
from codeq.widgets.scaling import scale_to_mean
from codeq.widgets.summary_text import describe_costs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ALL = "all layers"
Key = tuple[tuple[tuple[str, float], ...], tuple[tuple[str, int], ...]]


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
    reset, measure, save : Button
        Restore the trained settings; measure the accuracy; write a configuration that continues from here.
    budget, solve : BoundedFloatText, Button
        Relative BOPs in percent, and the search for dead-zones and bits that keep them.
    progress : IntProgress
        Progress of a measurement.
    """

    def __init__(self, run: Run, checkpoint: CheckpointName = "last", max_images: int = 1000) -> None:
        self.run = run
        self.checkpoint = checkpoint
        self.max_images = max_images
        self.problem = ""
        self._dead_zone: dict[str, float] = {}
        self._bits: dict[str, int] = {}
        self._accuracies: dict[Key, float] = {}
        self._batches: list[tuple[Tensor, Tensor]] = []
        self._start_zones: dict[str, float | None] = {}
        self._start_bits: dict[str, int] = {}
        self._setting_sliders = False
        self._make_controls()
        try:
            model = run.load_model(checkpoint)
            self.requantizer = Requantizer(model, input_size_of(model, run.config.img_size))
        except CodeqError as error:
            self.problem = str(error)
        buttons = ipywidgets.HBox(
            [self.reset, self.measure, self.budget, self.solve, self.progress], layout={"flex_flow": "row wrap"}
        )
        saving = ipywidgets.HBox([self.save, self.file, self.status], layout={"flex_flow": "row wrap"})
        super().__init__([self.layer, self.dead_zone, self.bits, buttons, saving])
        self._evaluated = lru_cache(maxsize=64)(lambda key: self.requantizer.evaluate(dict(key[0]), dict(key[1])))
        self._image = lru_cache(maxsize=256)(lambda key: render(self._draw, key))
        if self.problem:
            sliders = [self.layer, self.dead_zone, self.bits]
            for control in (*sliders, self.reset, self.measure, self.budget, self.solve, self.save, self.file):
                control.disabled = True
            self.show(b"", paragraphs(self.summary()))
            return
        trained = self.requantizer.trained
        self.layer.options = [ALL, *trained]
        self.bits.max = 16 if max(setting.bits for setting in trained.values()) > 8 else 8
        self._move_sliders()
        self._listen()
        self._redraw()

    def _make_controls(self) -> None:
        wide = ipywidgets.Layout(width="440px", max_width="100%")
        self.layer = ipywidgets.Dropdown(description="set", options=[ALL], style=DESCRIPTION, layout=wide)
        self.dead_zone = slider(ipywidgets.FloatSlider, "dead-zone d/2R", min=0, max=1, step=0.01)
        self.bits = slider(ipywidgets.IntSlider, "bit-width", min=2, max=8)
        self.reset = ipywidgets.Button(description="Reset", tooltip="restore the trained dead-zones and bits")
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
        self.reset.on_click(self._reset)
        self.measure.on_click(self._on_measure)
        self.save.on_click(self._on_save)
        self.solve.on_click(self._on_solve)

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

    def _reset(self, _: Any = None) -> None:
        self._dead_zone, self._bits = {}, {}
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
        return figures.what_if(self._evaluated(key).result.layers, self._evaluated(((), ())).result.layers)

    def _redraw(self) -> None:
        self.show(self._image(self.key), paragraphs(self.summary()))

    def summary(self) -> list[str]:
        """Return a text summary of accuracy and cost, in comparison with the trained settings."""
        if self.problem:
            return [f"{self.run.folder.name} cannot be requantized: {self.problem}"]
        changed = len({*self._dead_zone, *self._bits})
        what = f"{changed} of {len(self.requantizer.trained)} layers changed" if changed else "as trained"
        return [
            f"{self.run.folder.name}, checkpoint '{self.checkpoint}', {what}",
            f"Accuracy: {self._describe_accuracy()}",
            *describe_costs(self.now, self._evaluated(((), ()))),
        ]

    def _describe_accuracy(self) -> str:
        trained = self._accuracies.get(((), ()))
        if self.key not in self._accuracies or trained is None:
            return "press the button to measure (no retraining, BatchNorm statistics are kept)"
        images = f"{sum(len(y) for _, y in self._batches)} {evaluation_images(self.run.config)} images"
        return f"{self._accuracies[self.key]:.2%} (trained {trained:.2%}) on {images}, no retraining"

    def accuracy(self) -> float:
        """Measure the accuracy with the current settings, and with the trained ones for comparison.

        Raises
        ------
        CodeqError
            If the data set is missing.
        """
        self._batches = self._batches or evaluation_subset(self.run.config, self.max_images)
        todo: list[Key] = [key for key in dict.fromkeys([((), ()), self.key]) if key not in self._accuracies]
        self.progress.value, self.progress.max = 0, max(len(todo), 1) * len(self._batches)
        self.progress.layout.visibility = "visible"
        try:
            for key in todo:
                found = self.requantizer.evaluate(dict(key[0]), dict(key[1]), self._counted()).result.test_accuracy
                assert found is not None
                self._accuracies[key] = found
        finally:
            self.progress.layout.visibility = "hidden"
        self._redraw()
        return self._accuracies[self.key]

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
            show = self._show_progress
            found = solve_budget(self.run, relative_bops, True, self.max_images, self.checkpoint, show)
        finally:
            self.progress.layout.visibility = "hidden"
        self._dead_zone, self._bits = found.dead_zone, found.bits
        self._move_sliders()
        self.accuracy()

    def _show_progress(self, done: int, total: int) -> None:
        self.progress.value, self.progress.max = done, total

    def _on_solve(self, _: Any) -> None:
        try:
            self.status.value = "Solving …"
            self.solve_budget(self.budget.value / 100)
            self.status.value = ""
        except CodeqError as error:
            self.status.value = escape(str(error))

    def _on_measure(self, _: Any) -> None:
        try:
            self.status.value = "Measuring …"
            self.accuracy()
            self.status.value = ""
        except CodeqError as error:
            self.status.value = escape(str(error))

    def _on_save(self, _: Any) -> None:
        try:
            saved = self.save_config(self.file.value.strip() or None)
            self.status.value = f"Saved. Train with: <code>codeq train --config {escape(str(saved))}</code>"
        except (CodeqError, OSError) as error:
            self.status.value = escape(str(error))
