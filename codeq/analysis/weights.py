"""Latent weights of a layer and their quantization levels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from codeq.common.errors import CodeqError, unknown_name
from codeq.common.modes import evaluation_mode
from codeq.metrics.codes import smallest_distances
from codeq.quantizer import DeadZoneQuantizer, UniformSymmetric, positive_levels
from codeq.quantizer.functions import dead_zone_grid
from codeq.quantizer.layers import forward_weight, latent_weight, named_layers, weight_quantization, weights_by_scale
from codeq.quantizer.modules import grid_quantizer
from codeq.quantizer.transposed import swap_channels, transposed_groups
from codeq.runs import Run
from codeq.runs.references import require_run

if TYPE_CHECKING:
    import pandas as pd

MAGNITUDE, STEP = "R of its channel", "step of its channel"  # values of `level_unit`
MAX_LEVELS = 2**16  # of the widest quantizer
SMALL = 64  # filters of a layer whose kernels can be distinguished in a figure


def find_layer(model: nn.Module, name: str) -> nn.Module:
    """Return a conv or linear layer by its full dotted name, or raise a `CodeqError` that suggests the nearest name."""
    layers = dict(named_layers(model))
    if name not in layers:
        raise unknown_name("layer", name, layers)
    return layers[name]


@torch.no_grad()
def sparsest_layer(model: nn.Module) -> str:
    """Return the name of the sparsest of the small quantized layers, whose kernels can be distinguished in a figure.

    A layer is small if it has at most 64 filters, or if none has fewer. Without quantized layers, all layers count.

    Raises
    ------
    CodeqError
        If the model has no conv or linear layer.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(4, 65), nn.Linear(65, 8), nn.Linear(8, 2))
    >>> net[0].weight.data[:], net[2].weight.data[0] = 0, 0
    >>> sparsest_layer(net)
    '2'
    """
    layers = dict(named_layers(model))
    if not layers:
        raise CodeqError("the model has no conv or linear layer")
    names = [name for name, layer in layers.items() if weight_quantization(layer)] or list(layers)
    with evaluation_mode(model):
        weights = {name: swap_channels(forward_weight(layers[name]), transposed_groups(layers[name])) for name in names}
    largest = max(SMALL, min(map(len, weights.values())))
    small = {name: weight for name, weight in weights.items() if len(weight) <= largest}
    zeros = {name: 1 - int(weight.count_nonzero()) / weight.numel() for name, weight in small.items()}
    return max(zeros, key=lambda name: zeros[name])


def weight_levels(run: Run | nn.Module, layer: str) -> pd.DataFrame:
    """Return the quantization levels of a layer in evaluation mode and the number of weights on each.

    Parameters
    ----------
    run : Run or Module
        A run with a checkpoint (the last one is read), or a model with quantizers.
    layer : str
        Full dotted name.

    Returns
    -------
    DataFrame
        One row per level, in ascending order: `code` (the integer q), `level` (ŵ), `lower`, `upper` (the latent weights
        that map to it; of code 0: the dead-zone), `count` (weights on it). With levels per channel, in the unit that
        `level_unit` names. Of a quantizer of one's own, and of one with further parametrizations, such as a mask, those
        levels that occur, numbered from 0, with thresholds midway between the latent weights of neighbouring ones.

    Raises
    ------
    CodeqError
        For an unknown layer, one that is not quantized, and a run without a checkpoint.

    Examples
    --------
    >>> from codeq.quantizer.attach import attach_weight_quantizers
    >>> net = nn.Sequential(nn.Linear(64, 8))
    >>> _ = attach_weight_quantizers(net, [], "deadzone", {"max_bits": 3})
    >>> table = weight_levels(net, "0")
    >>> table["code"].tolist(), int(table["count"].sum())
    ([-3, -2, -1, 0, 1, 2, 3], 512)
    """
    module = find_layer(run if isinstance(run, nn.Module) else require_run(run).load_model(), layer)
    quantization = weight_quantization(module)
    if quantization is None or not quantization.enabled:
        raise CodeqError(f"layer {layer!r} is not quantized: its weights are float and have no levels")
    quantizer = grid_quantizer(module)
    with evaluation_mode(module):
        quantized = _scaled(module, forward_weight(module)).ravel()
    if quantizer is not None:
        w = swap_channels(latent_weight(module).detach(), transposed_groups(module))
        table = _level_table(*_step_and_dead_zone(quantizer, w))
    else:
        latent, unit = _scaled(module, latent_weight(module)).ravel(), level_unit(module)
        # In units of their distance, levels of different channels are the same integers, up to rounding.
        quantized = quantized.round() if unit == STEP else quantized
        # In units of the `R` of each channel, the same level is rounded differently.
        table = _observed_levels(layer, latent, quantized, 1e-6 if unit == MAGNITUDE else 0.0)
    levels = table["level"].to_numpy()
    nearest = np.searchsorted((levels[1:] + levels[:-1]) / 2, quantized)
    return table.assign(count=np.bincount(nearest, minlength=len(levels)))


def latent_weights(model: nn.Module, layer: str) -> np.ndarray:
    """Return the latent weights of a layer, float32, in the unit of its `weight_levels`."""
    module = find_layer(model, layer)
    return _scaled(module, latent_weight(module)).astype(np.float32)


def level_unit(layer: nn.Module) -> str:
    """Return the unit of latent weights and levels of a layer whose output channels have levels of their own, else "".

    Of codeq's quantizers and their subclasses it is the `R` of each channel. Of others it is the smallest distance of
    two levels of each channel, and the levels are those of `codeq.metrics.codes.weight_codes`.
    """
    quantization = weight_quantization(layer)
    if quantization is None or getattr(quantization.quantizer, "granularity", "layer") != "channel":
        return ""
    return MAGNITUDE if isinstance(quantization.quantizer, DeadZoneQuantizer) else STEP


def _scaled(layer: nn.Module, weight: Tensor) -> np.ndarray:
    """Return weights of a layer in its `level_unit`, `[c_out, c_in / groups, …]`, float64."""
    w = swap_channels(weight.detach(), transposed_groups(layer)).cpu().double()  # Apple's GPU has no float64
    if not level_unit(layer):
        return w.numpy()
    return (w / _scales(layer).cpu().double().view(-1, *[1] * (w.dim() - 1))).numpy()


@torch.no_grad()
def _scales(layer: nn.Module) -> Tensor:
    """Return the `level_unit` of each output channel: relative to it, all have the same levels."""
    quantization = weight_quantization(layer)
    assert quantization is not None  # of a layer with levels per channel
    if not isinstance(quantization.quantizer, DeadZoneQuantizer):
        return smallest_distances(weights_by_scale(layer).cpu().double())
    magnitude = quantization.quantizer.magnitude(swap_channels(latent_weight(layer), transposed_groups(layer)))
    return torch.where(magnitude > 0, magnitude, 1)  # a channel of zeros stays zeros


@torch.no_grad()
def _step_and_dead_zone(quantizer: DeadZoneQuantizer | UniformSymmetric, w: Tensor) -> tuple[float, float, int]:
    """Return step, dead-zone width and bits for `w`; of a quantizer with levels per channel in units of their `R`."""
    s, d, bits = quantizer.step_and_dead_zone(w)
    if isinstance(quantizer, DeadZoneQuantizer) and s.dim():
        one = torch.ones((), device=s.device)
        s, d, _ = dead_zone_grid(one, quantizer.get_dead_zone() * one, bits, quantizer.grid)
    return float(s), float(d), int(bits)


def _level_table(s: float, d: float, bits: int) -> pd.DataFrame:
    """Tabulate paper eq. (10): `level = s q + δ sign(q)` for each code `q`, between its two thresholds."""
    import pandas as pd

    shift, top = d / 2 - s / 2, int(positive_levels(bits))
    code = np.arange(1, top + 1)
    level, lower = s * code + shift, s * (code - 0.5) + shift
    upper = np.append(lower[1:], np.inf)
    return pd.DataFrame(
        {
            "code": np.concatenate([-code[::-1], [0], code]),
            "level": np.concatenate([-level[::-1], [0.0], level]),
            "lower": np.concatenate([-upper[::-1], [-d / 2], lower]),
            "upper": np.concatenate([-lower[::-1], [d / 2], upper]),
        }
    )


def _observed_levels(layer: str, latent: np.ndarray, quantized: np.ndarray, tolerance: float) -> pd.DataFrame:
    """Derive the levels of any other quantizer from the values that occur and the weights mapped to them."""
    import pandas as pd

    values, place = np.unique(quantized, return_inverse=True)
    apart = np.diff(values, prepend=-np.inf) > tolerance
    levels, place = values[apart], apart.cumsum()[place] - 1
    if len(levels) >= MAX_LEVELS:
        raise CodeqError(f"layer {layer!r}: its quantizer puts the weights on more than {MAX_LEVELS} levels")
    frame = pd.DataFrame({"place": place, "latent": latent}).groupby("place")["latent"]
    between = (frame.max().to_numpy()[:-1] + frame.min().to_numpy()[1:]) / 2
    negative = int((levels < 0).sum())
    code = np.arange(len(levels)) - negative
    if 0 not in levels:
        code[negative:] += 1
    edges = np.concatenate([[-np.inf], between, [np.inf]])
    return pd.DataFrame({"code": code, "level": levels, "lower": edges[:-1], "upper": edges[1:]})
