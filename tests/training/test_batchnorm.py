"""Recalibrated BatchNorm statistics."""

import torch
from torch import nn

from codeq.training.batchnorm import recalibrate_batchnorm


class HalfFrozen(nn.Sequential):
    """The first BatchNorm stays in evaluation mode, as in fine-tuned detectors."""

    def train(self, mode=True):
        super().train(mode)
        self[0].eval()
        return self


def test_frozen_batchnorms_keep_their_statistics():
    model = HalfFrozen(nn.BatchNorm1d(2), nn.BatchNorm1d(2)).train()
    with torch.no_grad():
        model[0].running_mean.fill_(3.0)
        model[0].num_batches_tracked.fill_(7)
    x = 5 + torch.randn(64, 2)
    recalibrate_batchnorm(model, [(x, None)])
    assert model[0].running_mean.tolist() == [3.0, 3.0]
    assert model[0].num_batches_tracked == 7
    torch.testing.assert_close(model[1].running_mean, ((x - 3) / (1 + model[0].eps) ** 0.5).mean(0))
    assert (model.training, model[0].training, model[1].training) == (True, False, True)
    assert [norm.momentum for norm in model] == [0.1, 0.1]


class Skipping(nn.Module):
    """The second norm is reached in evaluation alone, as that of a block that every training batch leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.BatchNorm1d(2), nn.BatchNorm1d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return x if self.training else self.second(x)


def test_batchnorms_that_no_batch_reaches_keep_their_statistics():
    model = Skipping()
    model.second.running_mean.fill_(3.0)
    model.second.running_var.fill_(5.0)
    model.second.num_batches_tracked.fill_(7)
    recalibrate_batchnorm(model, [torch.randn(8, 2) + 1, torch.randn(8, 2) + 1])
    assert model.second.running_mean.tolist() == [3.0, 3.0]
    assert model.second.running_var.tolist() == [5.0, 5.0]
    assert model.second.num_batches_tracked == 7
    assert model.first.num_batches_tracked == 2
    assert model.first.running_mean.min() > 0


def test_a_model_in_evaluation_mode_stays_in_it():
    model = nn.Sequential(nn.BatchNorm1d(2)).eval()
    recalibrate_batchnorm(model, [(5 + torch.randn(64, 2), None)])
    assert (model.training, model[0].training) == (False, False)
    assert (model[0].running_mean > 3).all()
