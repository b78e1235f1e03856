"""Search for the parameters of a network that no image reaches."""

from __future__ import annotations

import copy

import torch
from torch import nn

from codeq.common.errors import CodeqError


def unused_parameters(model: nn.Module, input_size: tuple[int, int, int]) -> list[nn.Parameter]:
    """Return the trainable parameters on which the logits of `model` depend neither in training nor in evaluation mode.

    Several processes wait for the gradients of all others in every step.

    Raises
    ------
    CodeqError
        If the logits depend on some in evaluation mode, but not in a training step, which may leave them out at random.

    Examples
    --------
    >>> class Net(nn.Sequential):
    ...     def forward(self, x):
    ...         return self[0](x.flatten(1))
    >>> net = Net(nn.Linear(12, 2), nn.BatchNorm1d(2))
    >>> [parameter is net[1].weight or parameter is net[1].bias for parameter in unused_parameters(net, (3, 2, 2))]
    [True, True]
    """
    trial = copy.deepcopy(model)  # whose running statistics may change
    pairs = zip(model.named_parameters(), trial.parameters(), strict=True)
    trainable = {name: (p, q) for (name, p), q in pairs if p.requires_grad}
    images = torch.zeros(2, *input_size, device=next(trial.parameters()).device)
    used: dict[bool, set[str]] = {}
    with torch.random.fork_rng(devices={p.device for p, _ in trainable.values() if p.device.type == "cuda"}):
        for mode in (True, False):
            # The recurrent layers of cuDNN have no gradients in evaluation mode.
            with torch.backends.cudnn.flags(enabled=mode):
                logits = trial.train(mode)(images)
                found: tuple[torch.Tensor | None, ...] = ()
                if logits.requires_grad:  # a forward may switch gradients off in evaluation mode
                    found = torch.autograd.grad(logits.sum(), [q for _, q in trainable.values()], allow_unused=True)
            used[mode] = {name for name, gradient in zip(trainable, found, strict=False) if gradient is not None}
    left_out = [name for name in trainable if name in used[False] - used[True]]
    if left_out:
        more = f" and {len(left_out) - 1} more" if len(left_out) > 1 else ""
        raise CodeqError(
            f"{left_out[0]}{more}: the model uses these parameters in evaluation mode, but not in every training step. "
            "Several processes wait in each step for the gradients of all parameters that require them: set "
            "requires_grad to False, or train in one process"
        )
    return [p for name, (p, _) in trainable.items() if name not in used[True]]
