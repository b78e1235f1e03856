"""Storage of the elements of a tensor in a compacted network, and their retrieval in the shape an operation needs.

Only elements that are needed and depend on the input are stored. Moving elements (slices, concatenation, channel
shuffle) costs nothing until an operation computes with them: only the places where they are looked up change.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from codeq.compaction.parts import Constant, Fill, Restore, Take, add_nested
from codeq.flow.values import Value, compressed
from codeq.metrics.reference import compacted_name


@dataclass(frozen=True, eq=False)
class Piece:
    """A tensor of the compacted network, `[N, *shape]`."""

    node: fx.Node
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Elements for one input."""
        return int(np.prod(self.shape))


@dataclass(frozen=True, eq=False)
class Stored:
    """Places of the elements of a `Value`.

    Parameters
    ----------
    pieces : tuple of Piece
        Tensors that contain the elements.
    where : array of int
        Index of each element into the flattened, concatenated pieces, in the shape of the value; -1 if not stored.
    """

    pieces: tuple[Piece, ...]
    where: np.ndarray


@dataclass(frozen=True, eq=False)
class Layout:
    """Selection of elements of a tensor: slices along one dimension, or a flat list of elements.

    Parameters
    ----------
    shape : tuple of int
        Shape of the whole tensor, without the batch.
    axis : int or None
        Dimension of the slices; `None` for a flat list of elements.
    index : array of int
        Indices of the slices or elements.

    Examples
    --------
    >>> layout = Layout.of(np.array([[True, True], [False, False], [True, True]]))
    >>> layout.axis, layout.index.tolist(), layout.select(np.arange(6).reshape(3, 2)).tolist()
    (0, [0, 2], [[0, 1], [4, 5]])
    """

    shape: tuple[int, ...]
    axis: int | None
    index: np.ndarray

    @classmethod
    def of(cls, mask: np.ndarray, axis: int | None = None) -> Layout:
        """Return the layout of the elements where `mask` is true, or of the slices along `axis` with any."""
        for candidate in range(mask.ndim) if axis is None else [axis]:
            others = tuple(a for a in range(mask.ndim) if a != candidate)
            line = mask.any(axis=others)
            if axis is not None or (mask == np.expand_dims(line, others)).all():
                return cls(mask.shape, candidate, np.flatnonzero(line))
        return cls(mask.shape, None, np.flatnonzero(mask))

    def select(self, array: np.ndarray) -> np.ndarray:
        """Return the selected elements of an array of the same rank as the tensor and broadcastable to its shape."""
        if self.axis is None:
            return np.broadcast_to(array, self.shape).ravel()[self.index]
        return array.take(self.index, self.axis) if array.shape[self.axis] > 1 or self.shape[self.axis] == 1 else array

    def where(self) -> np.ndarray:
        """Return for each element of the tensor its index among the selected ones, or -1."""
        chosen = self.select(np.arange(int(np.prod(self.shape))).reshape(self.shape))
        where = np.full(int(np.prod(self.shape)), -1)
        where[chosen.ravel()] = np.arange(chosen.size)
        return where.reshape(self.shape)


