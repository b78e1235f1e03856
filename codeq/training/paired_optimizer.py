"""Two optimizers that act as one: one of the weights, another of the quantizers' parameters θ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from codeq.config.optimizer import OptimizerConfig
from codeq.optimizers import Group, build_optimizer


class PairedOptimizer(torch.optim.Optimizer):
    """Optimizer whose groups and state are those of two others.

    Parameters
    ----------
    weights, theta : Optimizer
        Of the weights and of θ.

    Examples
    --------
    >>> w, logit = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(()))
    >>> pair = PairedOptimizer(torch.optim.SGD([w], lr=0.5), torch.optim.AdamW([logit], lr=0.25, weight_decay=0))
    >>> w.grad, logit.grad = torch.ones(1), 8 * torch.ones(())
    >>> pair.step()
    >>> w.item(), round(logit.item(), 4), [group["lr"] for group in pair.param_groups]
    (0.5, 0.75, [0.5, 0.25])
    """

    # `Optimizer.__init__` is not called: it would register the parameters once more, with a state of their own.
    def __init__(self, weights: torch.optim.Optimizer, theta: torch.optim.Optimizer) -> None:
        self.parts = {"weights": weights, "theta": theta}

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """Groups of the weights, then those of θ; loading a state replaces them."""
        return [group for part in self.parts.values() for group in part.param_groups]

    @property
    def found_inf(self) -> Tensor | None:
        """Flag that makes both skip a step; it is set where both are fused, see `FiniteGuard`."""
        return getattr(self.parts["weights"], "found_inf", None)

    @found_inf.setter
    def found_inf(self, flag: Tensor) -> None:
        for part in self.parts.values():
            cast(Any, part).found_inf = flag

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of all parameters."""
        for part in self.parts.values():
            part.zero_grad(set_to_none)

    def step(self) -> None:  # type: ignore[override]
        """Step both."""
        for part in self.parts.values():
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the states of both, under ``weights`` and ``theta``."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the states of both."""
        for name, part in self.parts.items():
            part.load_state_dict(state_dict[name])


def build_optimizers(settings: OptimizerConfig, groups: Sequence[Group]) -> torch.optim.Optimizer:
    """Build the optimizer of all groups, or a pair of them if a second one is configured for θ.

    Parameters
    ----------
    settings : OptimizerConfig
        ``theta`` names the second one. It is not needed where there are no logits to train, or nothing else.
    groups : sequence of (list of Parameter, mapping)
        As `parameter_groups` returns them: the last two are those of θ.

    Raises
    ------
    CodeqError
        As `build_optimizer`.
    """
    weights, theta = list(groups[:-2]), list(groups[-2:])
    if settings.theta is None or not any(parameters for parameters, _ in theta):
        return build_optimizer(settings.type, settings.kwargs, list(groups))
    second = build_optimizer(settings.theta.type, settings.theta.kwargs, theta)
    if not any(parameters for parameters, _ in weights):
        return second
    return PairedOptimizer(build_optimizer(settings.type, settings.kwargs, weights), second)


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load the state of an optimizer or a pair, whose steps are counted on the device or the CPU as they are today.

    Where an optimizer counts them (``capturable``) follows from the device and from `cuda_graph`, which a resumed run
    may change. PyTorch would restore the setting with the state, and move the counts to where that expects them.

    Parameters
    ----------
    optimizer : Optimizer
        With the settings of today.
    state : dict
        From its `state_dict`; changed in place.

    Raises
    ------
    KeyError, ValueError
        If it belongs to other optimizers or groups.

    Examples
    --------
    >>> def adamax(**kwargs):
    ...     return torch.optim.Adamax([torch.nn.Parameter(torch.ones(1))], **kwargs)
    >>> optimizer = adamax()
    >>> restore_optimizer(optimizer, adamax(capturable=True, lr=0.5).state_dict())
    >>> optimizer.param_groups[0]["capturable"], optimizer.param_groups[0]["lr"]
    (False, 0.5)
    """
    parts = [state[name] for name in optimizer.parts] if isinstance(optimizer, PairedOptimizer) else [state]
    stored = [group for part in parts for group in part["param_groups"]]
    for group, settings in zip(optimizer.param_groups, stored, strict=False):  # torch refuses another number
        if "capturable" in group:
            settings["capturable"] = group["capturable"]
    optimizer.load_state_dict(state)
