"""Layer-wise sensitivity scan: accuracy against bits and dead-zone of one layer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from codeq.common.console import counter
from codeq.common.errors import CodeqError, unknown_name
from codeq.graph.baking import baked_copy
from codeq.quantizer import MAX_BITS, MIN_BITS, DeadZoneQuantizer, absmax, dead_zone_quantize, pruning_aware_step
from codeq.quantizer.layers import latent_weight, named_layers, swap_channels, transposed_groups, weight_quantization

if TYPE_CHECKING:
    import pandas as pd

Batches = Iterable[tuple[Tensor, Tensor]]


@torch.no_grad()
def sensitivity(
    model: nn.Module,
    loader: Batches,
    bits: Sequence[int] = (2, 3, 4, 6, 8),
    dead_zones: Sequence[float] = (0.0, 0.1, 0.25, 0.5, 0.75),
    layers: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Measure the accuracy with one layer at a time quantized at each combination of bit-width and dead-zone.

    The latent weights of the layer are quantized by `dead_zone_quantize`, paper eq. (10), with the step of eq. (12).
    All other layers keep the weights of the forward pass, and BatchNorm its statistics. The model is not changed: a
    copy is measured, on the device of the model.

    Parameters
    ----------
    model : Module
        With or without quantizers.
    loader : iterable of (Tensor, Tensor)
        Batches of inputs and labels `[N]`, iterated once per cell; an iterator is converted to a list first.
    bits : sequence of int
        Bit-widths, 2 … 16.
    dead_zones : sequence of float
        Dead-zone widths d / 2R: the share of the scale R below which weights become 0, from 0 (no zero bin) to below 1.
        The uniform quantizer corresponds to 1 / (2Q), ``Q = 2^(b-1) - 1``.
    layers : sequence of str, optional
        Full dotted names; default all conv and linear layers.

    Returns
    -------
    DataFrame
        One row per cell: `layer`, `bits`, `dead_zone`, `accuracy`, `baseline` (accuracy of the unchanged model), `drop`
        (baseline - accuracy), `zero_weights` (of the layer); all but the bits are fractions.

    Raises
    ------
    CodeqError
        For an unknown layer, bits or a dead-zone out of range, an empty scan, and a loader without batches.

    Examples
    --------
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    >>> batches = [(torch.randn(8, 1, 2, 2), torch.zeros(8, dtype=torch.long))]
    >>> table = sensitivity(net, batches, bits=[2, 4], dead_zones=[0.25])
    >>> table[["layer", "bits", "dead_zone"]].values.tolist()
    [['1', 2, 0.25], ['1', 4, 0.25]]
    """
    import pandas as pd

    names = _check(model, bits, dead_zones, layers)
    if iter(loader) is loader:
        loader = list(loader)
    modules = dict(named_layers(model))
    probe = baked_copy(model)
    rows = []
    with counter(len(names) * len(bits) * len(dead_zones), "sensitivity", "cell") as bar:
        baseline = _accuracy(probe, loader)
        for name in names:
            weight = cast(nn.Parameter, probe.get_submodule(name).weight)
            before = weight.clone()
            w, r, groups = latent_weight(modules[name]), _magnitude(modules[name]), transposed_groups(modules[name])
            for b in bits:
                for share in dead_zones:
                    d = 2 * share * r
                    quantized = dead_zone_quantize(swap_channels(w, groups), pruning_aware_step(r, d, b), d, b)
                    weight.copy_(swap_channels(quantized, groups))
                    zeros = 1 - int(weight.count_nonzero()) / weight.numel()
                    row: dict[str, Any] = {"layer": name, "bits": b, "dead_zone": share}
                    accuracy = _accuracy(probe, loader)
                    rows.append(row | {"accuracy": accuracy, "drop": baseline - accuracy, "zero_weights": zeros})
                    bar.update(1)
            weight.copy_(before)
    return pd.DataFrame(rows).assign(baseline=baseline)


def _check(
    model: nn.Module, bits: Sequence[int], dead_zones: Sequence[float], layers: Sequence[str] | None
) -> list[str]:
    known = [name for name, _ in named_layers(model)]
    for name in layers or ():
        if name not in known:
            raise unknown_name("layer", name, known)
    for b in bits:
        if not isinstance(b, int) or isinstance(b, bool) or not MIN_BITS <= b <= MAX_BITS:
            raise CodeqError(f"bits={list(bits)!r}: each must be an integer from {MIN_BITS} to {MAX_BITS}")
    for share in dead_zones:
        if not 0 <= share < 1:
            raise CodeqError(f"dead_zones={list(dead_zones)!r}: each must be a share of R, from 0 to below 1")
    names = known if layers is None else list(dict.fromkeys(layers))
    if not (names and len(bits) and len(dead_zones)):
        raise CodeqError("nothing to scan: sensitivity needs at least one layer, one bit-width and one dead-zone")
    return names


def _magnitude(layer: nn.Module) -> Tensor:
    """Return the scale `R` of a layer: of its dead-zone quantizer if it has one, else as in the paper."""
    w, quantization = swap_channels(latent_weight(layer), transposed_groups(layer)), weight_quantization(layer)
    if quantization and isinstance(quantization.quantizer, DeadZoneQuantizer):
        return quantization.quantizer.magnitude(w)
    return absmax(w)


def _accuracy(model: nn.Module, loader: Batches) -> float:
    device = next(model.parameters()).device
    num_correct, count = torch.zeros((), dtype=torch.long, device=device), 0
    for x, y in loader:
        num_correct += (model(x.to(device)).argmax(1) == y.to(device)).sum()
        count += len(y)
    if not count:
        raise CodeqError("loader has no batches; accuracy needs at least one input")
    return int(num_correct) / count
