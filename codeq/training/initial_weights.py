"""Initial weights from a run or a file: read without executing code, and matched to the model by name and shape."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from codeq.common.console import say
from codeq.common.errors import CodeqError, listed, quote
from codeq.common.paths import resolve
from codeq.quantizer.activations import belongs_to_activations
from codeq.quantizer.layers import forward_weight, weight_quantization
from codeq.runs.checkpoints import CHECKPOINTS, load_checkpoint
from codeq.runs.networks import is_compacted

Weights = dict[str, Tensor]

SHOWN_NAMES = 8  # of each kind in a message
TORCH_SUFFIXES = (".pt", ".pth", ".bin")
STORED_SCALES = (".learned_absmax", ".held_absmax")
CONTAINERS = ("model", "state_dict", "model_state_dict")  # keys of checkpoints, codeq's first, that hold a state dict
WRAPPERS = ("module.", "_orig_mod.")  # prefixes of DistributedDataParallel and torch.compile

_LATENT = re.compile(r"(^|\.)parametrizations\.weight\.original$")
_QUANTIZER = re.compile(r"(?:^|(?P<layer>.*)\.)parametrizations\.weight\.\d+\.")


def read_source(source: str) -> tuple[Weights, dict[str, Any] | None]:
    """Return the state dict in `source`, on the CPU, and all of it if it is a compacted network; nothing is executed.

    Parameters
    ----------
    source : str
        Folder of a run, whose last checkpoint is read, or a file: ``.pt``, ``.pth`` or ``.bin`` (a state dict, or a
        checkpoint that contains one) or ``.safetensors``. Relative paths start at the project's folder.

    Raises
    ------
    CodeqError
        If there is no such run or file, it is damaged, or it holds anything but tensors and plain values.
    """
    path, named = resolve(source), f"init_from={quote(source)}"
    if path.is_dir():
        state, entry = load_checkpoint(path / CHECKPOINTS)
        return _parts(state, f"{named}: {entry.file}")
    if not path.is_file():
        raise CodeqError(f"{named}: {path} does not exist; it must be the folder of a run or a file of weights")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return _parts(load_file(path), named)
        except (SafetensorError, OSError) as error:
            raise CodeqError(f"{named} cannot be read: {str(error)[:200]}") from error
    if path.suffix not in TORCH_SUFFIXES:
        raise CodeqError(f"{named}: must be the folder of a run, or end in {', '.join(TORCH_SUFFIXES)} or .safetensors")
    return _parts(_load_torch_file(path, named), named)


def _parts(content: Any, named: str) -> tuple[Weights, dict[str, Any] | None]:
    return _state_dict(content, named), content if is_compacted(content) else None


def _load_torch_file(path: Path, named: str) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise CodeqError(
            f"{named} holds more than tensors and plain values, or is damaged, so it is not read (weights_only): "
            f"{reason[:200]}. Save model.state_dict() instead of the model"
        ) from error
    except Exception as error:  # whatever a damaged file causes inside torch
        raise CodeqError(f"{named} cannot be read: {type(error).__name__}: {str(error)[:200]}") from error


def _state_dict(content: Any, named: str) -> Weights:
    """Return the tensors of a state dict or of a checkpoint that contains one."""
    if isinstance(content, Mapping):
        content = next((content[key] for key in CONTAINERS if isinstance(content.get(key), Mapping)), content)
    if not isinstance(content, Mapping) or not content:
        raise CodeqError(f"{named} holds no state dict, but {quote(type(content).__name__)}")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CodeqError(f"{named} holds no state dict: {quote(name)} is {quote(type(value).__name__)}")
        if value.layout != torch.strided or value.is_meta or value.is_quantized:
            raise CodeqError(f"{named}: {quote(name)} is not a dense tensor with values")
    return dict(content)


@dataclass
class Fit:
    """Comparison of weights with a model.

    Parameters
    ----------
    fitting : dict of str to Tensor
        Weights to load, under the model's names.
    missing, extra, differing : list of str
        Names of tensors that only the model has, that only the weights have, and that differ, with the reason.
    fresh_scales : list of str
        Layers whose learned or held scale is computed from the loaded weights, because the source has none.
    """

    fitting: Weights = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)
    fresh_scales: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        kinds = {"missing": self.missing, "extra": self.extra, "different": self.differing}
        return "; ".join(f"{kind}: {_shown(names)}" for kind, names in kinds.items() if names)


def _shown(names: list[str]) -> str:
    return listed([name[:200] for name in names], SHOWN_NAMES)


def compare(model: nn.Module, weights: Mapping[str, Tensor]) -> Fit:
    """Match `weights` to `model`: by name, whether or not a weight is quantized on either side.

    Names in a wrapper, of DistributedDataParallel or torch.compile, are those of the bare model.

    The parameters of a quantizer are loaded where the source has quantized the layer as well; where it is float there,
    they keep their initial values. Quantizers of activations are left out, since they are calibrated anew. The
    parameters of a quantizer follow their weight: where it does not fit, they are not loaded either.

    Examples
    --------
    >>> fit = compare(nn.Linear(2, 1), {"weight": torch.ones(1, 2), "scale": torch.ones(1)})
    >>> print(sorted(fit.fitting), fit)
    ['weight'] missing: bias; extra: scale
    """
    wanted = model.state_dict(keep_vars=True)
    weights = _unwrapped(weights, {plain_name(name) for name in wanted})
    given = {plain_name(name): (name, value) for name, value in weights.items() if not belongs_to_activations(name)}
    quantized = {layer for name in weights if (layer := quantized_layer(name)) is not None}
    fit, unfit_layers, loaded = Fit(), set(), set()
    scales: dict[str, Tensor] = {}  # those that the source lacks
    for name, target in sorted(wanted.items(), key=lambda item: quantized_layer(item[0]) is not None):
        plain, layer = plain_name(name), quantized_layer(name)
        if plain not in given:
            unfit_layers.add(plain.removesuffix("weight").removesuffix("."))
            if layer is not None and name.endswith(STORED_SCALES):
                scales[layer] = target
            elif (layer is None or layer in quantized) and not name.endswith("num_batches_tracked"):
                fit.missing.append(plain)
        elif reason := _difference(given[plain][1], target):
            unfit_layers.add(plain.removesuffix("weight").removesuffix("."))
            fit.differing.append(f"{plain} {reason}")
            if layer is not None and name.endswith(STORED_SCALES):
                scales[layer] = target
        elif layer is None or layer not in unfit_layers:
            fit.fitting[name] = given[plain][1]
            loaded.add(id(target))
    # A file may store what several names share once.
    tied = {plain_name(name) for name, target in wanted.items() if id(target) in loaded}
    fit.missing = [name for name in fit.missing if name not in tied]
    fit.fresh_scales = [layer for layer, scale in scales.items() if id(scale) not in loaded]
    fit.extra = [name for name in given if name not in {plain_name(name) for name in wanted}]
    return fit


def _unwrapped(weights: Mapping[str, Tensor], wanted: set[str]) -> Mapping[str, Tensor]:
    """Remove the prefixes of wrappers, unless names fit as they are: a layer may be called ``module``, too."""
    for prefix in WRAPPERS * 2:  # in either order
        wrapped = all(name.startswith(prefix) for name in weights)
        if wrapped and not any(plain_name(name) in wanted for name in weights):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights


def plain_name(name: str) -> str:
    """Return the name of a tensor in the float model: without the parametrization of its weight.

    Examples
    --------
    >>> plain_name("layer1.0.conv1.parametrizations.weight.original")
    'layer1.0.conv1.weight'
    """
    return _LATENT.sub(r"\1weight", name)


def quantized_layer(name: str) -> str | None:
    """Return the layer of whose quantizer `name` is a parameter, `None` for other tensors.

    Examples
    --------
    >>> quantized_layer("conv1.parametrizations.weight.0.quantizer.logit_dz"), quantized_layer("conv1.weight")
    ('conv1', None)
    """
    found = _QUANTIZER.match(name)
    return (found["layer"] or "") if found else None


def _difference(value: Tensor, target: Tensor) -> str:
    """Return why `value` cannot replace `target`; empty if it can."""
    if value.shape != target.shape:
        return f"(shape {list(value.shape)} instead of {list(target.shape)})"
    if value.is_floating_point() != target.is_floating_point() or value.is_complex():
        return f"({value.dtype} instead of {target.dtype})"
    return "" if bool(value.isfinite().all()) else "(values that are not finite)"


def load_initial_weights(model: nn.Module, weights: Weights, source: str, strict: bool, announce: bool = True) -> None:
    """Load `weights` into `model`; a learned scale that the source lacks starts at the value of the loaded weights.

    Parameters
    ----------
    model : Module
        With its quantizers; changed in place.
    weights : dict of str to Tensor
        See `read_source`.
    source : str
        Origin of the weights, for messages.
    strict : bool
        Whether everything must fit. Otherwise what fits is loaded, and one line names the rest.
    announce : bool
        Whether to print that line.

    Raises
    ------
    CodeqError
        With the names of all tensors that are missing, extra or of another shape or type, if `strict`; if nothing fits.
    """
    fit, named = compare(model, weights), f"init_from={quote(source)}"
    if str(fit) and strict:
        raise CodeqError(
            f"{named} does not fit {type(model).__name__}: {fit}. With init_from_strict: false, what fits is loaded"
        )
    if not fit.fitting:
        raise CodeqError(f"{named}: none of its {len(weights)} tensors fits {type(model).__name__}: {fit}")
    model.load_state_dict(fit.fitting, strict=False)
    _reset_scales(model, fit.fresh_scales)
    if announce:
        rest = f"; not loaded: {fit}" if str(fit) else ""
        say(f"{named}: {len(fit.fitting)} tensors loaded{rest}")


def _reset_scales(model: nn.Module, names: Iterable[str]) -> None:
    for layer in dict.fromkeys(model.get_submodule(name) for name in names):  # one may have several names
        quantization = weight_quantization(layer)
        assert quantization is not None
        quantization.quantizer.reset_scale()  # type: ignore[operator]
        with torch.no_grad():
            forward_weight(layer)
