"""Repeated forward passes of one batch that start where a changed weight is first used."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from codeq.common.errors import CodeqError

RECORDED_BYTES = 2**30  # of intermediate results that one `PrefixCache` keeps


class PrefixCache:
    """Forward pass of a model on one batch, repeated with other values of one parameter.

    The first pass records the results of all PyTorch operations up to the first one that reads the parameter. Each
    repetition takes these results and executes the other operations, in the same order and with the same kernels as a
    complete pass, so that its outputs are equal to the bit. This holds for any model whose evaluation is deterministic:
    operations are recorded below Python, whatever modules, functions or hooks call them, and results that are written
    in place are restored. Beyond `RECORDED_BYTES` of results, operations are executed again.

    Parameters
    ----------
    model : Module
        In evaluation mode; its other parameters must not change between passes.
    parameter : Tensor
        The parameter whose values change.
    x : Tensor
        One batch of inputs.

    Attributes
    ----------
    output : Tensor
        Output of the first pass, with the parameter as it was.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)).requires_grad_(False).eval()
    >>> x = torch.ones(1, 2)
    >>> cache = PrefixCache(net, net[2].weight, x)
    >>> _ = net[2].weight.mul_(2)
    >>> torch.equal(cache.forward(), net(x))
    True
    """

    def __init__(self, model: nn.Module, parameter: Tensor, x: Tensor) -> None:
        self.model, self.x = model, x.clone()  # a model may overwrite its input
        recording = _Recording(parameter, self.x)
        with torch.no_grad(), recording:
            self.output = model(self.x)
        self._results, self._written = recording.results, recording.written

    def forward(self) -> Tensor:
        """Return the output with the present values of the parameter.

        Raises
        ------
        CodeqError
            If the model does not repeat the operations of the first pass.
        """
        for result, value in self._written.values():
            result.copy_(value)
        with torch.no_grad(), _Replay(self._results):
            return self.model(self.x)


class _Recording(TorchDispatchMode):
    """Keeps the results of operations until one reads `parameter`, or until they would take too much memory."""

    def __init__(self, parameter: Tensor, x: Tensor) -> None:
        super().__init__()
        self.parameter = parameter
        self.results: list[tuple[Any, Any]] = []  # (operation, result)
        self.written: dict[int, tuple[Tensor, Tensor]] = {}  # memory that later operations write to, and its content
        self._kept = {x.untyped_storage().data_ptr(): x}  # by the address of their memory
        self._bytes, self._complete = 0, False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = tree_leaves((args, kwargs or {}))
        self._complete |= any(value is self.parameter for value in inputs) or self._bytes > RECORDED_BYTES
        if self._complete and func._schema.is_mutable:
            self._save([value for value in inputs if isinstance(value, Tensor)])
        result = func(*args, **(kwargs or {}))
        if not self._complete:
            self.results.append((func, result))
            for value in tree_leaves(result):
                if isinstance(value, Tensor) and value.untyped_storage().data_ptr() not in self._kept:
                    self._kept[value.untyped_storage().data_ptr()] = value
                    self._bytes += value.untyped_storage().nbytes()
        return result

    def _save(self, inputs: list[Tensor]) -> None:
        """Copy the recorded memory of `inputs` before it is written."""
        for value in inputs:
            address = value.untyped_storage().data_ptr()
            if address in self._kept and address not in self.written:
                whole = torch.empty(0, dtype=torch.uint8, device=value.device).set_(value.untyped_storage())
                self.written[address] = (whole, whole.clone())


class _Replay(TorchDispatchMode):
    """Returns recorded results instead of executing operations, as long as there are some."""

    def __init__(self, results: list[tuple[Any, Any]]) -> None:
        super().__init__()
        self._results = iter(results)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        recorded, result = next(self._results, (None, None))
        if recorded is None:
            return func(*args, **(kwargs or {}))
        if recorded is not func:
            raise CodeqError(f"the model does not repeat its evaluation: {func} where there was {recorded}")
        # PyTorch registers a returned tensor as the new result of its operation, which it can be only once.
        return tree_map_only(Tensor, Tensor.detach, result)
