"""Registry of networks, which also finds those of timm, of torchvision and of users' modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from codeq.common.errors import CodeqError, nearest, quote
from codeq.common.imports import imported_factory
from codeq.common.registry import Registry

Factory = Callable[..., nn.Module]

# Arguments of the libraries' factories that read files or the network: weights are given by `init_from`.
_WEIGHTS = frozenset(
    {"pretrained", "checkpoint_path", "cache_dir", "pretrained_cfg", "pretrained_cfg_overlay"}
    | {"weights", "weights_backbone"}
)


class ModelRegistry(Registry[Factory]):
    """Registry in which ``timm:NAME``, ``torchvision:NAME`` and ``module:factory`` are names as well.

    Examples
    --------
    >>> ModelRegistry("model")["torchvision:squeezenet1_1"](num_classes=10).num_classes
    10
    """

    def __missing__(self, name: str) -> Factory:
        library, separator, rest = name.partition(":") if isinstance(name, str) else ("", "", "")
        if not separator:
            return super().__missing__(name)
        if library in _LIBRARIES:
            return _LIBRARIES[library](rest)
        return imported_factory(name)


def _timm(name: str) -> Factory:
    import timm  # takes seconds

    if not timm.is_model(name):
        raise _unknown("timm", name, timm.list_models())
    fixed = getattr(timm.get_pretrained_cfg(name, allow_unregistered=True), "fixed_input_size", False)

    def of_any_size(num_classes: int, **kwargs: Any) -> nn.Module:
        return timm.create_model(name, num_classes=num_classes, **_checked("timm", kwargs))

    def of_one_size(num_classes: int, img_size: int = 224, **kwargs: Any) -> nn.Module:
        return of_any_size(num_classes, img_size=img_size, **kwargs)

    return of_one_size if fixed else of_any_size


def _torchvision(name: str) -> Factory:
    from torchvision import models  # takes a second

    known = models.list_models(module=models)
    if name not in known:
        raise _unknown("torchvision", name, known)

    def build(num_classes: int, **kwargs: Any) -> nn.Module:
        return models.get_model(name, num_classes=num_classes, **_checked("torchvision", kwargs))

    return build


_LIBRARIES: dict[str, Callable[[str], Factory]] = {"timm": _timm, "torchvision": _torchvision}


def _unknown(library: str, name: str, known: list[str]) -> CodeqError:
    guess = nearest(name, known)
    hint = f" Did you mean {library}:{guess}?" if guess else ""
    return CodeqError(f"model {quote(f'{library}:{name}')} is unknown to {library}.{hint}")


def _checked(library: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    if refused := sorted(_WEIGHTS & kwargs.keys()):
        raise CodeqError(f"model_kwargs.{refused[0]}: weights of a network of {library} are given by init_from")
    return kwargs
