"""Quantized activations of runs: learned in a training, or calibrated afterwards by the command."""

import json
import os
import signal

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from codeq import Evaluator, ExperimentConfig, Run, run_experiment
from codeq.analysis.calibrate_run import calibrate_run, calibrated_copy, load_calibrated
from codeq.cli.main import main
from codeq.common.errors import CodeqError
from codeq.data import hold_out, load_dataset
from codeq.export.export_run import export_run
from codeq.graph.activations import restore_activation_quantizers
from codeq.models import MODELS
from codeq.quantizer.activations import named_activation_quantizers, toggle_activation_quantization
from codeq.quantizer.calibration import calibrate
from codeq.runs.checkpoints import load_checkpoint, save_checkpoint
from codeq.training.interruption import Preempted

pytestmark = pytest.mark.usefixtures("without_figures")


def config(folder, **settings) -> ExperimentConfig:
    defaults = {"dataset": "synthetic", "model": "mlp", "batch_size": 128, "device": "cpu", "lr": 0.003}
    return ExperimentConfig("tiny", run_dir=str(folder), **(defaults | settings))


@pytest.mark.slow
def test_a_training_learns_the_steps_and_resumes_to_the_same_bytes(tmp_path, monkeypatch):
    settings = {"epochs": 2, "activations": {"bits": 4, "method": "lsq"}}
    whole = run_experiment(config(tmp_path / "whole", **settings))
    model = whole.load_model()
    names = [name for name, _ in named_activation_quantizers(model)]
    assert names == ["fc1", "fc2", "fc3"]
    steps = {name: quantizer.step.item() for name, quantizer in named_activation_quantizers(model)}
    result = Evaluator(model).evaluate(model, load_dataset("synthetic").test_batches())
    assert whole.history["layers/fc2/activation_step"].iloc[-1] == pytest.approx(steps["fc2"])
    assert whole.history["layers/fc2/activation_bits"].tolist() == [4, 4]
    assert whole.history["layers/fc2/activation_step"].nunique() == 2
    assert result.test_accuracy == whole.history["eval/accuracy"].iloc[-1]
    assert [layer.activation_bits for layer in result.structured_stats.layers] == [4, 4, 4]
    assert whole.history["compression/structured_bops_ratio"].iloc[0] >= 32  # 8 times in the activations, 4 in the rest

    step, left = torch.optim.AdamW.step, iter(range(6))

    def counting(optimizer, *args, **kwargs):
        done = step(optimizer, *args, **kwargs)
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGTERM)
        return done

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", counting)
        with pytest.raises(Preempted):
            run_experiment(config(tmp_path / "cut", **settings))
    cut = run_experiment(config(tmp_path / "cut", **settings), resume=tmp_path / "cut")
    assert cut.status == "done"
    for name, quantizer in named_activation_quantizers(cut.load_model()):
        assert quantizer.step.item() == steps[name]
    assert (cut.folder / "metrics.csv").read_bytes() == (whole.folder / "metrics.csv").read_bytes()
    with pytest.raises(CodeqError, match="quantized in its training"):
        calibrate_run(whole)

    # A network that starts from this run is calibrated anew, and not stopped by ranges that it does not know.
    fine = run_experiment(config(tmp_path / "fine", epochs=1, init_from=str(whole.folder)))
    assert not list(named_activation_quantizers(fine.load_model()))


def test_bits_may_come_from_numpy_and_others_are_refused_before_the_work(tmp_path, monkeypatch):
    run = run_experiment(config(tmp_path / "run", epochs=1))
    assert calibrate_run(run, bits=np.int64(6)).bits == 6
    assert json.loads((run.folder / "calibrated" / "calibration.json").read_text())["bits"] == 6
    monkeypatch.setattr(type(run), "load_model", lambda *_: pytest.fail("the work has begun"))
    with pytest.raises(CodeqError, match=r"bits=1: must be an integer from 2 to 16"):
        calibrate_run(run, bits=1)


def test_the_command_calibrates_beside_the_run_and_leaves_it_as_it_is(tmp_path, capsys):
    run = run_experiment(config(tmp_path / "run", epochs=1))
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    assert main(["calibrate", str(run.folder), "--bits", "4", "--method", "minmax"]) == 0
    assert all(path.read_bytes() == content for path, content in before.items())
    result = json.loads((run.folder / "calibrated" / "calibration.json").read_text())
    images = load_dataset("synthetic")
    model = load_calibrated(Run.open(run.folder))
    accuracy = Evaluator(model).accuracy(model, images.test_batches())[0]
    assert result["accuracy_after"] == accuracy
    toggle_activation_quantization(model, enabled=False)
    assert result["accuracy_before"] == Evaluator(model).accuracy(model, images.test_batches())[0]
    assert result["bops_after"] == pytest.approx(result["bops_before"] / 8)
    first = dict(named_activation_quantizers(model))["fc1"]
    batches = images.train_batches(128, seed=0, epoch=0)
    seen = torch.cat([x for x, _ in batches])
    assert first.step.item() == pytest.approx(float(seen.max() - seen.min()) / 15, rel=1e-5)
    printed = capsys.readouterr().out
    assert "inputs of 3 layers at 4 bits (minmax, ranges from 512 training images)" in printed
    assert f"{result['accuracy_after']:.2%} with quantized activations" in printed
    assert main(["calibrate", str(run.folder), "--bits", "1"]) == 2
    assert "bits=1: must be an integer from 2 to 16" in capsys.readouterr().err
    assert (run.folder / "calibrated" / "calibration.json").exists()  # of the earlier call


