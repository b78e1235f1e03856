"""Folding of BatchNorms into the convolutions before them, for networks that only predict."""

from __future__ import annotations

from collections import Counter
from copy import deepcopy
from typing import Any, cast

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from codeq.common.default_device import cpu_by_default
from codeq.graph.call_recording import record_calls

CONVOLUTIONS: set[type[nn.Module]] = {nn.Conv1d, nn.Conv2d, nn.Conv3d}
BATCHNORMS: set[type[nn.Module]] = {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d}
TOLERANCE = 1e-4  # relative to the largest logit: some hundred roundings of float32


@cpu_by_default()
def folded(model: nn.Module, input_size: tuple[int, ...]) -> nn.Module:
    """Return a copy of `model` whose BatchNorms are part of the convolutions before them, where that can be done.

    ``y = γ (w * x + b - mean) / sqrt(var + ε) + β`` is one convolution when the statistics are fixed. BatchNorm takes
    a third of the time of a prediction on a CPU, where it is bound by memory traffic.

    Only pairs of modules are folded that are called once, one directly after the other. If the model cannot be traced,
    or the copy predicts something else, the model itself is returned.

    Parameters
    ----------
    model : Module
        On the CPU, in evaluation mode; not changed.
    input_size : tuple of int
        `(C, H, W)` of one input.

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()).eval()
    >>> [type(module).__name__ for module in folded(model, (3, 8, 8))]
    ['Conv2d', 'Identity', 'ReLU', 'Flatten']
    """
    x = torch.randn(2, *input_size, generator=torch.Generator().manual_seed(0))
    try:
        copy = deepcopy(model)
        pairs = _pairs(copy, input_size)
        for convolution, batchnorm in pairs:
            _fold(copy, convolution, batchnorm)
        with torch.no_grad():
            expected, found = model(x.clone()), copy(x.clone())
        same = torch.allclose(found, expected, rtol=0.0, atol=TOLERANCE * expected.abs().max().item())
    except Exception:  # a model may refuse to be copied, traced or changed in its own way
        return model
    return copy if pairs and same else model


def _pairs(model: nn.Module, input_size: tuple[int, ...]) -> list[tuple[str, str]]:
    """Return the names of the convolutions and BatchNorms that can be folded."""
    calls = record_calls(model, input_size, torch.float32)
    modules = dict(model.named_modules(remove_duplicate=False))
    held = Counter(modules.values())  # a module with two names would be replaced under one of them
    used = Counter(str(node.target) for node in calls.graph.nodes)
    read = {
        *calls.layers.values(),
        *(str(n.target).rpartition(".")[0] for n in calls.graph.nodes if n.op == "get_attr"),
    }

    def replaceable(node: torch.fx.Node, types: set[type[nn.Module]]) -> bool:
        name = str(node.target)
        module = modules.get(name) if node.op == "call_module" else None
        if module is None or type(module) not in types or "forward" in vars(module):
            return False
        hooked = module._forward_hooks or module._forward_pre_hooks
        return not hooked and held[module] == used[name] == 1 and name not in read

    found = []
    for node in calls.graph.nodes:
        before = node.args[0] if node.op == "call_module" and node.args else None
        if (
            isinstance(before, torch.fx.Node)
            and len(before.users) == 1
            and replaceable(node, BATCHNORMS)
            and replaceable(before, CONVOLUTIONS)
            and modules[str(node.target)].running_mean is not None
        ):
            found.append((str(before.target), str(node.target)))
    return found


def _fold(model: nn.Module, convolution: str, batchnorm: str) -> None:
    layer, norm = (cast(Any, model.get_submodule(name)) for name in (convolution, batchnorm))
    model.set_submodule(convolution, fuse_conv_bn_eval(layer, norm))
    model.set_submodule(batchnorm, nn.Identity())
