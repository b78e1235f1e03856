"""Cutting of live channels to a budget: those that matter least for the loss are zeroed, group by group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor, nn

from codeq.common.checks import at_least, is_number
from codeq.common.errors import CodeqError, quote
from codeq.compaction.importance import group_importance
from codeq.compaction.latency import Prices
from codeq.flow import channel_flow
from codeq.flow.layers import kernels
from codeq.graph.affine import weight_and_bias
from codeq.graph.baking import baked_copy
from codeq.graph.channels import CoupledGroups, coupled_groups
from codeq.graph.coupled_group import without_layers
from codeq.graph.ops import ChannelGraph
from codeq.graph.tracing import trace
from codeq.metrics.bops import dense_stats
from codeq.metrics.records import LayerRecord, measure
from codeq.quantizer.layers import latent_weight, reason_not_prunable
from codeq.quantizer.transposed import scale_channels, transposed_groups

MACS = Prices()


@dataclass(frozen=True)
class ChannelCut:
    """Result of `cut_channels`.

    Parameters
    ----------
    groups, cut : int
        Coupled groups of the network, and how many of them are zero after the cut.
    macs : float
        MACs that are left, as a fraction of the dense network's; a grouped convolution counts by its filters.
    cost : float
        The same at the prices of the budget.
    """

    groups: int
    cut: int
    macs: float
    cost: float

    def __str__(self) -> str:
        time = f" and, as estimated, {self.cost:.1%} of the time" if self.cost != self.macs else ""
        return f"{self.cut} of {self.groups} prunable channels are zero, which leaves {self.macs:.1%} of the MACs{time}"


@torch.inference_mode(False)
def cut_channels(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    budget: float,
    input_size: tuple[int, int, int],
    multiple_of: int = 1,
    prices: Prices = MACS,
    constants: bool = True,
) -> ChannelCut:
    """Zero the channels that matter least for the loss until at most a fraction of the cost is left, in place.

    The importance of a coupled group is the mean over batches of ``(Σ γ ∂L/∂γ + β ∂L/∂β)²``, the squared first-order
    change of the loss when the channel is removed (Molchanov et al., *Importance Estimation for Neural Network
    Pruning*, arXiv 1906.10771), summed over the BatchNorms behind the filters of the group; without BatchNorm the
    filter and its bias take the place of γ and β. The groups are cut one after the other, each time the one with the
    smallest importance for its cost; with `multiple_of`, as many at a time, of the same layers. Where the last of them
    save more than the budget asks for, those cut before come back, the last ones first, as long as the budget allows.

    Other than the removal of dead channels this changes the outputs: train the network further.

    Parameters
    ----------
    model : Module
        Changed in place: filters, biases, scales and shifts of the cut groups become 0. Latent weights are zeroed where
        a layer is quantized, and a scale that depends on the weights may change with them.
    batches : iterable of (Tensor, Tensor)
        Training inputs `[N, C, H, W]`, normalized, and class numbers `[N]`, on the CPU.
    budget : float
        Cost of the dense network that may be left, a fraction.
    input_size : tuple of int
        `(C, H, W)` of one input.
    multiple_of : int
        Channels that are read and written by the same layers are cut down to multiples of it, which processors compute
        as fast as fewer ones.
    prices : Prices
        What the cost is: MACs, or time, see `codeq.compaction.latency.measured_prices`.
    constants : bool
        Whether the constants stay that biases and BatchNorms make of channels that are dead already. They cost nothing,
        except where `compact` is called with ``borders="live"``, which keeps such channels before zero-padded layers.

    Raises
    ------
    CodeqError
        If `budget` is not between 0 and 1, `multiple_of` is no positive integer, there is no batch, or one without
        labels of the model's classes, no channel of the network can be removed, the gradients are not finite, the
        budget is not reached while every layer keeps a channel, or the weights of a layer are computed such that its
        filters cannot be zeroed (`weight_norm`).

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    >>> batch = torch.ones(2, 1, 2, 2), torch.tensor([0, 1])
    >>> print(cut_channels(net, [batch], 0.5, (1, 2, 2)))
    2 of 4 prunable channels are zero, which leaves 50.0% of the MACs
    """
    check_budget("budget", budget)
    at_least("multiple_of", multiple_of, 1)
    graph = trace(model, input_size)
    plain = baked_copy(model).cpu().eval()
    kept_whole = {call.name for call in channel_flow(plain, input_size).layers if call.opaque}
    groups = without_layers(coupled_groups(graph), kept_whole)
    if not groups.count:
        raise CodeqError("no channel of the network can be removed: all of them reach its output or are not followed")
    for name, of in groups.writers.items():
        if (of >= 0).any() and (reason := reason_not_prunable(name, model.get_submodule(name))):
            raise CodeqError(reason)
    alive = _alive(plain, groups)
    dead = ~alive
    score = group_importance(plain, graph, groups, batches)
    spaces = _Spaces(graph, groups, measure(plain, input_size), prices)
    least_first = [members[np.argsort(score[members], kind="stable")] for members in spaces.members(alive)]
    channels = np.array([len(members) for members in least_first])
    cuts: list[tuple[int, np.ndarray]] = []
    while (left := spaces.cost(channels)) > budget * spaces.dense_cost:
        blocks = np.where(channels > 0, (channels - 1) % multiple_of + 1, 0)
        possible = spaces.may_lose(channels, blocks)
        if not possible.any():
            kept = "one channel" if multiple_of == 1 else f"{multiple_of} channels"
            share = left / spaces.dense_cost
            raise CodeqError(
                f"{budget:.4%} of the cost cannot be reached: {share:.2%} is left where every layer keeps {kept}"
            )
        lost = np.array([score[members[:block]].sum() for members, block in zip(least_first, blocks, strict=True)])
        quotient = lost / np.maximum(blocks * spaces.cost_of_one(channels), np.finfo(float).tiny)
        chosen = np.where(possible, quotient, np.inf).argmin()
        cut, least_first[chosen] = np.split(least_first[chosen], [blocks[chosen]])
        cuts.append((int(chosen), cut))
        channels[chosen] -= len(cut)
        alive[cut] = False
    _restore(alive, channels, cuts, spaces, budget * spaces.dense_cost)
    _zero(model, groups, alive, alive | dead if constants else alive)
    shares = spaces.macs(channels) / spaces.dense_macs, spaces.cost(channels) / spaces.dense_cost
    return ChannelCut(groups.count, int((~alive).sum()), *shares)


def _restore(
    alive: np.ndarray, channels: np.ndarray, cuts: list[tuple[int, np.ndarray]], spaces: _Spaces, allowed: float
) -> None:
    """Take back the cuts that `allowed` leaves room for, the last ones first, in place."""
    closed = set()  # a space gets its channels back in the order of their importance, or none
    for space, cut in reversed(cuts):
        channels[space] += len(cut)
        if space in closed or spaces.cost(channels) > allowed:
            channels[space] -= len(cut)
            closed.add(space)
        else:
            alive[cut] = True


def check_budget(name: str, budget: float) -> None:
    """Raise a `CodeqError` if a budget is not between 0 and 1."""
    if not is_number(budget) or not 0 < float(budget) < 1:
        raise CodeqError(f"{name}={quote(budget)}: must be a fraction between 0 and 1")


class _Spaces:
    """Sets of groups that the same layers write and read, and the cost of the network by their live channels."""

    def __init__(
        self, graph: ChannelGraph, groups: CoupledGroups, records: Sequence[LayerRecord], prices: Prices
    ) -> None:
        layers = {op.layer: op.groups for op in graph.layers}
        writers, self.fixed_out = _counts(groups.count, [groups.writers[name] for name in layers])
        # A filter of a grouped convolution always reads the channels of its own group.
        none = np.zeros(0, dtype=int)
        readers, self.fixed_in = _counts(
            groups.count, [groups.readers[name] if of == 1 else none for name, of in layers.items()]
        )
        self.fixed_in[[of > 1 for of in layers.values()]] = 1
        both, space_of = np.unique(np.vstack([writers, readers]), axis=1, return_inverse=True)
        self.space_of = space_of.reshape(-1)  # NumPy 2.0 returns `[1, groups]`
        self.writers, self.readers = np.split(both, 2)  # channels of each layer that one group has, `[layers, spaces]`
        all_channels = np.bincount(self.space_of)
        out, read = self._live(all_channels)
        macs = {layer.name: layer.macs for layer in dense_stats(records).layers}
        positions = Counter[str]()
        for op in graph.layers:
            positions[op.layer] += prod(op.spatial)
        self.prices, self.calls = prices, len(graph.weighted)
        self.kernel_macs = np.array([macs[name] for name in layers]) / (out * read)
        self.positions = np.array([positions[name] for name in layers])
        # Layers whose channels are not followed are never cut.
        others = [record for record in records if record.name not in layers]
        self.other_macs = sum(macs[record.name] for record in others)
        # Nor are the elements of other uses of a followed layer: a tied decoder may use the weights of an encoder.
        self.other_elements = sum(record.elements for record in records) - float(self.positions @ out)
        self.dense_macs, self.dense_cost = self.macs(all_channels), self.cost(all_channels)

    def members(self, alive: np.ndarray) -> list[np.ndarray]:
        """Return the live groups of each space."""
        return [np.flatnonzero((self.space_of == space) & alive) for space in range(self.writers.shape[1])]

    def _live(self, channels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.writers @ channels + self.fixed_out, self.readers @ channels + self.fixed_in

    def macs(self, channels: np.ndarray) -> float:
        """Return the MACs with `channels` live groups in each space."""
        out, read = self._live(channels)
        return float((self.kernel_macs * out * read).sum()) + self.other_macs

    def cost(self, channels: np.ndarray) -> float:
        """Return the cost with `channels` live groups in each space."""
        out, _ = self._live(channels)
        elements = float(self.positions @ out) + self.other_elements
        return self.prices.of(self.macs(channels), elements, self.calls)

    def cost_of_one(self, channels: np.ndarray) -> np.ndarray:
        """Return what one group of each space costs, `[spaces]`."""
        out, read = self._live(channels)
        macs = (self.kernel_macs * read) @ self.writers + (self.kernel_macs * out) @ self.readers
        return self.prices.mac * macs + self.prices.element * (self.positions @ self.writers)

    def may_lose(self, channels: np.ndarray, blocks: np.ndarray) -> np.ndarray:
        """Return the spaces that can lose `blocks` groups, while every layer keeps a channel to read and to write."""
        sides = zip(self._live(channels), (self.writers, self.readers), strict=True)
        emptied = [((of > 0) & (live[:, None] - of * blocks < 1)).any(axis=0) for live, of in sides]
        return (blocks > 0) & ~np.any(emptied, axis=0)


def _counts(groups: int, members: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return how many channels of each layer every group has, `[layers, groups]`, and how many are in none."""
    counts = [np.bincount(of[of >= 0], minlength=groups) for of in members]
    return np.stack(counts).astype(float), np.array([float((of < 0).sum()) for of in members])


def _alive(plain: nn.Module, groups: CoupledGroups) -> np.ndarray:
    """Return the groups with a weight that is not zero, `[groups]`."""
    alive = np.zeros(groups.count, dtype=bool)
    for name, of in groups.writers.items():
        alive[of[(of >= 0) & kernels(plain.get_submodule(name)).any(axis=1)]] = True
    return alive


@torch.no_grad()
def _zero(model: nn.Module, groups: CoupledGroups, alive: np.ndarray, shifted: np.ndarray) -> None:
    """Zero the filters of groups that are not `alive`, and the biases and BatchNorms of those not `shifted`."""
    for name, of in groups.writers.items():
        layer = model.get_submodule(name)
        _mask(latent_weight(layer), of, alive, transposed_groups(layer))
        if isinstance(bias := getattr(layer, "bias", None), Tensor):
            _mask(bias, of, shifted)
    for name, of in groups.batchnorms.items():
        for parameter in weight_and_bias(model.get_submodule(name)):
            _mask(parameter, of, shifted)


def _mask(parameter: Tensor, of: np.ndarray, alive: np.ndarray, transposed: int | None = None) -> None:
    scale_channels(parameter, torch.from_numpy((of < 0) | alive[of]).to(parameter), transposed)
