import torch
from torch import nn

from codeq import attach_weight_quantizers
from codeq.training.unused_parameters import unused_parameters


class Net(nn.Module):
    """With parts that are never called, called at random and called in one mode alone."""

    def __init__(self):
        super().__init__()
        self.head, self.never = nn.Linear(12, 2), nn.Linear(3, 3)
        self.norm, self.scale = nn.BatchNorm1d(2), nn.Parameter(torch.ones(()))
        self.random, self.training_alone, self.evaluation_alone = (nn.Linear(2, 2) for _ in range(3))

    def forward(self, x):
        y = self.head(x.flatten(1))
        if not self.training:
            return self.random(self.evaluation_alone(y))
        return self.training_alone(y) + 0 * torch.rand(())  # the random layer is left out this time


def names(net):
    unused = {id(parameter) for parameter in unused_parameters(net, (3, 2, 2))}
    return [name for name, parameter in net.named_parameters() if id(parameter) in unused]


def test_what_neither_mode_uses_is_found_whatever_its_kind():
    net, random = Net(), torch.get_rng_state()
    assert names(net) == ["scale", "never.weight", "never.bias", "norm.weight", "norm.bias"]
    assert all(parameter.grad is None for parameter in net.parameters())
    assert net.training
    assert torch.equal(random, torch.get_rng_state())


def test_frozen_parameters_are_not_among_them_and_those_of_quantizers_follow_their_layer():
    net = Net()
    attach_weight_quantizers(net, ["head", "random", "*_alone"], "deadzone", {})
    net.norm.requires_grad_(False)
    quantizer = "never.parametrizations.weight"
    assert names(net) == [
        "scale", "never.bias", f"{quantizer}.original",
        *(name for name, _ in net.named_parameters() if name.startswith(f"{quantizer}.0.")),
    ]  # fmt: skip


def test_running_statistics_stay_as_they_are():
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2), nn.BatchNorm1d(2))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert not unused_parameters(net, (3, 2, 2))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_forward_without_gradients_in_evaluation_mode_is_tried_in_training_alone():
    class Switched(nn.Linear):
        def forward(self, x):
            with torch.set_grad_enabled(self.training):
                return super().forward(x.flatten(1))

    assert not unused_parameters(Switched(12, 2), (3, 2, 2))
