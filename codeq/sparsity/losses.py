"""Structured sparsity losses `fn(model) -> scalar` on the weights that the forward pass uses.

A loss is a plain function ``fn(model, **kwargs)``, or comes from a factory marked with `loss_factory`. `LOSSES` maps
names to both; `build_loss` turns a name and its arguments into ``fn(model)``.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from codeq.common.errors import CodeqError
from codeq.common.registry import Named, Registry, check_kwargs
from codeq.quantizer.attach import forward_weight, match_factors, named_layers
from codeq.sparsity.coupled import CoupledGroupLasso
from codeq.sparsity.norms import filter_norms, root_of_squares

Loss = Callable[[nn.Module], Tensor]
Weights = Mapping[str, float] | None

LOSSES: Registry[Callable[..., Any]] = Registry("loss")


def loss_factory(*, proximal: bool = False) -> Callable[[Callable[..., Loss]], Callable[..., Loss]]:
    """Return a decorator that marks a function as one that makes a loss from its arguments.

    A first parameter named ``model`` receives the model.

    Parameters
    ----------
    proximal : bool
        Whether the losses it makes offer ``proximal_step(model, amount)``.
    """

    def mark(function: Callable[..., Loss]) -> Callable[..., Loss]:
        cast(Any, function).is_loss_factory = True
        cast(Any, function).is_proximal = proximal
        return function

    return mark


def check_loss(name: str, kwargs: Mapping[str, Any]) -> None:
    """Raise a `CodeqError` if no loss `name` is registered or it cannot take `kwargs`.

    Examples
    --------
    >>> check_loss("group_lasso_blocks", {"blok_size": 8})
    Traceback (most recent call last):
    ...
    codeq.CodeqError: loss 'group_lasso_blocks' has no argument 'blok_size'. Did you mean 'block_size'? ...
    """
    entry = LOSSES[name]
    check_kwargs(f"loss {name!r}", entry, _with_input_size(entry, kwargs, ()), given=int(_takes_model(entry)))


def build_loss(
    name: str, kwargs: Mapping[str, Any], model: nn.Module, input_size: tuple[int, int, int] = (3, 32, 32)
) -> Loss:
    """Build the registered loss `name` for `model`, whose inputs are `(C, H, W)` = `input_size`.

    Raises
    ------
    CodeqError
        For an unknown name or argument, see `check_loss`.

    Examples
    --------
    >>> convs = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 3))
    >>> build_loss("l1_kernel_sparsity", {}, convs)(convs).shape
    torch.Size([])
    """
    check_loss(name, kwargs)
    entry = LOSSES[name]
    if not getattr(entry, "is_loss_factory", False):
        return functools.partial(entry, **kwargs)
    kwargs = _with_input_size(entry, kwargs, input_size)
    return entry(model, **kwargs) if _takes_model(entry) else entry(**kwargs)


def supports_proximal(name: str) -> bool:
    """Return whether the registered loss `name` offers a proximal step, ``proximal_step(model, amount)``.

    Examples
    --------
    >>> supports_proximal("coupled_group_lasso"), supports_proximal("group_lasso")
    (True, False)
    """
    return getattr(LOSSES[name], "is_proximal", False)


def _with_input_size(entry: Callable[..., Any], kwargs: Mapping[str, Any], size: tuple[int, ...]) -> Mapping[str, Any]:
    """Add the size of an input for factories that ask for it, unless the user gave one."""
    wanted = getattr(entry, "is_loss_factory", False) and "input_size" in inspect.signature(entry).parameters
    return {"input_size": size, **kwargs} if wanted else kwargs


def _takes_model(function: Callable[..., Any]) -> bool:
    return next(iter(inspect.signature(function).parameters), None) == "model"


def _sum_over(model: nn.Module, kind: type[nn.Module], weights: Weights, penalty: Callable[[Tensor], Tensor]) -> Tensor:
    """Add up `penalty` of the weights of all layers of `kind`, each times its factor."""
    layers = [(name, layer) for name, layer in named_layers(model) if isinstance(layer, kind)]
    factors = match_factors(model, weights)
    terms = [factors[name] * penalty(forward_weight(layer)) for name, layer in layers]
    return torch.stack(terms).sum() if terms else torch.zeros(())


@LOSSES.register("group_lasso_channels")
def group_lasso_channels(model: nn.Module, weights: Weights = None) -> Tensor:
    """Sum of ``‖W[c]‖₂`` over all output filters of all convolutions.

    Parameters
    ----------
    model : Module
        Quantized or not.
    weights : mapping of str to float, optional
        Factors by layer pattern, the first that matches; other layers have factor 1.

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
    return _sum_over(model, nn.Conv2d, weights, lambda w: filter_norms(w).sum())


