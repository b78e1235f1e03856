"""Matrix products and convolutions with fixed numbers that are no layers are named as not counted."""

import torch
import torch.nn.functional as F
from cases import each
from torch import nn

from codeq.graph.call_recording import record_calls
from codeq.metrics import measure

SIZE = (3, 5, 5)


class Products(nn.Module):
    def __init__(self, use) -> None:
        super().__init__()
        self.conv, self.w, self.u = nn.Conv2d(3, 4, 1), nn.Parameter(torch.randn(5, 4)), nn.Parameter(torch.randn(4))
        self.register_buffer("kernel", torch.tensor([1.0, 2.0, 1.0]))
        self.register_buffer("shifts", torch.randn(4, 4))
        self.register_buffer("steps", torch.tensor([[1], [0], [2], [1]]))
        self.use = use

    def forward(self, x):
        return self.use(self, self.conv(x).mean((2, 3)), x)


def batched(tensor, y):
    return tensor.expand(len(y), -1, -1)


FIXED = {
    "inner": ("w", lambda net, y, _: torch.inner(y, net.w)),
    "mv": ("w", lambda net, y, _: net.w.mv(y.mean(0))),
    "dot": ("u", lambda net, y, _: torch.dot(net.u, y.mean(0))),
    "addbmm": ("w", lambda net, y, _: torch.addbmm(torch.zeros(1, 5), y[:, None], batched(net.w.T, y))),
    "baddbmm": ("w", lambda net, y, _: torch.baddbmm(torch.zeros(1, 1, 5), y[:, None], batched(net.w.T, y))),
    "multi_dot": ("w", lambda net, y, _: torch.linalg.multi_dot([y, net.w.T, net.w])),
    "einsum": ("w", lambda net, y, _: torch.einsum("ni,oi->no", y, net.w)),
    "outer": ("u", lambda net, y, _: F.linear(y, torch.outer(net.u, net.u))),
    "vector": ("u", lambda net, y, _: F.linear(y, net.u)),
    "keys": ("w", lambda net, y, _: F.scaled_dot_product_attention(y[:, None], *[batched(net.w, y)] * 2)),
    "integers": ("steps", lambda net, y, _: y @ net.steps.float()),
    "one dimension": (
        "kernel", lambda net, _, x: F.conv2d(x, net.kernel.view(1, 1, 1, -1).expand(3, 1, 1, -1), groups=3),
    ),
    "factory": ("", lambda _, __, x: F.conv2d(x, torch.ones(3, 1, 3, 3) / 9, groups=3)),
    "size": ("", lambda _, __, x: F.conv2d(x, x.new_ones(3, 1, 3, 3), groups=3)),
    "triangle": ("", lambda _, y, __: y @ torch.ones(4, 4).tril()),
}  # fmt: skip


@each("case", FIXED)
def test_products_with_fixed_numbers_are_named(case):
    name, use = FIXED[case]
    problems = record_calls(Products(use), SIZE).problems
    assert len(problems) == 1, problems
    start, end = f"{name} is used outside of a layer, by " if name else "call_", ": not counted"
    assert problems[0].startswith(start)
    assert problems[0].endswith(end)
    assert name or "multiplies by fixed numbers" in problems[0]
    assert tuple(problems) == measure(Products(use), SIZE).notes[:1]


COUNTED = {
    "layer": lambda net, y, _: F.linear(y, net.w),
    "attention": lambda _, y, __: F.scaled_dot_product_attention(*[y[:, None]] * 3),
    "added": lambda net, y, _: torch.baddbmm(net.shifts, y[:, :, None], y[:, None]),
    "mask": lambda net, y, _: F.scaled_dot_product_attention(*[y[:, :, None]] * 3, attn_mask=net.shifts),
    "weights": lambda net, y, _: y + (net.w.T @ net.w).sum(),
}


@each("case", COUNTED)
def test_layers_products_of_activations_and_constants_are_not(case):
    assert record_calls(Products(COUNTED[case]), SIZE).problems == []


class Steps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(3, 4)

    def forward(self, x):
        state = x.new_zeros(len(x), 4)
        for step in x.mean(3).unbind(2):
            state = self.cell(step, state)
        return state @ torch.ones(4, 4) @ torch.ones(4, 4)


def test_calls_of_a_loop_are_noted_once():
    assert record_calls(Steps(), SIZE).problems == [
        "cell.weight_ih (GRUCell) is not counted",
        "call_method matmul multiplies by fixed numbers outside of a layer: not counted",
    ]