def test_a_calibration_of_another_checkpoint_is_refused(tmp_path, capsys):
    run = run_experiment(config(tmp_path / "run", epochs=1))
    calibrate_run(run)
    path = run.folder / "calibrated" / "calibration.json"
    entry = json.loads(path.read_text())
    path.write_text(json.dumps(entry | {"file": "step-1.pt"}))
    with pytest.raises(CodeqError, match=r"calibrated with step-1\.pt, and the last checkpoint is step-\d+\.pt: run"):
        load_calibrated(run)
    assert main(["export", str(run.folder), "--to", "qdq", "--checkpoint", "best"]) == 2  # of the same epoch
    printed = capsys.readouterr().err
    assert "and the best checkpoint is step-" in printed
    assert "codeq calibrate --checkpoint best" in printed


def test_a_calibration_names_the_checkpoint_that_it_has_read_where_the_run_trains_on(tmp_path, monkeypatch):
    run = run_experiment(config(tmp_path / "run", epochs=1))
    checkpoints = run.folder / "checkpoints"
    state, before = load_checkpoint(checkpoints)

    def meanwhile(*given):
        save_checkpoint(checkpoints, state, epoch=1, step=before.step + 1, accuracy=0.0)
        calibrate(*given)

    monkeypatch.setattr("codeq.analysis.calibrate_run.calibrate", meanwhile)
    calibrate_run(run)
    assert json.loads((run.folder / "calibrated" / "calibration.json").read_text())["file"] == before.file
    calibrated_copy(run, run.load_model(before.file), before.file, "last")
    with pytest.raises(CodeqError, match=f"calibrated with {before.file}, and the last checkpoint is step-"):
        load_calibrated(run)


def test_what_was_read_is_exported_where_the_run_trains_on(tmp_path, monkeypatch, capsys):
    run = run_experiment(config(tmp_path / "run", epochs=1))
    calibrate_run(run)
    checkpoints = run.folder / "checkpoints"
    state, before = load_checkpoint(checkpoints)

    def meanwhile(*given):
        for k in (1, 2):  # the second deletes the checkpoint that was read
            save_checkpoint(checkpoints, state, epoch=k, step=before.step + k, accuracy=2.0)
        return restore_activation_quantizers(*given)

    def builder(source):
        raise CodeqError(f"built of {source.checkpoint}")

    monkeypatch.setattr("codeq.analysis.calibrate_run.restore_activation_quantizers", meanwhile)
    monkeypatch.setattr("codeq.export.export_run.BUILDERS", {"qdq": builder})
    assert main(["export", str(run.folder), "--to", "qdq"]) == 2
    assert not (checkpoints / before.file).exists()
    assert f"qdq: built of {before.file}" in capsys.readouterr().err


@pytest.mark.slow
def test_weights_of_one_checkpoint_are_not_exported_with_ranges_of_another(tmp_path, capsys):
    run = run_experiment(config(tmp_path / "run", epochs=2))
    manifest = run.folder / "checkpoints" / "manifest.json"
    roles = json.loads(manifest.read_text())
    last, best = roles["last"]["file"], roles["previous"]["file"]
    manifest.write_text(json.dumps(roles | {"best": roles["previous"]}))
    calibrate_run(run)
    load_calibrated(run)
    assert main(["export", str(run.folder), "--to", "qdq", "--checkpoint", "best"]) == 2
    printed = capsys.readouterr().err
    assert f"calibrated with {last}, and the best checkpoint is {best}: run" in printed
    assert "codeq calibrate --checkpoint best" in printed
    assert not (run.folder / "exports").exists()
    assert main(["export", str(run.folder), "--to", "qdq", "packed", "--checkpoint", "best", "--int4"]) == 2
    assert f"run: qdq: {run.folder / 'calibrated'} was calibrated with {last}" in capsys.readouterr().err
    (verdict,) = json.loads((run.folder / "exports" / "verdict.json").read_text())
    assert (verdict["format"], verdict["checkpoint"]) == ("packed", best)


class TwoAdds(nn.Module):
    """The operands of the first add are outputs of modules, one of the second is not."""

    def __init__(self, num_classes=10):
        super().__init__()
        self.pool, self.stem, self.bn = nn.AvgPool2d(8), nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv, self.fc = nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6, num_classes)

    def forward(self, x):
        x = self.bn(self.stem(self.pool(x)))
        y = (self.conv(x) + x).relu()
        return self.fc((y + y.tanh()).mean((2, 3)))


