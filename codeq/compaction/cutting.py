"""Cutting of live channels to a budget of MACs: those that matter least for the loss are zeroed, group by group."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from codeq.common.errors import CodeqError
from codeq.flow.layers import kernels
from codeq.graph.baking import baked_copy
from codeq.graph.channels import CoupledGroups, coupled_groups
from codeq.graph.ops import ChannelGraph
from codeq.graph.tracing import trace
from codeq.metrics.bops import dense_stats
from codeq.metrics.records import measure
from codeq.quantizer.layers import latent_weight, scale_channels, swap_channels, transposed_groups


@dataclass(frozen=True)
class ChannelCut:
    """Result of `cut_channels`.

    Parameters
    ----------
    groups, cut : int
        Coupled groups of the network, and how many of them are zero after the cut.
    macs : float
        MACs that are left, as a fraction of the dense network's; a grouped convolution counts by its filters.
    """

    groups: int
    cut: int
    macs: float

    def __str__(self) -> str:
        return f"{self.cut} of {self.groups} prunable channels are zero, which leaves {self.macs:.1%} of the MACs"


def cut_channels(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], macs: float, input_size: tuple[int, int, int]
) -> ChannelCut:
    """Zero the channels that matter least for the loss until at most a fraction of the MACs is left, in place.

    The importance of a coupled group is the mean over batches of ``(Σ γ ∂L/∂γ + β ∂L/∂β)²``, the squared first-order
    change of the loss when the channel is removed (Molchanov et al., *Importance Estimation for Neural Network
    Pruning*, arXiv 1906.10771), summed over the BatchNorms behind the filters of the group; without BatchNorm the
    filter and its bias take the place of γ and β. The groups are cut one after the other, each time the one with the
    smallest importance per MAC that it uses.

    Other than the removal of dead channels this changes the outputs: train the network further.

    Parameters
    ----------
    model : Module
        Changed in place: filters, biases, scales and shifts of the cut groups become 0. Latent weights are zeroed where
        a layer is quantized, and a scale that depends on the weights may change with them.
    batches : iterable of (Tensor, Tensor)
        Training inputs `[N, C, H, W]`, normalized, and class numbers `[N]`, on the CPU.
    macs : float
        MACs of the dense network that may be left, a fraction.
    input_size : tuple of int
        `(C, H, W)` of one input.

    Raises
    ------
    CodeqError
        If `macs` is not between 0 and 1, there is no batch, no channel of the network can be removed, the gradients are
        not finite, or the budget is not reached while every layer keeps a channel.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    >>> batch = torch.ones(2, 1, 2, 2), torch.tensor([0, 1])
    >>> print(cut_channels(net, [batch], 0.5, (1, 2, 2)))
    2 of 4 prunable channels are zero, which leaves 50.0% of the MACs
    """
    check_macs(macs)
    graph = trace(model, input_size)
    groups = coupled_groups(graph)
    if not groups.count:
        raise CodeqError("no channel of the network can be removed: all of them reach its output or are not followed")
    plain = baked_copy(model).cpu().eval()
    alive = _alive(plain, groups)
    costs = _Costs(graph, groups, {layer.name: layer.macs for layer in dense_stats(measure(plain, input_size)).layers})
    score = _importance(plain, graph, groups, batches)
    while (left := costs.left(alive)) > macs:
        candidates = alive & ~costs.last(alive)
        if not candidates.any():
            raise CodeqError(f"macs={macs}: {left:.2%} of the MACs are left where every layer keeps one channel")
        quotient = np.where(candidates, score / costs.of_groups(alive).clip(min=1), np.inf)
        alive[quotient.argmin()] = False
    _zero(model, groups, alive)
    return ChannelCut(groups.count, int((~alive).sum()), left)


def check_macs(macs: float) -> None:
    """Raise a `CodeqError` if a fraction of MACs is not between 0 and 1."""
    if not 0 < macs < 1:
        raise CodeqError(f"macs={macs}: must be a fraction between 0 and 1")


class _Costs:
    """MACs of a network and of its groups, given which groups are alive."""

    def __init__(self, graph: ChannelGraph, groups: CoupledGroups, macs: dict[str, int]) -> None:
        layers = {op.layer: op.groups for op in graph.layers}
        self.writers, self.fixed_out = _counts(groups.count, [groups.writers[name] for name in layers])
        # A filter of a grouped convolution always reads the channels of its own group.
        none = np.zeros(0, dtype=int)
        readers = [groups.readers[name] if of == 1 else none for name, of in layers.items()]
        self.readers, self.fixed_in = _counts(groups.count, readers)
        self.fixed_in[[of > 1 for of in layers.values()]] = 1
        out, read = self._live(np.ones(groups.count, dtype=bool))
        self.unit = np.array([macs[name] for name in layers]) / (out * read)
        self.dense = float(sum(macs[name] for name in layers))

    def _live(self, alive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.writers @ alive + self.fixed_out, self.readers @ alive + self.fixed_in

    def left(self, alive: np.ndarray) -> float:
        """Return the MACs of the live channels, as a fraction of the dense network's."""
        out, read = self._live(alive)
        return float((self.unit * out * read).sum() / self.dense)

    def of_groups(self, alive: np.ndarray) -> np.ndarray:
        """Return the MACs that each group uses, `[groups]`."""
        out, read = self._live(alive)
        return (self.unit * read) @ self.writers + (self.unit * out) @ self.readers

    def last(self, alive: np.ndarray) -> np.ndarray:
        """Return the groups without which a layer would have no channel left to read or to write, `[groups]`."""
        sides = zip(self._live(alive), (self.writers, self.readers), strict=True)
        return np.any([((of > 0) & (live[:, None] - of < 1)).any(axis=0) for live, of in sides], axis=0)


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


