"""Rules of channel flow for calls with unusual arguments."""

import torch
from cases import each
from torch import nn

from codeq.compaction import compact
from codeq.metrics import exact_stats


class Scaled(nn.Module):
    def __init__(self, reduce) -> None:
        super().__init__()
        self.conv, self.fc, self.reduce = nn.Conv2d(3, 4, 1), nn.Linear(4, 2), reduce

    def forward(self, x):
        y = self.conv(x).relu()
        return self.fc((y / (1 + self.reduce(y))).mean((2, 3)))


@each("reduce", [lambda y: y.mean(()), lambda y: torch.sum(y, dim=[]), lambda y: torch.amax(y, ()), torch.sum])
def test_a_reduction_without_dimensions_is_one_over_all(reduce):
    torch.manual_seed(0)
    net = Scaled(reduce).double().eval()
    assert exact_stats(net, (3, 4, 4)).total_macs == 12 * 16 + 8
    report = compact(net, torch.randn(3, 3, 4, 4, dtype=torch.double))
    assert report.proof.relative_error <= 1e-10
