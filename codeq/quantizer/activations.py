"""Quantization of activations: a learned step (LSQ, arXiv 1902.08153) or a calibrated one, one for a whole tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from codeq.common.checks import check_choice, check_flag
from codeq.common.errors import CodeqError
from codeq.quantizer.functions import widen
from codeq.quantizer.layers import LAYER_TYPES, named_layers
from codeq.quantizer.modules import check_bits

ActivationMethod = Literal["lsq", "minmax", "percentile"]
ResidualOperands = Literal["float", "shared"]
INPUT_QUANTIZER = "input_quantizer"  # attribute of a module whose first argument is quantized
OUTPUT_QUANTIZER = "output_quantizer"  # attribute of a module whose result is quantized


class _LearnedStep(torch.autograd.Function):
    """Paper's eq. (1), (2) with the gradients of eq. (3) and (5); the step's is scaled by ``1 / sqrt(N Q)``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, step: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return _rounded(x, step, low, high)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, step, low, high = ctx.saved_tensors
        u = x / step
        inside = (u > low) & (u < high)
        grad_step = None
        if ctx.needs_input_grad[1]:
            slope = torch.where(inside, u.round() - u, _clipped(u, low, high))
            features = x.numel() // max(len(x), 1)  # N: of one input, since the batch is no property of the network
            grad_step = (grads[0] * slope).sum() * (features * _larger_side(low, high)).rsqrt()
        return grads[0] * inside, grad_step, None, None


def _larger_side(low: Tensor, high: Tensor) -> Tensor:
    """Return `Q`, ``[]``: `Q_P` as in LSQ, or `Q_N` where that is larger, as for log-probabilities (`Q_P` is 0)."""
    return torch.where(high + 1 >= -low, high, -low)  # of a symmetric grid, with one integer more below 0, `Q_P`


def _clipped(u: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(u, low.to(u.dtype)), high.to(u.dtype))


