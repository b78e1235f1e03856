import pytest
import torch
from torch import nn

from codeq import attach_weight_quantizers
from codeq.graph.baking import baked_copy, convert


@pytest.mark.parametrize("quantizer", ["deadzone", None])
def test_layers_that_share_a_weight_share_the_baked_one(quantizer):
    net = nn.Sequential(*(nn.Linear(8, 8) for _ in range(3))).eval()
    net[1].weight = net[0].weight
    if quantizer:
        attach_weight_quantizers(net, [], quantizer, {"max_bits": 3})
    baked, x = baked_copy(net), torch.randn(5, 8)
    assert baked[0].weight is baked[1].weight
    assert baked[0].weight is not baked[2].weight
    assert torch.equal(baked(x), net(x))


def test_a_shared_weight_that_one_layer_alone_quantizes_is_baked_as_two():
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).eval()
    net[1].weight = net[0].weight
    attach_weight_quantizers(net, ["1"], "uniform", {"bitwidth": 2})
    baked = baked_copy(net)
    assert torch.equal(baked[0].weight, net[0].weight)
    assert torch.equal(baked[1].weight, net[1].weight)
    assert not torch.equal(baked[0].weight, baked[1].weight)


def test_tensors_that_modules_share_stay_shared_in_another_precision():
    model = nn.Sequential(nn.BatchNorm2d(2), nn.Identity(), nn.Identity())
    model[1].kernel = model[2].kernel = torch.ones(2).requires_grad_()
    model[2].mean, model[2].index = model[0].running_mean, torch.arange(2)
    convert(model, torch.double)
    assert model[1].kernel is model[2].kernel
    assert model[2].mean is model[0].running_mean
    assert model[1].kernel.dtype == model[2].mean.dtype == torch.double
    assert model[2].index.dtype == torch.int64
    assert not model[1].kernel.requires_grad
