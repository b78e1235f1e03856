"""Costs and estimated losses of the settings that each layer can take, and the choice with the smallest sum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from codeq.analysis.requantize import Setting
from codeq.common.bisection import least
from codeq.evaluator import EvalResult
from codeq.quantizer import MIN_BITS, DeadZoneQuantizer
from codeq.quantizer.functions import dead_zone_grid, widen
from codeq.quantizer.layers import latent_weight, named_layers, weight_quantization
from codeq.quantizer.transposed import swap_channels, transposed_groups

if TYPE_CHECKING:
    import pandas as pd

Choice = tuple[np.ndarray, np.ndarray]  # dead-zone and bits of each layer
ZONES = np.linspace(0, 1, 41)
EDGE = 2.0**-22  # share of R; float32 rounds a dead-zone, on its way from the logit to the weights, by less


@dataclass(frozen=True, eq=False)
class LayerOptions:
    """Settings that the layers of a network can take, and their exact unstructured BOPs.

    Parameters
    ----------
    names : list of str
        Layers with a dead-zone quantizer.
    trained_zones, trained_bits : array
        `[layers]`, trained dead-zones and bit-widths.
    affine : array of bool
        `[layers]`, whether a quantizer takes the dead-zone of an affine grid next to the wanted one.
    zones : list of array of float
        For each layer, the dead-zones that it can be given: one if it keeps the trained one.
    max_bits : int
        Largest bit-width.
    magnitudes : list of array of float
        For each layer, ``|w| / R`` of its weights in ascending order.
    bops_per_bit : array of float
        `[layers]`, BOPs of the dense layer for each bit of its weights.
    fixed : float
        BOPs of all other layers.
    """

    names: list[str]
    trained_zones: np.ndarray
    trained_bits: np.ndarray
    affine: np.ndarray
    zones: list[np.ndarray]
    max_bits: int
    magnitudes: list[np.ndarray]
    bops_per_bit: np.ndarray
    fixed: float

    def with_trained_zones(self) -> LayerOptions:
        """Return the options whose dead-zones are the trained ones."""
        return replace(self, zones=list(self.trained_zones[:, None]))

    def density(self, layer: int, zones: np.ndarray) -> np.ndarray:
        """Return the share of the weights of a layer beyond half of each dead-zone in force, paper eq. (10).

        Weights on the edge of the dead-zone count: a quantizer may round it either way, and a search for the narrowest
        dead-zone in a budget ends there.
        """
        values = self.magnitudes[layer]
        sure = np.where(zones < 1, np.maximum(zones - EDGE, 0), zones)  # 0 and 1 are exact
        return 1 - np.searchsorted(values, sure, side="right") / len(values)

    def cost(self, zones: np.ndarray, bits: np.ndarray) -> float:
        """Return the BOPs of the network."""
        zones = _zones_in_force(zones, bits, self.affine)
        densities = np.array([float(self.density(layer, zone)) for layer, zone in enumerate(zones)])
        return float(self.fixed + (self.bops_per_bit * densities * bits).sum())

    def cheapest(self, losses: Mapping[str, np.ndarray], budget: float) -> Choice:
        """Return the settings with about the smallest sum of `losses` whose BOPs are within `budget`."""
        bits = np.arange(MIN_BITS, self.max_bits + 1)
        costs = []
        for layer, (zones, affine) in enumerate(zip(self.zones, self.affine, strict=True)):
            in_force = _zones_in_force(zones, bits[:, None], affine)
            costs.append(self.bops_per_bit[layer] * self.density(layer, in_force) * bits[:, None])

        def choice(price: float) -> Choice:
            places = [
                np.unravel_index(np.argmin(losses[name] + price * cost), cost.shape)
                for name, cost in zip(self.names, costs, strict=True)
            ]
            zones = [float(options[place[1]]) for options, place in zip(self.zones, places, strict=True)]
            return np.array(zones), np.array([bits[place[0]] for place in places])

        log_price = least(lambda price: self.cost(*choice(np.exp(price))) <= budget, -40.0, 40.0)  # of a BOP
        return self._raised(*choice(np.exp(log_price)), budget)

    def _with_more_bits(self, zones: np.ndarray, bits: np.ndarray, limits: np.ndarray, budget: float) -> np.ndarray:
        """Return `bits` raised up to `limits` where that fits in the budget, cheapest layers last."""
        for layer in np.argsort(-self.bops_per_bit):
            while bits[layer] < limits[layer]:
                more = bits.copy()
                more[layer] += 1
                if self.cost(zones, more) > budget:
                    break
                bits = more
        return bits

    def _raised(self, zones: np.ndarray, bits: np.ndarray, budget: float) -> Choice:
        """Use what is left of the budget: more bits where they fit, then narrower dead-zones."""
        bits = self._with_more_bits(zones, bits, np.full(len(bits), self.max_bits), budget)
        if any(len(options) > 1 for options in self.zones):
            zones = least(lambda factor: self.cost(factor * zones, bits) <= budget, 0.0, 1.0) * zones
        return self._choice(zones, bits)

    def _choice(self, zones: np.ndarray, bits: np.ndarray) -> Choice:
        """Return settings with the dead-zones in force: a wanted one midway between two may become either."""
        return _zones_in_force(zones, bits, self.affine), bits

    def lowered(self, budget: float) -> list[Choice]:
        """Return the trained settings with fewer bits: as few less in each layer as keep the budget.

        More bits than the trained ones can cost accuracy: the weights have been trained for their own levels.
        """
        bits = self.trained_bits
        while self.cost(self.trained_zones, bits) > budget:
            before, bits = bits, np.maximum(bits - 1, MIN_BITS)
            if (before == bits).all():
                return []
            if self.cost(self.trained_zones, bits) <= budget:
                bits = self._with_more_bits(self.trained_zones, bits, before, budget)
        return [self._choice(self.trained_zones, bits)]

    def uniform(self, budget: float) -> list[Choice]:
        """Return the settings with one bit-width and dead-zone for all layers that use the budget."""
        found, one = [], np.ones(len(self.names))
        for width in range(MIN_BITS, self.max_bits + 1):
            bits = np.full(len(self.names), width)
            zones = self.trained_zones
            if any(len(options) > 1 for options in self.zones):
                zones = least(lambda zone: self.cost(zone * one, bits) <= budget, 0.0, 1.0) * one  # noqa: B023  (called here)
            found += [self._choice(zones, bits)] if self.cost(zones, bits) <= budget else []
        return found

    def losses(self, scan: pd.DataFrame, column: str) -> dict[str, np.ndarray]:
        """Return for each layer `[bits, dead-zones]`, `column` interpolated between the cells of a scan, at least 0."""
        from scipy.interpolate import RegularGridInterpolator

        losses = {}
        for name, zones in zip(self.names, self.zones, strict=True):
            table = scan[scan["layer"] == name].pivot(index="bits", columns="dead_zone", values=column)
            cells = np.nan_to_num(table.to_numpy(), nan=1e9).clip(0)
            axes = (table.index.to_numpy(float), table.columns.to_numpy(float))
            surface = RegularGridInterpolator(axes, cells, bounds_error=False, fill_value=None)
            grid = np.meshgrid(np.arange(MIN_BITS, self.max_bits + 1), zones, indexing="ij")
            losses[name] = surface(np.stack(grid, axis=-1).astype(float)).clip(0)
        return losses


def _zones_in_force(zones: np.ndarray, bits: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Return ``d / (2 R)`` of quantizers that are given `zones`: on an affine grid the nearest that `bits` allow.

    Examples
    --------
    >>> _zones_in_force(np.array([0.3, 0.3]), np.array([2, 2]), np.array([False, True])).tolist()
    [0.3, 0.5]
    """
    if not np.any(affine):  # the usual case, in the innermost loop of a search
        return zones
    wanted, width = (torch.as_tensor(x, dtype=torch.double, device="cpu") for x in (zones, bits))
    nearest = dead_zone_grid(torch.ones_like(wanted), wanted, width, "affine")[2]
    return np.where(affine, nearest.numpy(), zones)


