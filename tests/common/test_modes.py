"""Evaluation mode leaves every module as it was, also modules that do more than to set a flag."""

import contextlib

import pytest
import torch
from torch import nn

from codeq.common.modes import evaluation_mode
from codeq.metrics import measure
from codeq.quantizer.activations import ActivationQuantizer, quantize_input
from codeq.quantizer.calibration import calibrate


class Adapted(nn.Linear):
    """A layer with a low-rank addition that evaluation mode adds to its weights, as in loralib."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.a, self.b, self.merged = nn.Parameter(torch.randn(4, 2)), nn.Parameter(torch.randn(2, 4)), False

    def train(self, mode: bool = True):
        super().train(mode)
        if self.merged == mode:
            self.weight.data += (self.a @ self.b) * (-1 if mode else 1)
            self.merged = not mode
        return self

    def forward(self, x):
        return super().forward(x) if self.merged else super().forward(x) + x @ (self.a @ self.b).T


class FrozenNorm(nn.Sequential):
    """Modules of which one stays in evaluation mode."""

    def train(self, mode: bool = True):
        super().train(mode)
        self[1].eval()
        return self


def states(model: nn.Module) -> list[tuple[bool, bool]]:
    return [(module.training, getattr(module, "merged", False)) for module in model.modules()]


def calibrated(model: nn.Module) -> None:
    calibrate(model, [torch.rand(2, 4)])


@pytest.mark.parametrize("look", [lambda model: measure(model, (4,)), calibrated])
def test_modules_that_change_with_the_mode_change_back(look):
    model = FrozenNorm(Adapted(), nn.BatchNorm1d(4), nn.Sequential(Adapted(), Adapted()), nn.Linear(4, 2)).train()
    model[3].input_quantizer = ActivationQuantizer(8, "minmax")
    model[3].register_forward_pre_hook(quantize_input, with_kwargs=True)
    model[2][1].eval()
    before, weight = states(model), model[0].weight.detach().clone()
    assert [merged for _, merged in before].count(True) == 1
    look(model)
    assert states(model) == before
    torch.testing.assert_close(model[0].weight, weight)
    look(model.eval())
    assert not any(training for training, _ in states(model))
    assert [module.merged for module in model.modules() if isinstance(module, Adapted)] == [True] * 3


def test_modes_are_restored_after_an_error():
    model = FrozenNorm(Adapted(), nn.BatchNorm1d(4))
    before = states(model)
    with contextlib.suppress(RuntimeError), evaluation_mode(model):
        assert not any(module.training for module in model.modules())
        raise RuntimeError
    assert states(model) == before
