"""`LivenessExplorer`: alive channels of a run by epoch and layer, what keeps them alive, and the history of each."""

from __future__ import annotations

from functools import lru_cache
from threading import Event
from typing import TYPE_CHECKING, Any

import ipywidgets  # type: ignore[import-untyped]
import numpy as np

from codeq.analysis.channel import describe_history, describe_norms
from codeq.analysis.network import run_notes
from codeq.common.errors import CodeqError
from codeq.runs import Run
from codeq.runs.references import require_run
from codeq.widgets import channel_figure, figures
from codeq.widgets.background import in_kernel
from codeq.widgets.panel import Panel, PictureCache, paragraphs, render_located, slider
from codeq.widgets.records import ChannelRecords, Channels, sentence
from codeq.widgets.states import State, largest_norm

if TYPE_CHECKING:
    from matplotlib.figure import Figure


NOTHING = "–"
NO_LAYERS = ((NOTHING, ""), (NOTHING + " ", ""))  # a slider with one position is an error in the browser


class LivenessExplorer(Panel):
    """Sliders for epoch, layer, channel and the norm up to which a filter counts as dead.

    A channel is also selected by a click on it in the figure. In Jupyter, it is explained in the background.

    The threshold is a fraction of the largest norm of each layer, since norms of different layers are not comparable.
    Where norms were not recorded, it is enabled only at epochs with a checkpoint: the last and the best.

    Parameters
    ----------
    run : Run
        In any state; the summary names what it has not recorded.

    Attributes
    ----------
    epoch : IntSlider
        1-based.
    layer : SelectionSlider
        Name of the layer shown in detail.
    channel : IntSlider
        Output channel of this layer, from 0, whose history and explanation are shown.
    threshold : FloatSlider
        0 … 1, of the largest norm of each layer's quantized filters.
    refresh : Button
        Read the run again, which may still be training.

    Examples
    --------
    >>> import tempfile
    >>> from codeq.config import ExperimentConfig
    >>> with tempfile.TemporaryDirectory() as home:
    ...     explorer = LivenessExplorer(Run.create(ExperimentConfig("new", run_dir=f"{home}/new")))
    >>> explorer.text.value
    '<div ...><b>no epoch has been recorded; status of new: running.</b></div>'
    """

    def __init__(self, run: Run) -> None:
        self.run = require_run(run)
        self._notes = lru_cache(maxsize=1)(lambda: run_notes(run))
        self._image = PictureCache(256, lambda *state: render_located(self._draw, channel_figure.areas, *state))
        self._explained: dict[tuple[str, int], list[str]] = {}
        self._loading = False
        self._sizes: dict[str, int] = {}  # output channels of each layer
        self.epoch = slider(ipywidgets.IntSlider, "epoch", min=1, max=2, disabled=True)
        self.layer = slider(ipywidgets.SelectionSlider, "layer", options=NO_LAYERS)
        self.channel = slider(ipywidgets.IntSlider, "channel", min=0, max=1, disabled=True)
        self.threshold = slider(ipywidgets.FloatSlider, "norm threshold", min=0, max=1, step=0.01)
        self.refresh = ipywidgets.Button(description="Refresh", tooltip="read the run again")
        sliders = [self.epoch, self.layer, self.channel, self.threshold]
        super().__init__([*sliders, self.refresh], on_click=self._select_clicked)
        self._load()
        self.layer.observe(self._fit_channels, "value")
        for control in sliders:
            control.observe(self._redraw, "value")
        self.refresh.on_click(self._load)

    def _load(self, _: Any = None) -> None:
        """Read the run. The slider of epochs moves to the last one unless it was at an earlier one; the rest stays."""
        following = self.epoch.disabled or self.epoch.value == self.epoch.max
        self._background.cancel()
        for clear in (self._notes.cache_clear, self._image.cache_clear, self._explained.clear):
            clear()
        self.records = ChannelRecords(self.run)
        try:
            self._planned = str(self.run.config.epochs)
        except CodeqError:  # of another version of codeq, or damaged
            self._planned = "?"
        last = next(iter(reversed(self.records.masks.values())), {})
        self._sizes = {name: len(mask) for name, mask in last.items()}
        epochs, layers = self.records.epochs, list(self._sizes)
        shown = self.layer.value
        self._loading = True  # not a change by the user
        try:
            # A slider with one position gets a second one, which means the first, and is disabled.
            self.epoch.max = max(2, len(epochs))
            self.epoch.value = max(1, len(epochs)) if following else min(self.epoch.value, max(1, len(epochs)))
            single = [(layers[0], layers[0]), (NOTHING, layers[0])] if layers else NO_LAYERS
            self.layer.options = layers if len(layers) > 1 else single
            self.layer.value = shown if shown in layers else next(iter(layers), "")
        finally:
            self._loading = False
        self.epoch.disabled, self.layer.disabled = len(epochs) < 2, len(layers) < 2
        self._fit_channels()
        self._redraw()

    @property
    def _channel(self) -> int:
        """The selected channel, which the layer has."""
        return min(self.channel.value, self._sizes.get(self.layer.value, 1) - 1)

    def _fit_channels(self, _: Any = None) -> None:
        """Let the slider of channels end at the last one of the layer."""
        if not self._loading:
            self._move_channel(self._channel)

    def _move_channel(self, channel: int) -> None:
        count = self._sizes.get(self.layer.value, 1)
        self._loading = True  # not a change by the user
        try:
            self.channel.max = max(count - 1, 1)
            self.channel.value = channel
        finally:
            self._loading = False
        self.channel.disabled = count < 2

    def _select_clicked(self, x: float, y: float) -> None:
        """Select the channel at this position in the figure."""
        areas = self._image(*self.state)[1]
        found = channel_figure.channel_at(areas, self._sizes, self.layer.value, x, y)
        if found and found != (self.layer.value, self._channel):
            self._loading = True  # one redraw for both
            try:
                self.layer.value = found[0]
            finally:
                self._loading = False
            self._move_channel(found[1])
            self._redraw()

    @property
    def state(self) -> tuple[int, str, int, float]:
        """Epoch (0-based), layer, channel and threshold of the sliders."""
        epoch = min(self.epoch.value, len(self.records.epochs)) - 1
        known = self.records.filter_norms(self.records.epochs[epoch]) is not None
        threshold = self.threshold.value if known else 0.0
        return self.records.epochs[epoch], self.layer.value, self._channel, threshold

    def figure(self) -> Figure:
        """Return the displayed figure."""
        return self._draw(*self.state) if self.records.epochs else figures.message(self.summary()[0])

    def _draw(self, epoch: int, layer: str, channel: int, threshold: float) -> Figure:
        found = self.records.channels(epoch, threshold)
        title = f"Channels after epoch {epoch + 1}"
        norms = found.norms[layer] if found.norms else None
        cut = 0.0 if norms is None else threshold * largest_norm(norms)
        history, course = self.records.history(layer, channel), self.records.norms[layer]
        return channel_figure.channels(found.states, layer, norms, cut, title, channel, history, course)

    def _redraw(self, _: Any = None) -> None:
        if self._loading:
            return
        if not self.records.epochs:
            self.threshold.disabled = True
            self.show(b"", self.summary())
            return
        self.threshold.disabled = self.records.filter_norms(self.state[0]) is None
        image, layer, channel = self._image(*self.state)[0], self.layer.value, self._channel
        if in_kernel() and (layer, channel) not in self._explained:
            self._background.start(lambda cancelled: self._explain(layer, channel, cancelled))
        with self.showing:
            self.show(image, self.summary(), described=2)

    def explain(self) -> list[str]:
        """Explain the selected channel as it is in the last checkpoint (see `codeq.explain`), and show the lines."""
        layer, channel = self.layer.value, self._channel
        self._explain(layer, channel, Event())
        return self._explained[layer, channel]

    def _explain(self, layer: str, channel: int, cancelled: Event) -> None:
        try:
            found = self.records.explain(layer, channel)
        except Exception as error:  # nobody sees it in the background
            named = "" if isinstance(error, CodeqError) else f"{type(error).__name__}: "
            found = [f"Channel {channel} cannot be explained: {named}{error}"]
        with self.showing:
            if not cancelled.is_set():
                self._explained[layer, channel] = found
                self.text.value = paragraphs(self.summary())

    def summary(self) -> list[str]:
        """Return the text summary of the figure, including what it cannot show."""
        if not self.records.epochs:
            return [self.records.no_epochs]
        epoch, layer, channel, threshold = self.state
        found = self.records.channels(epoch, threshold)
        alive, states = found.alive[layer], found.states[layer]
        all_alive, all_states = (np.concatenate(list(part.values())) for part in (found.alive, found.states))
        of = f"Epoch {epoch + 1} of {self._planned}"
        return [
            f"{of}, {layer}: {alive.sum()} of {alive.size} filters alive, {(~alive).sum()} dead.",
            f"Channel {channel}: {describe_history(self.records.history(layer, channel))}. "
            + sentence(describe_norms(self.records.norms[layer][:, channel].tolist())),
            *self._explained.get((layer, channel), ["Explaining …"] if in_kernel() else []),
            *self._skip(layer, states),
            f"Whole network: {all_alive.sum()} of {all_alive.size} filters alive, {(~all_alive).sum()} dead; "
            f"{(all_states == State.KEPT).sum()} of their channels are kept alive by a skip connection.",
            self._source(epoch, threshold, found),
            *(f"Note: {note}" for note in self._notes()),
        ]

    def _skip(self, layer: str, states: np.ndarray) -> list[str]:
        kept, dead, idle = ((states == state).sum() for state in (State.KEPT, State.DEAD, State.IDLE))
        lines = []
        if kept:
            lines.append(
                f"Skip connection: {kept} channels of dead filters stay alive in the residual stream, because other "
                f"layers write to them; {dead} channels are dead in the stream, too."
            )
        elif layer in self.records.unfollowed:
            lines.append("The channels of this layer are not followed: layers that read them count them as live.")
        elif layer in self.records.summed:
            none = f"none of the {dead} dead channels is kept alive, no other layer writes to them"
            lines.append(f"Skip connection: {none if dead else 'all filters are alive'}.")
        elif not self.records.no_weights:
            lines.append("No skip connection is added to the output of this layer: a dead filter is a dead channel.")
        if idle:
            lines.append(f"{idle} filters read null channels only, and count as null.")
        return lines

    def _source(self, epoch: int, threshold: float, found: Channels) -> str:
        known = "masks and norms" if found.norms else "masks alone, without norms for a threshold"
        if self.records.no_weights:
            source = f"Recorded {known}; without a checkpoint skip connections are not known. {self.records.no_weights}"
        elif self.records.weights(epoch) is None:
            kept = [f"{kept + 1} ({role})" for kept, role in sorted(self.records.checkpoints.items())]
            where = f"Checkpoints exist of epoch {' and '.join(kept)}" if kept else "No recorded epoch has a checkpoint"
            source = f"Recorded {known}. {where}."
        else:
            source = f"Weights of checkpoint '{self.records.checkpoints[epoch]}'."
        if threshold:
            counted = (
                f"Filters with a norm up to {threshold:.2f} × the largest of their layer count as dead, in all layers."
            )
            return f"{counted} {source}"
        changed = sum(int((found.alive[name] != mask).sum()) for name, mask in self.records.masks[epoch].items())
        differs = f" {changed} filters differ from the recorded masks." if changed else ""
        advice = " Raise the threshold to find filters with small norms." if found.norms else ""
        return f"{source}{advice}{differs}"