def _rounded(x: Tensor, step: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return _clipped((x / step).round(), low, high) * step


def quantize_activations(x: Tensor, step: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return ``s · clip(round(x / s), -Q_N, Q_P)``, LSQ's eq. (1) and (2).

    Parameters
    ----------
    x : Tensor
        Activations `[N, …]`. Types of less than 32 bits are computed in float32.
    step : Tensor
        ``s > 0``, ``[]``; gets the gradient of eq. (3), times ``1 / sqrt(N Q_P)`` for `N` activations of one input,
        with `Q_N` in place of `Q_P` where most integers are negative.
    low, high : Tensor
        ``-Q_N`` and ``Q_P``, ``[]``, integers; values outside pass no gradient to `x`.

    Examples
    --------
    >>> x, limits = torch.tensor([-0.3, 0.26, 9.0]), (torch.tensor(0.0), torch.tensor(3.0))
    >>> quantize_activations(x, torch.tensor(0.5), *limits).tolist()
    [0.0, 0.5, 1.5]
    """
    wide = widen(x)
    # Exported programs hold standard operations only. Whether tensors require gradients does not decide: those inside
    # `torch.func.vmap` do not.
    plain = torch.compiler.is_exporting() or not torch.is_grad_enabled()
    quantized = _rounded(wide, step, low, high) if plain else _LearnedStep.apply(wide, step, low, high)
    return quantized.to(x.dtype)


class ActivationQuantizer(nn.Module):
    """Quantizer of the inputs of layers and of operands of residual adds, uniform, with one scale for the tensor.

    Parameters
    ----------
    bits : int
        Bit-width, 2 … 16.
    method : {"lsq", "minmax", "percentile"}
        ``"lsq"``: the step is a parameter. ``"minmax"``, ``"percentile"``: it is calibrated and does not train; its
        range is that of all values, or of all but 0.1 % at either end, see `calibrate`.
    symmetric : bool
        Whether the integers are ``-2^(b-1) … 2^(b-1) - 1``. Otherwise they are `2^b` consecutive ones with 0 among
        them, by the range of the values: ``0 … 2^b - 1`` behind a ReLU.

    Raises
    ------
    CodeqError
        For bits out of range, an unknown method, and a `symmetric` that is neither true nor false.

    Examples
    --------
    >>> quantizer = ActivationQuantizer(bits=2, method="minmax")
    >>> quantizer.set_range(torch.tensor(0.0), torch.tensor(3.0), torch.tensor(1.0))
    >>> quantizer(torch.tensor([0.4, 0.6, 7.0])).tolist()
    [0.0, 1.0, 3.0]
    """

    step: Tensor
    low: Tensor

    def __init__(self, bits: int = 8, method: ActivationMethod = "lsq", symmetric: bool = False) -> None:
        super().__init__()
        check_choice("method", method, ActivationMethod)
        check_flag("symmetric", symmetric)
        self.bits = check_bits("bits", bits)
        self.method = method
        self.symmetric = symmetric
        self.enabled = True
        if method == "lsq":
            self.step = nn.Parameter(torch.tensor(1.0))
        else:
            self.register_buffer("step", torch.tensor(1.0))
        self.register_buffer("low", torch.tensor(-(2.0 ** (bits - 1)) if symmetric else 0.0))

    def forward(self, x: Tensor) -> Tensor:
        """Return the quantized activations, of the shape of `x`, or `x` itself while switched off."""
        if not self.enabled:
            return x
        low = widen(self.low)  # float16 does not hold 65535 levels
        return quantize_activations(x, self.positive_step(), low, low + (2**self.bits - 1))

    def positive_step(self) -> Tensor:
        """Return the step that values are rounded with, ``[]``, at least float32: a learned one may cross 0."""
        step = widen(self.step)  # float16 does not hold the smallest
        return step.abs().clamp(min=torch.finfo(step.dtype).tiny)

    @torch.no_grad()
    def set_range(self, lowest: Tensor, highest: Tensor, mean_magnitude: Tensor) -> None:
        """Set step and integers by the range and the mean magnitude of the values, each ``[]``.

        Calibrated methods cover the range from `lowest` to `highest`, 0 included. LSQ starts at
        ``2 mean|x| / sqrt(Q_P)`` (its section 2.1), or with `Q_N` in place of `Q_P` where that is larger.
        """
        lowest, highest, levels = lowest.clamp(max=0), highest.clamp(min=0), 2**self.bits - 1
        if self.symmetric:
            step = torch.maximum(-lowest, highest) / (2 ** (self.bits - 1) - 1)
        else:
            step = (highest - lowest) / levels
            self.low.copy_(-(-lowest / step.clamp(min=torch.finfo(step.dtype).tiny)).round().clamp(0, levels))
        if self.method == "lsq":
            low = widen(self.low)
            step = 2 * mean_magnitude / _larger_side(low, low + levels).sqrt()
        self.step.copy_(step.clamp(min=torch.finfo(torch.float32).tiny))

    def extra_repr(self) -> str:
        """Describe the quantizer for `print(model)`."""
        return f"bits={self.bits}, method={self.method!r}, symmetric={self.symmetric}"


def quantize_input(
    layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Quantize the input of a module, given by position or by name: a forward pre-hook with keyword arguments."""
    quantizer = cast(nn.Module, getattr(layer, INPUT_QUANTIZER))
    if args:
        return (quantizer(args[0]), *args[1:]), kwargs
    return args, {**kwargs, "input": quantizer(kwargs["input"])}


def quantize_output(module: nn.Module, args: tuple[Any, ...], result: Tensor) -> Tensor:  # noqa: ARG001
    """Quantize the result of a module: a forward hook."""
    return cast(Tensor, getattr(module, OUTPUT_QUANTIZER)(result))


def named_activation_quantizers(model: nn.Module) -> Iterator[tuple[str, ActivationQuantizer]]:
    """Iterate over ``(name, quantizer)`` of every tensor that is quantized; tensors may share a quantizer.

    The name is that of the module whose input is quantized, layers first, or ``name.output`` for the output of module
    ``name``. In a compacted network quantizers stand beside the modules, each under the first of its names.
    """
    for name, layer in named_layers(model):
        if isinstance(quantizer := getattr(layer, INPUT_QUANTIZER, None), ActivationQuantizer):
            yield name, quantizer
    for name, module in model.named_modules():
        for kind, end in ((INPUT_QUANTIZER, ""), (OUTPUT_QUANTIZER, ".output")):
            quantizer = getattr(module, kind, None)
            counted = kind == INPUT_QUANTIZER and isinstance(module, LAYER_TYPES)
            if isinstance(quantizer, ActivationQuantizer) and not counted:
                yield name + end, quantizer
            if isinstance(module, ActivationQuantizer) and name.endswith(f"_{kind}"):
                yield name.removesuffix(f"_{kind}") + end, module


def belongs_to_activations(name: str) -> bool:
    """Return whether an entry of a state dict belongs to the quantizer on a module's input or output."""
    return any(f".{kind}." in name for kind in (INPUT_QUANTIZER, OUTPUT_QUANTIZER))


def activation_bits(modules: Mapping[str, nn.Module], quantizer: str | None) -> int | None:
    """Return the bits that the module called `quantizer` gives its layers' inputs, `None` if they are float."""
    module = modules[quantizer] if quantizer else None
    return module.bits if isinstance(module, ActivationQuantizer) and module.enabled else None


def toggle_activation_quantization(model: nn.Module, enabled: bool) -> None:
    """Switch all quantizers of activations on or off.

    Raises
    ------
    CodeqError
        If the model has none.
    """
    check_flag("enabled", enabled)
    found = [module for module in model.modules() if isinstance(module, ActivationQuantizer)]
    if not found:
        raise CodeqError("the model has no quantizers of activations; attach_activation_quantizers first")
    for quantizer in found:
        quantizer.enabled = enabled
