"""The optimizer with its three parameter groups (base / dz / bit), and the schedule of its learning rates."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler

from codeq.attach import split_param_groups
from codeq.config import ExperimentConfig

OPTIMIZERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}

Theta = list[tuple[list[nn.Parameter], float]]


def build_optimizer(config: ExperimentConfig, model: nn.Module) -> tuple[torch.optim.Optimizer, Theta]:
    """Build the optimizer for the weights and the quantizers' parameters of `model`.

    Returns
    -------
    tuple
        The optimizer; and for the loss the parameters θ with the λ of their ``λ Σ θ²``. Under
        ``theta_regularizer="decoupled"`` λ is the optimizer's weight decay instead, and 0 in the loss.

    Examples
    --------
    >>> from codeq.runs import build_model
    >>> config = ExperimentConfig(name="demo", weight_decay_dz=0.1)
    >>> optimizer, theta = build_optimizer(config, build_model(config, num_classes=10))
    >>> [group["weight_decay"] for group in optimizer.param_groups], [factor for _, factor in theta]
    ([0.0, 0.0, 0.0], [0.1, 0.01])
    """
    base, dz, bit = split_param_groups(model)
    settings = config.optimizer.param_groups
    in_loss = config.theta_regularizer == "l2"
    groups = []
    for parameters, own, is_theta in ((base, settings.base, False), (dz, settings.dz, True), (bit, settings.bit, True)):
        group = {"params": parameters, "lr": own.lr, "weight_decay": 0.0 if is_theta and in_loss else own.weight_decay}
        if own.momentum is not None:
            group["momentum"] = own.momentum
        if parameters:
            groups.append(group)
    theta = [(dz, settings.dz.weight_decay), (bit, settings.bit.weight_decay)] if in_loss else []
    # Fused: one kernel for all parameters, and it can be told to skip a batch whose loss is not finite.
    return OPTIMIZERS[config.optimizer.type](groups, fused=True), theta


def build_lr_scheduler(config: ExperimentConfig, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """Build the schedule that all learning rates follow, stepped once an epoch."""
    if config.lr_scheduler == "cosine":
        return CosineAnnealingLR(optimizer, T_max=config.epochs)
    return LambdaLR(optimizer, lambda epoch: 1.0)  # noqa: ARG005  (constant)
