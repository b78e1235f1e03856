"""Price of channels in time: seconds per MAC and per element, fitted to the times of layers on this machine."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from codeq.common.errors import CodeqError
from codeq.graph.baking import baked_copy
from codeq.graph.tracing import trace
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
        Price of a call of a layer of any size, such as the start of its kernels, which no cut of channels saves.

    Examples
    --------
    >>> Prices().of(macs=100.0, elements=10.0, layers=2)  # MACs alone
    100.0
    """

    mac: float = 1.0
    element: float = 0.0
    layer: float = 0.0

    def of(self, macs: float, elements: float, layers: int) -> float:
        """Return the cost of so many MACs, elements and calls of layers."""
        return self.mac * macs + self.element * elements + self.layer * layers


def measured_prices(
    model: nn.Module, input_size: tuple[int, int, int], batch_size: int = 128, device: str | torch.device = "cpu"
) -> Prices:
    """Return the seconds that a MAC, an element and a layer take on `device`, each of one input of a batch.

    The time from the start of a layer to the start of the next one, over all of its calls, is fitted by ``mac · MACs +
    element · elements + layer · calls``, least squares over the layers with each at least 0. Layers in functional form
    (``F.linear``) and those before them are left out: nobody sees when a function starts. Where channels are few,
    memory traffic takes more time than arithmetic, and fewer MACs alone do not make a network faster.

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
    order = [op.weight for op in trace(model, input_size).weighted]
    calls = Counter(order)
    seconds = {name: total / batch_size for name, total in _layer_times(plain, x, order).items()}
    pairs = zip(dense_stats(records).layers, records, strict=True)
    counts = {layer.name: (layer.macs, record.elements) for layer, record in pairs}
    timed = [name for name in counts if name in seconds]
    if not timed:
        raise CodeqError("the network calls no layer whose time could be measured")
    table = np.array([(*counts[name], calls[name]) for name in timed], dtype=float)
    sizes = table.max(axis=0)  # columns of similar size, for the solver
    found, _ = nnls(table / sizes, np.array([seconds[name] for name in timed]))
    return Prices(*(found / sizes).tolist())


@torch.no_grad()
def _layer_times(model: nn.Module, x: Tensor, order: Sequence[str]) -> Mapping[str, float]:
    """Return the shortest time of each layer, over all of its calls, from its start to the start of the next one, s.

    Layers of which a call is not seen to start, or not the call after it in `order`, have none.

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
            places = _places([name for name, _ in starts], [*order, ""])
            unknown = set[str]()
            for ((name, begin), (_, end)), (place, after) in zip(pairwise(starts), pairwise(places), strict=True):
                total[name] += end - begin
                if after != place + 1:
                    unknown.add(name)
            for name, seconds in total.items():
                if name not in unknown:
                    shortest[name] = min(seconds, shortest.get(name, seconds))
    return shortest


def _places(started: Sequence[str], order: Sequence[str]) -> list[int]:
    """Return the place in `order` of each call that was seen to start; -2 for layers of which others were not."""
    seen = Counter(started)
    places = {name: iter([i for i, other in enumerate(order) if other == name]) for name in seen}
    return [next(places[name]) if seen[name] == order.count(name) else -2 for name in started]
