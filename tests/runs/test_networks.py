"""Networks of checkpoints are built without real images."""

import torch
from torch import nn

from codeq import ExperimentConfig
from codeq.graph.activations import attach_activation_quantizers
from codeq.models import MODELS
from codeq.runs.networks import build_network, load_saved_network


class Standardized(nn.Module):
    """Divides each image by its standard deviation, which makes NaN of an image of one value."""

    def __init__(self, num_classes=10):
        super().__init__()
        self.flatten, self.fc = nn.Flatten(), nn.Linear(192, num_classes)

    def forward(self, x):
        x = self.flatten(x)
        return self.fc((x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True))


def test_saved_ranges_are_loaded_into_a_network_that_not_every_input_is_finite_for(monkeypatch):
    monkeypatch.setitem(MODELS, "standardized", Standardized)
    settings = {"model": "standardized", "dataset": "synthetic", "quantizer": None}
    config = ExperimentConfig("x", activations={"bits": 3, "method": "percentile"}, **settings)
    model, images = build_network(config, 10), torch.randn(4, 3, 8, 8)
    assert model(torch.zeros(1, 3, 8, 8)).isnan().all()
    attach_activation_quantizers(model, images, 3, "percentile")
    content = {"model": model.state_dict(), "num_classes": 10, "input_size": [3, 8, 8]}
    loaded = load_saved_network(config, content, "model.pt")
    assert not loaded.training
    assert loaded.fc.input_quantizer.step == model.fc.input_quantizer.step != 1
    torch.testing.assert_close(loaded(images), model.eval()(images), rtol=0, atol=0)
