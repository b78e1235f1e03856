"""Tensors that are neither parameters nor buffers have the precision of the weights they meet."""

import numpy as np
import torch
import torch.nn.functional as F
from cases import each
from torch import nn

from codeq.compaction import compact, prove
from codeq.graph.call_recording import record_calls
from codeq.metrics import exact_stats

SIZE = (3, 6, 6)
WINDOW, KERNEL = np.hanning(4) + 0.5, torch.ones(4, 1, 3, 3) / 9


class Net(nn.Module):
    """A dead filter (1) in front of a function that uses the attribute `kernel`."""

    def __init__(self, use):
        super().__init__()
        self.conv, self.fc, self.use = nn.Conv2d(3, 4, 3), nn.Linear(4, 2), use
        self.kernel = KERNEL.clone()
        with torch.no_grad():
            self.conv.weight[1] = 0

    def forward(self, x):
        return self.fc(self.use(self, self.conv(x)).mean((2, 3)))


def written(net, x):
    net.kernel.fill_(0.5)
    return x * net.kernel.sum()


class Rotated(nn.Linear):
    """A layer that is recorded as one call, because it computes its weight."""

    def __init__(self):
        super().__init__(4, 4)
        self.basis = torch.eye(4).flip(0) / 2

    def forward(self, x):
        return F.linear(x, self.weight @ self.basis, self.bias)


def compacted(net):
    """Record, compact and prove a network, and return the smaller one."""
    x = torch.rand(2, *SIZE)
    for dtype in (torch.float32, torch.float64):
        calls = record_calls(net, SIZE, dtype)
        assert not calls.wrong, calls.problems
    report = compact(net, x)
    assert report.removed["conv"][1].tolist() == [1]
    with torch.no_grad():
        torch.testing.assert_close(report.model(x), net(x), rtol=1e-4, atol=1e-5)
    assert prove(net, report.model, [x]).relative_error < 1e-6
    return report.model


@each("use", [
    lambda net, x: F.conv2d(x, net.kernel, groups=4), lambda _, x: F.conv2d(x, KERNEL, groups=4),
    lambda net, x: F.conv2d(x, net.kernel.to(x.device), groups=4),
    lambda net, x: F.conv2d(x, net.kernel.requires_grad_().to(x), groups=4),
    lambda _, x: x * torch.from_numpy(WINDOW).float(), lambda _, x: x * torch.from_numpy(WINDOW).to(x.dtype), written,
])  # fmt: skip
def test_tensors_that_no_module_registers(use):
    net = Net(use).eval()
    compacted(net)
    assert exact_stats(net, SIZE).layers[0].macs == 3 * 3 * 9 * 16
    assert net.kernel.dtype == torch.float32


def test_attributes_of_layers_that_are_recorded_as_one_call():
    net = Net(lambda _, x: x).eval()
    net.fc = Rotated().eval()
    small = compacted(net)
    assert net.fc.basis.dtype == small.fc.basis.dtype == torch.float32
