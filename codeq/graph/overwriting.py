"""Conversion of in-place operations to operations that return new tensors, also for tensors that share storage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.weak import WeakIdKeyDictionary

from codeq.common.errors import CodeqError

Geometry = tuple[tuple[int, ...], tuple[int, ...], int]  # size, stride and offset


def overwritten(x: Tensor, method: str, *args: Any, **kwargs: Any) -> Tensor:
    """Return a copy of `x` to which an in-place method was applied.

    Examples
    --------
    >>> overwritten(torch.zeros(3), "__setitem__", 1, 5.0).tolist()
    [0.0, 5.0, 0.0]
    """
    x = x.clone()
    getattr(x, method)(*args, **kwargs)
    return x


def read_view(x: Tensor, order: Sequence[int], size: Sequence[int], stride: Sequence[int], offset: int) -> Tensor:
    """Return a view of `x` as a new tensor; `order` lists the dimensions of `x` by descending stride.

    Examples
    --------
    >>> read_view(torch.arange(6).view(2, 3), (0, 1), (2,), (3,), 1).tolist()
    [1, 4]
    """
    return x.permute(*order).contiguous().as_strided(size, stride, offset).clone()


def write_view(
    x: Tensor, value: Tensor, order: Sequence[int], size: Sequence[int], stride: Sequence[int], offset: int
) -> Tensor:
    """Return a copy of `x` in which `value` replaces one of its views.

    Examples
    --------
    >>> write_view(torch.zeros(2, 3), torch.ones(2), (0, 1), (2,), (3,), 1).tolist()
    [[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]]
    """
    flat = x.permute(*order).clone(memory_format=torch.contiguous_format)
    flat.as_strided(size, stride, offset).copy_(value)
    return flat.permute(*(list(order).index(axis) for axis in range(x.ndim)))


@dataclass
class _Registered:
    """Node that computes a tensor, and the number of writes to its storage at that time."""

    node: fx.Node
    writes: int


@dataclass
class _Storage:
    """Memory of a tensor and its views.

    Parameters
    ----------
    node : fx.Node
        Node that computes the present value of the first tensor that was registered in this memory.
    geometry : tuple
        Size, stride and offset of that tensor.
    order : tuple of int, or None
        Its dimensions by descending stride; `None` if it does not fill the memory.
    writes : int
        Number of writes.
    """

    node: fx.Node
    geometry: Geometry
    order: tuple[int, ...] | None
    writes: int = 0


class Aliases:
    """Nodes that compute the present values of tensors, some of which share memory.

    Parameters
    ----------
    graph : fx.Graph
        Graph to add nodes for views of overwritten tensors to.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self._graph = graph
        self._registered: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._storages: dict[StorageWeakRef, _Storage] = {}

    def __contains__(self, tensor: Tensor) -> bool:
        return tensor in self._registered

    def node(self, tensor: Tensor) -> fx.Node:
        """Return the node that computes the present value of a registered tensor."""
        registered, storage = self._registered[tensor], self._storage(tensor)
        if registered.writes < storage.writes:  # it was overwritten through another tensor that shares its memory
            node = storage.node
            if _geometry(tensor) != storage.geometry:
                args = (storage.node, self._order(storage), *_geometry(tensor))
                node = _like(storage.node, self._graph.call_function(read_view, args), tensor)
            registered.node, registered.writes = node, storage.writes
        return registered.node

    def add(self, tensor: Tensor, node: fx.Node) -> None:
        """Register the result of a node."""
        storage = self._storage(tensor, node)
        self._registered[tensor] = _Registered(node, storage.writes)

    def overwrite(self, tensor: Tensor, node: fx.Node) -> None:
        """Register that a tensor, and all that share its memory, were overwritten by the result of a node."""
        storage = self._storage(tensor)
        if _geometry(tensor) == storage.geometry:
            storage.node = node
        else:
            args = (storage.node, node, self._order(storage), *_geometry(tensor))
            before = storage.node
            storage.node = _like(before, self._graph.call_function(write_view, args), None)
        storage.writes += 1
        self._registered[tensor] = _Registered(node, storage.writes)

    def _storage(self, tensor: Tensor, node: fx.Node | None = None) -> _Storage:
        key = StorageWeakRef(tensor.untyped_storage())
        if key not in self._storages:
            self._storages[key] = _Storage(node or self._registered[tensor].node, _geometry(tensor), _order(tensor))
        return self._storages[key]

    @staticmethod
    def _order(storage: _Storage) -> tuple[int, ...]:
        if storage.order is None:
            raise CodeqError(f"{storage.node.name} is overwritten in place, and shares memory in an unusual way")
        return storage.order


def _geometry(tensor: Tensor) -> Geometry:
    return tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset())


def _order(tensor: Tensor) -> tuple[int, ...] | None:
    """Return the dimensions by descending stride if the tensor fills its memory without gaps, else `None`."""
    order = tuple(sorted(range(tensor.ndim), key=lambda axis: (-tensor.stride()[axis], axis)))
    dense = tensor.permute(order).is_contiguous() and tensor.storage_offset() == 0
    fills = tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()
    return order if dense and fills else None


def _like(source: fx.Node, node: fx.Node, tensor: Tensor | None) -> fx.Node:
    """Copy the metadata of `source` to a new node that returns a view or an updated copy of its tensor."""
    node.meta.update(source.meta)
    if tensor is not None:
        node.meta["result"] = tensor.shape
    return node
