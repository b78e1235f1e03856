"""Importance of coupled groups: how much the loss changes, to first order, when the channels of one are removed."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from codeq.common.batches import described, labelled_batch, prepared
from codeq.common.errors import CodeqError
from codeq.common.forward import forward
from codeq.graph.affine import weight_and_bias
from codeq.graph.channels import CoupledGroups
from codeq.graph.ops import ChannelGraph
from codeq.metrics.accuracy import check_classes, check_labels
from codeq.quantizer.transposed import swap_channels, transposed_groups

IGNORED = -100  # label without a class, as PyTorch's losses have it


@torch.enable_grad()
def group_importance(
    plain: nn.Module, graph: ChannelGraph, groups: CoupledGroups, batches: Iterable[tuple[Tensor, Tensor]]
) -> np.ndarray:
    """Return the importance of each coupled group of a network, `[groups]`, see `cut_channels`."""
    plain.requires_grad_(True)
    gates: dict[str, np.ndarray] = {}
    for name, of in groups.writers.items():
        norms = graph.batchnorms_after(name)
        if norms and all(weight_and_bias(plain.get_submodule(norm)) for norm in norms):
            gates |= {norm: groups.batchnorms[norm] for norm in norms}
        else:
            gates[name] = of
    shares: list[tuple[nn.Module, list[nn.Parameter], np.ndarray]] = []
    seen: set[nn.Parameter] = set()
    for name, of in gates.items():  # a weight that layers share has the gradient of all of them, and counts once
        parameters = [p for p in weight_and_bias(plain.get_submodule(name)) if p not in seen]
        if parameters:
            shares.append((plain.get_submodule(name), parameters, of))
        seen.update(parameters)
    total, count = np.zeros(groups.count), 0
    for batch in batches:
        x, y = labelled_batch(batch)
        plain.zero_grad()
        # A copy: tensors of inference mode have no gradients.
        scores = forward(plain, prepared(x, next(plain.parameters())))
        if not isinstance(scores, Tensor) or scores.ndim < 2:
            raise CodeqError(f"the model returns {described(scores)}: importance takes class scores [N, classes]")
        if not y.is_floating_point():  # class numbers, and no shares of the classes
            if scores.ndim == 2:
                check_labels(scores, y)
            y, classes = y.to(torch.int64), scores.shape[1]
            check_classes(int(((y < 0) & (y != IGNORED) | (y >= classes)).sum()), y.numel(), classes)
        nn.functional.cross_entropy(scores, y.clone()).backward()
        changes = np.zeros(groups.count)
        for module, parameters, of in shares:
            np.add.at(changes, of[of >= 0], _change(module, parameters)[of >= 0])
        total += changes**2
        count += 1
    if not count:
        raise CodeqError("there are no batches to estimate the importance of channels from")
    if not np.isfinite(total).all():
        raise CodeqError("the gradients of the network are not finite: the importance of its channels is unknown")
    return total / count


def _change(module: nn.Module, parameters: Iterable[nn.Parameter]) -> np.ndarray:
    """Return ``Σ w ∂L/∂w`` of each output channel of a layer or a BatchNorm, `[channels]`, in the unit of the loss."""
    changes = []
    for parameter in parameters:
        # A branch that the output does not depend on gets no gradient.
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        groups = transposed_groups(module) if parameter.ndim > 1 else None
        product = swap_channels((parameter * grad).detach(), groups)
        changes.append(product.reshape(len(product), -1).sum(1).double().numpy())
    return np.sum(changes, axis=0)
