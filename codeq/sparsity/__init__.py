"""Structured sparsity losses ``fn(model) -> scalar`` on the weights that the forward pass uses."""

from codeq.sparsity.losses import (
    LOSSES,
    Loss,
    build_loss,
    check_loss,
    coupled_group_lasso,
    group_lasso,
    group_lasso_blocks,
    group_lasso_channels,
    l1_kernel_sparsity,
    loss_factory,
    supports_proximal,
)

__all__ = [
    "LOSSES", "Loss", "build_loss", "check_loss", "loss_factory", "supports_proximal",
    "group_lasso_channels", "group_lasso_blocks", "l1_kernel_sparsity", "group_lasso", "coupled_group_lasso",
]  # fmt: skip
