"""Latent weights of a layer and their quantization levels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from codeq.common.errors import CodeqError, unknown_name
from codeq.quantizer import DeadZoneQuantizer, positive_levels
from codeq.quantizer.functions import dead_zone_grid
from codeq.quantizer.layers import (
    forward_weight,
    latent_weight,
    named_layers,
    swap_channels,
    transposed_groups,
    weight_quantization,
)
from codeq.quantizer.modules import computes_as
from codeq.runs import Run

if TYPE_CHECKING:
    import pandas as pd

MAX_LEVELS = 2**16  # of the widest quantizer


def find_layer(model: nn.Module, name: str) -> nn.Module:
    """Return a conv or linear layer by its full dotted name, or raise a `CodeqError` that suggests the nearest name."""
    layers = dict(named_layers(model))
    if name not in layers:
        raise unknown_name("layer", name, layers)
    return layers[name]


def weight_levels(run: Run | nn.Module, layer: str) -> pd.DataFrame:
    """Return the quantization levels of a layer and the number of weights on each.

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
        that map to it; of code 0: the dead-zone), `count` (weights on it). With one scale per channel, in units of the
        `R` of each channel.

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
    module = find_layer(run if isinstance(run, nn.Module) else run.load_model(), layer)
    quantization = weight_quantization(module)
    if quantization is None or not quantization.enabled:
        raise CodeqError(f"layer {layer!r} is not quantized: its weights are float and have no levels")
    quantizer, scale = quantization.quantizer, _scale(module)
    groups = transposed_groups(module)
    latent = (swap_channels(latent_weight(module).detach(), groups) / scale).cpu().double().numpy().ravel()
    quantized = (swap_channels(forward_weight(module).detach(), groups) / scale).cpu().double().numpy().ravel()
    if computes_as(quantizer, DeadZoneQuantizer):
        table = _dead_zone_levels(quantizer, swap_channels(latent_weight(module).detach(), groups))
    else:
        # In units of the `R` of each channel, the same level is rounded differently.
        table = _observed_levels(layer, latent, quantized, 1e-6 if scale.dim() else 0.0)
    levels = table["level"].to_numpy()
    nearest = np.searchsorted((levels[1:] + levels[:-1]) / 2, quantized)
    return table.assign(count=np.bincount(nearest, minlength=len(levels)))


def latent_weights(model: nn.Module, layer: str) -> np.ndarray:
    """Return the latent weights of a layer, in the unit of its `weight_levels`."""
    module = find_layer(model, layer)
    return (swap_channels(latent_weight(module).detach(), transposed_groups(module)) / _scale(module)).cpu().numpy()


def per_channel(model: nn.Module, layer: str) -> bool:
    """Return whether a layer has one scale per channel, so that its weights are given in units of their `R`."""
    return _scale(find_layer(model, layer)).dim() > 0


def _scale(module: nn.Module) -> Tensor:
    """Return 1, or the `R` of each channel with one scale per channel: relative to it, all have the same levels."""
    quantization = weight_quantization(module)
    quantizer = quantization.quantizer if quantization else None
    if isinstance(quantizer, DeadZoneQuantizer) and quantizer.granularity == "channel":
        magnitude = quantizer.magnitude(swap_channels(latent_weight(module), transposed_groups(module)))
        return torch.where(magnitude > 0, magnitude, 1)  # a channel of zeros stays zeros
    return torch.tensor(1.0)


@torch.no_grad()
def _dead_zone_levels(quantizer: DeadZoneQuantizer, w: Tensor) -> pd.DataFrame:
    """Tabulate paper eq. (10): `level = s q + δ sign(q)` for each code `q`, between its two thresholds."""
    import pandas as pd

    step, dead_zone, bits = quantizer.step_and_dead_zone(w)
    if step.dim():
        one = torch.ones((), device=step.device)
        step, dead_zone, _ = dead_zone_grid(one, quantizer.get_dead_zone() * one, bits, quantizer.grid)
    s, d = float(step), float(dead_zone)
    shift, top = d / 2 - s / 2, int(positive_levels(int(bits)))
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
