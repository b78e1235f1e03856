"""Calibration of activation quantizers: their ranges from the values that a model computes."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from codeq.common.batches import check_batches, prepared, split_batch
from codeq.common.checks import check_model
from codeq.common.errors import CodeqError
from codeq.common.forward import forward
from codeq.common.modes import evaluation_mode
from codeq.quantizer.activations import ActivationQuantizer, toggle_activation_quantization

OUTSIDE = 0.001  # of the values, at either end, that a range by percentiles leaves out


class _Observer:
    """Range of the tensors of one quantizer over batches: the extremes, or the means of the batches' percentiles."""

    def __init__(self, quantizer: ActivationQuantizer) -> None:
        self.by_percentile = quantizer.method == "percentile"
        self.batches: list[list[Tensor]] = []  # of each batch the tensors that share the quantizer

    def __call__(self, quantizer: nn.Module, args: tuple[Any, ...]) -> None:  # noqa: ARG002  (a forward pre-hook)
        values = args[0].detach().float().flatten()
        outside = int(OUTSIDE * len(values)) if self.by_percentile else 0
        lowest = values.kthvalue(outside + 1).values if outside else values.min()
        highest = values.kthvalue(len(values) - outside).values if outside else values.max()
        self.batches[-1].append(torch.stack([lowest, highest, values.abs().mean()]))

    def range(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the range that holds those of all tensors, and the mean magnitude."""
        seen = torch.stack([torch.stack(tensors) for tensors in self.batches])
        lowest, highest, means = (seen.mean(0) if self.by_percentile else seen.flatten(0, 1)).unbind(-1)
        return lowest.min(), highest.max(), means.mean()


def calibrate(model: nn.Module, batches: Iterable[Any]) -> None:
    """Set the ranges of all activation quantizers by the float activations of some batches, in evaluation mode.

    Parameters
    ----------
    model : Module
        With `attach_activation_quantizers`; its mode stays as found. Quantizers of weights stay on.
    batches : iterable
        Inputs `[N, …]`, or pairs of inputs and labels, as a data loader gives them.

    Raises
    ------
    CodeqError
        For a model without activation quantizers or that fails on the inputs, no inputs, batches of another kind, and
        for activations that are not finite.

    Examples
    --------
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    >>> net[1].input_quantizer = ActivationQuantizer(bits=2, method="minmax")
    >>> _ = net[1].register_forward_pre_hook(lambda layer, args: (layer.input_quantizer(args[0]),))
    >>> calibrate(net, [torch.tensor([[[0.0, 1.0, 2.0, 6.0]]])])
    >>> net[1].input_quantizer.step.item()
    2.0
    """
    check_model(model)
    check_batches(batches)
    quantizers = {name: m for name, m in model.named_modules() if isinstance(m, ActivationQuantizer)}
    observers = {name: _Observer(quantizer) for name, quantizer in quantizers.items()}
    enabled = {name: quantizer.enabled for name, quantizer in quantizers.items()}
    toggle_activation_quantization(model, enabled=False)
    reference = next(model.parameters())
    try:
        with evaluation_mode(model), ExitStack() as hooks:
            for name, quantizer in quantizers.items():
                hooks.callback(quantizer.register_forward_pre_hook(observers[name]).remove)
            for batch in batches:
                x, _ = split_batch(batch)
                if len(x):
                    for observer in observers.values():
                        observer.batches.append([])
                    forward(model, prepared(x, reference))
    finally:
        for name, quantizer in quantizers.items():
            quantizer.enabled = enabled[name]
    ranges = {name: observer.range() for name, observer in observers.items() if any(observer.batches)}
    for name in quantizers:
        if name not in ranges:
            raise CodeqError(f"{name} saw no values: calibrate needs at least one input that reaches every layer")
        if not all(value.isfinite() for value in ranges[name]):
            raise CodeqError(f"{name}: the activations are not finite (NaN or inf), so they have no range")
    for name, quantizer in quantizers.items():
        quantizer.set_range(*ranges[name])
