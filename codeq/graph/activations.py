"""Attaching quantizers to the activations that enter layers, and their bits in the recorded calls."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, fx, nn
from torch.utils.hooks import RemovableHandle

from codeq.common.checks import check_choice
from codeq.common.errors import CodeqError, quote
from codeq.graph.call_recording import record_calls
from codeq.graph.calls import Calls
from codeq.graph.residuals import ResidualAdd, origin, shared_operands, unchanged_source
from codeq.quantizer.activations import (
    INPUT_QUANTIZER,
    ActivationMethod,
    ActivationQuantizer,
    ResidualOperands,
    named_activation_quantizers,
    quantize_input,
    quantize_output,
)
from codeq.quantizer.attach import named_quantizers
from codeq.quantizer.calibration import calibrate
from codeq.quantizer.layers import LAYER_TYPES, named_layers
from codeq.quantizer.patterns import select_layers

logger = logging.getLogger(__name__)


def attach_activation_quantizers(
    model: nn.Module,
    example: Tensor,
    bits: int = 8,
    method: ActivationMethod = "lsq",
    exclude_layers: Sequence[str] = (),
    symmetric: bool = False,
    residual: ResidualOperands = "float",
) -> list[str]:
    """Quantize the inputs of the layers whose weights are quantized; of all conv and linear layers if none are.

    Layers that read the same tensor share a quantizer, so that one integer tensor serves all of them: the convolutions
    at the start of a residual block and its shortcut. The ranges are calibrated on `example`, see `calibrate`.

    With ``residual="shared"`` the operands of each residual add are quantized as well, with one step for all of them,
    so that integers can be added without rescaling. A tensor is quantized once, where it leaves or enters a module
    (``output_quantizer``, ``input_quantizer`` of that module), and everything that reads it reads the quantized values:
    layers among them use the quantizer of the add. Adds with an operand that no module returns or takes stay float,
    and are listed in a warning of the log, see `codeq.graph.residuals.residual_adds`.

    Parameters
    ----------
    model : Module
        Changed in place: each layer gets a module ``input_quantizer``.
    example : Tensor
        `[N, …]`, real inputs.
    bits, method, symmetric
        See `ActivationQuantizer`.
    exclude_layers : sequence of str
        Layers whose inputs stay float, see `select_layers`; unless the input is an operand of an add that shares.
    residual : {"float", "shared"}
        Whether the operands of a residual add share a quantizer, or stay as they are.

    Returns
    -------
    list of str
        Names of the layers with quantized inputs.

    Raises
    ------
    CodeqError
        For arguments out of range, a model that cannot be traced or has such quantizers already, a layer that is never
        called or only through a function (its input cannot be reached), an `example` that is no tensor, and when no
        layer is left. The model is unchanged then.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    >>> attach_activation_quantizers(net, torch.rand(2, 3, 6, 6), method="minmax")
    ['0', '3']
    """
    if not isinstance(example, Tensor):
        raise CodeqError(f"example={quote(example)}: must be a tensor, a batch of real inputs [N, …]")
    attached = _attach(model, tuple(example.shape[1:]), bits, method, exclude_layers, symmetric, residual)
    try:
        _calibrate(model, example, attached.operands)
    except Exception:
        attached.remove()
        raise
    for name in attached.layers:
        logger.info("Attached activation quantizer to the input of layer: %s", name)
    for add in attached.adds:
        if add.reason:
            logger.warning("The operands of %s stay float: %s", add.name, add.reason)
        else:
            logger.info("Attached activation quantizer to the operands of %s", add.name)
    return attached.layers


def restore_activation_quantizers(
    model: nn.Module,
    input_size: tuple[int, ...],
    bits: int,
    method: ActivationMethod,
    exclude_layers: Sequence[str] = (),
    symmetric: bool = False,
    residual: ResidualOperands = "float",
) -> None:
    """Attach the quantizers of `attach_activation_quantizers` to a model whose saved ranges are still to be loaded.

    Real inputs are not at hand where a network is loaded, and a model need not have finite activations for others.

    Parameters
    ----------
    model : Module
        Changed in place.
    input_size : tuple of int
        Shape of one input.
    bits, method, exclude_layers, symmetric, residual
        As they were when the saved quantizers were attached.

    Raises
    ------
    CodeqError
        As `attach_activation_quantizers`.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(4, 2))
    >>> restore_activation_quantizers(net, (4,), 8, "minmax")
    >>> [*net.state_dict()]
    ['0.weight', '0.bias', '0.input_quantizer.step', '0.input_quantizer.low']
    """
    _attach(model, input_size, bits, method, exclude_layers, symmetric, residual)


def _attach(
    model: nn.Module, input_size: tuple[int, ...], bits: int, method: ActivationMethod, exclude_layers: Sequence[str],
    symmetric: bool, residual: ResidualOperands,
) -> _Attached:  # fmt: skip
    """Put quantizers without ranges on a model."""
    ActivationQuantizer(bits, method, symmetric)
    check_choice("residual", residual, ResidualOperands)
    if taken := [name for name, _ in named_activation_quantizers(model)]:
        raise CodeqError(f"the input of layer {taken[0]!r} already has a quantizer")
    quantized = {name for name, _ in named_quantizers(model)} or {name for name, _ in named_layers(model)}
    names = [name for name, _ in select_layers(model, exclude_layers) if name in quantized]
    if not names:
        raise CodeqError(f"exclude_layers={quote(list(exclude_layers))} leaves no layer with an input to quantize")
    calls = record_calls(model, input_size)
    sources = _sources(calls, names)
    groups = shared_operands(calls) if residual == "shared" else []
    layers = dict(named_layers(model))

    def new(layer: str) -> ActivationQuantizer:
        with torch.inference_mode(False):  # its tensors could never be trained
            return ActivationQuantizer(bits, method, symmetric).to(cast(Tensor, layers[layer].weight).device)

    attached = _Attached(model, names, [add for group in groups for add in group.adds])
    shared: dict[fx.Node, ActivationQuantizer] = {}
    for group in groups:
        quantizer = new(names[0])
        for tensor, (module, kind) in group.sites.items():
            shared[tensor] = quantizer
            attached.add(module, kind, quantizer)
    operands = dict(shared)
    attached.operands.update(operands.values())
    for name in names:
        operand = operands.get(origin(calls, sources[name]))
        quantizer = operand or shared.setdefault(sources[name], new(name))
        # An operand is quantized already. LSQ's gradients would count its clipped values twice.
        attached.add(name, INPUT_QUANTIZER, quantizer, hooked=operand is None)
    return attached


class _Attached:
    """Quantizers that have been put on a model, to take them off again.

    Parameters
    ----------
    model : Module
        The model.
    layers : list of str
        Layers whose inputs are quantized.
    adds : list of ResidualAdd
        Residual adds whose operands share a quantizer, or have a reason not to.
    """

    def __init__(self, model: nn.Module, layers: list[str], adds: list[ResidualAdd]) -> None:
        self.model, self.layers, self.adds = model, layers, adds
        self.operands: Counter[ActivationQuantizer] = Counter()  # tensors that quantizers of residual adds quantize
        self.placed: list[tuple[nn.Module, str]] = []
        self.hooks: list[RemovableHandle] = []

    def add(self, name: str, kind: str, quantizer: ActivationQuantizer, hooked: bool = True) -> None:
        module = self.model.get_submodule(name)
        module.add_module(kind, quantizer)
        self.placed.append((module, kind))
        if hooked and kind == INPUT_QUANTIZER:
            self.hooks.append(module.register_forward_pre_hook(quantize_input, with_kwargs=True))
        elif hooked:
            self.hooks.append(module.register_forward_hook(quantize_output))

    def remove(self) -> None:
        for hook in self.hooks:
            hook.remove()
        for module, kind in self.placed:
            delattr(module, kind)


def _calibrate(model: nn.Module, example: Tensor, uses: Counter[ActivationQuantizer]) -> None:
    """Set the ranges, and check how many tensors the shared quantizers of operands quantize."""
    found: Counter[ActivationQuantizer] = Counter()
    hooks = [quantizer.register_forward_pre_hook(lambda used, _: found.update([used])) for quantizer in uses]
    try:
        calibrate(model, [example])
    finally:
        for hook in hooks:
            hook.remove()
    for quantizer, expected in uses.items():
        if found[quantizer] != expected:
            names = ", ".join(name for name, used in named_activation_quantizers(model) if used is quantizer)
            raise CodeqError(
                f"residual='shared': the quantizer of {names} runs {found[quantizer]} times instead of {expected}: "
                "a module calls its submodules in another way than by module(x); use residual='float'"
            )


def _sources(calls: Calls, names: Sequence[str]) -> dict[str, fx.Node]:
    """Return the node that computes the input of each layer, and not one that returns it as it is: `nn.Identity`."""
    sources: dict[str, fx.Node] = {}
    for node in calls.graph.nodes:
        if isinstance(calls.module(node), LAYER_TYPES) and node.target not in calls.layers and len(node.args) == 1:
            sources.setdefault(str(node.target), node.args[0])
    for call in calls.module_calls:  # of a layer whose forward calls the function of the layer
        if call.name in calls.layers.values() and call.argument is not None:
            sources.setdefault(call.name, call.argument)
    for name in names:
        if name not in sources:
            used = "is used through a function" if name in calls.layers.values() else "is never called with one input"
            raise CodeqError(f"layer {name!r} {used}: its input cannot be quantized; add {name!r} to exclude_layers")
    return {name: unchanged_source(source) for name, source in sources.items()}
