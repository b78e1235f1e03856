import copy

import pytest
import torch
from torch import nn

from codeq import attach_weight_quantizers, named_quantizers
from codeq.models import resnet20
from codeq.training.recalibration import recalibrate_batchnorm


@pytest.fixture
def net() -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)
    )
    for _ in range(3):
        model(torch.randn(6, 3, 8, 8) + 2)  # leaves statistics behind that are not those of the batches below
    return model


@pytest.fixture
def batches() -> list[torch.Tensor]:
    return [3 * torch.randn(size, 3, 8, 8) - 1 for size in (8, 8, 5)]


def test_the_statistics_become_the_mean_of_those_of_the_batches(net, batches):
    means, variances = {1: [], 4: []}, {1: [], 4: []}
    for x in batches:
        for k, layer in enumerate(net):
            if k in means:
                per_channel = x.detach().transpose(0, 1).flatten(1)
                means[k].append(per_channel.mean(1))
                variances[k].append(per_channel.var(1, unbiased=True))
                mean, biased = per_channel.mean(1), per_channel.var(1, unbiased=False)
                x = (x - mean[:, None, None]) / (biased[:, None, None] + layer.eps).sqrt()
            else:
                x = layer(x)
    recalibrate_batchnorm(net, batches)
    for k in means:
        torch.testing.assert_close(net[k].running_mean, torch.stack(means[k]).mean(0))
        torch.testing.assert_close(net[k].running_var, torch.stack(variances[k]).mean(0), rtol=1e-4, atol=1e-5)


def test_only_the_statistics_change_and_momenta_come_back(net, batches):
    before = copy.deepcopy(net.state_dict())
    recalibrate_batchnorm(net, batches)
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.split(".")[1] for name in changed} <= {"running_mean", "running_var", "num_batches_tracked"}
    assert [net[1].momentum, net[4].momentum] == [0.3, 0.1]
    assert net.training
    assert all(parameter.grad is None for parameter in net.parameters())


def test_momenta_come_back_after_an_error_too(net, batches):
    def broken():
        yield batches[0]
        raise OSError("disk is gone")

    with pytest.raises(OSError, match="disk is gone"):
        recalibrate_batchnorm(net, broken())
    assert [net[1].momentum, net[4].momentum] == [0.3, 0.1]


def test_a_model_without_batchnorm_is_left_alone_and_no_batch_is_made():
    def forbidden():
        raise AssertionError("a batch was asked for")
        yield

    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.BatchNorm2d(4, track_running_stats=False))
    before = copy.deepcopy(model.state_dict())
    recalibrate_batchnorm(model, forbidden())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_same_batches_give_the_same_statistics_whatever_came_before(net, batches):
    recalibrate_batchnorm(net, batches)
    once = copy.deepcopy(net.state_dict())
    net(torch.randn(6, 3, 8, 8) + 50)
    recalibrate_batchnorm(net, batches)
    assert all(torch.equal(value, once[name]) for name, value in net.state_dict().items())


def test_the_weights_of_all_batches_are_quantized_once():
    class Counting(nn.Module):
        calls = 0

        def forward(self, w):
            self.calls += 1
            return w * 2

    model = resnet20()
    attach_weight_quantizers(model, [], Counting, {})
    for _, quantizer in named_quantizers(model):
        quantizer.calls = 0
    recalibrate_batchnorm(model, [torch.randn(2, 3, 32, 32) for _ in range(3)])
    assert {quantizer.calls for _, quantizer in named_quantizers(model)} == {1}
