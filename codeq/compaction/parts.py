"""Modules of a compacted network besides its layers, which move channels and add fixed maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from codeq.common.errors import CodeqError


def add_nested(root: nn.Module, name: str, module: nn.Module) -> None:
    """Add a module under a dotted name, in new empty modules where those that it names are missing.

    Examples
    --------
    >>> root = nn.Module()
    >>> add_nested(root, "block.fc", nn.Linear(2, 1))
    >>> [name for name, _ in root.named_modules()]
    ['', 'block', 'block.fc']
    """
    *owners, last = name.split(".")
    for owner in owners:
        if owner not in dict(root.named_children()):
            root.add_module(owner, nn.Module())
        root = root.get_submodule(owner)
    root.add_module(last, module)


class InputSize(nn.Module):
    """Check that inputs have the size for which the fixed maps of the network are valid, and convert them to its type.

    The conversion stands for those in the forward of the network before compaction (``x.bfloat16()``).

    Parameters
    ----------
    size : tuple of int
        Shape of one input.
    dtype : dtype
        Type of the weights of the network; it changes with theirs.

    Examples
    --------
    >>> InputSize((2,), torch.float32).double()(torch.zeros(1, 2)).dtype
    torch.float64
    >>> InputSize((3, 8, 8), torch.float32)(torch.zeros(1, 3, 9, 9))
    Traceback (most recent call last):
    ...
    codeq.CodeqError: this compacted model takes inputs of (3, 8, 8), not (3, 9, 9); compact the model again ...
    """

    def __init__(self, size: tuple[int, ...], dtype: torch.dtype) -> None:
        super().__init__()
        self.size, self.dtype = size, dtype

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype  # without an entry in the state dict
        return super()._apply(fn, recurse)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x`, `[N, *size]`, in the type of the network."""
        if not torch.jit.is_tracing() and tuple(x.shape[1:]) != self.size:
            raise CodeqError(
                f"this compacted model takes inputs of {self.size}, not {tuple(x.shape[1:])}; compact the model again "
                "with an example of the other size"
            )
        return x if x.dtype == self.dtype else x.to(self.dtype)  # no call in exported programs where none is needed


class Take(nn.Module):
    """Selection of the slices `index` along the dimension `dim`; with `flat`, of elements of one input instead.

    Examples
    --------
    >>> Take(torch.tensor([2, 0]), dim=1)(torch.tensor([[5, 6, 7]])).tolist()
    [[7, 5]]
    """

    index: Tensor

    def __init__(self, index: Tensor, dim: int, flat: bool = False) -> None:
        super().__init__()
        self.dim, self.flat = dim, flat
        self.register_buffer("index", index)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor with ``len(index)`` slices along `dim`."""
        return (x.flatten(1) if self.flat else x).index_select(self.dim, self.index)


class Restore(nn.Module):
    """Insertion of slices into a fixed map: the opposite of `Take`.

    Parameters
    ----------
    fixed : Tensor
        The other slices, without the batch; of size 1 along dimensions where they are equal.
    order : Tensor
        Position of each slice of the result in the concatenation of the inserted and the fixed slices.
    shape : tuple of int
        Shape of the fixed slices.
    dim : int
        Dimension of the slices, counting the batch dimension.
    """

    fixed: Tensor
    order: Tensor

    def __init__(self, fixed: Tensor, order: Tensor, shape: Sequence[int], dim: int) -> None:
        super().__init__()
        self.shape, self.dim = tuple(shape), dim
        self.register_buffer("fixed", fixed)
        self.register_buffer("order", order)

    @classmethod
    def at(cls, index: Tensor, fixed: Tensor, shape: Sequence[int], dim: int) -> Restore:
        """Return the insertion at the positions `index` of a map.

        Parameters
        ----------
        index : Tensor
            Positions of the slices.
        fixed : Tensor
            Values of the map, without the batch: of the shape of one result, or of size 1 along dimensions where they
            are equal.
        shape : tuple of int
            Shape of one result.
        dim : int
            Dimension of the slices, counting the batch dimension.

        Examples
        --------
        >>> Restore.at(torch.tensor([1]), torch.tensor([1.0, 2.0, 3.0]), (3,), dim=1)(torch.tensor([[9.0]])).tolist()
        [[1.0, 9.0, 3.0]]
        """
        axis, kept = dim - 1, len(index)
        outside = torch.ones(shape[axis], dtype=torch.bool)
        outside[index] = False
        order = torch.full((shape[axis],), kept)  # position of each slice in the concatenation of kept and fixed ones
        order[index] = torch.arange(kept)
        if fixed.shape[axis] > 1:
            order[outside] += torch.arange(int(outside.sum()))
            fixed = fixed[(slice(None),) * axis + (outside,)]
        return cls(fixed, order, (*shape[:axis], fixed.shape[axis], *shape[dim:]), dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[N, *shape]`."""
        # A forward that converts activations, as by `x.float()`, makes `x` of another type than the network's.
        fixed = self.fixed.to(x.dtype).expand(x.shape[0], *self.shape)
        # Faster than an assignment to indices, in ONNX Runtime and OpenVINO as well.
        return torch.cat([x, fixed], dim=self.dim).index_select(self.dim, self.order)


class Fill(nn.Module):
    """Replacement of the elements that do not depend on the input by their fixed values.

    Examples
    --------
    >>> Fill(torch.tensor([True, False]), torch.tensor([7.0, 0.0]))(torch.tensor([[1.0, 2.0]])).tolist()
    [[7.0, 2.0]]
    """

    mask: Tensor
    fixed: Tensor

    def __init__(self, mask: Tensor, fixed: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        self.register_buffer("fixed", fixed)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor like `x`."""
        return torch.where(self.mask, self.fixed, x)


class Constant(nn.Module):
    """A tensor that does not depend on the input, repeated for every input of the batch.

    Examples
    --------
    >>> Constant(torch.tensor([1.0]))(torch.zeros(2, 3)).tolist()
    [[1.0], [1.0]]
    """

    fixed: Tensor

    def __init__(self, fixed: Tensor) -> None:
        super().__init__()
        self.register_buffer("fixed", fixed)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[N, ...]` for `x` of `[N, ...]`."""
        return self.fixed.expand(x.shape[0], *self.fixed.shape)


class BiasMap(nn.Module):
    """Addition of a fixed map to the result of a layer: the contribution of fixed channels where it varies over space.

    Examples
    --------
    >>> BiasMap(torch.tensor([1.0, 2.0]))(torch.zeros(1, 2)).tolist()
    [[1.0, 2.0]]
    """

    map: Tensor

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("map", bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor like `x`."""
        return x + self.map


class Parts(nn.Module):
    """Grouped convolution whose groups keep different numbers of channels, as one convolution for each size.

    Parameters
    ----------
    parts : sequence of Module
        Convolutions, one for each size.
    inputs : sequence of Tensor
        Input channels of each.
    order : Tensor
        Position of each channel of the whole result among the concatenated results of the parts.
    """

    order: Tensor

    def __init__(self, parts: Sequence[nn.Module], inputs: Sequence[Tensor], order: Tensor) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.takes = nn.ModuleList(Take(index, dim=1) for index in inputs)
        self.register_buffer("order", order)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[N, kept inputs, H, W]` to `[N, kept outputs, H, W]`."""
        results = [part(take(x)) for part, take in zip(self.parts, self.takes, strict=True)]
        return torch.cat(results, dim=1).index_select(1, self.order)
