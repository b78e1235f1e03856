"""Construction of networks by name, with quantizers on their weights."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from itertools import chain
from threading import Lock
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary

from codeq.common.errors import CodeqError, quote
from codeq.models.cifar_resnet import resnet20, resnet32, resnet44, resnet56, resnet110
from codeq.models.imagenet import resnet18, resnet50
from codeq.models.lenet import LeNet5
from codeq.models.mlp import CifarMLP
from codeq.models.registry import Factory, ModelRegistry
from codeq.models.vit import vit
from codeq.quantizer.attach import attach_weight_quantizers

MODELS = ModelRegistry("model")
MODELS["resnet20"] = resnet20
MODELS["resnet32"] = resnet32
MODELS["resnet44"] = resnet44
MODELS["resnet56"] = resnet56
MODELS["resnet110"] = resnet110
MODELS["resnet18"] = resnet18
MODELS["resnet50"] = resnet50
MODELS["vit"] = vit
MODELS["mlp"] = CifarMLP
MODELS["lenet5"] = LeNet5

_returned = WeakTensorKeyDictionary()  # trainable parameters of networks that factories have returned
_recording = Lock()  # widgets build networks in the background


class QuantizerChoice(Protocol):
    """Settings of a quantizer of weights, as in a configuration."""

    @property
    def name(self) -> str:
        """Name in `QUANTIZERS`."""

    @property
    def kwargs(self) -> Mapping[str, Any]:
        """Arguments of its constructor."""

    @property
    def exclude_layers(self) -> Sequence[str]:
        """Patterns of the layers that stay float."""


def build_model(
    name: str,
    num_classes: int,
    kwargs: Mapping[str, Any],
    *,
    img_size: int = 32,
    quantizer: QuantizerChoice | None = None,
    pretrained: bool = False,
) -> nn.Module:
    """Build a registered network on the CPU, with quantizers on its weights.

    Initial weights are drawn from the global random state.

    Parameters
    ----------
    name : str
        Name in `MODELS`, ``timm:NAME``, ``torchvision:NAME``, or ``module:factory`` of an imported module.
    num_classes : int
        Number of outputs.
    kwargs : mapping
        Further arguments of the factory.
    img_size : int
        Height and width of the images, in pixels, for factories with an argument of this name.
    quantizer : QuantizerChoice, optional
        Quantizer of the weights; by default none, for a float network.
    pretrained : bool
        Whether to load the published weights, which may download them.

    Raises
    ------
    CodeqError
        For an unknown name, a factory that fails, returns no module, or returns parameters that a network of an
        earlier call has, a layer pattern that matches no layer, or weights that cannot be downloaded.

    Examples
    --------
    >>> build_model("mlp", 10, {}).fc3
    Linear(in_features=84, out_features=10, bias=True)
    """
    factory = MODELS[name]
    arguments: dict[str, Any] = {"num_classes": num_classes, **kwargs}
    if "img_size" in inspect.signature(factory).parameters:
        arguments["img_size"] = img_size
    if pretrained:
        arguments["pretrained"] = True
    model = _call(factory, arguments, f"model {quote(name)} with {quote(arguments)}")
    if quantizer:
        attach_weight_quantizers(model, quantizer.exclude_layers, quantizer.name, quantizer.kwargs)
    return model


def _call(factory: Factory, arguments: Mapping[str, Any], what: str) -> nn.Module:
    """Return the network that `factory` makes; its failures, of whatever type, are errors in `arguments`."""
    try:
        model = factory(**arguments)
    except CodeqError:
        raise
    except Exception as error:  # libraries check arguments by assert, and a user's class can raise anything
        raise CodeqError(f"{what} cannot be built: {type(error).__name__}: {str(error)[:200]}") from error
    if not isinstance(model, nn.Module):
        raise CodeqError(f"{what}: the factory returned a {type(model).__name__}, must be a torch.nn.Module")
    tensors = chain(model.parameters(), model.buffers())
    kept = any(tensor.is_inference() for tensor in tensors if not nn.parameter.is_lazy(tensor))
    if kept and not torch.is_inference_mode_enabled():
        raise CodeqError(
            f"{what}: the factory returned a network that was made in torch.inference_mode(): PyTorch can neither "
            "train it nor load weights into it; build a new one in each call"
        )
    _check_new(model, what)
    return model


def _check_new(model: nn.Module, what: str) -> None:
    """Raise a `CodeqError` if a network shares trainable parameters with one that a factory returned before.

    The next training would continue the last one, and loading a checkpoint would change networks loaded before.
    Buffers and frozen parameters, such as those of one backbone for all networks, may be shared.
    """
    parameters = list(model.parameters())
    with _recording:
        if any(parameter in _returned for parameter in parameters):
            raise CodeqError(
                f"{what}: the factory returned a network, or a part of one, that it had returned before: build a new "
                "one in each call, e.g. by copy.deepcopy"
            )
        _returned.update((parameter, None) for parameter in parameters if parameter.requires_grad)
