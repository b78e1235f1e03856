"""The coupled group lasso: one norm per prunable channel, over all weights that keep the channel alive."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from codeq.common.default_device import cpu_by_default
from codeq.common.errors import CodeqError, quote
from codeq.graph.affine import weight_and_bias
from codeq.graph.channels import CoupledGroups, coupled_groups
from codeq.graph.ops import ChannelGraph
from codeq.graph.tracing import trace
from codeq.quantizer.functions import widen
from codeq.quantizer.layers import (
    CONVOLUTIONS,
    distinct_layers,
    forward_weight,
    latent_weight,
    reason_not_prunable,
    reference_tensor,
)
from codeq.quantizer.transposed import scale_channels, swap_channels, transposed_groups
from codeq.sparsity.loss import LOSSES, Loss
from codeq.sparsity.norms import filter_norms, layer_factors, root_of_squares


@LOSSES.register("coupled_group_lasso")
class CoupledGroupLasso(Loss):
    """Group lasso ``Σ_g ‖w_g‖₂`` whose groups follow the residual streams of a model, with a proximal step.

    A group holds all weights that must be zero for one channel to be pruned: the filters that write it, in every block
    that shares its residual stream, and the input slices that read it. Inside a group all slices share one denominator,
    so the group shrinks as one. Convolutions in no group, other than a classifier, get `group_lasso_channels`.

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
        weights by at most about ``lr · √n``, so the strength of a proximal step is then λ relative to the largest step
        that Adam can take, the same for small and large groups.
    keep_norms : bool
        Whether a proximal step rescales each layer that BatchNorm follows to the norm it had: groups then shrink
        against each other, while the layers keep their scale. BatchNorm cancels the scale of a layer in the output but
        not in training: the smaller the weights, the larger the same step of the optimizer is to them.
    weights : mapping of str to float, optional
        Factors by layer pattern; a layer's weights enter its groups' norms times its factor. A proximal step scales a
        layer of factor 0 with the rest of each group, and leaves groups of such layers alone.
    input_size : tuple of int
        `(C, H, W)` of one input, for tracing.

    Attributes
    ----------
    count : int
        Number of groups; 0 for a model without a channel that can be pruned.

    Raises
    ------
    CodeqError
        If the model cannot be traced, for illegal `weights`, see `layer_factors`, and for options that are neither true
        nor false, such as an `input_size` in their place.

    Examples
    --------
    >>> from codeq.models import resnet20
    >>> model = resnet20()
    >>> loss = coupled_group_lasso(model)
    >>> loss.count, loss(model).shape
    (400, torch.Size([]))
    """

    per_model: ClassVar[bool] = True

    @cpu_by_default()
    @torch.inference_mode(False)  # a training could not use its tensors
    def __init__(
        self,
        model: nn.Module,
        classifier: bool = False,
        batchnorm: bool = False,
        by_size: bool = False,
        keep_norms: bool = False,
        weights: Mapping[str, float] | None = None,
        input_size: tuple[int, int, int] = (3, 32, 32),
    ) -> None:
        options = {"classifier": classifier, "batchnorm": batchnorm, "by_size": by_size, "keep_norms": keep_norms}
        for name, value in options.items():
            if value not in (True, False):
                raise CodeqError(f"coupled_group_lasso: {name}={quote(value)} must be True or False")
        self._factors = layer_factors(model, weights)
        super().__init__("coupled_group_lasso", options | ({"weights": dict(weights)} if weights else {}))
        graph = trace(model, input_size)
        groups = coupled_groups(graph)
        self.count = groups.count
        self._assign(model, graph, groups, classifier)
        # A BatchNorm without scale and shift has nothing to shrink.
        affine = {name: of for name, of in groups.batchnorms.items() if weight_and_bias(model.get_submodule(name))}
        self._batchnorms = {name: self._numbered(of) for name, of in affine.items()} if batchnorm else {}
        self._ungrouped = [
            name
            for name, layer in distinct_layers(model)
            if isinstance(layer, CONVOLUTIONS) and name not in {*self._writers, *groups.classifiers}
        ]
        shrunk = (*self._writers, *self._ungrouped)
        self._rescaled = {name for name in shrunk if keep_norms and graph.batchnorms_after(name)}
        self._index = self._group_index(model)
        reasons = (reason_not_prunable(name, model.get_submodule(name)) for name in shrunk)
        self._not_prunable = next(filter(None, reasons), "")
        self._counted = {name: float(factor > 0) for name, factor in self._factors.items()}
        sizes = self._sizes(model)
        self._group_strengths = sizes.sqrt() if by_size else None if all(self._factors.values()) else sizes.sign()

    def _assign(self, model: nn.Module, graph: ChannelGraph, groups: CoupledGroups, classifier: bool) -> None:
        """Note the group of every filter and of every input slice of the layers that have any."""
        self._writers: dict[str, Tensor] = {}
        self._readers: dict[str, Tensor] = {}
        self._self_overlap: dict[str, tuple[Tensor, Tensor]] = {}
        repeated = {name for tied in graph.ties for name in tied[1:]}  # their weight is that of another layer
        for op in graph.layers:
            if op.layer in repeated:
                continue
            out, read = groups.writers[op.layer], groups.readers[op.layer]
            if op.groups > 1 or (op.layer in groups.classifiers and not classifier):
                read = np.full(latent_weight(model.get_submodule(op.layer)).shape[1], -1)
            if (out >= 0).any() or (read >= 0).any():
                self._writers[op.layer], self._readers[op.layer] = self._numbered(out), self._numbered(read)
                # A kernel that reads and writes the same group belongs to it once.
                rows, columns = np.nonzero((out[:, None] == read[None, :]) & (out[:, None] >= 0))
                if len(rows):
                    self._self_overlap[op.layer] = torch.from_numpy(rows), torch.from_numpy(columns)

    @property
    def pruned_layers(self) -> list[str]:
        """Names of the layers whose filters a proximal step may set to zero."""
        return [name for name, group in self._writers.items() if (group < self.count).any()] + self._ungrouped

    def _numbered(self, groups: np.ndarray) -> Tensor:
        """Return group numbers with `count`, one past the last group, for what is in no group."""
        return torch.from_numpy(np.where(groups >= 0, groups, self.count))

    def _group_index(self, model: nn.Module) -> Tensor:
        """Return the group of every value that `_group_sums` concatenates."""
        parts = [part for layer in self._writers for part in (self._writers[layer], self._readers[layer])]
        parts += [self._writers[layer][rows] for layer, (rows, _) in self._self_overlap.items()]
        parts += [group for name, group in self._batchnorms.items() for _ in weight_and_bias(model.get_submodule(name))]
        return torch.cat([torch.empty(0, dtype=torch.long), *parts])

    def _group_sums(self, kernels: Mapping[str, Tensor], affine: Mapping[str, list[Tensor]], like: Tensor) -> Tensor:
        """Add up by group, `[groups]`, a value `[c_out, c_in]` per kernel and `[channels]` per scale and shift."""
        parts = [part for name in self._writers for part in (kernels[name].sum(1), kernels[name].sum(0))]
        parts += [-kernels[name][overlap] for name, overlap in self._self_overlap.items()]
        parts += [part for name in self._batchnorms for part in affine[name]]
        values = torch.cat(parts) if parts else like.new_zeros(0)
        return values.new_zeros(self.count + 1).index_add(0, self._index, values)[:-1]

    def _squares(self, model: nn.Module, latent: bool, factors: Mapping[str, float]) -> Tensor:
        """Return the sum of squares of every group, `[groups]`, of weights times the factors of their layers."""
        kernels: dict[str, Tensor] = {}
        for name in self._writers:
            layer = model.get_submodule(name)
            squares = widen(latent_weight(layer) if latent else forward_weight(layer)).square()
            kernels[name] = (squares.flatten(2).sum(2) if squares.ndim > 2 else squares) * factors[name] ** 2
        affine = {
            name: [widen(p).square() for p in weight_and_bias(model.get_submodule(name))] for name in self._batchnorms
        }
        return self._group_sums(kernels, affine, reference_tensor(model))

    def _sizes(self, model: nn.Module) -> Tensor:
        """Return the number of weights in each group, `[groups]`; layers with factor 0 are excluded."""
        kernels: dict[str, Tensor] = {}
        for name in self._writers:
            shape = latent_weight(model.get_submodule(name)).shape
            kernels[name] = torch.full(shape[:2], float(shape[2:].numel() if self._factors[name] else 0)).double()
        ones = {name: torch.ones(len(group)).double() for name, group in self._batchnorms.items()}
        affine = {name: [ones[name] for _ in weight_and_bias(model.get_submodule(name))] for name in self._batchnorms}
        return self._group_sums(kernels, affine, torch.zeros(0).double())

    @torch.inference_mode(False)
    def _move_to(self, device: torch.device) -> None:
        """Keep the indices on the device of the weights: copying them in every step would wait for it."""
        if self._index.device != device:
            self._index = self._index.to(device)
            for groups in (self._writers, self._readers, self._batchnorms):
                groups.update({name: group.to(device) for name, group in groups.items()})
            self._self_overlap = {
                name: (rows.to(device), columns.to(device)) for name, (rows, columns) in self._self_overlap.items()
            }

    def __call__(self, model: nn.Module) -> Tensor:
        """Return the loss of `model`, ``[]``, in the unit of the weights."""
        self._move_to(reference_tensor(model).device)
        norms = root_of_squares(self._squares(model, latent=False, factors=self._factors))
        total = (norms * self._strengths(norms)).sum()
        for name in self._ungrouped:
            layer = model.get_submodule(name)
            weight = swap_channels(forward_weight(layer), transposed_groups(layer))
            total = total + self._ungrouped_strength(name, weight) * filter_norms(weight).sum()
        return total

    @torch.inference_mode(False)
    def _strengths(self, norms: Tensor) -> Tensor | float:
        """Return the factor of the norm of each group, `[groups]`, 0 for layers of factor 0 alone; or 1 for all."""
        if self._group_strengths is None:
            return 1.0
        self._group_strengths = self._group_strengths.to(norms)
        return self._group_strengths

    def _ungrouped_strength(self, name: str, weight: Tensor) -> float:
        size = weight[0].numel() ** 0.5 if self.kwargs["by_size"] else 1.0
        return self._factors[name] * size

    @torch.no_grad()
    def proximal_step(self, model: nn.Module, amount: float | Tensor) -> None:
        """Shrink the latent weights of every group: ``W_g ← W_g · max(0, 1 - amount · f_g / ‖w_g‖)``.

        ``‖w_g‖`` is the norm of the weights of positive factor, and ``f_g`` is their factor, 1 without `weights`. Where
        the layers of a group have several, it is ``sqrt(Σ f² ‖w‖²) / ‖w_g‖``: of all steps that scale the group by one
        number, this is the one that minimizes the sum of half its squared length and `amount` times the group's term of
        the loss. With `by_size`, `amount` is multiplied by the square root of the group's number of weights.

        The norms are those of the whole groups before the step; the factors apply to the filters that write the channel
        (and BatchNorm's scale and shift, where they are in the group). Frozen parameters (``requires_grad=False``)
        count in the norms and keep their values. What is 0 stays 0. With `keep_norms`, layers that BatchNorm follows
        are scaled back to the norm they had.

        Parameters
        ----------
        model : Module
            Changed in place.
        amount : float or Tensor
            Learning rate × coefficient, in the unit of the weights; a tensor while a CUDA graph is recorded.

        Raises
        ------
        CodeqError
            If the filters of a layer do not become zero with its parameters, as under `weight_norm` or under a
            quantizer that has no level 0.
        """
        if self._not_prunable:
            raise CodeqError(f"coupled_group_lasso: {self._not_prunable}, or use the loss by its gradient")
        self._move_to(reference_tensor(model).device)
        norms = root_of_squares(self._squares(model, latent=True, factors=self._counted))
        amounts = amount * self._strengths(norms)
        if self._factors != self._counted:
            weighted = root_of_squares(self._squares(model, latent=True, factors=self._factors))
            amounts = amounts * torch.where(norms > 0, weighted / norms, 1)
        factor = _shrinkage(norms, amounts)
        factor = torch.cat([factor, factor.new_ones(1)])  # what is in no group keeps its value
        for name, group in self._writers.items():
            _scale_rows(latent_weight(model.get_submodule(name)), factor[group], keep_norm=name in self._rescaled)
        for name, group in self._batchnorms.items():
            for parameter in weight_and_bias(model.get_submodule(name)):
                _scale_rows(parameter, factor[group])
        for name in self._ungrouped:
            layer = model.get_submodule(name)
            groups = transposed_groups(layer)
            weight = swap_channels(latent_weight(layer), groups)
            factor = _shrinkage(filter_norms(weight), amount * self._ungrouped_strength(name, weight))
            _scale_rows(latent_weight(layer), factor, keep_norm=name in self._rescaled, groups=groups)


coupled_group_lasso = CoupledGroupLasso


def _shrinkage(norms: Tensor, amount: Tensor | float) -> Tensor:
    return (1 - amount / norms.clamp(min=torch.finfo(norms.dtype).tiny)).clamp(min=0)


def _scale_rows(weight: nn.Parameter, factor: Tensor, keep_norm: bool = False, groups: int | None = None) -> None:
    """Multiply each output channel of a parameter by its factor, in place, unless the parameter is frozen.

    `groups` are those of a transposed convolution, see `swap_channels`.
    """
    if not weight.requires_grad:
        return
    before = weight.norm() if keep_norm else None
    scale_channels(weight, factor, groups)
    if before is not None:
        after = weight.norm()
        weight.mul_(torch.where(after > 0, before / after, 1))  # a layer of zeros stays zeros