@LOSSES.register("group_lasso_blocks")
@loss_factory()
def group_lasso_blocks(block_size: int = 4, weights: Weights = None) -> Loss:
    """Return a loss: the sum of ``‖·‖₂`` over blocks of `block_size` consecutive output filters of each convolution.

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
    if not isinstance(block_size, int) or block_size < 1:
        raise CodeqError(f"block_size={block_size!r}: must be an integer of at least 1 (filters)")

    def penalty(w: Tensor) -> Tensor:
        block = torch.arange(len(w), device=w.device) // block_size
        squares = w.new_zeros(int(-(-len(w) // block_size)))
        return root_of_squares(squares.index_add(0, block, w.flatten(1).square().sum(1))).sum()

    return Named(
        "group_lasso_blocks",
        {"block_size": block_size} | ({"weights": dict(weights)} if weights else {}),
        lambda model: _sum_over(model, nn.Conv2d, weights, penalty),
    )


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
    return _sum_over(model, nn.Conv2d, weights, lambda w: w.abs().sum())


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

    def columns(w: Tensor) -> Tensor:
        return torch.linalg.vector_norm(w.flatten(1), dim=0).sum()

    linear = _sum_over(model, nn.Linear, weights, columns)
    return lambda_linear * linear + lambda_conv * _sum_over(model, nn.Conv2d, weights, columns)


@LOSSES.register("coupled_group_lasso")
@loss_factory(proximal=True)
def coupled_group_lasso(
    model: nn.Module,
    classifier: bool = False,
    batchnorm: bool = False,
    by_size: bool = False,
    keep_norms: bool = False,
    weights: Weights = None,
    input_size: tuple[int, int, int] = (3, 32, 32),
) -> CoupledGroupLasso:
    """Return the group lasso whose groups follow the residual streams of `model`.

    A group holds all weights that must be zero for one channel to die: the filters that write it, in every block that
    shares its residual stream, and the input slices that read it. Inside a group all slices share one denominator, so
    the group shrinks as one. Convolutions in no group, other than a classifier, get `group_lasso_channels`.

    Parameters
    ----------
    model : Module
        Traced once; the loss works for this model and for copies of it.
    classifier : bool
        Whether the classifier's columns belong to the groups that they read.
    batchnorm : bool
        Whether BatchNorm's scale and shift belong to the group of their channel.
    by_size : bool
        Whether each norm is multiplied by the square root of the number of weights in its group (Yuan and Lin, *Model
        selection and estimation in regression with grouped variables*, 2006). A step of Adam moves a group of `n`
        weights by at most about ``lr · √n``, so the strength of a proximal step is then the share of the way that a
        gradient of one mind could make good, the same for small and large groups.
    keep_norms : bool
        Whether a proximal step gives each layer that BatchNorm follows back the norm that it takes: groups then shrink
        against each other, while the layers keep their scale. BatchNorm undoes a layer's scale anyway, but not what it
        does to training: the smaller the weights, the larger the same step of the optimizer is to them.
    weights : mapping of str to float, optional
        Factors by layer pattern; a layer's weights enter its groups' norms times its factor.
    input_size : tuple of int
        `(C, H, W)` of one input, for tracing.

    Returns
    -------
    CoupledGroupLasso
        A loss ``fn(model)`` that also offers ``proximal_step(model, amount)``.

    Raises
    ------
    CodeqError
        If the model cannot be traced, or for a pattern in `weights` that matches no layer.

    Examples
    --------
    >>> from codeq.models import resnet20
    >>> model = resnet20()
    >>> loss = coupled_group_lasso(model)
    >>> loss.count, loss(model).shape
    (400, torch.Size([]))
    """
    return CoupledGroupLasso(model, classifier, batchnorm, by_size, keep_norms, weights, input_size)
