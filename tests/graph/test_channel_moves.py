"""Moves of channels, and what looks like one."""

import numpy as np
import torch
import torch.nn.functional as F
from cases import each
from torch import nn

from codeq.compaction import compact
from codeq.graph.channels import coupled_groups, null_channels
from codeq.graph.tracing import trace
from codeq.metrics import nonzero_kernels

SIZE = (3, 4, 4)


class Net(nn.Module):
    def __init__(self, start) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 2, 1), nn.Conv2d(6, 2, 1)
        self.shift, self.start = nn.Parameter(torch.ones(1)), start

    def forward(self, x):
        found = self.start(x)
        for branch in (self.a, self.b):
            found = torch.cat([found, F.relu(branch(x))], 1)
        return self.c(found).mean((2, 3)) + F.pad(self.shift, (0, 1))


@each("start", [lambda _: torch.tensor([]), lambda _: torch.zeros(0), lambda x: x.new_zeros(0), lambda x: x[:, :0]])
def test_a_concatenation_may_start_from_nothing(start):
    torch.manual_seed(0)
    net = Net(start).double().eval()
    with torch.no_grad():
        for layer, channel in ((net.a, 1), (net.b, 0)):
            layer.weight[channel], layer.bias[channel] = 0, 0
    graph = trace(net, SIZE)
    assert graph.trusted
    nonzero = {op.layer: nonzero_kernels(net.get_submodule(op.layer).weight) for op in graph.layers}
    assert np.flatnonzero(null_channels(graph, nonzero)["c"][0]).tolist() == [1, 4]
    groups = coupled_groups(graph)
    assert groups.members(int(groups.writers["b"][1])) == ([("b", 1)], [("c", 5)])
    report = compact(net, torch.randn(3, *SIZE, dtype=torch.double))
    assert report.kept["c"][0].tolist() == [0, 2, 3, 5]
    assert report.proof.relative_error <= 1e-10
