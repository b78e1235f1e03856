"""What the figures of a run are drawn from: its tables and its weights."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import nn

from codeq.analysis.published import published_for
from codeq.analysis.selection import recorded_layers
from codeq.analysis.tables import layer_costs, summary_table
from codeq.analysis.weights import latent_weights, per_channel, weight_levels
from codeq.common.errors import CodeqError, unknown_name
from codeq.models import build_model
from codeq.quantizer.attach import forward_weight, named_layers, weight_quantization
from codeq.runs import Run

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

SMALL = 64  # filters; kernels of larger layers are too many to tell apart by eye


class Source:
    """What the figures of one run are drawn from, each part read once and only when it is needed."""

    def __init__(self, run: Run, layer: str | None, epoch: int | None, compared: Sequence[Run] = ()) -> None:
        self.run, self.asked, self.epoch, self.compared = run, layer, epoch, compared

    @cached_property
    def history(self) -> pd.DataFrame:
        """What was measured after each epoch; an error if nothing was."""
        history = self.run.history
        if not len(history):
            raise CodeqError(f"no epoch has been recorded; the run's status is {self.run.status!r}")
        return history

    @cached_property
    def layers(self) -> pd.DataFrame:
        """A row a layer and epoch, of the epochs written in full."""
        return recorded_layers(self.run)

    @cached_property
    def costs(self) -> pd.DataFrame:
        """What every layer costs at the chosen epoch."""
        return layer_costs(self.run, self.epoch)

    @cached_property
    def last(self) -> pd.DataFrame:
        """The rows of `layers` of the chosen epoch."""
        epoch = self.layers["epoch"].max() if self.epoch is None else self.epoch
        return self.layers[self.layers["epoch"] == epoch].reset_index(drop=True)

    @cached_property
    def liveness(self) -> dict[str, np.ndarray]:
        """Which filters of every layer live at the chosen epoch."""
        return self.run.liveness(int(self.last["epoch"].iloc[0]))

    @property
    def tradeoff(self) -> tuple[pd.DataFrame, pd.DataFrame, bool]:
        """What every run that has been evaluated achieved, published results, and whether they are comparable."""
        runs = {run.folder.resolve(): run for run in (self.run, *self.compared)}
        summary = summary_table(list(runs.values()))
        summary = summary[summary["accuracy"].notna()]
        if not len(summary):
            raise CodeqError("no epoch has been evaluated")
        return summary, *published_for(summary)

    @cached_property
    def model(self) -> nn.Module:
        """The network of the last checkpoint."""
        return self.run.load_model()

    @cached_property
    def quantized(self) -> list[str]:
        """Names of the quantized layers."""
        return [name for name, layer in named_layers(self.model) if weight_quantization(layer)]

    @cached_property
    def weights(self) -> dict[str, np.ndarray]:
        """The weights that the forward pass uses, by layer."""
        with torch.no_grad():
            return {name: forward_weight(layer).cpu().numpy() for name, layer in named_layers(self.model)}

    @cached_property
    def layer(self) -> str:
        """The layer asked for, or the sparsest of the quantized ones that are small enough to look at."""
        if self.asked:
            return self.asked
        sizes = {name: len(weight) for name, weight in self.weights.items()}
        names = self.quantized or list(sizes)
        small = [name for name in names if sizes[name] <= max(SMALL, min(sizes[n] for n in names))]
        return max(small, key=lambda name: (self.weights[name] == 0).mean())

    @property
    def unit(self) -> str:
        """What the weights of `layer` are measured in, if not in themselves."""
        return "R of its channel" if per_channel(self.model, self.layer) else ""

    def levels(self, name: str) -> tuple[np.ndarray, pd.DataFrame]:
        """Return the latent weights of a layer and their levels."""
        return latent_weights(self.model, name), weight_levels(self.model, name)

    def all_levels(self) -> dict[str, tuple[np.ndarray, pd.DataFrame]]:
        """Return the same of every quantized layer, or raise a `CodeqError` if there is none."""
        if not self.quantized:
            raise CodeqError("no layer is quantized, so there are no levels to draw")
        return {name: self.levels(name) for name in self.quantized}


def check_choice(run: Run, layer: str | None, epoch: int | None = None) -> None:
    """Raise a `CodeqError` if the layer or the epoch that somebody asks for does not exist in a run.

    Of a run that has recorded nothing yet, any epoch may be asked for: its figures say that there is none.
    """
    recorded = run.layers
    if layer is not None:
        names = list(recorded["layer"].unique()) if len(recorded) else _configured_layers(run)
        if layer not in names:
            raise unknown_name("layer", layer, names)
    if epoch is not None and len(recorded):
        layer_costs(run, epoch)


def _configured_layers(run: Run) -> list[str]:
    config = run.config
    model = build_model(config.model, config.num_classes or 1, config.model_kwargs, img_size=config.img_size)
    return [name for name, _ in named_layers(model)]
