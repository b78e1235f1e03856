from collections import OrderedDict

import pytest
import torch
from torch import nn

from codeq.analysis import sparsest_layer
from codeq.common.errors import CodeqError
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
