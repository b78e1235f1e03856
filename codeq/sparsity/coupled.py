"""The coupled group lasso: one norm for every channel that can die, over all weights that keep it alive."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from codeq.graph.channels import coupled_groups
from codeq.graph.tracing import trace
from codeq.quantizer.attach import forward_weight, latent_weight, match_factors, named_layers
from codeq.sparsity.norms import filter_norms, root_of_squares


class CoupledGroupLasso:
    """``Σ_g ‖w_g‖₂`` over the coupled groups of a model, as a loss and as a proximal step.

    Made by `codeq.sparsity.losses.coupled_group_lasso`. Squares are summed once per kernel and added up by group in one
    scatter, so that the cost does not grow with the number of groups.
    """

    def __init__(
        self,
        model: nn.Module,
        classifier: bool,
        batchnorm: bool,
        by_size: bool,
        keep_norms: bool,
        weights: Mapping[str, float] | None,
        input_size: tuple[int, int, int],
    ) -> None:
        self.name = "coupled_group_lasso"
        self.kwargs: dict[str, Any] = {
            "classifier": classifier, "batchnorm": batchnorm, "by_size": by_size, "keep_norms": keep_norms,
        }  # fmt: skip
        self.kwargs |= {"weights": dict(weights)} if weights else {}
        graph = trace(model, input_size)
        groups = coupled_groups(graph)
        self.count = groups.count
        self._factors = match_factors(model, weights)
        self._writers: dict[str, Tensor] = {}
        self._readers: dict[str, Tensor] = {}
        self._twice: dict[str, tuple[Tensor, Tensor]] = {}
        for op in graph.layers:
            out, read = groups.writers[op.layer], groups.readers[op.layer]
            if op.groups > 1 or (op.layer in groups.classifiers and not classifier):
                read = np.full(latent_weight(model.get_submodule(op.layer)).shape[1], -1)
            if (out >= 0).any() or (read >= 0).any():
                self._writers[op.layer], self._readers[op.layer] = torch.from_numpy(out), torch.from_numpy(read)
                # A weight that reads and writes the same group belongs to it once.
                rows, columns = np.nonzero((out[:, None] == read[None, :]) & (out[:, None] >= 0))
                if len(rows):
                    self._twice[op.layer] = torch.from_numpy(rows), torch.from_numpy(columns)
        self._batchnorms = {name: torch.from_numpy(g) for name, g in groups.batchnorms.items()} if batchnorm else {}
        self._rescaled = {name for name in self._writers if keep_norms and graph.batchnorm_after(name)}
        self._alone = [
            name
            for name, layer in named_layers(model)
            if isinstance(layer, nn.Conv2d) and name not in self._writers and name not in groups.classifiers
        ]
        self._index: Tensor | None = None
        self._root_sizes = self._sizes(model).sqrt() if by_size else None

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{key}={value!r}' for key, value in self.kwargs.items())})"

    def _scatter_index(self, device: torch.device) -> Tensor:
        """Group of every entry that `_squares` concatenates; what is in no group goes to a last, ignored place.

        All indices move to the device once: copying one at every step makes the host wait for a GPU.
        """
        if self._index is None or self._index.device != device:
            self._writers, self._readers, self._batchnorms = (
                {name: group.to(device) for name, group in groups.items()}
                for groups in (self._writers, self._readers, self._batchnorms)
            )
            self._twice = {name: (rows.to(device), columns.to(device)) for name, (rows, columns) in self._twice.items()}
            parts = [part for layer in self._writers for part in (self._writers[layer], self._readers[layer])]
            parts += [self._writers[layer][rows] for layer, (rows, _) in self._twice.items()]
            parts += [group for group in self._batchnorms.values() for _ in range(2)]
            index = torch.cat(parts)
            self._index = torch.where(index >= 0, index, self.count)
        return self._index

    def _squares(self, model: nn.Module, latent: bool) -> Tensor:
        """Sum of squares of every group, `[groups]`."""
        index = self._scatter_index(next(model.parameters()).device)
        parts: list[Tensor] = []
        rest: list[Tensor] = []
        for name in self._writers:
            layer = model.get_submodule(name)
            weight = latent_weight(layer) if latent else forward_weight(layer)
            kernels = weight.square().flatten(2).sum(2) if weight.ndim > 2 else weight.square()
            kernels = kernels * self._factors[name] ** 2
            parts += [kernels.sum(1), kernels.sum(0)]
            if name in self._twice:
                rest.append(-kernels[self._twice[name]])
        for name in self._batchnorms:
            rest += [parameter.square() for parameter in model.get_submodule(name).parameters()]
        values = torch.cat(parts + rest)
        sums = values.new_zeros(self.count + 1).index_add(0, index, values)
        return sums[:-1]

    def _sizes(self, model: nn.Module) -> Tensor:
        """Return how many weights count in each group, `[groups]`, those of its BatchNorms included."""
        exact = torch.double
        parts: list[Tensor] = []
        rest: list[Tensor] = []
        for name in self._writers:
            shape = latent_weight(model.get_submodule(name)).shape
            kernel = float(shape[2:].numel()) if self._factors[name] else 0.0  # what counts nothing has no size
            parts += [
                torch.full((shape[0],), kernel * shape[1], dtype=exact),
                torch.full((shape[1],), kernel * shape[0], dtype=exact),
            ]
            if name in self._twice:
                rest.append(torch.full((len(self._twice[name][0]),), -kernel, dtype=exact))
        for group in self._batchnorms.values():
            rest += [torch.ones(len(group), dtype=exact)] * 2
        values = torch.cat([*parts, *rest]) if parts else torch.zeros(0, dtype=exact)
        return torch.zeros(self.count + 1, dtype=exact).index_add(0, self._scatter_index(values.device), values)[:-1]

    def __call__(self, model: nn.Module) -> Tensor:
        """Return the loss of `model`, ``[]``, in the unit of the weights."""
        total = (root_of_squares(self._squares(model, latent=False)) * self._strengths(model)).sum()
        for name in self._alone:
            weight = forward_weight(model.get_submodule(name))
            total = total + self._strength_alone(name, weight) * filter_norms(weight).sum()
        return total

    def _strengths(self, model: nn.Module) -> Tensor | float:
        """Return what the norm of each group counts, `[groups]`, or 1."""
        if self._root_sizes is None:
            return 1.0
        self._root_sizes = self._root_sizes.to(next(model.parameters()))
        return self._root_sizes

    def _strength_alone(self, name: str, weight: Tensor) -> float:
        size = weight[0].numel() ** 0.5 if self._root_sizes is not None else 1.0
        return self._factors[name] * size

    @torch.no_grad()
    def proximal_step(self, model: nn.Module, amount: float) -> None:
        """Shrink the latent weights of every group by `amount` in norm: ``W_g ← W_g · max(0, 1 - amount / ‖w_g‖)``.

        With `by_size` by `amount` times the square root of the group's number of weights.

        The norms are those of the whole groups before the step; the factors apply to the filters that write the channel
        (and BatchNorm's scale and shift, where they are in the group). What is 0 stays 0. With `keep_norms`, layers
        that BatchNorm follows are scaled back to the norm they had.

        Parameters
        ----------
        model : Module
            Changed in place.
        amount : float
            Learning rate × coefficient, in the unit of the weights.
        """
        factor = _shrink(root_of_squares(self._squares(model, latent=True)), amount * self._strengths(model))
        factor = torch.cat([factor, factor.new_ones(1)])  # entry -1: filters in no group keep their weights
        for name, group in self._writers.items():
            weight = latent_weight(model.get_submodule(name))
            before = weight.norm()
            _scale_rows(weight, factor[group])
            if name in self._rescaled:
                after = weight.norm()
                weight.mul_(torch.where(after > 0, before / after, 1))  # a layer of zeros stays zeros
        for name, group in self._batchnorms.items():
            for parameter in model.get_submodule(name).parameters():
                _scale_rows(parameter, factor[group])
        for name in self._alone:
            weight = latent_weight(model.get_submodule(name))
            _scale_rows(weight, _shrink(filter_norms(weight), amount * self._strength_alone(name, weight)))


def _shrink(norms: Tensor, amount: Tensor | float) -> Tensor:
    return (1 - amount / norms.clamp(min=torch.finfo(norms.dtype).tiny)).clamp(min=0)


def _scale_rows(weight: Tensor, factor: Tensor) -> None:
    weight.mul_(factor.view(-1, *[1] * (weight.ndim - 1)))
