"""Transposed convolutions, whose output channels are in the second dimension of their weights, group by group."""

import numpy as np
import pytest
import reference
import torch
from cases import each
from torch import nn

from codeq.analysis.sensitivity import sensitivity
from codeq.metrics.codes import weight_codes
from codeq.quantizer.attach import (
    attach_weight_quantizers,
    collapsed_layers,
    detach_weight_quantizers,
    named_quantizers,
)
from codeq.quantizer.layers import latent_weight
from codeq.quantizer.transposed import swap_channels

LAYERS = [
    (nn.ConvTranspose1d, 1), (nn.ConvTranspose2d, 1), (nn.ConvTranspose2d, 2), (nn.ConvTranspose3d, 1),
    (nn.ConvTranspose3d, 2), (nn.ConvTranspose1d, 2),
]  # fmt: skip


@torch.no_grad()
def filters(layer):
    """The weights of each output channel, by what the layer computes: one pixel is spread into the kernel itself."""
    inputs, outputs = layer.in_channels // layer.groups, layer.out_channels // layer.groups
    pixels = torch.eye(layer.in_channels).view(layer.in_channels, layer.in_channels, *[1] * len(layer.kernel_size))
    taps = layer(pixels).double().numpy()  # [input, output, *kernel]
    return [taps[out // outputs * inputs : (out // outputs + 1) * inputs, out] for out in range(layer.out_channels)]


def layer_of(cls, groups):
    torch.manual_seed(0)
    layer = cls(6, 4, 3, groups=groups, bias=False)
    with torch.no_grad():
        layer.weight.mul_(torch.linspace(0.1, 1, layer.weight.numel()).view_as(layer.weight) ** 3)
    return layer


@each(("cls", "groups"), LAYERS)
@each("scale", ["absmax", "learned"])
@each("enabled", [True, False])
def test_each_output_channel_has_its_scale(cls, groups, scale, enabled):
    layer = layer_of(cls, groups)
    expected = [reference.absmax(taps) for taps in filters(layer)]
    model = nn.Sequential(layer)
    options = {"granularity": "channel", "scale": scale}
    attach_weight_quantizers(model, [], "deadzone", options, enabled=enabled)
    quantizer = dict(named_quantizers(model))["0"]
    found = quantizer.magnitude(swap_channels(latent_weight(layer), groups)).flatten()
    assert found.tolist() == pytest.approx(expected, rel=1e-6)
    if scale == "learned":
        assert quantizer.learned_absmax.flatten().tolist() == pytest.approx(expected, rel=1e-6)


@each(("cls", "groups"), LAYERS)
@each("granularity", ["layer", "channel"])
def test_quantized_filters_are_the_oracles(cls, groups, granularity):
    layer = layer_of(cls, groups)
    latent = filters(layer)
    model = nn.Sequential(layer)
    options = {"granularity": granularity, "max_bits": 4, "init_deadzone_logit": 0.7}
    attach_weight_quantizers(model, [], "deadzone", options)
    codes = weight_codes(layer)
    assert codes.shape == tuple(layer.weight.shape)
    assert ((codes == 0) == (layer.weight == 0).numpy()).all()
    assert np.abs(codes).max() <= 7
    for taps, quantized in zip(latent, filters(layer), strict=True):
        together = taps if granularity == "channel" else np.stack(latent)
        expected = reference.forward(taps, 0.7, 3.0, max_bits=4, r=reference.absmax(together))
        np.testing.assert_allclose(quantized, expected, atol=1e-6)
    assert collapsed_layers(model) == []
    before = layer.weight.detach().clone()
    detach_weight_quantizers(model)
    assert torch.equal(layer.weight, before)
    assert layer.weight.is_contiguous()


@each(("cls", "groups"), LAYERS)
def test_swapping_channels_twice_changes_nothing(cls, groups):
    w = layer_of(cls, groups).weight
    swapped = swap_channels(w, groups)
    assert swapped.shape[:2] == (4, 6 // groups)
    assert torch.equal(swap_channels(swapped, groups), w)


def test_a_sensitivity_scan_takes_one_scale_a_channel():
    model = nn.Sequential(nn.ConvTranspose2d(3, 5, 2, groups=1), nn.Flatten(), nn.Linear(45, 2))
    attach_weight_quantizers(model, [], "deadzone", {"granularity": "channel"})
    batch = torch.randn(4, 3, 2, 2), torch.tensor([0, 1, 0, 1])
    table = sensitivity(model, [batch], bits=[4], dead_zones=[0.0])
    assert table["layer"].tolist() == ["0", "2"]
