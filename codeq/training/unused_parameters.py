"""Search for the parameters of a network that no image reaches."""

from __future__ import annotations

import copy

import torch
from torch import nn


def unused_parameters(model: nn.Module, input_size: tuple[int, int, int]) -> list[nn.Parameter]:
    """Return the trainable parameters on which the logits of `model` depend neither in training nor in evaluation mode.

    What a training step leaves out at random is used in evaluation mode, and so it is not among them.

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
    trainable = [(p, q) for p, q in zip(model.parameters(), trial.parameters(), strict=True) if p.requires_grad]
    images = torch.zeros(2, *input_size, device=next(trial.parameters()).device)
    unused = set(range(len(trainable)))
    with torch.random.fork_rng(devices={p.device for p, _ in trainable if p.device.type == "cuda"}):
        for mode in (True, False):
            # The recurrent layers of cuDNN have no gradients in evaluation mode.
            with torch.backends.cudnn.flags(enabled=mode):
                logits = trial.train(mode)(images)
                if not logits.requires_grad:  # a forward may switch gradients off in evaluation mode
                    continue
                found = torch.autograd.grad(logits.sum(), [q for _, q in trainable], allow_unused=True)
            unused -= {i for i, gradient in enumerate(found) if gradient is not None}
    return [trainable[i][0] for i in sorted(unused)]
