"""Rules of channel flow for calls with unusual arguments."""

import torch
from cases import each
from torch import nn

from codeq.compaction import compact
from codeq.flow.explain import explain
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


class Whitened(nn.Module):
    """Reads what `invert` makes of the products of channels, which has no value for zeros."""

    def __init__(self, invert) -> None:
        super().__init__()
        self.conv, self.hidden, self.fc, self.invert = nn.Conv2d(3, 3, 1), nn.Linear(3, 4), nn.Linear(4, 2), invert

    def forward(self, x):
        y = self.conv(x).flatten(2)
        return self.fc(self.hidden(self.invert(y @ y.mT).sum(1)).relu())


INVERSES = {
    "linalg_inv": torch.linalg.inv,
    "linalg_cholesky": torch.linalg.cholesky,
    "linalg_solve": lambda products: torch.linalg.solve(products, products + 1),
    "linalg_inv_ex": lambda products: torch.linalg.inv_ex(products, check_errors=True).inverse,
}


@each("name", INVERSES)
def test_an_operation_that_takes_no_zeros_is_kept_whole(name):
    net = Whitened(INVERSES[name]).double().eval()
    with torch.no_grad():
        net.hidden.weight[2], net.hidden.bias[2] = 0, 0
    x = torch.randn(3, 3, 6, 6, dtype=torch.double)
    report = compact(net, x)
    assert name in report.unknown
    assert report.removed["hidden"][1].tolist() == [2]
    assert torch.allclose(report.model(x), net(x))
    assert explain(net, "hidden", 2, (3, 6, 6)).kind == "constant"
