"""Functions of layers whose bias is computed are layers, and an addition."""

import pytest
import torch
import torch.nn.functional as F
from cases import each
from timm.models.beit import Beit
from torch import nn

from codeq.compaction import compact
from codeq.graph.tracing import trace
from codeq.metrics import dense_stats, exact_stats, measure

SIZE = (3, 6, 6)


class Computed(nn.Module):
    def __init__(self, use) -> None:
        super().__init__()
        self.conv, self.fc, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 6), nn.Linear(6, 2)
        self.row, self.temporal = nn.Conv1d(4, 4, 3), nn.Conv2d(4, 4, 1, bias=False)
        self.part, self.use = nn.Parameter(torch.randn(2)), use

    def forward(self, x):
        return self.head(self.use(self, F.relu(self.conv(x))))


def separate(net, y):
    return F.linear(y.mean((2, 3)), net.fc.weight, torch.cat((net.part, torch.zeros_like(net.part), net.part)))


def zeroed(net, y):
    bias = net.fc.bias.clone()
    bias[2:4].zero_()
    return F.linear(y.mean((2, 3)), weight=net.fc.weight, bias=bias)


def convolved(net, y):
    return net.fc(F.conv2d(y, net.temporal.weight, net.part.repeat(2), 2).mean((2, 3)))


def in_a_row(net, y):
    return net.fc(F.conv1d(y.flatten(2), net.row.weight, bias=net.row.bias * 2, stride=2).mean(2))


LAYER_MACS = {separate: 24, zeroed: 24, convolved: 16 * 4 + 24, in_a_row: 48 * 7 + 24}


@each("use", LAYER_MACS)
def test_a_computed_bias_is_added(use):
    torch.manual_seed(0)
    net = Computed(use).double().eval()
    with torch.no_grad():
        net.conv.weight[1], net.conv.bias[1] = 0, 0
    assert trace(net, SIZE).trusted
    records = measure(net, SIZE)
    assert dense_stats(records).total_macs == 27 * 4 * 16 + LAYER_MACS[use] + 12
    x = torch.randn(3, *SIZE, dtype=torch.double)
    report = compact(net, x)
    assert report.proof.relative_error <= 1e-10
    assert report.proof.compacted_macs == exact_stats(net, SIZE).total_macs < dense_stats(records).total_macs
    torch.testing.assert_close(report.model(x), net(x))


@pytest.mark.filterwarnings("ignore")  # of timm
def test_beit_is_counted():
    net = Beit(img_size=32, patch_size=16, num_classes=3, embed_dim=8, depth=1, num_heads=2)
    nn.init.normal_(net.blocks[0].attn.q_bias)
    macs = {layer.name: layer.macs for layer in dense_stats(measure(net)).layers}
    assert macs["blocks.0.attn.qkv"] == 5 * 8 * 24
    assert compact(net, torch.randn(2, 3, 32, 32)).proof.relative_error < 1e-4
