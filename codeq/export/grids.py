"""Quantization grids of the weights of layers: the levels `s q + δ sign(q)`, and the codes `q` of weights on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from codeq.common.errors import CodeqError
from codeq.compaction import CompactionReport
from codeq.quantizer.layers import bitwidth, latent_weight, named_layers, weight_quantization, weights_by_scale
from codeq.quantizer.modules import grid_quantizer
from codeq.quantizer.transposed import swap_channels, transposed_groups


@dataclass(frozen=True, eq=False)
class Grid:
    """Levels ``s q + δ sign(q)`` of one layer, paper eq. (10).

    Parameters
    ----------
    step, shift : Tensor
        `s` and `δ`: ``[]``, or `[c_out, 1, …]` for one grid per output channel.
    groups : int or None
        Groups of a transposed convolution, whose output channels are not in the first dimension; see `swap_channels`.

    Examples
    --------
    >>> grid = Grid(torch.tensor(0.5), torch.tensor(0.25))
    >>> grid.codes(torch.tensor([-0.75, 0.0, 1.25])).tolist()
    [-1, 0, 2]
    >>> grid.weights(np.array([-1, 0, 2]), torch.float32).tolist()
    [-0.75, 0.0, 1.25]
    """

    step: Tensor
    shift: Tensor
    groups: int | None = None

    def codes(self, weight: Tensor) -> np.ndarray:
        """Return the integer code of each weight, in the shape of `weight`."""
        w = swap_channels(weight, self.groups).double()
        codes = w.sign() * ((w.abs() - self.shift.double()) / self.step.double()).round()
        return swap_channels(codes.long(), self.groups).numpy()

    def weights(self, codes: np.ndarray, dtype: torch.dtype) -> Tensor:
        """Return the weights of `codes`, computed as the quantizers do."""
        q = swap_channels(torch.from_numpy(codes).to(dtype), self.groups)
        return swap_channels(self.step * q + self.shift * q.sign() + 0.0, self.groups).contiguous()


@torch.no_grad()
def layer_grids(model: nn.Module) -> dict[str, Grid]:
    """Return the grid of each layer whose weights an enabled quantizer of codeq gives; others are not listed.

    Others are quantizers of users, and those of codeq with further parametrizations, such as a mask. Packed files list
    the values of such weights, or hold the weights as they are where there are many values, as with levels of each
    channel.

    Examples
    --------
    >>> from codeq.quantizer.attach import attach_weight_quantizers
    >>> net = nn.Sequential(nn.Linear(3, 2))
    >>> _ = attach_weight_quantizers(net, [], "deadzone", {"granularity": "channel"})
    >>> layer_grids(net)["0"].step.shape
    torch.Size([2, 1])
    """
    grids = {}
    for name, layer in named_layers(model):
        quantizer, groups = grid_quantizer(layer), transposed_groups(layer)
        if quantizer is not None:
            step, dead_zone, _ = quantizer.step_and_dead_zone(swap_channels(latent_weight(layer), groups).detach())
            grids[name] = Grid(step.cpu(), (dead_zone / 2 - step / 2).cpu(), groups)
    return grids


def compacted_grids(grids: Mapping[str, Grid], report: CompactionReport) -> dict[str, Grid]:
    """Return the grids of the layers of a compacted network, given those of the network that it was made from."""
    found = {}
    for name, layer in named_layers(report.model):
        made_from, outputs = report.layers[name]
        if (grid := grids.get(made_from)) is not None:
            groups = None if grid.groups is None else cast(int, layer.groups)  # with a dead group fewer are left
            rows: Any = torch.from_numpy(outputs) if grid.step.ndim else ...
            found[name] = Grid(grid.step[rows], grid.shift[rows], groups)
    return found


@torch.no_grad()
def check_levels(model: nn.Module) -> None:
    """Refuse quantizers of users whose results are not levels of their bits, which no integers can hold.

    Raises
    ------
    CodeqError
        With the name of the layer.
    """
    for name, layer in named_layers(model):
        quantization = weight_quantization(layer)
        if quantization is None or not quantization.enabled or grid_quantizer(layer) is not None:
            continue
        bits, rows = bitwidth(name, layer), weights_by_scale(layer)
        levels = max((len(row.unique()) for row in rows), default=0)
        if levels > 2**bits:
            where = " in one output channel" if len(rows) > 1 else ""
            kind = type(quantization.quantizer).__name__
            raise CodeqError(
                f"layer {name!r}: quantizer {kind} returns {levels:,} different values{where}, "
                f"more than the {2**bits} levels of its {bits} bits, so integers cannot hold its weights"
            )
