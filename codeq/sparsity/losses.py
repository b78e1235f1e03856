"""Losses of single layers: norms of filters, blocks of filters, kernels and columns of the quantized weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from codeq.common.checks import at_least, check_at_least_zero
from codeq.graph.baking import check_weights
from codeq.quantizer.functions import widen
from codeq.quantizer.layers import CONVOLUTIONS, distinct_layers, forward_weight, reference_tensor
from codeq.quantizer.transposed import swap_channels, transposed_groups
from codeq.sparsity.loss import LOSSES, Loss
from codeq.sparsity.norms import filter_norms, layer_factors, root_of_squares

Weights = Mapping[str, float] | None


def _sum_over(
    model: nn.Module,
    kinds: type[nn.Module] | tuple[type[nn.Module], ...],
    weights: Weights,
    penalty: Callable[[Tensor], Tensor],
) -> Tensor:
    """Add up `penalty` of the weights `[c_out, ...]` of all layers of `kinds`, each weight once, times its factor."""
    factors = layer_factors(model, weights)
    layers = [(name, layer) for name, layer in distinct_layers(model) if isinstance(layer, kinds)]
    if any(isinstance(layer, LazyModuleMixin) for _, layer in layers):
        check_weights(model)  # which names the layer
    terms = [
        factors[name] * penalty(widen(swap_channels(forward_weight(layer), transposed_groups(layer))))
        for name, layer in layers
    ]
    return torch.stack(terms).sum() if terms else torch.zeros((), device=reference_tensor(model).device)


@LOSSES.register("group_lasso_channels")
def group_lasso_channels(model: nn.Module, weights: Weights = None) -> Tensor:
    """Sum of ``‖W[c]‖₂`` over all output filters of all convolutions, transposed ones included.

    Weights that several layers share count once, in this and all other losses.

    Parameters
    ----------
    model : Module
        Quantized or not.
    weights : mapping of str to float, optional
        Factors by layer pattern (see `layer_factors`), the first that matches; other layers have factor 1. A weight
        that several layers share has the factor of the first of them.

    Returns
    -------
    Tensor
        ``[]``, in the unit of the weights.

    Raises
    ------
    CodeqError
        For a pattern in `weights` that matches no conv or linear layer.

    Examples
    --------
    >>> convs = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 3))
    >>> for conv in convs:
    ...     _ = nn.init.ones_(conv.weight)
    >>> round(group_lasso_channels(convs).item(), 3)  # 4 √27 + 48
    68.785
    """
    return _sum_over(model, CONVOLUTIONS, weights, lambda w: filter_norms(w).sum())


@LOSSES.register("group_lasso_blocks")
class GroupLassoBlocks(Loss):
    """Sum of ``‖·‖₂`` over blocks of `block_size` consecutive output filters of each convolution.

    Parameters
    ----------
    block_size : int
        Filters in a block, at least 1; the last block of a layer may be smaller.
    weights : mapping of str to float, optional
        Factors by layer pattern, see `group_lasso_channels`.

    Examples
    --------
    >>> conv = nn.Conv2d(1, 6, 1)
    >>> _ = nn.init.ones_(conv.weight)
    >>> group_lasso_blocks(block_size=4)(conv).item()  # √4 + √2
    3.41...
    """

    def __init__(self, block_size: int = 4, weights: Weights = None) -> None:
        block_size = at_least("block_size", block_size, 1, " (filters)")
        super().__init__("group_lasso_blocks", {"block_size": block_size} | ({"weights": weights} if weights else {}))

    def __call__(self, model: nn.Module) -> Tensor:
        """Return the loss of `model`, `[]`, in the unit of the weights."""
        return _sum_over(model, CONVOLUTIONS, self.kwargs.get("weights"), self._block_norms)

    def _block_norms(self, weight: Tensor) -> Tensor:
        size = self.kwargs["block_size"]
        block = torch.arange(len(weight), device=weight.device) // size
        squares = weight.flatten(1).square().sum(1)
        return root_of_squares(squares.new_zeros(-(-len(weight) // size)).index_add(0, block, squares)).sum()


group_lasso_blocks = GroupLassoBlocks


@LOSSES.register("l1_kernel_sparsity")
def l1_kernel_sparsity(model: nn.Module, weights: Weights = None) -> Tensor:
    """Sum of the L1 norms of all convolution kernels.

    Parameters
    ----------
    model : Module
        Quantized or not.
    weights : mapping of str to float, optional
        Factors by layer pattern, see `group_lasso_channels`.

    Examples
    --------
    >>> convs = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 3))
    >>> for conv in convs:
    ...     _ = nn.init.ones_(conv.weight)
    >>> l1_kernel_sparsity(convs).item()
    396.0
    """
    return _sum_over(model, CONVOLUTIONS, weights, lambda w: w.abs().sum())


@LOSSES.register("group_lasso")
def group_lasso(
    model: nn.Module, lambda_linear: float = 1e-4, lambda_conv: float = 1e-4, weights: Weights = None
) -> Tensor:
    """Sum of column norms: ``Σ_j ‖W[:, j]‖₂`` of linear layers, and of `[c_out, c_in·k·k]` convolution matrices.

    Parameters
    ----------
    model : Module
        Quantized or not.
    lambda_linear, lambda_conv : float
        Factors of the two kinds of layers.
    weights : mapping of str to float, optional
        Further factors by layer pattern, see `group_lasso_channels`.

    Examples
    --------
    >>> linear = nn.Linear(3, 4)
    >>> _ = nn.init.ones_(linear.weight)
    >>> group_lasso(linear, lambda_linear=1.0).item()
    6.0
    """
    check_at_least_zero(lambda_linear=lambda_linear, lambda_conv=lambda_conv)

    def columns(w: Tensor) -> Tensor:
        return torch.linalg.vector_norm(w.flatten(1), dim=0).sum()

    linear = _sum_over(model, nn.Linear, weights, columns)
    return lambda_linear * linear + lambda_conv * _sum_over(model, CONVOLUTIONS, weights, columns)
