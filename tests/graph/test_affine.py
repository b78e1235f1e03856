"""Layers and BatchNorms of one's own with a further parameter, in what scales and removes channels."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from codeq.compaction import cut_channels
from codeq.graph.channels import coupled_groups
from codeq.graph.tracing import trace
from codeq.sparsity import coupled_group_lasso

SIZE = (3, 6, 6)


class ConvPReLU(nn.Conv2d):
    def __init__(self, *args):
        super().__init__(*args)
        self.slope = nn.Parameter(torch.full((1,), 0.25))

    def forward(self, x):
        return F.prelu(super().forward(x), self.slope)


class NormPReLU(nn.BatchNorm2d):
    def __init__(self, channels):
        super().__init__(channels)
        self.slope = nn.Parameter(torch.full((1,), 0.25))

    def forward(self, x):
        return F.prelu(super().forward(x), self.slope)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        ConvPReLU(3, 6, 3), nn.Conv2d(6, 8, 1), NormPReLU(8), nn.Conv2d(8, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, 5),
    )  # fmt: skip


def test_channels_are_cut_and_further_parameters_stay():
    net = network()
    cut = cut_channels(net, [(torch.randn(8, *SIZE), torch.arange(8) % 5)], 0.6, SIZE)
    assert cut.macs <= 0.6
    dead = ~net[0].weight.flatten(1).any(1)
    assert dead.any()
    assert not net[0].bias[dead].any()
    assert net[0].slope == net[2].slope == 0.25


def test_the_coupled_lasso_shrinks_scale_and_shift_alone():
    net = network()
    lasso = coupled_group_lasso(net, batchnorm=True, input_size=SIZE)
    groups = coupled_groups(trace(net, SIZE))
    group = int(groups.writers["1"][2])
    members = net[1].weight[2], net[3].weight[:, 2], net[2].weight[2], net[2].bias[2]
    squares = sum(part.detach().square().sum() for part in members)
    found = lasso._squares(net, latent=True, factors=lasso._counted)[group]
    assert found.item() == pytest.approx(squares.item())
    before = net[2].weight[2].item()
    lasso.proximal_step(net, 0.1)
    assert net[2].weight[2].item() == pytest.approx(before * (1 - 0.1 / squares.sqrt().item()))
    assert net[2].slope == 0.25
