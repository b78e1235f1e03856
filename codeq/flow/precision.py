"""Execution of a float64 copy of a model whose forward itself converts tensors to another precision."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from codeq.graph.loose_tensors import LooseTensors
from codeq.graph.surroundings import default_dtype

CASTS = {Tensor.float, Tensor.half, Tensor.bfloat16}


class DoublePrecision(TorchFunctionMode):
    """Mode in which conversions to a floating-point type, and new tensors of such a type, yield float64.

    Tensors that are no parameters or buffers become float64, too, when they arrive.

    A float64 copy of a model with `x.float()` in its forward would otherwise meet float32 activations and float64
    weights, which is an error, or lose the precision that the copy is made for.

    Parameters
    ----------
    weights : dtype
        Type that tensors seem to have, for numbers that a forward computes from it: ``torch.finfo(x.dtype).min``.

    Examples
    --------
    >>> with DoublePrecision(torch.float32):
    ...     x, seen = torch.ones(1).half() / 3, torch.ones(1).dtype
    >>> x.dtype, seen
    (torch.float64, torch.float32)
    """

    def __init__(self, weights: torch.dtype) -> None:
        super().__init__()
        self.weights = weights
        self.loose = LooseTensors(torch.double, lambda _: False)

    def __enter__(self) -> Any:
        self._default = default_dtype(torch.double)
        self._default.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._default.__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call `func` with float64 in place of any other floating-point type."""
        args, kwargs = pytree.tree_map_only(torch.dtype, _to_double, self.loose.convert((args, kwargs or {})))
        result = (Tensor.double if func in CASTS else func)(*args, **kwargs)
        if func is Tensor.type and isinstance(result, Tensor) and result.is_floating_point():
            return args[0].double()  # of a type that is named or given as a class: "torch.FloatTensor"
        return self.weights if result is torch.double else result


def _to_double(dtype: torch.dtype) -> torch.dtype:
    if dtype.is_complex:
        return torch.complex128
    return torch.double if dtype.is_floating_point else dtype


def run_in_double(model: nn.Module, x: Tensor, weights: torch.dtype) -> Any:
    """Return the result of a float64 model on a float64 input, with every conversion inside it to float64 too.

    Parameters
    ----------
    model : Module
        Converted to float64.
    x : Tensor
        `[N, ...]`.
    weights : dtype
        Type of the weights before.

    Examples
    --------
    >>> class Cast(nn.Module):
    ...     def forward(self, x):
    ...         return x.float() / 3
    >>> run_in_double(Cast(), torch.ones(1, dtype=torch.double), torch.float32).dtype
    torch.float64
    """
    with DoublePrecision(weights):
        return model(x)
