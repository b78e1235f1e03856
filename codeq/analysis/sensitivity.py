"""Layer-wise sensitivity scan: accuracy against bits and dead-zone of one layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import nan
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from codeq.analysis.replay import PrefixCache
from codeq.common.batches import labelled_batch, prepared
from codeq.common.checks import check_collection, is_integer
from codeq.common.errors import CodeqError, unknown_name
from codeq.common.progress import counter
from codeq.graph.baking import baked_copy
from codeq.metrics.accuracy import mean_scores, score_batch
from codeq.quantizer import MAX_BITS, MIN_BITS, DeadZoneQuantizer, absmax, dead_zone_quantize
from codeq.quantizer.functions import Grid, dead_zone_grid
from codeq.quantizer.layers import bitwidth, latent_weight, named_layers, weight_quantization
from codeq.quantizer.transposed import swap_channels, transposed_groups
from codeq.training.memory import keep_freed_memory

if TYPE_CHECKING:
    import pandas as pd

Batches = Iterable[tuple[Tensor, Tensor]]
Cell = tuple[int, float]  # bit-width and dead-zone
BITS, DEAD_ZONES = (2, 3, 4, 6, 8), (0.0, 0.25, 0.5, 0.75)


@torch.no_grad()
def sensitivity(
    model: nn.Module,
    loader: Batches,
    bits: Sequence[int] = BITS,
    dead_zones: Sequence[float] = DEAD_ZONES,
    layers: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Measure the accuracy with one layer at a time quantized at each combination of bit-width and dead-zone.

    The latent weights of the layer are quantized by `dead_zone_quantize`, paper eq. (10), with the step of eq. (12).
    All other layers keep the weights of the forward pass, and BatchNorm its statistics. The model is not changed: a
    copy is measured, on the device of the model. What precedes the layer is computed once for all of its cells, see
    `PrefixCache`; results are those of complete forward passes.

    Parameters
    ----------
    model : Module
        With or without quantizers.
    loader : iterable of (Tensor, Tensor)
        Batches of inputs and labels `[N]`, iterated once per layer; an iterator is converted to a list first.
    bits : sequence of int
        Bit-widths, 2 … 16.
    dead_zones : sequence of float
        Dead-zone widths d / 2R: the share of the scale R below which weights become 0, from 0 (no zero bin) to below 1.
        The uniform quantizer corresponds to 1 / (2Q), ``Q = 2^(b-1) - 1``. A layer with an affine grid gets the nearest
        one that its grid has at these bits.
    layers : sequence of str, optional
        Full dotted names; default all conv and linear layers.

    Returns
    -------
    DataFrame
        One row per cell: `layer`, `bits`, `dead_zone` (as asked for), `accuracy`, `loss` (mean cross-entropy in nats),
        `zero_weights` (of the layer); of the unchanged model `baseline` (accuracy), `baseline_loss`, and the layer's
        `trained_bits` (32 if it is float), `trained_dead_zone` (in force, NaN without a dead-zone) and
        `trained_zero_weights`; `drop` (baseline - accuracy). All but bits and losses are fractions.

    Raises
    ------
    CodeqError
        For an unknown layer, bits or a dead-zone out of range, an argument that is no list, an empty scan, and a loader
        without batches or with those of another kind.

    Examples
    --------
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    >>> batches = [(torch.randn(8, 1, 2, 2), torch.zeros(8, dtype=torch.long))]
    >>> table = sensitivity(net, batches, bits=[2, 4], dead_zones=[0.25])
    >>> table[["layer", "bits", "dead_zone"]].values.tolist()
    [['1', 2, 0.25], ['1', 4, 0.25]]
    """
    import pandas as pd

    names = check_scan(model, bits, dead_zones, layers)
    batches = list(loader) if iter(loader) is loader else loader
    cells = [(b, zone) for b in bits for zone in dead_zones]
    with counter(len(names) * len(cells), "sensitivity", "cell") as bar, keep_freed_memory():
        scanned = scan_layers(model, batches, dict.fromkeys(names, cells), lambda: bar.update(1))
        return pd.concat(list(scanned), ignore_index=True)