@pytest.mark.slow
def test_operands_of_residual_adds_share_a_step_in_the_calibrated_network_and_its_file(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(MODELS, "two_adds", TwoAdds)
    quantizer = {"name": "deadzone", "kwargs": {"max_bits": 4, "grid": "affine"}, "exclude_layers": []}
    run = run_experiment(config(tmp_path / "run", epochs=1, model="two_adds", quantizer=quantizer))
    assert main(["calibrate", str(run.folder), "--method", "minmax", "--residual", "shared"]) == 0
    printed = capsys.readouterr().out
    assert "operands of 1 residual adds share a step; of 1 stay float" in printed
    assert "  add 2: call_method relu computes an operand" in printed
    result = json.loads((run.folder / "calibrated" / "calibration.json").read_text())
    assert (result["residual"], result["shared_adds"]) == ("shared", ["add 1"])
    model = load_calibrated(Run.open(run.folder))
    assert result["accuracy_after"] == Evaluator(model).accuracy(model, load_dataset("synthetic").test_batches())[0]
    step = model.bn.output_quantizer.step.item()
    assert main(["export", str(run.folder), "--to", "qdq", "--whole", "--int4", "--tolerance", "0.1"]) == 0
    assert "weights of 4 bits in 3 layers, of 8 bits in: none" in capsys.readouterr().out
    (verdict,) = json.loads((run.folder / "exports" / "verdict.json").read_text())
    assert list(verdict["weight_bits"].values()) == [4, 4, 4]
    assert verdict["bytes"] < verdict["compared"]["dense int8"]["bytes"]
    graph = onnx.load(run.folder / "exports" / "model.qdq.onnx").graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    decoders = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    first, second = ([float(stored[decoders[name].input[1]]) for name in node.input]
                     for node in graph.node if node.op_type == "Add")  # fmt: skip
    assert first == [pytest.approx(step)] * 2
    assert second[0] != second[1]


class Attentive(nn.Module):
    """Attends within images of standard deviation 1; PyTorch calls the function of `out_proj`, not the layer."""

    def __init__(self, num_classes=10):
        super().__init__()
        self.pool, self.attention = nn.AvgPool2d(8), nn.MultiheadAttention(3, 1, batch_first=True)
        self.fc = nn.Linear(3, num_classes)

    def forward(self, x):
        x = self.pool(x / x.std((1, 2, 3), keepdim=True)).flatten(2).mT
        return self.fc(self.attention(x, x, x, need_weights=False)[0].mean(1))


def test_inputs_of_layers_that_cannot_be_quantized_stay_float_by_name(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(MODELS, "attentive", Attentive)
    run = run_experiment(config(tmp_path / "run", epochs=1, model="attentive", quantizer=None))
    assert main(["calibrate", str(run.folder)]) == 2
    assert "add 'attention.out_proj' to exclude_layers" in capsys.readouterr().err
    assert main(["calibrate", str(run.folder), "--exclude-layers", "attention.*"]) == 0
    result = json.loads((run.folder / "calibrated" / "calibration.json").read_text())
    assert (result["layers"], result["exclude_layers"]) == (["fc"], ["attention.*"])
    model = load_calibrated(Run.open(run.folder))  # without real images, which this network needs to be calibrated
    assert result["accuracy_after"] == Evaluator(model).accuracy(model, load_dataset("synthetic").test_batches())[0]


def test_settings_are_checked():
    with pytest.raises(CodeqError, match=r"activations.bits=1"):
        ExperimentConfig("x", activations={"bits": 1})
    with pytest.raises(CodeqError, match=r"activations.per='channel'"):
        ExperimentConfig("x", activations={"per": "channel"})


def test_held_out_images_are_not_calibrated_with(tmp_path, monkeypatch):
    run = run_experiment(config(tmp_path / "held", epochs=1, validation=0.5))
    train, held = hold_out(load_dataset("synthetic"), 0.5, seed=run.config.seed)
    assert calibrate_run(run).calibration_images == len(train.train) < len(train.train) + len(held.test)
    seen = []

    def builder(source):
        seen.extend(source.calibration)
        raise CodeqError("seen")

    monkeypatch.setattr("codeq.export.export_run.BUILDERS", {"qdq": builder})
    with pytest.raises(CodeqError, match="seen"):
        list(export_run(run, ["qdq"]))
    (trained,) = train.first_images(len(train.train), 1, seed=0)
    assert {image.numpy().tobytes() for images in seen for image in images} == {x.numpy().tobytes() for x in trained}


def test_a_damaged_calibration_is_named(tmp_path):
    folder = tmp_path / "calibrated"
    folder.mkdir()
    for text, weights in (("{", b""), ("[]", b""), ('{"bits": 8}', b""), ('{"bits": 8}', b"PK\3\4")):
        (folder / "calibration.json").write_text(text)
        (folder / "model.pt").write_bytes(weights)
        with pytest.raises(CodeqError, match="calibrated is damaged, run codeq calibrate again: "):
            calibrated_copy(Run(tmp_path), nn.Identity(), "step-1.pt", "last")
