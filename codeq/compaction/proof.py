"""Proof that a compacted model equals the masked one it was made from: both are run and compared."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from codeq.common.batches import check_batches, split_batch
from codeq.common.checks import check_model
from codeq.common.default_device import cpu_by_default
from codeq.common.equality import relative_error
from codeq.common.errors import CodeqError
from codeq.flow.precision import run_in_double
from codeq.graph.baking import baked_copy, convert
from codeq.metrics.accuracy import check_classes, check_labels
from codeq.quantizer.precision import weight_type


@dataclass(frozen=True)
class Proof:
    """Differences of two models on real inputs, in float64, and the cost of each.

    Parameters
    ----------
    max_error : float
        Largest absolute difference of an output.
    relative_error : float
        Largest difference relative to the largest absolute output, where masks such as ``-1e30`` do not count, see
        `codeq.common.equality.relative_error`.
    flipped : int
        Inputs whose predicted class (the largest element of the first output) differs.
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


@cpu_by_default()
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
        For two models that share weights (comparing a model with itself proves nothing), and where nothing can be
        compared: no inputs, no outputs, outputs that are not finite on either side, or whose number, shapes or types
        differ. With labels, also for outputs that are not class scores and labels `[N]` that are not numbers of
        the model's classes.

    Examples
    --------
    >>> from copy import deepcopy
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    >>> proof = prove(net, deepcopy(net), [torch.ones(3, 1, 2, 2)])
    >>> proof.max_error, proof.flipped, proof.inputs, proof.compacted_macs
    (0.0, 0, 3, 8)
    """
    check_model(masked)
    check_model(compacted)
    check_batches(batches)
    if masked is compacted or _storages(masked) & _storages(compacted):
        raise CodeqError("the two models share weights: comparing a model with itself proves nothing")
    weights = weight_type(masked, torch.float32)
    models = [convert(baked_copy(model).cpu(), torch.double) for model in (masked, compacted)]
    error = relative = 0.0
    flipped = inputs = labelled = 0
    macs, right = [0, 0], [0, 0]
    for batch in batches:
        x, labels = split_batch(batch)
        if not len(x):
            continue
        x = x.cpu().double()
        if not inputs:
            macs = [_macs_of_one(model, x) for model in models]
        # Each model reads its own copy: a model may overwrite its input.
        outputs = [_outputs(run_in_double(model, x.clone(), weights)) for model in models]
        batch_error, batch_relative = _compare(*outputs)
        error, relative = max(error, batch_error), max(relative, batch_relative)
        scores = [_comparable(result[0]) for result in outputs]
        flipped += _count_flipped(scores[0], scores[1], len(x))
        inputs += len(x)
        if labels is not None:
            check_labels(outputs[0][0], labels)
            y, classes = labels.cpu().long(), scores[0].shape[1]
            check_classes(int(((y < 0) | (y >= classes)).sum()), len(y), classes)
            labelled += len(y)
            right = [n + int((s.argmax(1) == y).sum()) for n, s in zip(right, scores, strict=True)]
    if not inputs:
        raise CodeqError("there are no batches with inputs to prove the models equal on")
    first, second = (n / labelled if labelled else None for n in right)
    return Proof(error, relative, flipped, inputs, first, second, *macs)


def _macs_of_one(model: nn.Module, x: Tensor) -> int:
    """Return the MACs of one input: counted on one, or on two where a network takes no single one."""
    try:
        return count_macs(model, x[:1])
    except Exception:
        return count_macs(model, x[:2]) // len(x[:2])


def _storages(model: nn.Module) -> set[int]:
    """Return the addresses of the weights: parameters of two models may be two views of the same memory."""
    return {p.untyped_storage().data_ptr() for p in model.parameters()} - {0}  # 0: a tensor without memory


def _outputs(result: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


def _compare(expected: list[Tensor], found: list[Tensor]) -> tuple[float, float]:
    """Return the largest absolute and the largest relative difference."""
    if len(expected) != len(found):
        raise CodeqError(f"the models return {len(expected)} and {len(found)} tensors: they are not equal")
    if not any(tensor.numel() for tensor in expected):
        raise CodeqError("the models return no numbers: there is nothing to prove equal")
    values, errors = [], []
    for number, (p, q) in enumerate(zip(expected, found, strict=True)):
        if p.shape != q.shape or _kind(p) != _kind(q):
            raise CodeqError(
                f"output {number} of the models is {_kind(p)} {list(p.shape)} and {_kind(q)} {list(q.shape)}: "
                "they are not equal"
            )
        if not p.numel():
            continue
        p, q = (_comparable(tensor) for tensor in (p, q))
        for side, tensor in (("first", p), ("second", q)):
            if not tensor.isfinite().all():
                raise CodeqError(f"output {number} of the {side} model is not finite (NaN or inf): it proves nothing")
        values.append(p.double().flatten().numpy())
        errors.append((p - q).abs().double().flatten().numpy())
    error = np.concatenate(errors)
    return float(error.max()), relative_error(np.concatenate(values), error)


def _kind(tensor: Tensor) -> str:
    if tensor.is_complex():
        return "complex"
    return "floating point" if tensor.is_floating_point() else "integer"


def _comparable(tensor: Tensor) -> Tensor:
    """Return a tensor whose differences neither wrap around nor round away."""
    if tensor.is_complex():
        return torch.view_as_real(tensor.to(torch.complex128))
    return tensor.double() if tensor.is_floating_point() else tensor.long()


def _count_flipped(expected: Tensor, found: Tensor, inputs: int) -> int:
    """Count the inputs whose class differs: the largest element of a row of scores, or the row itself of integers."""
    if expected.ndim == 0 or len(expected) != inputs or not expected.numel():
        return 0  # no row for each input, so no class
    rows = [output.reshape(inputs, -1) for output in (expected, found)]
    classes = [row.argmax(1, keepdim=True) if row.is_floating_point() else row for row in rows]
    return int((classes[0] != classes[1]).any(1).sum())


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
        run_in_double(model, x.clone(), torch.double) if x.dtype == torch.double else model(x)
    counts = counter.get_flop_counts().get("Global", {})  # nothing if no operation that costs flops was run
    by_weights = {torch.ops.aten.convolution, torch.ops.aten.addmm, torch.ops.aten.mm}
    return sum(flops for call, flops in counts.items() if call in by_weights) // 2
