"""Alive channels and filter norms after each epoch of a run, with weights where a checkpoint exists."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from codeq.analysis.channel import filter_norms_by_epoch
from codeq.analysis.network import input_size_of
from codeq.analysis.recorded import recorded_layers
from codeq.common.errors import CodeqError
from codeq.flow.explain import explain
from codeq.graph.ops import ChannelGraph, UnfollowedWeight
from codeq.graph.tracing import trace
from codeq.metrics import nonzero_kernels
from codeq.metrics.encoding import decode_mask
from codeq.metrics.records import used_weights
from codeq.quantizer.layers import latent_weight, named_layers
from codeq.runs import Run
from codeq.runs.checkpoints import CheckpointName, read_manifest
from codeq.sparsity.norms import filter_norms
from codeq.widgets.background import WEIGHTS
from codeq.widgets.states import State, channel_states, largest_norm, residual_sums


@dataclass(frozen=True, eq=False)
class Weights:
    """Quantized weights of a checkpoint, reduced to kernels and filters.

    Parameters
    ----------
    nonzero : dict of str to array of bool
        For each layer `[c_out, c_in / groups]`, kernels with a non-zero weight.
    norms : dict of str to array of float
        For each layer `[c_out]`, the Euclidean norm of each filter's quantized weights.
    """

    nonzero: dict[str, np.ndarray]
    norms: dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Channels:
    """State of each channel of a network after one epoch.

    Parameters
    ----------
    states : dict of str to array of int
        For each layer `[c_out]`, the `State` of each channel.
    alive : dict of str to array of bool
        For each layer `[c_out]`, filters with a norm above the threshold.
    norms : dict of str to array of float, or None
        For each layer `[c_out]`; `None` if the epoch has no checkpoint and norms were not recorded.
    """

    states: dict[str, np.ndarray]
    alive: dict[str, np.ndarray]
    norms: dict[str, np.ndarray] | None


class ChannelRecords:
    """Alive masks and norms of all epochs of a run, and weights of those with a checkpoint.

    Parameters
    ----------
    run : Run
        In any state. Checkpoints are read on first use.

    Attributes
    ----------
    masks : dict of int to dict of str to array of bool
        For each recorded epoch and layer `[c_out]`, filters with a non-zero weight.
    norms : dict of str to array of float
        For each layer `[epochs, c_out]`, the recorded norms of its filters; without epochs if they were not recorded.
    no_epochs : str
        Reason why there are no epochs; empty if there are some.
    no_weights : str
        Reason why there are no weights at all; empty if the model could be loaded.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.masks: dict[int, dict[str, np.ndarray]] = {}
        self.norms: dict[str, np.ndarray] = {}
        self.no_epochs = self.no_weights = ""
        try:
            table = recorded_layers(run)
            columns = (table[name] for name in ("epoch", "layer", "alive", "filters"))
            for epoch, layer, digits, count in zip(*columns, strict=True):
                self.masks.setdefault(int(epoch), {})[layer] = decode_mask(digits, count)
            self.norms = {str(name): filter_norms_by_epoch(rows) for name, rows in table.groupby("layer")}
        except (ValueError, TypeError) as error:  # nothing recorded, or a damaged table
            self.masks, self.no_epochs = {}, str(error)
        self.checkpoints: dict[int, CheckpointName] = {}
        self._files: dict[int, str] = {}  # of these checkpoints; a running training gives their names to others
        self.summed: frozenset[str] = frozenset()  # layers whose output is read by a residual sum alone
        self.unfollowed: frozenset[str] = frozenset()  # those whose channels are not followed
        self._model: nn.Module | None = None
        self._graph: ChannelGraph | None = None
        self._inputs: dict[str, int] = {}  # input channels of each filter of the layers in the graph
        self._weights: dict[int, Weights] = {}
        try:
            self._find_checkpoints()
        except CodeqError as error:
            self.no_weights = str(error)

    def _find_checkpoints(self) -> None:
        model = self.run.load_model("last")
        self._input_size = input_size_of(self.run, model)
        self._graph = trace(model, self._input_size)
        self._model = model
        self.summed = frozenset(residual_sums(self._graph))
        self.unfollowed = frozenset(op.weight for op in self._graph.ops if isinstance(op, UnfollowedWeight))
        layers = dict(named_layers(model))
        self._inputs = {op.layer: latent_weight(layers[op.layer]).shape[1] for op in self._graph.layers}
        manifest = read_manifest(self.run.checkpoints)
        roles: tuple[CheckpointName, ...] = ("best", "last")
        for role in roles:
            entry = manifest.get(role)
            # Without an accuracy it was saved within an epoch, and no mask was recorded for its weights.
            if entry and entry.accuracy is not None and entry.epoch in self.masks:
                self.checkpoints[entry.epoch] = role
                self._files[entry.epoch] = entry.file

    @torch.no_grad()
    def _read(self, model: nn.Module) -> Weights:
        assert self._graph is not None  # as for every run with checkpoints
        weights = used_weights(model, self._graph, self.norms)
        return Weights(
            {name: nonzero_kernels(weight) for name, weight in weights.items()},
            {name: filter_norms(weight.double()).numpy() for name, weight in weights.items()},  # as recorded
        )

    @property
    def epochs(self) -> list[int]:
        """Recorded epochs, 0-based."""
        return list(self.masks)

    def weights(self, epoch: int) -> Weights | None:
        """Return the weights after `epoch` (0-based), or `None` without a checkpoint of it."""
        if epoch in self.checkpoints and epoch not in self._weights:
            try:
                with WEIGHTS:
                    self._weights[epoch] = self._read(self.run.load_model(self._files[epoch]))
            except CodeqError:  # deleted since by a running training, or damaged
                del self.checkpoints[epoch]
        return self._weights.get(epoch)

    def filter_norms(self, epoch: int) -> dict[str, np.ndarray] | None:
        """Return the norms of the filters of each layer after `epoch` (0-based), or `None` if they are not known."""
        if weights := self.weights(epoch):
            return weights.norms
        place = self.epochs.index(epoch)
        return (
            {name: norms[place] for name, norms in self.norms.items()} if all(map(len, self.norms.values())) else None
        )

    def history(self, layer: str, channel: int) -> list[bool]:
        """Return for each recorded epoch whether the filter of an output channel was alive."""
        return [bool(masks[layer][channel]) for masks in self.masks.values()]

    def explain(self, layer: str, channel: int) -> list[str]:
        """Explain a channel of the last checkpoint, see `codeq.explain`, as one sentence per line.

        Raises
        ------
        CodeqError
            Without a checkpoint, or if the model cannot be followed.
        """
        if self._model is None:
            raise CodeqError(self.no_weights)
        with WEIGHTS:
            found = explain(self._model, layer, channel, self._input_size)
        return [f"Channel {channel} in the last checkpoint: {found.kind}.", *map(sentence, found.reasons)]

    def channels(self, epoch: int, threshold: float = 0.0) -> Channels:
        """Return the state of every channel after `epoch` (0-based).

        Parameters
        ----------
        epoch : int
            One of `epochs`.
        threshold : float
            Fraction of the largest norm of each layer, up to which filters count as dead; ignored without norms. Those
            of NaN are alive.
        """
        alive, weights, norms = self.masks[epoch], self.weights(epoch), self.filter_norms(epoch)
        if norms is not None:
            alive = {name: ~(norms[name] <= threshold * largest_norm(norms[name])) for name in alive}
        states = {name: np.where(mask, State.ALIVE, State.DEAD) for name, mask in alive.items()}
        if self._graph is None:
            return Channels(states, alive, norms)
        if weights is None:  # filters as a whole were recorded
            nonzero = {name: np.repeat(alive[name][:, None], count, axis=1) for name, count in self._inputs.items()}
        else:
            nonzero = {name: weights.nonzero[name] & alive[name][:, None] for name in self._inputs}
        followed = channel_states(self._graph, nonzero)
        states |= {name: found for name, found in followed.items() if name not in self.unfollowed}
        return Channels(states, alive, norms)


def sentence(text: str) -> str:
    """Return a text as a sentence.

    Examples
    --------
    >>> sentence("its norm was 0.5"), sentence("layer1.0.conv2[0] writes it")
    ('Its norm was 0.5.', 'layer1.0.conv2[0] writes it.')
    """
    first = text.split(" ")[0]
    return f"{text if '.' in first else text[0].upper() + text[1:]}."  # names of layers keep their case