@torch.no_grad()
def layer_options(
    model: nn.Module, trained: Mapping[str, Setting], result: EvalResult, dead_zones: bool
) -> LayerOptions:
    """Return the options of a model with dead-zone quantizers whose costs are `result`.

    Layers that share the weight of an earlier one have its settings, and add to its costs.
    """
    modules = dict(named_layers(model))
    stats = {layer.name: layer for layer in result.unstructured_stats.layers}
    names, affine, magnitudes, bops = list(trained), [], [], []
    for name in names:
        weight = latent_weight(modules[name])
        quantization = weight_quantization(modules[name])
        assert quantization is not None
        assert isinstance(quantization.quantizer, DeadZoneQuantizer)
        affine.append(quantization.quantizer.grid == "affine")
        w = swap_channels(weight, transposed_groups(modules[name]))
        r = widen(quantization.quantizer.magnitude(w))
        magnitudes.append(np.sort((widen(w).abs() / r.clamp(min=torch.finfo(r.dtype).tiny)).flatten().cpu().numpy()))
        tied = [other for other, layer in modules.items() if latent_weight(layer) is weight and other in stats]
        uses = [stats[other] for other in tied]
        spatial_bits = sum(use.spatial[0] * use.spatial[1] * use.activation_bits for use in uses)
        bops.append(weight.numel() * float(spatial_bits))
    weights = {id(latent_weight(modules[name])) for name in names}
    fixed = sum(
        layer.bops
        for layer in stats.values()
        if layer.name not in modules or id(latent_weight(modules[layer.name])) not in weights
    )
    zones = np.array([setting.dead_zone for setting in trained.values()], dtype=float)
    options = [ZONES] * len(names) if dead_zones else list(zones[:, None])
    bits = np.array([setting.bits for setting in trained.values()])
    return LayerOptions(
        names, zones, bits, np.array(affine), options, max(8, *bits), magnitudes, np.array(bops), float(fixed)
    )
