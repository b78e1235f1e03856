"""Tensors that a conversion of a model to another precision misses, because they are no tensors of its modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from codeq.graph.baking import converted


class LooseTensors:
    """Converts global variables, tensors in lists and NumPy's arrays when they arrive as arguments of calls.

    Each is converted once, so that what a forward writes into it is there when it is read again.

    Parameters
    ----------
    dtype : dtype
        Floating-point type to convert them to.
    known : callable
        Whether a tensor is none of them, and is left as it is.

    Examples
    --------
    >>> window, loose = torch.ones(2), LooseTensors(torch.double, lambda _: False)
    >>> (first, _), again = loose.convert((window, 0.5)), loose.convert(window)
    >>> first.dtype, first is again
    (torch.float64, True)
    """

    def __init__(self, dtype: torch.dtype, known: Callable[[Tensor], bool]) -> None:
        self.dtype, self.known = dtype, known
        self._converted: dict[Tensor, Tensor] = {}

    def convert(self, arguments: Any) -> Any:
        """Return arguments with tensors of the type, on the CPU and without gradients."""
        return pytree.tree_map_only(Tensor, self._convert, arguments)

    def _convert(self, tensor: Tensor) -> Tensor:
        if tensor in self._converted:
            return self._converted[tensor]
        if self.known(tensor):
            return tensor
        plain = converted(tensor.detach() if tensor.requires_grad else tensor, self.dtype).cpu()
        if plain is not tensor:
            self._converted[tensor] = plain
        return plain
