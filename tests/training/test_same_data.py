"""A run is resumed with the images that it began with, or not at all."""

import hashlib
import os
import signal

import pytest
import torch

from codeq import DATASETS, ExperimentConfig, Run, run_experiment, trainer
from codeq.common.errors import CodeqError
from codeq.data import Augmentation, Dataset, Split, hold_out
from codeq.runs.checkpoints import load_checkpoint, save_checkpoint
from codeq.training.interruption import Preempted
from codeq.training.same_data import check_same_data, describe_data

pytestmark = pytest.mark.usefixtures("without_figures")


def data_set(count: int = 60, classes: int = 2) -> Dataset:
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = Split(images, torch.arange(count) % classes)
    return Dataset.from_splits("own", ("a", "b", "c"), split, split, Augmentation(0, False))


def interrupted(folder, monkeypatch, **settings) -> ExperimentConfig:
    """Train on an own data set, and be stopped after the first of three batches."""
    monkeypatch.setitem(DATASETS, "own", lambda *_: data_set())
    config = ExperimentConfig(
        "x", model="mlp", dataset="own", epochs=1, batch_size=20, device="cpu", run_dir=str(folder), **settings
    )
    with monkeypatch.context() as patch:
        step = trainer.train_step
        patch.setattr(trainer, "train_step", lambda *a: (step(*a), os.kill(os.getpid(), signal.SIGUSR1)))
        with pytest.raises(Preempted):
            run_experiment(config)
    return config


@pytest.mark.parametrize(
    ("count", "classes", "change"),
    [
        (61, 2, "60 training, 0 validation and 60 test images, now 61, 0 and 61"),
        (60, 3, "60 training, 0 validation and 60 test images with other labels"),
    ],
)
def test_other_images_are_refused(tmp_path, monkeypatch, count, classes, change):
    config = interrupted(tmp_path / "run", monkeypatch)
    monkeypatch.setitem(DATASETS, "own", lambda *_: data_set(count, classes))
    with pytest.raises(CodeqError, match=rf"step-1\.pt was written for other images: {change}\. A resumed run keeps"):
        run_experiment(config, resume=tmp_path / "run")
    assert Run.open(tmp_path / "run").status == "preempted"  # as before: nothing has happened to it


def test_a_checkpoint_of_an_earlier_version_says_nothing(tmp_path, monkeypatch):
    config = interrupted(tmp_path / "run", monkeypatch)
    folder = tmp_path / "run" / "checkpoints"
    state, entry = load_checkpoint(folder)
    del state["data"]
    save_checkpoint(folder, state, epoch=entry.epoch, step=entry.step + 1, accuracy=None)
    assert run_experiment(config, resume=tmp_path / "run").status == "done"


def test_the_same_images_are_taken(tmp_path, monkeypatch):
    config = interrupted(tmp_path / "run", monkeypatch, validation=0.2)
    assert run_experiment(config, resume=tmp_path / "run").status == "done"


def test_validation_images_are_counted_and_their_labels_in_the_checksum():
    train, validation = hold_out(data_set(), 0.2, seed=0)
    found = describe_data(train, validation)
    assert [found[name] for name in ("training", "validation", "test")] == [48, 12, 60]
    labels = torch.cat([train.train.labels, validation.test.labels, train.test.labels])
    assert found["labels"] == hashlib.sha256(labels.numpy().tobytes()).hexdigest()
    check_same_data(found, describe_data(*hold_out(data_set(), 0.2, seed=0)), "x")
