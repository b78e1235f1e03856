"""Execution of a float64 copy of a model whose forward itself converts tensors to another precision."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from codeq.graph.surroundings import default_dtype

CASTS = {Tensor.float, Tensor.half, Tensor.bfloat16}


class DoublePrecision(TorchFunctionMode):
    """Mode in which conversions to a floating-point type, and new tensors of such a type, yield float64.

    A float64 copy of a model with `x.float()` in its forward would otherwise meet float32 activations and float64
    weights, which is an error, or lose the precision that the copy is made for.

    Examples
    --------
    >>> with DoublePrecision():
    ...     torch.ones(1).float().dtype, torch.ones(1).to(torch.bfloat16).dtype, torch.ones(1).int().dtype
    (torch.float64, torch.float64, torch.int32)
    """

    def __enter__(self) -> Any:
        self._default = default_dtype(torch.double)
        self._default.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._default.__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call `func` with float64 in place of any other floating-point type."""
        args, kwargs = pytree.tree_map_only(torch.dtype, _to_double, (args, kwargs or {}))
        result = (Tensor.double if func in CASTS else func)(*args, **kwargs)
        if func is Tensor.type and isinstance(result, Tensor) and result.is_floating_point():
            return args[0].double()  # of a type that is named or given as a class: "torch.FloatTensor"
        return result


def _to_double(dtype: torch.dtype) -> torch.dtype:
    if dtype.is_complex:
        return torch.complex128
    return torch.double if dtype.is_floating_point else dtype


def run_in_double(model: nn.Module, x: Tensor) -> Any:
    """Return the result of a float64 model on a float64 input, with every conversion inside it to float64 too.

    Examples
    --------
    >>> class Cast(nn.Module):
    ...     def forward(self, x):
    ...         return x.float() / 3
    >>> run_in_double(Cast(), torch.ones(1, dtype=torch.double)).dtype
    torch.float64
    """
    with DoublePrecision():
        return model(x)
