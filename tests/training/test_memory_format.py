"""Memory format of networks whose weights do not all have four axes."""

import pytest
from torch import nn

from codeq import MODELS, ExperimentConfig, run_experiment

pytestmark = pytest.mark.usefixtures("without_figures")


class Volume(nn.Module):
    """A network whose first convolution has three dimensions, and whose second has two."""

    def __init__(self, num_classes=10):
        super().__init__()
        self.first, self.second = nn.Conv3d(1, 2, (3, 5, 5), stride=4), nn.Conv2d(2, 4, 3)
        self.head = nn.Linear(4, num_classes)

    def forward(self, x):
        x = self.second(self.first(x.unsqueeze(1)).squeeze(2).relu())
        return self.head(x.relu().mean((2, 3)))


def test_convolutions_in_three_dimensions_train_in_the_default_format(tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "volume", Volume)
    settings = {"model": "volume", "dataset": "synthetic", "epochs": 1, "batch_size": 256, "device": "cpu"}
    run = run_experiment(ExperimentConfig("volume", run_dir=str(tmp_path / "run"), **settings))
    assert run.config.channels_last
    assert run.status == "done"
