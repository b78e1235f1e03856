"""A training with a validation split: it selects, the test images do not."""

import dataclasses
import logging
import re

import pytest
import torch

from codeq import DATASETS, Evaluator, ExperimentConfig, plots, run_experiment
from codeq.common.errors import CodeqError
from codeq.data import Split, hold_out, load_dataset
from codeq.runs.checkpoints import read_manifest
from codeq.training import model_and_data, resuming
from codeq.training.building import build_training
from codeq.training.distributed import Ranks
from codeq.training.seen_images import images_seen

pytestmark = pytest.mark.usefixtures("without_figures")


def config(folder, **settings) -> ExperimentConfig:
    defaults = {"dataset": "synthetic", "model": "mlp", "epochs": 3, "batch_size": 64, "device": "cpu", "lr": 0.003}
    return ExperimentConfig("tiny", run_dir=str(folder), **(defaults | {"validation": 0.25} | settings))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return run_experiment(config(tmp_path_factory.mktemp("validated") / "run", seed=5))


def test_both_accuracies_are_those_of_their_images(run):
    model, dataset = run.load_model(), load_dataset("synthetic")
    _, validation = hold_out(dataset, 0.25, seed=5)
    assert len(validation.test) == 128
    last = run.history.iloc[-1]
    for name, images in (("eval", validation), ("test", dataset)):
        result = Evaluator(model).evaluate(model, images.test_batches())
        assert last[f"{name}/accuracy"] == result.test_accuracy
        assert last[f"{name}/loss"] == pytest.approx(result.test_loss)
    assert last["eval/loss"] != last["test/loss"]


def test_an_epoch_has_the_other_images_alone(run):
    # 384 of 512 images are 6 batches of 64.
    assert read_manifest(run.folder / "checkpoints")["last"].step == 3 * 6


def test_the_summary_names_the_split(run):
    best = int(run.history["eval/accuracy"].idxmax())
    assert run.summary["best_chosen_by"] == "validation"
    assert run.summary["test_accuracy_at_best"] == run.history["test/accuracy"][best]


def test_test_images_select_nothing(tmp_path, monkeypatch, run):
    """With other test labels the run is the same to the byte, but for the figures of the test images."""
    dataset = load_dataset("synthetic")
    wrong = dataclasses.replace(dataset, test=Split(dataset.test.images, (dataset.test.labels + 1) % 10))
    monkeypatch.setitem(DATASETS, "wrong", lambda *_: wrong)
    other = run_experiment(config(tmp_path / "run", seed=5, dataset="wrong"))
    assert not other.history["test/accuracy"].equals(run.history["test/accuracy"])
    tests = ["test/accuracy", "test/loss"]
    assert other.history.drop(columns=tests).equals(run.history.drop(columns=tests))
    ours, theirs = (read_manifest(one.folder / "checkpoints")["best"] for one in (run, other))
    assert (ours.epoch, ours.accuracy) == (theirs.epoch, theirs.accuracy)
    for key, value in run.load_model("best").state_dict().items():
        assert torch.equal(value, other.load_model("best").state_dict()[key])


def test_best_is_the_best_of_the_validation_images(tmp_path, monkeypatch):
    """The test accuracy rises where the validation accuracy falls."""
    fractions = iter([(0.9, 1.0), (0.5, 1.0), (0.7, 1.0)])
    real = Evaluator.evaluate

    def evaluate(self, model, loader=None, total=None):
        result = real(self, model, loader, total)
        return result if loader is None else dataclasses.replace(result, test_accuracy=next(fractions)[0])

    tests = iter([0.1, 0.95, 0.2])
    monkeypatch.setattr(Evaluator, "evaluate", evaluate)
    monkeypatch.setattr(Evaluator, "accuracy", lambda *_, **__: (next(tests), 1.0))
    found = run_experiment(config(tmp_path / "run"))
    assert read_manifest(found.folder / "checkpoints")["best"].epoch == 0
    assert found.summary["test_accuracy_at_best"] == 0.1
    assert found.history["test/accuracy"].tolist() == [0.1, 0.95, 0.2]


def test_it_continues_to_the_byte(tmp_path, monkeypatch, run):
    class Killed(BaseException):
        pass

    real = resuming.save_checkpoint

    def save(*args, **kwargs):
        real(*args, **kwargs)
        if kwargs["step"] == 8:
            raise Killed

    settings = config(tmp_path / "run", seed=5, checkpoint_interval=2)
    with monkeypatch.context() as patch:
        patch.setattr(resuming, "save_checkpoint", save)
        with pytest.raises(Killed):
            run_experiment(settings)
    again = run_experiment(settings, resume=tmp_path / "run")
    assert (again.folder / "metrics.csv").read_bytes() == (run.folder / "metrics.csv").read_bytes()