@torch.no_grad()
def scan_layers(
    model: nn.Module,
    loader: Batches,
    cells: Mapping[str, Sequence[Cell]],
    on_cell: Callable[[], object],
) -> Iterator[pd.DataFrame]:
    """Iterate over the rows of `sensitivity` of the `cells` of one layer after the other.

    `on_cell` is called when a cell has been measured on a batch for the first time; what it raises ends the scan. Bits
    and dead-zones are those that `check_scan` accepts.
    """
    import pandas as pd

    modules, probe = dict(named_layers(model)), baked_copy(model)
    for name, of_layer in cells.items():
        weight = cast(nn.Parameter, probe.get_submodule(name).weight)
        before = weight.clone()
        quantized = _quantized(modules[name], of_layer)
        (accuracy, loss), results = _measure(probe, weight, quantized, loader, on_cell)
        weight.copy_(before)
        width, share = trained_setting(name, modules[name])
        trained = {"trained_bits": width, "trained_dead_zone": share, "trained_zero_weights": _zeros(before)}
        rows = [
            {"layer": name, "bits": b, "dead_zone": zone, "accuracy": result[0], "loss": result[1]}
            | {"zero_weights": _zeros(values), "baseline": accuracy, "baseline_loss": loss, **trained}
            for (b, zone), values, result in zip(of_layer, quantized, results, strict=True)
        ]
        table = pd.DataFrame(rows)
        yield table.assign(drop=table["baseline"] - table["accuracy"])


def _measure(
    probe: nn.Module, weight: Tensor, candidates: list[Tensor], loader: Batches, on_cell: Callable[[], object]
) -> tuple[tuple[float, float], list[tuple[float, float]]]:
    """Return accuracy and loss of `probe`, and with each of the values `candidates` of its parameter `weight`."""
    before, classes = weight.clone(), 0
    sums = torch.zeros(len(candidates) + 1, 4, dtype=torch.double, device="cpu")
    for index, batch in enumerate(loader):
        inputs, labels = labelled_batch(batch)
        x, y = prepared(inputs, weight), labels.to(weight.device)
        weight.copy_(before)
        cache = PrefixCache(probe, weight, x)
        sums[0] += score_batch(cache.output, y).cpu()
        classes = cache.output.shape[1]
        for place, values in enumerate(candidates, 1):
            weight.copy_(values)
            sums[place] += score_batch(cache.forward(), y).cpu()
            if not index:
                on_cell()
    first, *others = (mean_scores(row, classes) for row in sums)
    return first, others


def _quantized(layer: nn.Module, cells: Sequence[Cell]) -> list[Tensor]:
    """Return the weights of `layer` on the levels of a dead-zone quantizer, for each cell."""
    groups, (r, grid) = transposed_groups(layer), _scale_and_grid(layer)
    w = swap_channels(latent_weight(layer), groups)
    grids = ((bits, dead_zone_grid(r, torch.full_like(r, share), bits, grid)) for bits, share in cells)
    return [swap_channels(dead_zone_quantize(w, step, d, bits), groups) for bits, (step, d, _) in grids]


def _zeros(weight: Tensor) -> float:
    return 1 - int(weight.count_nonzero()) / weight.numel()


def trained_setting(name: str, layer: nn.Module) -> Cell:
    """Return the bit-width of a layer, 32 if it is float, and its dead-zone in force, NaN without one."""
    quantization = weight_quantization(layer)
    zone = nan
    if quantization and quantization.enabled and isinstance(quantization.quantizer, DeadZoneQuantizer):
        zone = quantization.quantizer.get_dead_zone()
    return bitwidth(name, layer), zone


def check_scan(
    model: nn.Module, bits: Sequence[int], dead_zones: Sequence[float], layers: Sequence[str] | None
) -> list[str]:
    """Return the names of the layers to scan, or raise a `CodeqError` for arguments of `sensitivity` out of range."""
    known = [name for name, _ in named_layers(model)]
    layers = known if layers is None else layers
    for argument, values in (("bits", bits), ("dead_zones", dead_zones), ("layers", layers)):
        check_collection(argument, values)
    for name in layers:
        if name not in known:
            raise unknown_name("layer", name, known)
    for b in bits:
        if not is_integer(b) or not MIN_BITS <= b <= MAX_BITS:
            raise CodeqError(f"bits={list(bits)!r}: each must be an integer from {MIN_BITS} to {MAX_BITS}")
    for share in dead_zones:
        if not 0 <= share < 1:
            raise CodeqError(f"dead_zones={list(dead_zones)!r}: each must be a share of R, from 0 to below 1")
    names = list(dict.fromkeys(layers))
    if not (names and len(bits) and len(dead_zones)):
        raise CodeqError("nothing to scan: sensitivity needs at least one layer, one bit-width and one dead-zone")
    return names


def _scale_and_grid(layer: nn.Module) -> tuple[Tensor, Grid]:
    """Return the scale `R` and the kind of grid of a layer: of its dead-zone quantizer, else as in the paper."""
    w, quantization = swap_channels(latent_weight(layer), transposed_groups(layer)), weight_quantization(layer)
    if quantization and isinstance(quantization.quantizer, DeadZoneQuantizer):
        return quantization.quantizer.magnitude(w), quantization.quantizer.grid
    return absmax(w), "paper"
