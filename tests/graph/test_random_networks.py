"""Random networks with writes in place, views, hooks, ties, reuse and odd calls, against brute force."""

import random
from math import prod

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import each
from torch import nn

from codeq.compaction import compact
from codeq.compaction.proof import count_macs
from codeq.flow import channel_flow
from codeq.graph.channels import null_channels
from codeq.graph.tracing import trace
from codeq.metrics import nonzero_kernels

SIZE, WIDTH = (3, 4, 4), 4
STEPS = (
    "conv", "conv", "reuse", "tied", "functional", "add", "add_", "iadd", "view", "setitem", "chunk", "relu_", "max",
    "hooked", "cat", "copy_", "data", "gate", "float",
)  # fmt: skip


class Net(nn.Module):
    """Applies random steps to a list of tensors `[N, 4, 4, 4]`."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, WIDTH, 1, bias=False), nn.Conv2d(WIDTH, 2, 1, bias=False)
        self.steps = [(rng.choice(STEPS), rng.randrange(8), rng.randrange(8)) for _ in range(rng.randint(2, 6))]
        self.convs = nn.ModuleList(
            nn.Conv2d(2 * WIDTH if step == "cat" else WIDTH, WIDTH, 1, bias=False) for step, _, _ in self.steps
        )
        for i, (step, _, _) in enumerate(self.steps):
            if step == "tied" and self.convs[0].weight.shape == self.convs[i].weight.shape:
                self.convs[i].weight = self.convs[0].weight
            if step == "hooked":
                self.convs[i].register_forward_hook(lambda _module, args, output: output + args[0])

    def forward(self, x, mask=None):
        found = [self.stem(x)]
        for i, (step, a, b) in enumerate(self.steps):
            h, y = found[a % len(found)], found[b % len(found)]
            found.append(self.apply_step(step, self.convs[i], h, y, mask))
        return self.last(found[-1] + found[0])

    def apply_step(self, step, conv, h, y, mask):
        match step:
            case "reuse":
                return conv(F.relu(conv(h)))
            case "functional":
                return F.conv2d(h, conv.weight)
            case "add":
                return h + y if mask is None else h * mask
            case "add_":
                return conv(h).add_(y)
            case "iadd":
                made = conv(h)
                made += y
                return made
            case "view":
                h[:, :2].add_(y[:, :2])
                return h
            case "setitem":
                h[:, 1] = y[:, 2]
                return h
            case "chunk":
                first, second = h.chunk(2, dim=1)
                first.add_(second)
                return conv(h)
            case "relu_":
                return F.relu(h, inplace=True)
            case "max":
                return conv(h) + h.max(1, keepdim=True).values
            case "cat":
                return conv(torch.cat([h, y], 1))
            case "copy_":
                return conv(torch.empty_like(h).copy_(h))
            case "data":
                h.data.add_(y)
                return h
            case "gate":
                return h * torch.sigmoid(conv(y))
            case "float":
                return conv(h.float().to(h.dtype))
        return conv(h)


def seen_zero(model: nn.Module, x: torch.Tensor) -> dict[str, np.ndarray]:
    """Return for every layer that is called as a module which of its inputs are zero in all calls."""
    seen: dict[str, np.ndarray] = {}

    def look(name):
        def hook(_module, args):
            zero = (args[0].detach().movedim(1, 0).flatten(1) == 0).all(1).numpy()
            seen[name] = seen.get(name, True) & zero

        return hook

    convs = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    handles = [module.register_forward_pre_hook(look(name)) for name, module in convs]
    model(x.clone())
    for handle in handles:
        handle.remove()
    return seen


def check(seed: int) -> None:
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    model = Net(rng).double().eval()
    x = torch.rand(3, *SIZE, generator=generator, dtype=torch.double) + 0.1
    with torch.no_grad():
        for parameter in model.parameters():  # positive, so that nothing cancels
            parameter.copy_(torch.rand(parameter.shape, generator=generator, dtype=torch.double) + 0.1)
        weights = [(model.get_submodule(op.layer).weight, op.spatial) for op in trace(model, SIZE).layers]
        assert sum(w.numel() * prod(spatial) for w, spatial in weights) == count_macs(model, x[:1].clone())
        for parameter in model.parameters():
            parameter[torch.rand(len(parameter), generator=generator) < 0.4] = 0
        graph, seen = trace(model, SIZE), seen_zero(model, x)
    assert graph.trusted
    nonzero = {op.layer: nonzero_kernels(model.get_submodule(op.layer).weight) for op in graph.layers}
    for name, (null_in, _) in null_channels(graph, nonzero).items():
        if name in seen:
            assert not (null_in & ~seen[name]).any(), (model.steps, name)  # null although it is not zero
            assert graph.unknown or (null_in == seen[name]).all(), (model.steps, name)
    report = compact(model, x)
    assert report.proof.relative_error <= 1e-10
    assert sum(call.macs for call in channel_flow(model, SIZE).layers) == report.proof.compacted_macs, model.steps


@each("seed", range(25))
def test_random_networks_agree_with_brute_force(seed):
    check(seed)


@pytest.mark.parametrize(
    "start",
    [
        pytest.param(start, marks=pytest.mark.exhaustive if start > 200 else pytest.mark.slow)
        for start in range(25, 525, 50)
    ],
)
def test_many_random_networks_agree_with_brute_force(start):
    for seed in range(start, start + 50):
        check(seed)
