"""Defaults that depend on other settings."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from codeq.data import known_num_classes
from codeq.quantizer import QUANTIZERS

CIFAR_RESNETS = ("resnet20", "resnet32", "resnet44", "resnet56", "resnet110")


def default_exclude_layers(model: str | None) -> list[str]:
    """Return the patterns of layers that stay float in `model`: stem and classifier of the CIFAR ResNets, else none.

    Examples
    --------
    >>> default_exclude_layers("resnet20"), default_exclude_layers("mlp")
    (['conv1', 'bn', 'linear'], [])
    """
    return ["conv1", "bn", "linear"] if model in CIFAR_RESNETS else []


def default_name(content: Mapping[str, Any]) -> str:
    """Return a name for a run with a complete, serialized configuration: model, quantizer, bits, epochs, rate."""
    quantizer, lr = content["quantizer"], content["optimizer"]["param_groups"]["base"]["lr"]
    quantized = "baseline" if quantizer is None else quantizer["name"] + _bits(**quantizer)
    return f"{content['model']}_{quantized}_e{content['epochs']}_lr{lr:g}"


def _bits(name: str, kwargs: Mapping[str, Any], **_: Any) -> str:
    parameters = inspect.signature(QUANTIZERS[name]).parameters.values()
    arguments = {parameter.name: parameter.default for parameter in parameters} | dict(kwargs)
    bits = arguments.get("max_bits" if arguments.get("learnable_bit") else "fixed_bit_val", arguments.get("bitwidth"))
    return "" if bits is None else f"{bits}b"


def forget_derived(content: dict[str, Any]) -> dict[str, Any]:
    """Return a serialized configuration without settings that equal their derived default and follow later changes."""
    kept = dict(content)
    if kept["num_classes"] == known_num_classes(kept["dataset"]):
        del kept["num_classes"]
    if kept["name"] == default_name(content):
        del kept["name"]
    quantizer = kept["quantizer"]
    if quantizer is not None and quantizer["exclude_layers"] == default_exclude_layers(kept["model"]):
        kept["quantizer"] = {key: value for key, value in quantizer.items() if key != "exclude_layers"}
    return kept
