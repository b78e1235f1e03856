"""Trainings that start from a compacted network: what they refuse, before any run folder exists."""

import copy
import dataclasses
import pickle

import pytest
import torch
from torch import nn

from codeq import ExperimentConfig, Run, run_experiment
from codeq.analysis.compact_run import compact_run
from codeq.common.errors import CodeqError
from codeq.compaction import compact
from codeq.compaction.structure import describe
from codeq.data import load_dataset
from codeq.evaluator import Evaluator
from codeq.metrics import exact_stats, ledger
from codeq.models import MODELS, build_model
from codeq.quantizer.activations import named_activation_quantizers
from codeq.quantizer.attach import attach_weight_quantizers, named_quantizers
from codeq.runs.checkpoints import load_checkpoint
from codeq.studies.checks import _initial_network
from codeq.training.model_and_data import load_data


class Tiny(nn.Sequential):
    def __init__(self, num_classes=10, width=32):
        super().__init__(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(192, width), nn.ReLU(), nn.Linear(width, num_classes))


@pytest.fixture(autouse=True)
def tiny_model(monkeypatch):
    monkeypatch.setitem(MODELS, "tiny", Tiny)
    monkeypatch.setitem(MODELS, "grouped", Grouped)


def config(**settings):
    defaults = {"dataset": "synthetic", "model": "tiny", "epochs": 1, "batch_size": 256, "device": "cpu"}
    return ExperimentConfig("r", run_dir="outputs/r", **({"init_from": "small.pt"} | defaults | settings))


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


class Grouped(nn.Sequential):
    """Of its convolution in two groups, one loses more channels than the other, so that it becomes two."""

    def __init__(self, num_classes=10):
        super().__init__(
            nn.Conv2d(3, 8, 3, stride=4), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes),
        )  # fmt: skip


def float_file(path, model="grouped"):
    """Compact a float network, and save it as `codeq compact --trainable` does."""
    torch.manual_seed(0)
    settings = config(model=model, quantizer=None)
    whole = build_model(model, 10, {})
    with torch.no_grad():
        for dead in [1, 2, 5]:
            whole[2].weight[dead] = whole[2].bias[dead] = 0
    small = compact(whole.eval(), torch.rand(4, 3, 32, 32), keep_quantizers=True).model
    content = {"model": small.state_dict(), "structure": describe(small), "num_classes": 10}
    torch.save(content | {"input_size": [3, 32, 32], "config": settings.to_dict()}, path)
    return small


SCALES = [{}, {"scale": "learned"}, {"scale": "learned", "granularity": "channel"}, {"granularity": "channel"}]


@pytest.mark.parametrize("kwargs", SCALES)
def test_a_float_compacted_network_gets_the_quantizers_of_the_configuration(kwargs, tmp_path, without_figures):
    small = float_file(tmp_path / "small.pt")
    quantizer = {"name": "deadzone", "kwargs": {"init_deadzone_logit": 3.0, **kwargs}, "exclude_layers": ["6"]}
    settings = config(model="grouped", quantizer=quantizer)
    started = _initial_network(settings, load_data(settings), "small.pt")
    names = [name for name, _ in named_quantizers(started)]
    assert names == ["0", "2.parts.0", "2.parts.1"]
    expected = copy.deepcopy(small)  # with quantizers attached to the smaller layers themselves
    attach_weight_quantizers(expected, ["6"], "deadzone", quantizer["kwargs"])
    x = torch.rand(2, 3, 32, 32)
    if kwargs != {"scale": "learned"}:  # where the two convolutions share the parameter, as they share the logits
        assert torch.equal(started(x), expected(x))
    first, second = (dict(named_quantizers(started))[name] for name in names[1:])
    assert first.logit_dz is second.logit_dz
    run = run_experiment(settings)
    again = Run.open(run.folder)
    reloaded = again.load_model("last")
    with torch.no_grad():
        images = list(load_dataset("synthetic", None, 32).test_batches(512))
        loss = torch.cat([nn.functional.cross_entropy(reloaded(x), y, reduction="none") for x, y in images]).mean()
    assert loss.item() == pytest.approx(again.history["eval/loss"].iloc[-1], abs=1e-5)
    assert [name for name, _ in named_quantizers(reloaded)] == names
    assert dict(named_quantizers(reloaded))["0"].scale == kwargs.get("scale", "absmax")
    assert again.summary["baseline_macs"] > again.summary["structured_macs"]


def test_a_float_compacted_network_with_quantized_activations_gets_quantizers_of_weights(tmp_path, without_figures):
    first = run_experiment(config(init_from=None, model="grouped", quantizer=None, activations={"bits": 8}))
    compact_run(Run.open(first.folder), trainable=True)
    (first.folder / "compacted" / "trainable.pt").rename(tmp_path / "small.pt")
    second = dataclasses.replace(config(model="grouped", activations={"bits": 8}), run_dir="outputs/second")
    model = Run.open(run_experiment(second).folder).load_model("last")
    assert list(named_quantizers(model))
    assert list(named_activation_quantizers(model))


def test_a_moving_average_keeps_the_indices_of_a_compacted_network(tmp_path, without_figures):
    small = float_file(tmp_path / "small.pt")
    indices = {name: buffer for name, buffer in small.named_buffers() if not buffer.is_floating_point()}
    assert indices
    run = run_experiment(config(model="grouped", quantizer=None, ema=0.9, batch_size=32))
    averaged = load_checkpoint(run.folder / "checkpoints")[0]["model"]
    for name, index in indices.items():
        assert torch.equal(averaged[name], index), name


def test_a_pattern_that_excludes_nothing_of_a_float_compacted_network_is_refused(tmp_path):
    float_file(tmp_path / "small.pt")
    with pytest.raises(CodeqError, match="exclude_layers"):
        run_experiment(config(model="grouped", quantizer={"name": "deadzone", "exclude_layers": ["7"]}))
    assert not (tmp_path / "outputs").exists()


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
    assert torch.equal(_initial_network(settings, load_data(settings), "small.pt")(x), small(x))
