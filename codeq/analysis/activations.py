"""Inputs of the layers whose activations are quantized, and the levels that they fall on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from codeq.common.batches import check_batches, prepared, split_batch
from codeq.common.errors import CodeqError
from codeq.common.forward import forward
from codeq.quantizer.activations import ActivationQuantizer, named_activation_quantizers

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pandas as pd

MAX_VALUES = 200_000  # of one layer that are kept for its histogram, evenly spaced


@torch.no_grad()
def activation_levels(model: nn.Module, images: Iterable[Any]) -> dict[str, tuple[np.ndarray, pd.DataFrame]]:
    """Run `model` on some images and tabulate the inputs of each layer with a quantizer of activations.

    Parameters
    ----------
    model : Module
        In evaluation mode.
    images : iterable
        Inputs `[N, C, H, W]`, or pairs of inputs and labels, as a data loader gives them. All values are counted.

    Returns
    -------
    dict of str to (array, DataFrame)
        For each quantizer, by the name of its first layer: a part of the values before quantization, at most
        `MAX_VALUES` of each batch; and one row per level, in ascending order: `code` (the integer), `level` (code ×
        step), `count` (values on it, clipped ones included), `clipped` (values beyond the half step around it, only at
        either end).

    Raises
    ------
    CodeqError
        If no quantizer of activations is switched on, there are no images, or for batches of another kind.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(3, 2))
    >>> net[0].input_quantizer = ActivationQuantizer(bits=2, method="minmax")
    >>> _ = net[0].register_forward_pre_hook(lambda layer, args: (layer.input_quantizer(args[0]),))
    >>> _, levels = activation_levels(net.eval(), [torch.tensor([[0.2, 1.0, 9.0]])])["0"]
    >>> levels["level"].tolist(), levels["count"].tolist(), levels["clipped"].tolist()
    ([0.0, 1.0, 2.0, 3.0], [1, 1, 0, 1], [0, 0, 0, 1])
    """
    first: dict[ActivationQuantizer, str] = {}
    for name, quantizer in named_activation_quantizers(model):
        if quantizer.enabled:
            first.setdefault(quantizer, name)
    check_batches(images)
    if not first:
        raise CodeqError("no input of a layer is quantized, so there are no levels of activations")
    last: dict[nn.Module, Tensor] = {}
    seen: dict[str, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {name: [] for name in first.values()}

    def note(quantizer: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(quantizer, ActivationQuantizer)
        if last.get(quantizer) is args[0]:  # each layer that shares the quantizer calls it
            return
        last[quantizer] = args[0]
        seen[first[quantizer]].append(_tabulated(quantizer, args[0]))

    hooks = [quantizer.register_forward_pre_hook(note) for quantizer in first]
    reference = next(model.parameters())
    try:
        with parametrize.cached():
            for batch in images:
                x, _ = split_batch(batch)
                forward(model, prepared(x, reference))
    finally:
        for hook in hooks:
            hook.remove()
    if missing := [name for name, found in seen.items() if not found]:
        raise CodeqError(f"the input of layer {missing[0]!r} was not computed: there are no images")
    return {name: _joined(quantizer, seen[name]) for quantizer, name in first.items()}


def _tabulated(quantizer: ActivationQuantizer, x: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a part of the values, the number of values on each level, and the clipped ones among them."""
    values = x.detach().float().flatten()
    values = values[~values.isnan()]
    low, levels = int(quantizer.low), 2**quantizer.bits
    step = quantizer.positive_step().detach()
    code = (values / step).round() - low
    counts = torch.bincount(code.clamp(0, levels - 1).long(), minlength=levels)
    clipped = torch.zeros_like(counts)
    clipped[0], clipped[-1] = (code < 0).sum(), (code > levels - 1).sum()
    part = values[:: max(-(-len(values) // MAX_VALUES), 1)]
    return part.cpu().numpy(), counts.cpu().numpy(), clipped.cpu().numpy()


def _joined(
    quantizer: ActivationQuantizer, batches: list[tuple[np.ndarray, np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, pd.DataFrame]:
    import pandas as pd

    values, counts, clipped = zip(*batches, strict=True)
    code = int(quantizer.low) + np.arange(2**quantizer.bits)
    level = code * quantizer.positive_step().item()
    table = {"code": code, "level": level, "count": np.sum(counts, axis=0), "clipped": np.sum(clipped, axis=0)}
    return np.concatenate(values), pd.DataFrame(table)
