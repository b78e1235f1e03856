"""Layers whose channels are not followed are counted: other dimensions, transposed convolutions, channels last."""

from collections import Counter
from math import prod

import pytest
import torch
import torch.nn.functional as F
from networks import TiedDecoder
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from codeq import Evaluator, attach_weight_quantizers
from codeq.flow import channel_flow
from codeq.metrics import dense_stats, exact_stats, ledger, measure, structured_stats, unstructured_stats
from codeq.quantizer.layers import latent_weight, named_layers


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.low = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2, groups=2)
        self.out, self.head = nn.Conv2d(16, 4, 3, padding=1), nn.Linear(4, 5)

    def forward(self, x):
        skip = F.relu(self.down(x))
        up = self.up(F.relu(self.low(skip)))
        return self.head(self.out(torch.cat([skip, up], 1)).mean((2, 3)))


class Temporal(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv1d(3, 8, 3, dilation=2), nn.Conv1d(8, 8, 3, groups=4)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(F.relu(self.second(F.relu(self.first(x)))).mean(2))


class ChannelsLast(nn.Module):
    """A block of ConvNeXt, whose linear layer is called on channels in their usual place, too."""

    def __init__(self):
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, 8, 4, stride=4), nn.Conv2d(8, 8, 7, padding=3, groups=8)
        self.norm, self.wide, self.narrow, self.head = (
            nn.LayerNorm(8),
            nn.Linear(8, 32),
            nn.Linear(32, 8),
            nn.Linear(8, 5),
        )

    def forward(self, x):
        x = self.stem(x)
        outside = self.wide(x.mean((2, 3)))
        inside = self.narrow(F.gelu(self.wide(self.norm(self.depthwise(x).permute(0, 2, 3, 1)))))
        return self.head((x + inside.permute(0, 3, 1, 2)).mean((2, 3)) + outside.unflatten(1, (4, 8)).sum(1))


class Volume(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.up, self.head = nn.Conv3d(1, 4, 3), nn.ConvTranspose3d(4, 2, 2, stride=2), nn.Linear(2, 3)

    def forward(self, x):
        return self.head(self.up(self.conv(x)).mean((2, 3, 4)))


NETWORKS = {UNet: (3, 16, 16), Temporal: (3, 20), ChannelsLast: (3, 16, 16), Volume: (1, 5, 6, 7)}


@pytest.mark.parametrize(("kind", "size"), NETWORKS.items())
def test_the_dense_cost_is_that_of_pytorchs_counter(kind, size):
    torch.manual_seed(0)
    net = kind().eval()
    with FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, *size))
    records = measure(net, size)
    dense = dense_stats(records)
    assert 2 * dense.total_macs == counter.get_total_flops()
    assert structured_stats(records).total_macs == exact_stats(net, size).total_macs == dense.total_macs
    assert any("channels count as live" in note for note in dense.notes)
    weights = {layer.name: net.get_submodule(layer.name).weight for layer in dense.layers}
    for layer in (*dense.layers, *exact_stats(net, size).layers):
        assert prod(layer.kernel_size) == prod(weights[layer.name].shape[2:])
    assert (ledger(net, size).loc[("MACs", slice(None), "all"), "dense"] == dense.total_macs).all()


@pytest.mark.parametrize(("kind", "size"), NETWORKS.items())
def test_elements_are_those_that_each_layer_writes(kind, size):
    net, written = kind().eval(), Counter()
    records = measure(net, size)
    for name, layer in named_layers(net):
        layer.register_forward_hook(lambda _layer, _x, y, name=name: written.update({name: y.numel()}))
    net(torch.zeros(1, *size))
    assert {record.name: record.elements for record in records} == written


def test_elements_of_weights_used_in_both_directions_have_the_channels_of_each():
    elements = {record.name: record.elements for record in measure(TiedDecoder(), (3, 8, 8))}
    assert elements == {"encoder": 6 * 36 + 3 * 64, "inner": 6 * 36}


@pytest.mark.parametrize(("kind", "size"), NETWORKS.items())
def test_zero_weights_count_where_they_are_used(kind, size):
    torch.manual_seed(0)
    net = kind().eval()
    uses = {call.name: 0 for call in channel_flow(net, size).layers}
    for call in channel_flow(net, size).layers:
        uses[call.name] += call.macs // latent_weight(net.get_submodule(call.name)).numel()
    attach_weight_quantizers(net, [], "deadzone", {"init_deadzone_logit": 0.8})
    expected = sum(int(net.get_submodule(name).weight.count_nonzero()) * n for name, n in uses.items())
    result = Evaluator(net, size).evaluate(net)
    assert result.unstructured_stats.total_macs == unstructured_stats(measure(net, size)).total_macs == expected
    assert result.layers["filters"].tolist() == [
        getattr(net.get_submodule(name), "out_channels", getattr(net.get_submodule(name), "out_features", None))
        for name in result.layers["layer"]
    ]


def test_dead_filters_of_a_transposed_convolution_are_its_outputs():
    net = UNet().eval()
    with torch.no_grad():
        net.up.weight[:8, 1] = 0  # the second output of the first group
    (record,) = [record for record in measure(net, NETWORKS[UNet]) if record.name == "up"]
    assert (~record.alive).nonzero()[0].tolist() == [1]
    assert record.null_out.count == 0  # its channels are not followed


class FreeKernel(nn.Module):
    """A transposed convolution with a parameter that belongs to no layer."""

    def __init__(self):
        super().__init__()
        self.conv, self.kernel = nn.Conv2d(3, 8, 3, padding=1), nn.Parameter(torch.randn(8, 3, 2, 2))

    def forward(self, x):
        return F.conv_transpose2d(F.relu(self.conv(x)), self.kernel, stride=2, groups=2)


def test_a_transposed_convolution_without_a_layer_is_counted():
    net = FreeKernel()
    with torch.no_grad():
        net.kernel[:4, 1] = 0  # the second output of the first group
    conv, kernel = measure(net, (3, 6, 6))
    assert (kernel.name, tuple(kernel.weight.shape)) == ("kernel", (6, 4, 2, 2))
    assert (~kernel.alive).nonzero()[0].tolist() == [1]
    macs = {"conv": 36 * 27 * 8, "kernel": 36 * net.kernel.numel()}
    assert {layer.name: layer.macs for layer in dense_stats([conv, kernel]).layers} == macs
    table = ledger(net, (3, 6, 6))
    assert table.loc[("MACs", "exact", "all"), "dense"] == sum(macs.values())
    assert table.loc[("MACs", "exact", "all"), "value"] == sum(macs.values()) - 36 * 16


def test_channels_are_live_if_one_call_is_not_followed():
    net = ChannelsLast().eval()
    with torch.no_grad():
        net.stem.weight[0] = 0
    (record,) = [record for record in measure(net, NETWORKS[ChannelsLast]) if record.name == "wide"]
    assert record.null_in.count == 0  # null in the call that is followed
