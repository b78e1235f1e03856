"""Levels of quantizers that integers hold, and those that none do."""

import pytest
import torch
from torch import nn

from codeq.common.errors import CodeqError
from codeq.export.grids import check_levels
from codeq.quantizer import DeadZoneQuantizer
from codeq.quantizer.attach import attach_weight_quantizers


def test_a_quantizer_without_levels_is_refused_by_the_name_of_its_layer():
    class Shrink(nn.Module):
        def forward(self, w):
            return 0.9 * w

        def get_bitwidth(self):
            return torch.tensor(4)

    net = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 2))
    attach_weight_quantizers(net, ["0"], Shrink, {})
    with pytest.raises(CodeqError, match="layer '1': quantizer Shrink returns 40 different values, more than the 16"):
        check_levels(net)


def test_a_quantizer_with_levels_per_channel_has_as_many_in_each():
    class Counting(DeadZoneQuantizer):
        def forward(self, w):
            return super().forward(w)

    net = nn.Sequential(nn.ConvTranspose2d(8, 6, 3, groups=2))
    attach_weight_quantizers(net, [], Counting, {"granularity": "channel", "max_bits": 3})
    assert len(net[0].weight.unique()) > 2**3
    check_levels(net)
    net[0].parametrizations.weight[0].quantizer.forward = lambda w: w
    with pytest.raises(CodeqError, match="36 different values in one output channel, more than the 8 levels"):
        check_levels(net)