class Builder:
    """A compacted network under construction.

    Parameters
    ----------
    graph : fx.Graph
        Graph to add calls to.
    root : Module
        Module to add modules to.
    source : fx.Node
        The input; constants take the batch size from it.
    """

    def __init__(self, graph: fx.Graph, root: nn.Module, source: fx.Node) -> None:
        self.graph, self.root, self.source = graph, root, source
        self._taken = {name for name, _ in root.named_modules()}

    def add_module(self, name: str, module: nn.Module) -> str:
        """Add a module under a dotted name, or under a numbered one if that is taken; return the name."""
        name = compacted_name(name)
        unique, number = name, 2
        while unique in self._taken:
            unique, number = f"{name}_{number}", number + 1
        steps = unique.split(".")
        self._taken |= {".".join(steps[: i + 1]) for i in range(len(steps))}
        add_nested(self.root, unique, module)
        return unique

    def call(self, name: str, module: nn.Module, x: fx.Node) -> fx.Node:
        """Add a module under `name` and its call."""
        return self.graph.call_module(self.add_module(name, module), (x,))

    def get(self, name: str, value: Value, stored: Stored, elements: np.ndarray, expand: bool = True) -> fx.Node:
        """Return a tensor `[N, *elements.shape]` of the compacted network with the given elements of a value.

        Elements that do not depend on the input are filled in. With `expand=False`, a tensor of only such elements may
        have a batch dimension of size 1.
        """
        where = stored.where.ravel()[elements]
        missing = where < 0
        fixed = value.data.reshape(-1)[torch.from_numpy(elements.ravel())].reshape(elements.shape)
        if missing.all():
            return self._constant(name, fixed, expand)
        pieces, where = _used(stored.pieces, where)
        if not missing.any():
            return self._selected(name, pieces, where)
        layout = Layout.of(~missing)
        if layout.axis is None:
            taken = self._selected(name, pieces, np.where(missing, 0, where))
            return self.call(f"{name}_fill", Fill(torch.from_numpy(missing), fixed), taken)
        taken = self._selected(name, pieces, layout.select(where))
        index = torch.from_numpy(layout.index)
        rest = compressed(torch.where(torch.from_numpy(missing), fixed, 0.0).numpy())
        restore = Restore.at(index, torch.from_numpy(rest.copy()), elements.shape, layout.axis + 1)
        return self.call(f"{name}_restore", restore, taken)

    def _constant(self, name: str, fixed: Tensor, expand: bool) -> fx.Node:
        if expand:
            return self.call(f"{name}_constant", Constant(fixed.clone()), self.source)
        return self.buffer(name, torch.from_numpy(compressed(fixed.numpy()).copy())[None])

    def buffer(self, name: str, fixed: Tensor) -> fx.Node:
        """Add a constant without a batch dimension, or with one of size 1 that is broadcast."""
        holder = nn.Module()
        holder.register_buffer("fixed", fixed)
        return self.graph.get_attr(f"{self.add_module(f'{name}_constant', holder)}.fixed")

    def _selected(self, name: str, pieces: Sequence[Piece], where: np.ndarray) -> fx.Node:
        """Return a tensor `[N, *where.shape]` of the elements `where` of some pieces."""
        piece = self._joined(pieces)
        node, shape = piece.node, where.shape
        if where.size == piece.size and (where.ravel() == np.arange(where.size)).all():
            taken: tuple[int, ...] = piece.shape
        elif found := as_slices(piece.shape, where):
            order, indices = found
            if order != tuple(range(len(order))):
                node = self.graph.call_method("permute", (node, 0, *(a + 1 for a in order)))
            for axis, index in enumerate(indices):
                if len(index) != piece.shape[order[axis]] or (np.diff(index) != 1).any():
                    node = self.call(f"{name}_take", Take(torch.from_numpy(index.copy()), axis + 1), node)
            taken = tuple(len(index) for index in indices)
        else:
            taken = (where.size,)
            node = self.call(f"{name}_take", Take(torch.from_numpy(where.ravel().copy()), dim=1, flat=True), node)
        return node if taken == shape else self.graph.call_method("reshape", (node, -1, *shape))

    def _joined(self, pieces: Sequence[Piece]) -> Piece:
        if len(pieces) == 1:
            return pieces[0]
        flat = any(not p.shape or p.shape[1:] != pieces[0].shape[1:] for p in pieces)
        nodes = [self.graph.call_method("flatten", (p.node, 1)) if flat else p.node for p in pieces]
        joined: Any = self.graph.call_function(torch.cat, (nodes,), {"dim": 1})
        rest = () if flat else pieces[0].shape[1:]
        return Piece(joined, (sum(p.size if flat else p.shape[0] for p in pieces), *rest))


def _used(pieces: Sequence[Piece], where: np.ndarray) -> tuple[list[Piece], np.ndarray]:
    """Remove the pieces that contain none of the elements."""
    starts = np.cumsum([0, *(piece.size for piece in pieces)])
    owner = np.searchsorted(starts, where, side="right") - 1
    used = np.unique(owner[where >= 0])
    kept = [pieces[i] for i in used]
    new_starts = np.zeros(len(pieces) + 1, dtype=np.int64)
    new_starts[used] = np.cumsum([0, *(piece.size for piece in kept)])[:-1]
    place = np.where(where >= 0, owner, 0)
    return kept, np.where(where >= 0, where - starts[place] + new_starts[place], -1)


def as_slices(shape: tuple[int, ...], where: np.ndarray) -> tuple[tuple[int, ...], tuple[np.ndarray, ...]] | None:
    """Express the elements `where` of a tensor as slices along its dimensions after a permutation, if possible.

    Returns
    -------
    tuple or None
        Permutation of the dimensions, and the indices of the slices along each dimension after it; the elements are
        in the order of `where`, whose shape may be another one.

    Examples
    --------
    >>> order, indices = as_slices((2, 3), np.array([[0, 3], [2, 5]]))
    >>> order, [index.tolist() for index in indices]
    ((1, 0), [[0, 2], [0, 1]])
    """
    numbers = np.arange(int(np.prod(shape))).reshape(shape)
    for order in permutations(range(len(shape))) if where.size else ():
        grid = numbers.transpose(order)
        for sliced in _sliced_shapes(grid.shape, where.shape):
            candidate = where.reshape(sliced)
            corner = (0,) * grid.ndim
            places: list[Any] = [(*corner[:a], slice(None), *corner[a + 1 :]) for a in range(grid.ndim)]
            lines = [candidate[place] for place in places]
            indices = tuple(np.unravel_index(line, shape)[order[axis]] for axis, line in enumerate(lines))
            if (grid[np.ix_(*indices)] == candidate).all():
                return order, indices
    return None


def _sliced_shapes(shape: tuple[int, ...], wanted: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Yield the shapes that slices of a tensor can have whose elements are shaped as `wanted` afterwards."""
    if len(wanted) == len(shape):
        yield wanted
    for axis, size in enumerate(shape):
        count, rest = divmod(int(np.prod(wanted)) * size, int(np.prod(shape)))
        if not rest:
            yield (*shape[:axis], count, *shape[axis + 1 :])
