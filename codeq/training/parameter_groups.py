"""Groups of parameters: weights, dead-zone logits and bit-width logits."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from codeq.common.errors import CodeqError
from codeq.config import ParamGroups
from codeq.config.optimizer import GroupSettings
from codeq.optimizers import Group
from codeq.quantizer.attach import named_quantizers, split_param_groups

NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)

Theta = list[tuple[list[nn.Parameter], float]]


def parameter_groups(
    settings: ParamGroups, theta_regularizer: Literal["l2", "decoupled"], model: nn.Module
) -> tuple[list[Group], Theta]:
    """Split the trainable parameters of `model` into weights, dead-zone logits and bit-width logits.

    Returns
    -------
    tuple
        Groups with their settings, for `build_optimizer`: weights, those weights that are exempt from weight decay
        (``decay_norms_and_biases: false``), dead-zone logits, bit-width logits. And parameters θ with the λ of their
        ``λ Σ θ²`` in the loss; under ``theta_regularizer="decoupled"`` λ is the optimizer's weight decay instead, and
        this part is empty.

    Raises
    ------
    CodeqError
        For a model without trainable parameters.

    Examples
    --------
    >>> from codeq.config.optimizer import ThetaGroup
    >>> from codeq.quantizer.attach import attach_weight_quantizers
    >>> model = nn.Sequential(nn.Linear(4, 2))
    >>> _ = attach_weight_quantizers(model, [], "deadzone", {})
    >>> settings = ParamGroups(dz=ThetaGroup(weight_decay=0.1))
    >>> groups, theta = parameter_groups(settings, "l2", model)
    >>> [options["weight_decay"] for _, options in groups], [factor for _, factor in theta]
    ([0.0, 0.0, 0.0, 0.0], [0.1, 0.01])
    """
    base, dz, bit = split_param_groups(model)
    if not (base or dz or bit):
        raise CodeqError(f"{type(model).__name__} has no trainable parameters: all have requires_grad=False")
    in_loss, theta = theta_regularizer == "l2", ((dz, settings.dz), (bit, settings.bit))
    exempt = set() if settings.base.decay_norms_and_biases else _norms_and_biases(model)
    groups: list[Group] = [
        ([p for p in base if id(p) not in exempt], _options(settings.base, settings.base.weight_decay)),
        ([p for p in base if id(p) in exempt], _options(settings.base, 0.0)),
    ]
    groups += [(parameters, _options(group, 0.0 if in_loss else group.weight_decay)) for parameters, group in theta]
    return groups, [(parameters, group.weight_decay) for parameters, group in theta] if in_loss else []


def _norms_and_biases(model: nn.Module) -> set[int]:
    """Return the ids of the parameters of norms and quantizers, and of all others with at most one dimension."""
    found = {id(p) for p in model.parameters() if p.ndim <= 1}
    # A LayerNorm or RMSNorm over several axes has parameters of as many dimensions, a scale for each channel those of
    # the weights.
    scaling: list[nn.Module] = [module for module in model.modules() if isinstance(module, NORMS)]
    scaling += [quantizer for _, quantizer in named_quantizers(model)]
    return found | {id(p) for module in scaling for p in module.parameters()}


def _options(group: GroupSettings, weight_decay: float) -> dict[str, Any]:
    optional = {"momentum": group.momentum, "nesterov": getattr(group, "nesterov", None)}
    return {"lr": group.lr, "weight_decay": weight_decay, **{k: v for k, v in optional.items() if v is not None}}
