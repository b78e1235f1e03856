import io
import os
import sys
import threading
from itertools import count

import numpy as np
import pytest
from PIL import Image

from codeq.common import progress
from codeq.common.console import say
from codeq.common.downloading import download
from codeq.common.progress import announced, counted, counter, progress_bar, progress_is_visible
from codeq.config import ExperimentConfig
from codeq.data import DATASETS, load_dataset, register_dataset
from codeq.trainer import run_experiment


def test_no_bar_moves_in_a_headless_kernel(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())  # no terminal
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    assert not progress_is_visible()
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    assert not progress_is_visible()
    monkeypatch.setenv("JPY_SESSION_NAME", "debug_run.ipynb")
    assert progress_is_visible()


def test_no_bar_moves_without_a_console(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert not progress_is_visible() or "JPY_SESSION_NAME" in os.environ
    say("dropped", sys.stderr)


def test_progress_passes_the_batches_on():
    assert list(progress_bar(iter([1, 2]), 3, 1, "epoch 1/1", True)) == [1, 2]


@pytest.fixture
def log(monkeypatch, capsys):
    """Return what is in standard error, which is no terminal here."""
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    return lambda: capsys.readouterr().err


def every(seconds, monkeypatch):
    """Let that time pass between two looks at the clock."""
    clock = count(0, seconds)
    monkeypatch.setattr("tqdm.std.time", lambda: next(clock))


def test_a_log_has_a_line_every_two_minutes_of_long_work(log, monkeypatch):
    now = 0.0
    monkeypatch.setattr("tqdm.std.time", lambda: now)
    for _ in progress_bar(range(600), 601, 1, "epoch 3/9", shown=True):
        now += 1
    for _ in counted(range(300), "evaluating"):
        now += 1
    lines = log().splitlines()
    assert lines[0] == "epoch 3/9: 121 of 601 after 02:00, 08:00 left"
    assert lines[5:] == [
        "evaluating: 120 of 300 after 02:00, 03:00 left",
        "evaluating: 240 of 300 after 04:00, 01:00 left",
    ]


def test_a_log_has_no_line_of_short_work_and_of_other_ranks(log, monkeypatch):
    every(1, monkeypatch)
    assert list(counted(list(range(40)), "proving")) == list(range(40))
    every(1000, monkeypatch)
    assert list(counted(list(range(4)), "evaluating", shown=False)) == list(range(4))
    assert list(progress_bar(list(range(4)), 4, 0, "epoch 1/1", shown=False)) == list(range(4))
    assert not log()


def test_a_download_is_in_the_log_with_its_size(log, monkeypatch, tmp_path):
    every(4, monkeypatch)
    (tmp_path / "source").write_bytes(bytes(200_000))
    download((tmp_path / "source").as_uri(), tmp_path / "cifar.tar.gz", "md5", "")
    (line,) = log().splitlines()
    assert line.startswith("downloading cifar.tar.gz: ")
    assert "kB of 200kB after 00:" in line


def test_the_size_of_a_download_may_be_unknown(log, monkeypatch):
    every(10, monkeypatch)
    with counter(0, "downloading net.pth", "B", 5) as bar:
        bar.update(2000)
    assert log().startswith("downloading net.pth: 2.00kB of ?B after 00:")


def test_decoding_is_in_the_log_with_its_count(log, monkeypatch, tmp_path):
    every(5, monkeypatch)
    for split, name in ((s, n) for s in ("train", "test") for n in "ab"):
        (tmp_path / split / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / split / name / "0.png")
    load_dataset("imagefolder", tmp_path, img_size=8)
    register_dataset("pictures", (np.zeros((20, 8, 8), np.uint8), np.arange(20) % 2))
    try:
        load_dataset("pictures")
    finally:
        del DATASETS["pictures"]
    decoding, reading = log().splitlines()
    assert decoding.startswith("decoding images: 4 of 4 after ")
    assert reading.startswith("reading pictures: 1 of 20 after ")


def test_an_epoch_and_its_evaluations_are_in_the_log(log, monkeypatch, tmp_path):
    every(1000, monkeypatch)
    monkeypatch.setattr("codeq.trainer.recalibrate_batchnorm", lambda _, batches: list(batches))
    settings = {"model": "mlp", "dataset": "synthetic", "batch_size": 256, "epochs": 1, "device": "cpu"}
    settings |= {"validation": 0.5, "recalibrate_batchnorm": 9}
    run_experiment(ExperimentConfig("logged", **settings, output_dir=str(tmp_path)))
    lines = [line.partition(" after ")[0] for line in log().splitlines()]
    assert lines == ["epoch 1/1: 1 of 1", "estimating BatchNorm: 1 of 1", "evaluating: 1 of 1", "testing: 1 of 1"]


def test_work_is_announced_when_it_takes_noticeable_time(monkeypatch):
    printed = threading.Event()
    monkeypatch.setattr(progress, "say", lambda *_: printed.set())
    with announced("checking ..."):
        pass
    assert not printed.is_set()
    monkeypatch.setattr(progress, "NOTICEABLE", 0.0)
    with announced("checking ..."):
        assert printed.wait(10)
