"""Data behind the figures of a run: its tables and weights, read lazily."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from codeq.analysis.activations import activation_levels
from codeq.analysis.comparison import common_layers, distinct_names, mean_over_seeds
from codeq.analysis.network import configured_model, run_notes
from codeq.analysis.published import published_for
from codeq.analysis.recorded import last_layers, recorded_history, recorded_layers, unreadable
from codeq.analysis.subset import evaluation_subset
from codeq.analysis.tables import layer_costs
from codeq.analysis.weights import find_layer, latent_weights, level_unit, sparsest_layer, weight_levels
from codeq.common.errors import CodeqError, unknown_name
from codeq.config import ExperimentConfig
from codeq.quantizer.layers import forward_weight, named_layers, weight_quantization
from codeq.quantizer.transposed import swap_channels, transposed_groups
from codeq.runs import Run
from codeq.runs.references import require_run, require_runs

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

ACTIVATION_IMAGES = 128  # evaluation images whose activations are drawn, evenly spaced


class Source:
    """Tables and weights of one run, each read once and only when needed."""

    def __init__(self, run: Run, layer: str | None, epoch: int | None, compared: Sequence[Run] = ()) -> None:
        self.run, self.asked, self.epoch, self.compared = require_run(run), layer, epoch, require_runs(compared)

    @cached_property
    def history(self) -> pd.DataFrame:
        """Metrics of each epoch."""
        return recorded_history(self.run)

    @cached_property
    def layers(self) -> pd.DataFrame:
        """One row per layer and completely recorded epoch."""
        return recorded_layers(self.run)

    @cached_property
    def costs(self) -> pd.DataFrame:
        """Cost of each layer at the chosen epoch."""
        return layer_costs(self.run, self.epoch)

    @cached_property
    def last(self) -> pd.DataFrame:
        """Rows of `layers` of the chosen epoch."""
        return last_layers(self.run, self.epoch)

    @cached_property
    def liveness(self) -> dict[str, np.ndarray]:
        """Liveness of the filters of each layer at the chosen epoch."""
        return self.run.liveness(int(self.last["epoch"].iloc[0]))

    @cached_property
    def all_runs(self) -> list[Run]:
        """The run, and those that it is compared with."""
        return list({run.folder.resolve(): run for run in (self.run, *self.compared)}.values())

    @cached_property
    def recorded(self) -> dict[str, Run]:
        """Those among `all_runs` that have recorded an epoch, by names that say what differs."""
        runs = [run for run in self.all_runs if run.folder not in self.unrecorded]
        return dict(zip(distinct_names(runs), runs, strict=True))

    @cached_property
    def unrecorded(self) -> dict[Path, str]:
        """Folders of those among `all_runs` that have no epoch, or a table that cannot be read, with the reason."""
        return {run.folder: why for run in self.all_runs if (why := unreadable(recorded_history, run))}

    @cached_property
    def without_layers(self) -> dict[Path, str]:
        """Folders of those among `recorded` whose table of layers cannot be read, with the reason."""
        return {run.folder: why for run in self.recorded.values() if (why := unreadable(last_layers, run))}

    @property
    def tradeoff(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Results of all evaluated runs, means over seeds, and published results that are comparable."""
        summary = mean_over_seeds(self.all_runs)
        return summary, published_for(summary)

    @property
    def compared_histories(self) -> dict[str, pd.DataFrame]:
        """Metrics of each epoch of the recorded runs, at least two."""
        _require_two(self.recorded, self.unrecorded)
        return {name: run.history for name, run in self.recorded.items()}

    @property
    def compared_layers(self) -> pd.DataFrame:
        """Layers that all recorded runs have, at least two, whose tables of layers can be read."""
        runs = {name: run for name, run in self.recorded.items() if run.folder not in self.without_layers}
        _require_two(runs, {**self.unrecorded, **self.without_layers})
        layers, _ = common_layers(list(runs.values()), list(runs))
        if not len(layers):
            raise CodeqError("the runs have no layer in common")
        return layers

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """Omissions and assumptions of the costs of the run, one sentence each."""
        return run_notes(self.run)

    @cached_property
    def notes_of_compared(self) -> tuple[str, ...]:
        """Return the same of the runs that it is compared with; the networks of unfinished ones are traced for them."""
        return tuple(note for run in self.compared for note in run_notes(run))

    def notes_of_all(self, layers: bool) -> tuple[str, ...]:
        """Return the same of the run and of those that it is compared with, each sentence once.

        First of all which runs are left out, with `layers` also those without a table of them.
        """
        reasons = {**self.unrecorded, **(self.without_layers if layers else {})}.values()
        left_out = (f"a run is left out: {reason}" for reason in reasons)
        return tuple(dict.fromkeys((*left_out, *self.notes, *self.notes_of_compared)))

    @cached_property
    def model(self) -> nn.Module:
        """Network of the last checkpoint."""
        return self.run.load_model()

    @cached_property
    def quantized(self) -> list[str]:
        """Names of the quantized layers."""
        return [name for name, layer in named_layers(self.model) if weight_quantization(layer)]

    @cached_property
    def weights(self) -> dict[str, np.ndarray]:
        """Weights of the forward pass, by layer, `[c_out, c_in / groups, ...]`."""
        with torch.no_grad():
            return {
                name: swap_channels(forward_weight(layer), transposed_groups(layer)).float().cpu().numpy()
                for name, layer in named_layers(self.model)
            }

    @cached_property
    def layer(self) -> str:
        """The chosen layer; default the sparsest of the small quantized ones."""
        if self.asked:
            if self.asked not in self.weights:
                raise CodeqError(f"the weights of {self.asked!r} are not drawn: it is no conv or linear layer")
            return self.asked
        return sparsest_layer(self.model)

    @property
    def unit(self) -> str:
        """Unit of the weights of all quantized layers, whose quantizers are of one kind, if they are scaled."""
        return next((unit for name in self.quantized if (unit := level_unit(find_layer(self.model, name)))), "")

    def activations(self) -> dict[str, tuple[np.ndarray, pd.DataFrame]]:
        """Return the inputs of the layers with quantized activations on a few evaluation images, and their levels."""
        batches = evaluation_subset(self.run.config, ACTIVATION_IMAGES)
        return activation_levels(self.model, [images for images, _ in batches])

    def levels(self, name: str) -> tuple[np.ndarray, pd.DataFrame]:
        """Return the latent weights of a layer and their levels."""
        return latent_weights(self.model, name), weight_levels(self.model, name)

    def all_levels(self) -> dict[str, tuple[np.ndarray, pd.DataFrame]]:
        """Return `levels` of each quantized layer, or raise a `CodeqError` if there is none."""
        if not self.quantized:
            raise CodeqError("no layer is quantized, so there are no levels to draw")
        return {name: self.levels(name) for name in self.quantized}


def _require_two(runs: Sized, left_out: Mapping[Path, str]) -> None:
    """Raise a `CodeqError` with the reasons of the runs that are left out, unless at least two remain."""
    if len(runs) < 2:
        raise CodeqError(f"a comparison needs two runs, here {len(runs)}: {'; '.join(left_out.values())}")


def check_choice(run: Run, layer: str | None, epoch: int | None = None) -> None:
    """Raise a `CodeqError` if a layer or an epoch does not exist in a run.

    Of a run without a recorded epoch any epoch is accepted: its figures report that there is none.
    """
    require_run(run)
    try:
        names = list(recorded_layers(run)["layer"].unique())
    except CodeqError:
        if layer is not None:
            check_layer(run.config, layer)
        return
    if epoch is not None:
        last_layers(run, epoch)
    if layer is not None and layer not in names:
        raise unknown_name("layer", layer, names)


def check_layer(config: ExperimentConfig, layer: str | None) -> None:
    """Raise a `CodeqError` if the network of `config` has no conv or linear layer of that name; `None` is accepted."""
    if layer is not None:
        model = configured_model(config, num_classes=1)
        known = [name for name, _ in named_layers(model)]
        if layer not in known:
            raise unknown_name("layer", layer, known)
