"""Rules of channel flow for calls with unusual arguments."""

import torch
import torch.nn.functional as F
from cases import each
from torch import nn

from codeq.compaction import compact
from codeq.flow.analysis import channel_flow
from codeq.flow.explain import explain
from codeq.flow.layers import uneven
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


class Attending(nn.Module):
    """One head of attention over three tokens, of which the first values are the same constant at every token."""

    def __init__(self, options, tokens: int = 3) -> None:
        super().__init__()
        self.tokens = tokens  # that ask
        self.queries, self.keys, self.values, self.out = (nn.Linear(4, 4) for _ in range(4))
        self.mask, self.options = nn.Linear(4, 3), options
        with torch.no_grad():
            self.values.weight[0], self.values.bias[0] = 0, 0.7

    def forward(self, x):
        q = self.queries(x[:, : self.tokens])[:, None]
        k, v = (layer(x)[:, None] for layer in (self.keys, self.values))
        return self.out(F.scaled_dot_product_attention(q, k, v, **self.options(self.mask(x)[:, None]))[:, 0])


@each(
    ("options", "followed"),
    [
        (lambda _: {}, True),
        (lambda _: {"scale": 0.3, "dropout_p": 0.0, "is_causal": False}, True),
        (lambda _: {"is_causal": True}, False),
        (lambda _: {"attn_mask": torch.zeros(3, 3, dtype=torch.double)}, False),
        (lambda mask: {"attn_mask": mask, "scale": 0.3}, False),
    ],
)
def test_attention_is_followed_with_a_scale_but_not_with_a_mask(options, followed):
    net = Attending(options).double().eval()
    flow = channel_flow(net, (3, 4))
    assert any("scaled_dot_product_attention" in call for call in flow.unknown) != followed
    masked = options("mask").get("attn_mask") == "mask"
    macs = {call.name: call.macs for call in flow.layers}
    assert (macs["out"], macs["mask"]) == (3 * 4 * (3 if followed else 4), 3 * 4 * 3 * masked)


def test_attention_has_as_many_results_as_queries():
    net = Attending(lambda _: {}, tokens=2).double().eval()
    macs = {call.name: call.macs for call in channel_flow(net, (3, 4)).layers}
    assert (macs["queries"], macs["keys"], macs["values"], macs["out"]) == (2 * 16, 3 * 16, 3 * 12, 2 * 12)


def test_a_map_is_a_constant_up_to_rounding_alone():
    maps = torch.full((3, 4, 4), 1000.0, dtype=torch.double)
    maps[1, 0, 0] += 1e-11
    maps[2, 0, 0] += 1e-9
    assert uneven(nn.Conv2d(3, 3, 1), maps).tolist() == [False, False, True]
