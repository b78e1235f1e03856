"""`LivenessExplorer`: which channels of a run live, epoch by epoch and layer by layer, and what keeps them alive."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import ipywidgets  # type: ignore[import-untyped]
import numpy as np

from codeq.runs import Run
from codeq.widgets import figures
from codeq.widgets.panel import Panel, drawn, paragraphs, slider
from codeq.widgets.records import ChannelRecords, Channels
from codeq.widgets.states import State

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class LivenessExplorer(Panel):
    """Sliders for epoch, layer and the norm up to which a filter counts as dead.

    The threshold is a fraction of each layer's largest norm, since norms of different layers do not compare. Norms need
    weights, so it can be moved only at epochs whose checkpoint was kept: the last and the best.

    Parameters
    ----------
    run : Run
        In any state; what it has not recorded is named in the summary.

    Attributes
    ----------
    epoch : IntSlider
        1-based, as on screen everywhere.
    layer : SelectionSlider
        Name of the layer shown in detail.
    threshold : FloatSlider
        0 … 1, of the largest norm of each layer's quantized filters.

    Examples
    --------
    >>> import tempfile
    >>> from codeq.config import ExperimentConfig
    >>> with tempfile.TemporaryDirectory() as home:
    ...     explorer = LivenessExplorer(Run.create(ExperimentConfig("new", run_dir=f"{home}/new")))
    >>> explorer.text.value
    '<div ...><b>new has recorded no epoch yet; its status is running.</b></div>'
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.records = ChannelRecords(run)
        self._planned = run.config.epochs
        epochs, layers = self.records.epochs, list(next(iter(reversed(self.records.masks.values())), {}))
        # A slider of one place is an error in the browser: it gets a second one, and is switched off.
        self.epoch = slider(ipywidgets.IntSlider, "epoch", min=1, max=max(2, len(epochs)), value=max(1, len(epochs)))
        self.epoch.disabled = len(epochs) < 2
        self.layer = slider(ipywidgets.SelectionSlider, "layer", options=layers if len(layers) > 1 else [*layers, "–"])
        self.layer.disabled = len(layers) < 2
        self.threshold = slider(ipywidgets.FloatSlider, "norm threshold", min=0, max=1, step=0.01)
        super().__init__([self.epoch, self.layer, self.threshold])
        self._picture = lru_cache(maxsize=256)(lambda *state: drawn(self._draw, *state))
        if epochs:
            for control in (self.epoch, self.layer, self.threshold):
                control.observe(self._redraw, "value")
        self._redraw()

    @property
    def state(self) -> tuple[int, str, float]:
        """Epoch (0-based), layer and threshold that the sliders stand at."""
        epoch = min(self.epoch.value, len(self.records.epochs)) - 1
        known = self.records.weights(self.records.epochs[epoch]) is not None
        return self.records.epochs[epoch], self.layer.value, self.threshold.value if known else 0.0

    def figure(self) -> Figure:
        """Return the picture that is shown, as a matplotlib `Figure`."""
        return self._draw(*self.state) if self.records.epochs else figures.message(self.summary()[0])

    def _draw(self, epoch: int, layer: str, threshold: float) -> Figure:
        found = self.records.channels(epoch, threshold)
        title = f"Channels after epoch {epoch + 1}"
        norms = found.norms[layer] if found.norms else None
        cut = 0.0 if norms is None else threshold * float(norms.max())
        return figures.channels(found.states, layer, norms, cut, title)

    def _redraw(self, _: Any = None) -> None:
        if not self.records.epochs:
            self.threshold.disabled = True
            self.show(b"", paragraphs(self.summary()))
            return
        self.threshold.disabled = self.records.weights(self.state[0]) is None
        self.show(self._picture(*self.state), paragraphs(self.summary()))

    def summary(self) -> list[str]:
        """Return in words what the picture shows, and what it cannot show."""
        if not self.records.epochs:
            why = f" {self.run.message}" if self.run.message else ""
            return [f"{self.run.folder.name} has recorded no epoch yet; its status is {self.run.status}.{why}"]
        epoch, layer, threshold = self.state
        found = self.records.channels(epoch, threshold)
        alive, states = found.alive[layer], found.states[layer]
        every_alive, every_state = (np.concatenate(list(part.values())) for part in (found.alive, found.states))
        of = f"Epoch {epoch + 1} of {self._planned}"
        return [
            f"{of}, {layer}: {alive.sum()} of {alive.size} filters alive, {(~alive).sum()} dead.",
            *self._skip(layer, states),
            f"Whole network: {every_alive.sum()} of {every_alive.size} filters alive, {(~every_alive).sum()} dead; "
            f"{(every_state == State.KEPT).sum()} of their channels live on through a skip connection.",
            self._source(epoch, threshold, found),
        ]

    def _skip(self, layer: str, states: np.ndarray) -> list[str]:
        kept, dead, idle = ((states == state).sum() for state in (State.KEPT, State.DEAD, State.IDLE))
        words = []
        if kept:
            words.append(
                f"Skip connection: of the filters that write nothing, {kept} have a channel that stays alive in the "
                f"residual stream, because other layers write to it; {dead} channels are dead in the stream, too."
            )
        elif layer in self.records.summed:
            none = f"it keeps none of the {dead} dead channels alive, as nothing else writes to them"
            words.append(f"Skip connection: {none if dead else 'no channel needs it, all filters write'}.")
        elif not self.records.problem:
            words.append("No skip connection is added to what this layer writes: a dead filter is a dead channel.")
        if idle:
            words.append(f"{idle} filters have weights on null channels alone, and count as null.")
        return words

    def _source(self, epoch: int, threshold: float, found: Channels) -> str:
        if self.records.problem:
            return (
                "Only the recorded alive masks are shown: without a checkpoint there are neither norms (so no "
                f"threshold) nor skip connections to follow. {self.records.problem}"
            )
        if found.norms is None:
            kept = [f"{kept + 1} ({role})" for kept, role in sorted(self.records.checkpoints.items())]
            where = f"weights were kept only of epoch {' and '.join(kept)}" if kept else "no recorded epoch's were kept"
            return (
                "Known of this epoch: the alive masks, which is also what the skip connections are judged by. A norm "
                f"threshold needs weights, and {where}; so it is switched off here."
            )
        role = self.records.checkpoints[epoch]
        if threshold:
            return (
                f"Filters with a norm up to {threshold:.2f} of their layer's largest count as dead, in all layers; "
                f"weights of checkpoint '{role}'."
            )
        changed = sum(int((found.alive[name] != mask).sum()) for name, mask in self.records.masks[epoch].items())
        differs = f" {changed} filters differ from what the training recorded." if changed else ""
        return f"Weights of checkpoint '{role}'. Raise the threshold to see which filters go first.{differs}"
