"""Trainings that start from a compacted network: what they refuse, before any run folder exists."""

import pickle

import pytest
import torch
from torch import nn

from codeq import ExperimentConfig, run_experiment
from codeq.common.errors import CodeqError
from codeq.compaction import compact
from codeq.compaction.structure import describe
from codeq.evaluator import Evaluator
from codeq.metrics import exact_stats, ledger
from codeq.models import MODELS, build_model
from codeq.studies.checks import _initial_network, load


class Tiny(nn.Sequential):
    def __init__(self, num_classes=10, width=32):
        super().__init__(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(192, width), nn.ReLU(), nn.Linear(width, num_classes))


@pytest.fixture(autouse=True)
def tiny_model(monkeypatch):
    monkeypatch.setitem(MODELS, "tiny", Tiny)


def config(**settings):
    defaults = {"dataset": "synthetic", "model": "tiny", "epochs": 1, "batch_size": 256, "device": "cpu"}
    return ExperimentConfig("r", run_dir="outputs/r", init_from="small.pt", **(defaults | settings))


def trainable(dead=8, images=4):
    """Return the whole and the compacted network, and what a file of it holds."""
    torch.manual_seed(0)
    settings = config()
    whole = build_model("tiny", 10, {}, quantizer=settings.quantizer)
    with torch.no_grad():
        whole[2].parametrizations.weight.original[:dead] = 0
        whole[2].bias[:dead] = 0
    small = compact(whole.eval(), torch.rand(images, 3, 32, 32), keep_quantizers=True).model
    content = {"model": small.state_dict(), "structure": describe(small), "num_classes": 10}
    return whole, small, content | {"input_size": [3, 32, 32], "config": settings.to_dict()}


def test_costs_are_compared_with_the_network_before_compaction():
    whole, small, _ = trainable()
    dense, left = 192 * 32 + 32 * 10, 192 * 24 + 24 * 10
    assert exact_stats(small).total_macs == left
    for model in (small, compact(small, torch.rand(2, 3, 32, 32), keep_quantizers=True).model):
        comparison = Evaluator(model).comparison
        assert (comparison.baseline.total_macs, comparison.baseline.total_bops) == (dense, 1024 * dense)
        table = ledger(model)
        assert table.loc[("MACs", "structured", "all"), "dense"] == dense
        assert table.loc[("MACs", "structured", "all"), "value"] == left
        assert table.loc[("bytes", "float32", "all"), "dense"] == 4 * dense
    assert Evaluator(small).evaluate(small).structured_mac_ratio == dense / left
    assert Evaluator(whole).comparison.baseline.total_macs == dense


def test_files_that_do_not_fit_or_are_damaged_are_refused_with_one_message(tmp_path):
    _, _, content = trainable()
    state, structure = content["model"], content["structure"]
    fewer = {name: value for name, value in state.items() if not name.startswith("4.")}
    poisoned = state | {"4.bias": torch.full((10,), torch.nan)}
    hostile = structure | {"nodes": [["call_function", "os.system", {"tuple": ["id"]}, {"dict": {}}]]}
    cases = [
        ({}, {"model_kwargs": {"width": 16}}, r"another configuration: model_kwargs: {'width': 16} instead of {}"),
        ({}, {"model": "mlp"}, "another configuration: model: 'mlp' instead of 'tiny'"),
        ({}, {"quantizer": "uniform"}, "another configuration: quantizer: .*instead of"),
        ({}, {"img_size": 28}, "another configuration: img_size: 28 instead of 32"),
        ({"config": {**content["config"], "activations": {"bits": 8}}}, {}, "activations: None instead of"),
        ({"num_classes": 7}, {}, "size mismatch|from 1 to 7"),
        ({"config": None}, {}, "not the other parts of a compacted network"),
        ({"input_size": [3, "32"]}, {}, "not the other parts of a compacted network"),
        ({"model": fewer}, {}, "damaged|does not fit"),
        ({"model": poisoned}, {}, "values that are not finite"),
        ({"structure": hostile}, {}, "calls 'os.system', which this Tiny does not"),
        ({"structure": {}}, {}, "is damaged"),
    ]
    for changes, settings, message in cases:
        torch.save(content | changes, tmp_path / "small.pt")
        with pytest.raises(CodeqError, match=message) as error:
            run_experiment(config(**settings))
        assert "init_from='small.pt'" in str(error.value)
        assert len(str(error.value)) < 800
    (tmp_path / "small.pt").write_bytes(pickle.dumps(print))
    with pytest.raises(CodeqError, match="weights_only"):
        run_experiment(config())
    assert not (tmp_path / "outputs").exists()


def test_studies_build_the_compacted_network_as_well(tmp_path):
    _, small, content = trainable()
    torch.save(content, tmp_path / "small.pt")
    settings, x = config(), torch.rand(2, 3, 32, 32)
    assert torch.equal(_initial_network(settings, load(settings), "small.pt")(x), small(x))
