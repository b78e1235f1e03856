"""Price of channels in time: seconds per MAC and per element, fitted to the times of layers on this machine."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from codeq.common.errors import CodeqError
from codeq.graph.baking import baked_copy
from codeq.metrics.bops import dense_stats
from codeq.metrics.records import measure
from codeq.quantizer.layers import named_layers
from codeq.quantizer.precision import weight_type

PASSES, WARM_UP = 15, 3  # forward passes that are timed, and before them


@dataclass(frozen=True)
class Prices:
    """Prices in which a budget counts: a linear model of the cost of a layer.

    Parameters
    ----------
    mac : float
        Price of a MAC.
    element : float
        Price of an element that a layer writes, and of what is done to it before the next layer: BatchNorm, activation
        function, residual sum.
    layer : float
        Price of a layer of any size, such as the start of its kernels, which no cut of channels saves.

    Examples
    --------
    >>> Prices().of(macs=100.0, elements=10.0, layers=2)  # MACs alone
    100.0
    """

    mac: float = 1.0
    element: float = 0.0
    layer: float = 0.0

    def of(self, macs: float, elements: float, layers: int) -> float:
        """Return the cost of so many MACs, elements and layers."""
        return self.mac * macs + self.element * elements + self.layer * layers


def measured_prices(
    model: nn.Module, input_size: tuple[int, int, int], batch_size: int = 128, device: str | torch.device = "cpu"
) -> Prices:
    """Return the seconds that a MAC, an element and a layer take on `device`, each of one input of a batch.

    The time from the start of a layer to the start of the next one is fitted by ``mac · MACs + element · elements +
    layer``, least squares over the layers with each at least 0. Where channels are few, memory traffic takes more time
    than arithmetic, and fewer MACs alone do not make a network faster.

    Parameters
    ----------
    model : Module
        Any; it is copied.
    input_size : tuple of int
        `(C, H, W)` of one input.
    batch_size : int
        Inputs of a timed batch.
    device : str or device
        Device to time on.

    Raises
    ------
    CodeqError
        If the model calls no layer.

    Examples
    --------
    >>> prices = measured_prices(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), (3, 16, 16), batch_size=8)
    >>> prices.mac >= 0 and prices.element >= 0
    True
    """
    from scipy.optimize import nnls  # imported here because it takes a third of a second

    records = measure(model, input_size)
    plain = baked_copy(model).eval().to(device)
    x = torch.zeros(batch_size, *input_size, device=device, dtype=weight_type(model, torch.float32))
    seconds = {name: total / batch_size for name, total in _layer_times(plain, x).items()}
    pairs = zip(dense_stats(records).layers, records, strict=True)
    counts = {layer.name: (layer.macs, record.elements) for layer, record in pairs}
    timed = [name for name in counts if name in seconds]
    if not timed:
        raise CodeqError("the network calls no layer whose time could be measured")
    table = np.array([(*counts[name], 1) for name in timed], dtype=float)
    sizes = table.max(axis=0)  # columns of similar size, for the solver
    found, _ = nnls(table / sizes, np.array([seconds[name] for name in timed]))
    return Prices(*(found / sizes).tolist())


@torch.no_grad()
def _layer_times(model: nn.Module, x: Tensor) -> Mapping[str, float]:
    """Return the shortest time from the start of each layer to the start of the next one, s.

    Other work of the machine only lengthens a time: on a busy one the medians made elements ten times as expensive.
    """
    starts: list[tuple[str, float]] = []

    def start(name: str) -> None:
        if x.device.type != "cpu":
            torch.accelerator.synchronize(x.device)
        starts.append((name, time.perf_counter()))

    for name, layer in named_layers(model):
        layer.register_forward_pre_hook(lambda *_, name=name: start(name))
    shortest: dict[str, float] = {}
    for number in range(WARM_UP + PASSES):
        starts.clear()
        model(x)
        start("")
        if number >= WARM_UP:
            total: dict[str, float] = defaultdict(float)
            for (name, begin), (_, end) in pairwise(starts):
                total[name] += end - begin
            for name, seconds in total.items():
                shortest[name] = min(seconds, shortest.get(name, seconds))
    return shortest
