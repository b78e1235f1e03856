"""Gradients for layers that a training step leaves out at random, for which the other processes wait."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def reach_all(forward: Callable[[Tensor], Tensor], parameters: Sequence[nn.Parameter]) -> Callable[[Tensor], Tensor]:
    """Return `forward` so that every backward pass from its output reaches all of the `parameters`.

    `DistributedDataParallel` counts the parameters that a backward pass has reached, and fails in the next step if one
    is missing. A layer that this process leaves out in a step (stochastic depth, LayerDrop) counts as a gradient of 0.

    Parameters
    ----------
    forward : callable
        The replicated model, perhaps compiled.
    parameters : sequence of Parameter
        Those that the processes average.

    Examples
    --------
    >>> used, left_out = nn.Linear(2, 1), nn.Linear(2, 1)
    >>> forward = reach_all(used, [*used.parameters(), *left_out.parameters()])
    >>> forward(torch.ones(1, 2)).sum().backward()
    >>> used.weight.grad.tolist(), left_out.weight.grad
    ([[1.0, 1.0]], None)
    """
    return lambda x: _Reaching.apply(forward(x), *parameters)


class _Reaching(torch.autograd.Function):
    """Identity of its first argument, with no gradient for the others: zeros would cost a pass over all weights."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, *parameters: Tensor) -> Tensor:
        ctx.count = len(parameters)
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (grad, *[None] * ctx.count)
