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
