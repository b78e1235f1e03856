"""Bits of inputs that are joined from several tensors are those of all of them."""

from collections import OrderedDict

import pytest
import torch
from cases import each
from torch import nn

from codeq.metrics import exact_stats, measure, structured_stats
from codeq.quantizer.activations import ActivationQuantizer

SIZE = (3, 4, 4)


class Joined(nn.Module):
    """A convolution of what `join` makes of two tensors that depend on the input."""

    def __init__(self, join, width: int) -> None:
        super().__init__()
        self.a, self.b, self.conv = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(width, 2, 1)
        self.eight, self.again, self.four = (ActivationQuantizer(n, "minmax") for n in (8, 8, 4))
        self.register_buffer("fixed", torch.ones(1, 4, 1, 1))
        self.join = join

    def forward(self, x):
        return self.conv(self.join(self, self.a(x), self.b(x)))


CASES = {
    "float second": (lambda net, a, b: torch.cat([net.eight(a), b], 1), 32),
    "float first": (lambda net, a, b: torch.cat([a, net.eight(b)], 1), 32),
    "other bits": (lambda net, a, b: torch.cat([net.eight(a), net.four(b)], 1), 32),
    "same bits": (lambda net, a, b: torch.cat([net.eight(a), net.again(b)], 1), 8),
    "same": (lambda net, a, b: torch.cat([net.four(a), net.four(b)], 1), 4),
    "constant": (lambda net, a, _: torch.cat([net.fixed.expand_as(a), net.four(a)], 1), 4),
    "zeros": (lambda net, a, _: torch.cat([net.four(a), torch.zeros_like(a)], 1), 4),
    "filled": (lambda net, a, _: torch.cat([net.four(a), torch.full_like(a, 0.5)], 1), 4),
    "filled with a value of the input": (
        lambda net, a, b: torch.cat([net.four(a), torch.full_like(a, b.max())], 1),
        32,
    ),
    "nested": (lambda net, a, b: torch.cat([net.four(a), torch.where(a > 0, b, net.four(b))], 1), 32),
    "where": (lambda net, a, b: torch.where(net.fixed > 0, net.eight(a), b), 32),
    "where constant": (lambda net, a, b: torch.where(b > 0, net.fixed, net.eight(a)), 8),
}


@each("case", CASES)
def test_a_joined_input_has_bits_if_all_its_parts_have_the_same(case):
    join, bits = CASES[case]
    net = Joined(join, 4 if case.startswith("where") else 8).eval()
    for stats in (structured_stats(measure(net, SIZE)), exact_stats(net, SIZE)):
        assert [layer.activation_bits for layer in stats.layers if layer.name == "conv"] == [bits]


@pytest.mark.parametrize("swapped", [False, True])
def test_a_layer_that_reads_float_inputs_in_one_call_has_no_bits(swapped):
    class Twice(Joined):
        def forward(self, x):
            found = [self.four(self.a(x)), self.b(x)]
            return sum(map(self.conv, reversed(found) if swapped else found))

    net = Twice(None, 4).eval()
    assert [record.activation_bits for record in measure(net, SIZE) if record.name == "conv"] == [None]
    exact = [layer.activation_bits for layer in exact_stats(net, SIZE).layers if layer.name == "conv"]
    assert sorted(exact) == [4, 32]


@each("name", ["expand", "squeeze"])
def test_a_layer_with_the_name_of_a_method_has_the_bits_of_its_input_alone(name):
    net = nn.Sequential(OrderedDict([("q", ActivationQuantizer(4, "minmax")), (name, nn.Conv2d(3, 4, 1))]))
    net.last = nn.Conv2d(4, 2, 1)
    for stats in (structured_stats(measure(net, SIZE)), exact_stats(net, SIZE)):
        assert [layer.activation_bits for layer in stats.layers] == [4, 32]
