"""Proves a compacted model equal to the masked one it was made from, by running both."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from codeq.common.errors import CodeqError
from codeq.flow.prepare import baked_copy


@dataclass(frozen=True)
class Proof:
    """How far two models differ on real inputs, in float64, and what each costs.

    Parameters
    ----------
    max_error : float
        Largest absolute difference of an output.
    relative_error : float
        The same relative to the largest absolute output.
    flipped : int
        Inputs whose predicted class (the largest output) differs.
    inputs : int
        Inputs that were run.
    masked_accuracy, compacted_accuracy : float or None
        Fraction of right predictions; `None` without labels.
    masked_macs, compacted_macs : int
        Of one input, as counted by PyTorch's own flop counter: multiplications by weights of conv and linear layers.
    """

    max_error: float
    relative_error: float
    flipped: int
    inputs: int
    masked_accuracy: float | None
    compacted_accuracy: float | None
    masked_macs: int
    compacted_macs: int


@torch.no_grad()
def prove(masked: nn.Module, compacted: nn.Module, batches: Iterable[Any]) -> Proof:
    """Run two models on the same inputs and compare their outputs, in float64 and evaluation mode.

    Parameters
    ----------
    masked, compacted : Module
        Left as they are.
    batches : iterable
        Inputs `[N, ...]`, or pairs of inputs and labels `[N]`, as a data loader gives them.

    Raises
    ------
    CodeqError
        For no batches, and for two models that share weights: comparing a model with itself proves nothing.

    Examples
    --------
    >>> from copy import deepcopy
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    >>> proof = prove(net, deepcopy(net), [torch.ones(3, 1, 2, 2)])
    >>> proof.max_error, proof.flipped, proof.inputs, proof.compacted_macs
    (0.0, 0, 3, 8)
    """
    if masked is compacted or {*masked.parameters()} & {*compacted.parameters()}:
        raise CodeqError("the two models share weights: comparing a model with itself proves nothing")
    models = [baked_copy(model).cpu().double() for model in (masked, compacted)]
    error = largest = 0.0
    flipped = inputs = labelled = 0
    macs, right = [0, 0], [0, 0]
    for batch in batches:
        x, labels = batch[:2] if isinstance(batch, (tuple, list)) else (batch, None)
        x = x.cpu().double()
        if not inputs:
            macs = [count_macs(model, x[:1]) for model in models]
        outputs = [_outputs(model(x)) for model in models]
        error = max([error, *((p - q).abs().max().item() for p, q in zip(*outputs, strict=True))])
        largest = max([largest, *(p.abs().max().item() for p in outputs[0])])
        guesses = [result[0].flatten(1).argmax(1) for result in outputs]
        flipped += int((guesses[0] != guesses[1]).sum())
        inputs += len(x)
        if labels is not None:
            labelled += len(x)
            right = [n + int((p == labels.cpu()).sum()) for n, p in zip(right, guesses, strict=True)]
    if not inputs:
        raise CodeqError("there are no batches to prove the models equal on")
    first, second = (n / inputs if labelled else None for n in right)
    return Proof(error, error / largest if largest else error, flipped, inputs, first, second, *macs)


def _outputs(result: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


@torch.no_grad()
def count_macs(model: nn.Module, x: Tensor) -> int:
    """Count the MACs of conv and linear layers with PyTorch's flop counter, which sees only what really runs.

    Products of activations with each other, as in attention, are not counted.

    Examples
    --------
    >>> count_macs(nn.Conv2d(2, 4, 3, padding=1), torch.zeros(1, 2, 4, 4))
    1152
    """
    from torch.utils.flop_counter import FlopCounterMode  # a quarter of a second, which `import codeq` does not pay

    with FlopCounterMode(display=False) as counter:
        model(x)
    counts = counter.get_flop_counts().get("Global", {})  # nothing if no operation that costs flops was run
    by_weights = {torch.ops.aten.convolution, torch.ops.aten.addmm, torch.ops.aten.mm}
    return sum(flops for call, flops in counts.items() if call in by_weights) // 2
