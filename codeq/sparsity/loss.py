"""Sparsity losses by name: the registry, and a loss that knows its name and arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from codeq.common.registry import Registry, check_kwargs

LossFunction = Callable[[nn.Module], Tensor]

LOSSES: Registry[Callable[..., Any]] = Registry("loss")
"""Functions ``fn(model, **kwargs) -> scalar``, and classes whose instances are losses ``fn(model) -> scalar``."""


class Loss:
    """A sparsity loss ``loss(model) -> scalar`` that knows the name and the arguments it was built from.

    A configuration stores both, so another process can build the loss again. A class that is registered in `LOSSES` is
    instantiated once per training. It may offer a proximal step, ``proximal_step(model, amount)``.

    Parameters
    ----------
    name : str
        Name in `LOSSES`.
    kwargs : mapping
        Arguments.
    function : callable, optional
        ``fn(model, **kwargs)``; a subclass defines ``__call__`` instead.

    Examples
    --------
    >>> loss = Loss("first", {"power": 2}, lambda model, power: model.weight[0, 0] ** power)
    >>> linear = nn.Linear(1, 1)
    >>> _ = nn.init.constant_(linear.weight, 3.0)
    >>> loss, loss(linear).item()
    (first(power=2), 9.0)
    """

    per_model: ClassVar[bool] = False
    """Whether the constructor takes the model first, and `input_size`, the shape `(C, H, W)` of one input."""

    def __init__(self, name: str, kwargs: Mapping[str, Any], function: Callable[..., Tensor] | None = None) -> None:
        self.name = name
        self.kwargs = dict(kwargs)
        self._function = function

    def __call__(self, model: nn.Module) -> Tensor:
        """Return the loss of `model`, `[]`."""
        assert self._function is not None
        return self._function(model, **self.kwargs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Loss) and (self.name, self.kwargs) == (other.name, other.kwargs)

    def __hash__(self) -> int:
        return hash(self.name)

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{key}={value!r}' for key, value in self.kwargs.items())})"


def check_loss(name: str, kwargs: Mapping[str, Any]) -> None:
    """Raise a `CodeqError` if no loss `name` is registered or it cannot take `kwargs`.

    Examples
    --------
    >>> check_loss("group_lasso_blocks", {"blok_size": 8})
    Traceback (most recent call last):
    ...
    codeq.CodeqError: loss 'group_lasso_blocks' has no argument 'blok_size'. Did you mean 'block_size'? ...
    """
    entry = LOSSES[name]
    per_model = getattr(entry, "per_model", False)
    given = {"input_size": None, **kwargs} if per_model else kwargs
    check_kwargs(f"loss {name!r}", entry, given, given=int(per_model or not isinstance(entry, type)))


def build_loss(
    name: str, kwargs: Mapping[str, Any], model: nn.Module, input_size: tuple[int, int, int] = (3, 32, 32)
) -> LossFunction:
    """Build the registered loss `name` for `model`, whose inputs are `(C, H, W)` = `input_size`.

    Raises
    ------
    CodeqError
        For an unknown name or argument, see `check_loss`.

    Examples
    --------
    >>> convs = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 3))
    >>> build_loss("l1_kernel_sparsity", {}, convs)(convs).shape
    torch.Size([])
    """
    check_loss(name, kwargs)
    entry = LOSSES[name]
    if not isinstance(entry, type):
        return Loss(name, kwargs, entry)
    if getattr(entry, "per_model", False):
        return entry(model, **{"input_size": input_size, **kwargs})
    return entry(**kwargs)


def supports_proximal(name: str) -> bool:
    """Return whether the registered loss `name` offers a proximal step, ``proximal_step(model, amount)``.

    Examples
    --------
    >>> supports_proximal("coupled_group_lasso"), supports_proximal("group_lasso")
    (True, False)
    """
    return hasattr(LOSSES[name], "proximal_step")
