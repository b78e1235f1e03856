"""`WhatIf`: a trained run with other dead-zones and bit-widths, measured without training."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from codeq.analysis.budget import solve_budget
from codeq.analysis.network import input_size_of
from codeq.analysis.requantize import Requantized, Requantizer
from codeq.common.errors import CodeqError
from codeq.runs import Run
from codeq.runs.checkpoints import CheckpointEntry, CheckpointName, checkpoint_entry
from codeq.runs.references import require_run
from codeq.widgets import figures
from codeq.widgets.background import WEIGHTS, in_kernel
from codeq.widgets.initial_config import save_start
from codeq.widgets.measurements import Measurements
from codeq.widgets.panel import Panel, PictureCache, paragraphs, render
from codeq.widgets.settings import TRAINED, Key, Settings
from codeq.widgets.summary_text import describe_costs
from codeq.widgets.trail import Trail
from codeq.widgets.what_if_controls import ALL, WhatIfControls

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class WhatIf(Panel):
    """Sliders for dead-zone and bit-width of all layers or one; the checkpoint is requantized with them.

    For all layers, a slider shows the mean and scales the settings by one factor, within their limits, so that layers
    keep their differences. In Jupyter, the accuracy is measured in the background after each change; a newer change
    cancels the measurement.

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
    reset, refresh, save : Button
        Restore the trained settings; read the checkpoint again, for a run that is still training; write a configuration
        that continues from here, to the path in `file`.
    budget, solve : BoundedFloatText, Button
        Relative BOPs in percent, and the search for dead-zones and bits that keep them.
    progress : IntProgress
        Progress of a measurement.
    trail : Trail
        Settings with a measured accuracy; a click on one of them or the slider below returns to it.
    """

    def __init__(self, run: Run, checkpoint: CheckpointName = "last", max_images: int = 1000) -> None:
        self.run = require_run(run)
        self.checkpoint = checkpoint
        self.max_images = max_images
        self.problem = ""
        self._unmeasured = ""
        self._settings = Settings()
        self._setting_sliders = False
        self._evaluated = lru_cache(maxsize=64)(self._evaluate)
        self._image = PictureCache(256, lambda key: render(self._draw, key))
        self._controls = controls = WhatIfControls()
        self.layer, self.dead_zone, self.bits = controls.layer, controls.dead_zone, controls.bits
        self.reset, self.refresh, self.progress = controls.reset, controls.refresh, controls.progress
        self.budget, self.solve = controls.budget, controls.solve
        self.save, self.file, self.status = controls.save, controls.file, controls.status
        self.trail = Trail(self._return_to)
        super().__init__(controls.column, [self.trail])
        self._listen()
        self._load()

    def _load(self, _: Any = None) -> None:
        """Read the checkpoint; changed settings stay."""
        self._background.cancel()
        self._evaluated.cache_clear()
        self._image.cache_clear()
        self.problem = ""
        try:
            with WEIGHTS:
                self._entry = self._newest_entry()
                model = self.run.load_model(self._entry.file)  # by its name: a training may save others meanwhile
                self.requantizer = Requantizer(model, input_size_of(self.run, model))
            self._measured = Measurements(self.requantizer, self.run.config, self.max_images)
        except CodeqError as error:
            self.problem = str(error)
        self._controls.set_enabled(not self.problem)
        if not self.problem:
            trained = self.requantizer.trained
            if self.layer.options != (ALL, *trained):
                self.layer.options = [ALL, *trained]
            self._move_sliders()
        self._redraw()

    def _newest_entry(self) -> CheckpointEntry:
        return checkpoint_entry(self.run.checkpoints, self.checkpoint)

    def _listen(self) -> None:
        self.layer.observe(self._move_sliders, "value")
        self.dead_zone.observe(self._take_dead_zone, "value")
        self.bits.observe(self._take_bits, "value")
        attempt = self._controls.attempt
        self.reset.on_click(lambda _: attempt("", lambda: self._return_to(TRAINED)))
        self.refresh.on_click(self._load)
        self.solve.on_click(lambda _: attempt("Solving …", lambda: self.solve_budget(self.budget.value / 100)))
        self.save.on_click(lambda _: attempt("", lambda: self.save_config(self.file.value.strip() or None)))

    @property
    def key(self) -> Key:
        """Settings that differ from the trained ones, as a hashable value."""
        return self._settings.key

    def _take_dead_zone(self, change: Any) -> None:
        if not self._setting_sliders:
            self._require_network()
            if self._settings.mean_dead_zone is None:
                self._move_sliders()
                raise CodeqError(f"dead_zone={change['new']!r}: uniform quantizers have none to set; set their bits")
            self._settings.scale_dead_zones(change["new"])
            self._redraw()

    def _take_bits(self, change: Any) -> None:
        if not self._setting_sliders:
            self._require_network()
            self._settings.scale_bits(change["new"], self.bits.min, self.bits.max)
            self._redraw()

    def _return_to(self, key: Key) -> None:
        self._require_network()
        self._settings.replace(dict(key[0]), dict(key[1]))
        self._move_sliders()
        self._redraw()

    def _move_sliders(self, _: Any = None) -> None:
        """Move the sliders to the current settings; for all layers to their mean."""
        trained = self.requantizer.trained
        self._settings.select(list(trained) if self.layer.value == ALL else [self.layer.value], trained)
        zone = self._settings.mean_dead_zone
        self._setting_sliders = True  # not a change by the user
        try:
            set_or_trained = (*self._settings.bits.values(), *(setting.bits for setting in trained.values()))
            self.bits.max = 16 if max(set_or_trained) > 8 else 8
            self.dead_zone.disabled = zone is None
            self.dead_zone.value = zone or 0.0
            self.bits.value = self._settings.mean_bits
        finally:
            self._setting_sliders = False

    def _require_network(self) -> None:
        """Raise a `CodeqError` with the reason if the run cannot be requantized."""
        if self.problem:
            raise CodeqError(self.summary()[0])

    @property
    def now(self) -> Requantized:
        """Measurements with the current settings."""
        return self._evaluated(self.key)

    def _evaluate(self, key: Key) -> Requantized:
        self._require_network()
        with WEIGHTS:
            return self.requantizer.evaluate(dict(key[0]), dict(key[1]))

    def figure(self) -> Figure:
        """Return the displayed figure."""
        return figures.message(self.summary()[0]) if self.problem else self._draw(self.key)

    def _draw(self, key: Key) -> Figure:
        return figures.what_if(self._evaluated(key).result.layers, self._evaluated(TRAINED).result.layers)

    def _redraw(self) -> None:
        self._background.cancel()
        image, tried = (b"", {}) if self.problem else (self._image(self.key), self._tried())
        with self.showing:
            self._unmeasured = ""
            if in_kernel() and not self.problem and self.key not in self._measured.points:
                self._background.start(lambda cancelled: self._measure_later(tried, cancelled))
            self.show(image, self.summary())
            self.trail.update({} if self.problem else self._measured.points, self.key)

    def summary(self) -> list[str]:
        """Return a text summary of accuracy and cost, in comparison with the trained settings."""
        if self.problem:
            return [f"{self.run.folder.name} cannot be requantized: {self.problem}"]
        return self._summarize(self._tried())

    def _tried(self) -> dict[Key, Requantized]:
        """Return what the trained and, last, the current settings cost; only the main thread computes it."""
        return {key: self._evaluated(key) for key in (TRAINED, self.key)}

    def _summarize(self, tried: dict[Key, Requantized]) -> list[str]:
        key = next(reversed(tried))
        waiting = "measuring …" if in_kernel() else "not measured yet; accuracy() does (no retraining)"
        missing = f"not measured: {self._unmeasured}" if self._unmeasured else waiting
        return [
            f"{self.run.folder.name}, checkpoint '{self.checkpoint}', {self._name(key)}",
            f"Accuracy: {self._measured.describe(key) or missing}",
            *describe_costs(tried[key], tried[TRAINED]),
        ]

    def _name(self, key: Key) -> str:
        changed = len(dict(key[0]).keys() | dict(key[1]).keys())
        return f"{changed} of {len(self.requantizer.trained)} layers changed" if changed else "as trained"

    def accuracy(self) -> float:
        """Measure the accuracy with the current settings, and with the trained ones for comparison.

        Raises
        ------
        CodeqError
            If the data set is missing, or the run cannot be requantized.
        """
        self._require_network()
        with self._background.replaced():
            self._measure(self._tried(), Event())
        return self._measured.points[self.key].accuracy

    def _measure(self, tried: dict[Key, Requantized], cancelled: Event) -> None:
        costs = {key: (self._name(key), 1 / found.result.unstructured_bops_ratio) for key, found in tried.items()}
        try:
            self._measured.measure(costs, cancelled, self._controls.show_progress)
        finally:
            self._controls.show_progress(1, 1)
        with self.showing:
            if not cancelled.is_set():
                self.text.value = paragraphs(self._summarize(tried))
                self.trail.update(self._measured.points, next(reversed(tried)))

    def _measure_later(self, tried: dict[Key, Requantized], cancelled: Event) -> None:
        """Measure in another thread, where nobody sees an exception."""
        try:
            self._measure(tried, cancelled)
        except Exception as error:
            with self.showing:
                if not cancelled.is_set():
                    self._unmeasured = str(error) or type(error).__name__
                    self.text.value = paragraphs(self._summarize(tried))

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
            If the file exists or cannot be written, layers differ in bits that are not learned, or the run cannot be
            requantized.
        """
        self._require_network()
        with WEIGHTS:
            return save_start(self.run, self.requantizer, self._settings.dead_zone, self._settings.bits, path)

    def solve_budget(self, relative_bops: float) -> None:
        """Set the dead-zones and bits that `codeq.analysis.solve_budget` finds; errors as of that function.

        If the training has saved another checkpoint since, that one is read first, as by `refresh`.
        """
        self._require_network()
        if self._newest_entry() != self._entry:
            self._load()
            self._require_network()
        show = self._controls.show_progress
        with self._background.replaced(), WEIGHTS:  # a cancelled measurement ends only after its current step
            try:
                # By its name: a training may have saved another one since the comparison.
                found = solve_budget(self.run, relative_bops, True, self.max_images, self._entry.file, show)
            finally:
                show(1, 1)
        self._settings.replace(found.dead_zone, found.bits)
        self._move_sliders()
        self._redraw()
