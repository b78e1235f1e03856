"""Copies of models with plain weights."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod

from codeq.common.checks import check_model
from codeq.common.errors import CodeqError
from codeq.quantizer.layers import latent_weight, named_layers, refuse_scripted


def baked_copy(model: nn.Module) -> nn.Module:
    """Return a copy of `model` in evaluation mode whose parametrized weights, quantized or not, are plain ones.

    Weights are quantized in the precision of the model, since another precision would choose other levels. Weights that
    two modules share stay shared, quantized ones where their quantizer is the same, too.

    Raises
    ------
    CodeqError
        If the model cannot be copied.

    Examples
    --------
    >>> model = torch.nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    >>> sorted(baked_copy(model).state_dict()), parametrize.is_parametrized(model)
    (['bias', 'weight'], True)
    """
    check_model(model)
    refuse_scripted(model)
    _refuse_hooked_weights(model)
    try:
        baked = copy.deepcopy(model).eval().requires_grad_(False)
    except Exception as error:
        raise CodeqError(f"{type(model).__name__} cannot be copied: {type(error).__name__}: {error}") from error
    plain: dict[tuple[object, ...], nn.Parameter] = {}
    for module in list(baked.modules()):
        if parametrize.is_parametrized(module):
            vars(module).pop("_compiled_call_impl", None)  # of `Module.compile`: it would call the original
            # remove_parametrizations would take the property off the class, which a copy shares with its original.
            weights = {name: _computed(chain, plain) for name, chain in cast(Any, module.parametrizations).items()}
            module.__class__ = parametrize.type_before_parametrizations(module)
            del module.parametrizations
            for name, weight in weights.items():
                module.register_parameter(name, weight)
    return baked


def _computed(chain: parametrize.ParametrizationList, known: dict[tuple[object, ...], nn.Parameter]) -> nn.Parameter:
    """Return a parameter with the result of parametrizations, the same one for the same tensors and modules."""
    key = (*chain.parameters(recurse=False), *chain.buffers(recurse=False), *chain)
    if key not in known:
        # Reading the attribute would leave the value in `parametrize.cached`, for a later module at the address.
        known[key] = nn.Parameter(chain().detach().clone(), requires_grad=False)
    return known[key]


@torch.no_grad()
def convert(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Convert a model in place as ``model.to(dtype)`` does, but keep the imaginary parts of complex tensors.

    Tensors that are attributes of modules, but neither parameters nor buffers, are converted, too: a layer that is
    called as a whole computes with them. Those that several modules share stay shared.

    Examples
    --------
    >>> model = nn.Module()
    >>> model.register_buffer("phases", torch.ones(1, dtype=torch.complex64))
    >>> model.kernel = torch.ones(1)
    >>> convert(model, torch.double).phases.dtype, model.kernel.dtype
    (torch.complex128, torch.float64)
    """
    known: dict[Tensor, Tensor] = {}

    def once(tensor: Tensor) -> Tensor:
        return known.setdefault(tensor, converted(tensor, dtype))

    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                vars(module)[name] = once(value)
    return model._apply(once)


def converted(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor in another floating-point type, or in the complex type of that precision; others as they are.

    Examples
    --------
    >>> converted(torch.ones(1), torch.double).dtype, converted(torch.ones(1).int(), torch.double).dtype
    (torch.float64, torch.int32)
    """
    if tensor.is_complex():
        return tensor.to(torch.complex128 if dtype == torch.double else torch.complex64)
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _refuse_hooked_weights(model: nn.Module) -> None:
    """Refuse weights that a hook computes when the layer is called: until then, those of the last call are there."""
    for name, module in model.named_modules():
        for hook in module._forward_pre_hooks.values():
            kind = type(hook).__name__
            if isinstance(hook, BasePruningMethod):
                way = "make the pruning permanent with torch.nn.utils.prune.remove"
            elif type(hook).__module__ in ("torch.nn.utils.weight_norm", "torch.nn.utils.spectral_norm"):
                way = "use torch.nn.utils.parametrizations instead"
            else:
                continue
            raise CodeqError(f"the weights of {name or type(module).__name__!r} are computed by a hook ({kind}): {way}")


def check_weights(model: nn.Module) -> None:
    """Refuse models whose weights are not there to be looked at."""
    check_model(model)
    if hasattr(model, "_orig_mod"):  # its forward is that of the compiler
        raise CodeqError("a model compiled by torch.compile cannot be traced: give the model that was compiled")
    for name, module in model.named_modules():
        refuse_scripted(module, name)
        inside = module._modules.get("_orig_mod")
        if inside is not None and parametrize.is_parametrized(inside):
            # PyTorch copies such a layer without what is around it.
            raise CodeqError(
                f"layer {name!r} has a quantizer or another parametrization, and is compiled by torch.compile: compile "
                "it in place instead, by its method compile()"
            )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise CodeqError(f"{name} has no values before the first forward pass: run one batch through the model")
        if tensor.is_meta:
            raise CodeqError(f"{name} is on the meta device and has no values: load the weights first")
    for name, layer in named_layers(model):
        if not latent_weight(layer).numel():
            raise CodeqError(
                f"layer {name!r} ({type(layer).__name__}) has no channels, which codeq does not follow: leave it out"
            )
