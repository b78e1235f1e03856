"""Inputs of layers and their levels, against counts in NumPy."""

import numpy as np
import pytest
import torch
from networks import Doubling
from torch import nn

from codeq import ExperimentConfig, analysis, run_experiment
from codeq.analysis import activation_levels, figures
from codeq.common.errors import CodeqError
from codeq.compaction import compact
from codeq.graph.activations import attach_activation_quantizers
from codeq.models import MODELS
from codeq.quantizer.activations import toggle_activation_quantization

pytestmark = pytest.mark.usefixtures("without_figures")


class Forked(nn.Module):
    """Two layers that read one tensor."""

    def __init__(self, num_classes=10):
        super().__init__()
        self.stem = nn.Linear(48, 8)
        self.left, self.right = nn.Linear(8, num_classes), nn.Linear(8, num_classes)

    def forward(self, x):
        x = self.stem(nn.functional.avg_pool2d(x, 8).flatten(1)).relu()
        return self.left(x) + self.right(x)


@pytest.mark.parametrize("symmetric", [False, True])
def test_every_value_is_on_one_level_and_those_beyond_are_clipped(symmetric):
    torch.manual_seed(0)
    net, x = Forked().eval(), torch.randn(6, 3, 32, 32)
    attach_activation_quantizers(net, x, bits=3, exclude_layers=["stem"], symmetric=symmetric)
    with torch.no_grad():
        net.left.input_quantizer.step.fill_(0.03)
        hidden = net.stem(nn.functional.avg_pool2d(x, 8).flatten(1)).relu().numpy().ravel()
    for model in (net, compact(net, x, keep_quantizers=True).model):
        found = activation_levels(model, [x[:4], x[4:]])
        assert list(found) == ["left"]  # shared with `right`
        values, levels = found["left"]
        np.testing.assert_allclose(np.sort(values), np.sort(hidden), rtol=1e-4, atol=1e-5)
        low, high = (-4, 3) if symmetric else (0, 7)
        codes = np.rint(hidden / np.float32(0.03)).astype(int)
        assert levels["code"].tolist() == list(range(low, high + 1))
        assert levels["count"].tolist() == [(np.clip(codes, low, high) == code).sum() for code in levels["code"]]
        assert levels["clipped"].tolist() == [0] * 7 + [(codes > high).sum()]
        assert (codes > high).sum() > 0
        np.testing.assert_allclose(levels["level"], 0.03 * levels["code"], rtol=1e-6)
    assert not net.left.input_quantizer._forward_pre_hooks
    with pytest.raises(CodeqError, match="'left' was not computed: there are no images"):
        activation_levels(net, [])
    toggle_activation_quantization(net, enabled=False)
    with pytest.raises(CodeqError, match="no input of a layer is quantized"):
        activation_levels(net, [x])


def test_images_stay_as_they_are_where_a_model_overwrites_its_input():
    torch.manual_seed(0)
    net, images = Doubling(48).eval(), [torch.randn(6, 3, 4, 4)]
    attach_activation_quantizers(net, images[0], 4, "minmax")
    first, second = (activation_levels(net, images)["first"] for _ in range(2))
    assert first[1]["count"].tolist() == second[1]["count"].tolist()


def test_values_of_both_operands_of_an_add_are_counted():
    torch.manual_seed(0)
    net, x = Forked().eval(), torch.randn(6, 3, 32, 32)
    with torch.no_grad():
        pooled = net.stem(nn.functional.avg_pool2d(x, 8).flatten(1)).relu()
        operands = torch.cat([net.left(pooled), net.right(pooled)]).numpy()
    attach_activation_quantizers(net, x, 4, "minmax", residual="shared")
    toggle_activation_quantization(net, enabled=False)
    net.left.output_quantizer.enabled = True
    found = activation_levels(net, [x])
    assert list(found) == ["left.output"]
    values, levels = found["left.output"]
    np.testing.assert_allclose(np.sort(values), np.sort(operands.ravel()), rtol=1e-4, atol=1e-5)
    codes = np.rint(operands / ((operands.max() - operands.min()) / 15)).astype(int)
    assert levels["count"].tolist() == [(codes == code).sum() for code in levels["code"]]


def test_the_figure_is_drawn_for_runs_with_quantized_activations(monkeypatch):
    monkeypatch.setitem(MODELS, "forked", Forked)
    monkeypatch.setattr(figures, "FIGURES", ())
    common = {"model": "forked", "dataset": "synthetic", "epochs": 1, "batch_size": 256, "device": "cpu"}
    run = run_experiment(ExperimentConfig("a", run_dir="outputs/a", activations={"bits": 4}, **common))
    (drawing,) = analysis.draw_figures(run).values()
    assert (drawing.name, drawing.missing) == ("activation_histograms", "")
    assert [axes.get_title(loc="left").partition(",")[0] for axes in drawing.figure.axes] == [
        "stem: 4 bits", "left: 4 bits",
    ]  # fmt: skip
    plain = run_experiment(ExperimentConfig("b", run_dir="outputs/b", **common))
    assert not analysis.draw_figures(plain)


def test_batches_of_a_loader_are_taken_with_their_labels():
    torch.manual_seed(0)
    net, x = Forked().eval(), torch.randn(6, 3, 32, 32)
    attach_activation_quantizers(net, x, bits=3)
    found = [activation_levels(net, [batch])["left"][1]["count"].tolist() for batch in (x, (x, torch.arange(6)))]
    assert found[0] == found[1]
    with pytest.raises(CodeqError, match="a value of type dict"):
        activation_levels(net, [{"x": x}])
