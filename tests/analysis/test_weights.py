import copy
from collections import OrderedDict

import numpy as np
import pytest
import torch
from cases import each
from networks import RunningMaximum
from torch import nn

from codeq.analysis import latent_weights, sparsest_layer, weight_levels
from codeq.common.errors import CodeqError
from codeq.export.grids import check_levels
from codeq.quantizer.attach import attach_weight_quantizers


def network(*widths: int) -> nn.Module:
    """Linear layers of these widths, the first of which is all zero, and a projection of zeros that is no layer."""
    layers = {f"fc{k}": nn.Linear(4, width) for k, width in enumerate(widths)}
    net = nn.Sequential(OrderedDict(attention=nn.MultiheadAttention(4, 1), **layers))
    with torch.no_grad():
        net.attention.in_proj_weight.zero_()
        net.fc0.weight.zero_()
    return net


def test_the_sparsest_layer_is_a_small_one_that_can_be_drawn():
    net = network(64, 8)
    chosen = sparsest_layer(net)
    assert chosen == "fc0"
    assert sparsest_layer(network(65, 8)) != "fc0"  # too large
    assert sparsest_layer(nn.Sequential(nn.Linear(4, 65), nn.Linear(65, 100))) == "0"


def test_float_layers_are_chosen_only_where_none_is_quantized():
    net = network(8, 8)
    attach_weight_quantizers(net, ["attention.*", "fc0"], "deadzone", {"max_bits": 8})
    assert sparsest_layer(net) == "fc1"


def test_a_network_without_such_a_layer_is_refused():
    with pytest.raises(CodeqError, match="no conv or linear layer"):
        sparsest_layer(nn.Sequential(nn.ReLU()))


@each("granularity", ["layer", "channel"])
@each("read", [lambda net: weight_levels(net, "0"), lambda net: latent_weights(net, "0"), sparsest_layer, check_levels])
def test_weights_are_those_of_evaluation_mode_and_reading_them_changes_no_state(granularity, read):
    net = nn.Sequential(nn.Linear(4, 2))
    attach_weight_quantizers(net, [], RunningMaximum, {})
    net[0].parametrizations.weight[0].quantizer.granularity = granularity
    expected = read(copy.deepcopy(net).eval())
    before = copy.deepcopy(net.train().state_dict())
    np.testing.assert_array_equal(read(net), expected)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(module.training for module in net.modules())
