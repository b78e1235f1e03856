"""Structured sparsity losses ``fn(model) -> scalar`` on the weights that the forward pass uses."""

from codeq.sparsity.coupled import CoupledGroupLasso, coupled_group_lasso
from codeq.sparsity.loss import LOSSES, Loss, LossFunction, build_loss, check_loss, supports_proximal
from codeq.sparsity.losses import (
    GroupLassoBlocks,
    group_lasso,
    group_lasso_blocks,
    group_lasso_channels,
    l1_kernel_sparsity,
)

__all__ = [
    "LOSSES", "Loss", "LossFunction", "build_loss", "check_loss", "supports_proximal",
    "group_lasso_channels", "group_lasso_blocks", "l1_kernel_sparsity", "group_lasso", "coupled_group_lasso",
    "CoupledGroupLasso", "GroupLassoBlocks",
]  # fmt: skip