def _importance(
    plain: nn.Module, graph: ChannelGraph, groups: CoupledGroups, batches: Iterable[tuple[Tensor, Tensor]]
) -> np.ndarray:
    """Return the importance of each group, `[groups]`, see `cut_channels`."""
    plain.requires_grad_(True)
    after = {name: graph.batchnorm_after(name) for name in groups.writers}
    scaled = {norm for norm in after.values() if norm and [*plain.get_submodule(norm).parameters()]}
    gates = {norm: groups.batchnorms[norm] for norm in scaled}
    gates |= {name: of for name, of in groups.writers.items() if after[name] not in scaled}
    total, count = np.zeros(groups.count), 0
    for x, y in batches:
        plain.zero_grad()
        nn.functional.cross_entropy(plain(x), y).backward()
        changes = np.zeros(groups.count)
        for name, of in gates.items():
            np.add.at(changes, of[of >= 0], _change(plain.get_submodule(name))[of >= 0])
        total += changes**2
        count += 1
    if not count:
        raise CodeqError("there are no batches to estimate the importance of channels from")
    if not np.isfinite(total).all():
        raise CodeqError("the gradients of the network are not finite: the importance of its channels is unknown")
    return total / count


def _change(module: nn.Module) -> np.ndarray:
    """Return ``Σ w ∂L/∂w`` of each output channel of a layer or a BatchNorm, `[channels]`, in the unit of the loss."""
    changes = []
    for parameter in module.parameters(recurse=False):
        if parameter.grad is not None:
            groups = transposed_groups(module) if parameter.ndim > 1 else None
            product = swap_channels((parameter * parameter.grad).detach(), groups)
            changes.append(product.reshape(len(product), -1).sum(1).double().numpy())
    return np.sum(changes, axis=0)


@torch.no_grad()
def _zero(model: nn.Module, groups: CoupledGroups, alive: np.ndarray) -> None:
    for name, of in groups.writers.items():
        layer = model.get_submodule(name)
        _mask(latent_weight(layer), of, alive, transposed_groups(layer))
        if isinstance(bias := getattr(layer, "bias", None), Tensor):
            _mask(bias, of, alive)
    for name, of in groups.batchnorms.items():
        for parameter in model.get_submodule(name).parameters():
            _mask(parameter, of, alive)


def _mask(parameter: Tensor, of: np.ndarray, alive: np.ndarray, transposed: int | None = None) -> None:
    scale_channels(parameter, torch.from_numpy((of < 0) | alive[of]).to(parameter), transposed)