def test_a_split_that_leaves_a_class_without_images_is_refused_before_the_folder_is_made(tmp_path):
    with pytest.raises(CodeqError, match=r"validation=0\.001: the 512 training images of dataset 'synthetic'"):
        run_experiment(config(tmp_path / "run", validation=0.001))
    assert not (tmp_path / "run").exists()


def test_the_figures_and_the_console_show_both(run, tmp_path, capsys):
    axes = plots.accuracy_curve(run.history).axes[0]
    assert [line.get_label() for line in axes.lines] == ["training", "validation", "test"]
    assert "of validation" in axes.get_title(loc="right")
    assert axes.lines[2].get_ydata().tolist() == pytest.approx((100 * run.history["test/accuracy"]).tolist())
    curves = plots.training_curves(run.history).axes
    assert [line.get_label() for line in curves[0].lines] == ["training", "validation", "test"]
    assert [line.get_label() for line in curves[1].lines] == ["training", "validation", "test"]
    shown = run_experiment(config(tmp_path / "run", epochs=1)).history.iloc[0]
    assert f"| test {shown['test/accuracy']:6.2%} ".replace("%", " %") in capsys.readouterr().out


def test_ranges_of_activations_come_from_training_images_alone(monkeypatch):
    seen = []
    monkeypatch.setattr(model_and_data, "calibrate", lambda _, batches: seen.extend(batches))
    settings = config(None, validation=0.5, activations={"bits": 8})
    training = build_training(settings, Ranks(), "float32", initialize=True)
    first = training.dataset.first_images(64, model_and_data.CALIBRATION_BATCHES, seed=settings.seed)
    assert len(first) == 4
    assert [torch.equal(a, b) for a, b in zip(seen, first, strict=True)] == [True] * 4


def test_images_that_the_source_was_trained_on_are_named(tmp_path, run):
    whole = run_experiment(config(tmp_path / "whole", validation=None, epochs=1)).folder
    later = run_experiment(config(tmp_path / "later", epochs=1, init_from=str(whole))).folder
    for source, settings, seen in (
        (whole, {}, "init_from='.*whole'"),
        (whole, {"data_dir": "./data"}, "init_from='.*whole'"),  # the default folder
        (whole, {"data_dir": "elsewhere"}, None),
        (whole / "checkpoints" / "step-8.pt", {}, "init_from="),
        (later, {}, r"init_from='.*later' \(of whole, from which it started\)"),
        (run.folder, {"seed": 5}, None),
        (run.folder, {"seed": 6}, "validation=0.25, seed=6$"),
        (run.folder, {"seed": 5, "validation": 0.5}, "validation=0.5, seed=5$"),
        (run.folder, {"validation": None}, None),
        (tmp_path / "weights.pt", {}, None),
    ):
        said = images_seen(config(tmp_path / "next", init_from=str(source), **settings))
        assert bool(said) == bool(seen), (source, said)
        assert re.search(seen or "", said)
    taught = config(tmp_path / "next", distillation={"teacher": str(whole)})
    assert "were training images of distillation.teacher=" in images_seen(taught)


def test_images_that_the_network_of_the_package_was_trained_on_are_named(tmp_path):
    def settings(name, **own):
        defaults = {"model": "resnet20", "dataset": "cifar10", "validation": 0.1, "seed": 0}
        return ExperimentConfig(name, **(defaults | own))

    for name, own in (
        ("same", {"pretrained": True}),
        ("other", {"pretrained": True, "dataset": "digits"}),
        ("scratch", {}),
        ("later", {"init_from": str(tmp_path / "other")}),
    ):
        (tmp_path / name).mkdir()
        settings(name, **own).to_yaml(tmp_path / name / "config.yaml")
    same, file = str(tmp_path / "same"), str(tmp_path / "same" / "compacted" / "trainable.pt")
    for own, seen in (
        ({"pretrained": True}, r"ResNet-20 of this package \(pretrained: true\)"),
        ({"pretrained": True, "validation": None}, None),
        ({"pretrained": True, "dataset": "digits"}, None),
        ({"init_from": same}, "ResNet-20 of this package, from which init_from='.*same' started"),
        ({"init_from": file}, "from which init_from='.*trainable.pt' started"),
        ({"init_from": str(tmp_path / "later")}, "from which init_from='.*later' started"),
        ({"init_from": str(tmp_path / "later"), "dataset": "digits"}, None),
        ({"init_from": str(tmp_path / "scratch")}, None),
        ({"distillation": {"teacher": same}}, "from which distillation.teacher='.*same' started"),
    ):
        said = images_seen(settings("next", **own))
        assert bool(said) == bool(seen), (own, said)
        assert re.search(seen or "", said)


def test_a_training_warns_of_them(tmp_path, run, caplog):
    with caplog.at_level(logging.WARNING):
        run_experiment(config(tmp_path / "next", init_from=str(run.folder), seed=6, epochs=1))
    assert "the validation images were training images" in caplog.text
