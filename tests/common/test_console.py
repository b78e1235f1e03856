import io
import sys

from codeq.common import console

METRICS = {
    "epoch": 4,
    "train/ce_loss": 0.12345,
    "eval/accuracy": 0.9722,
    "sparsity/unstructured": 0.5,
    "sparsity/structured": 0.125,
    "quantizer/mean_bits": 6.25,
}


def test_the_line_of_an_epoch_says_everything_once_and_counts_from_one():
    assert console.epoch_line(METRICS, total_epochs=20, seconds=3.14) == (
        "epoch  5/20 | loss 0.1235 | accuracy 97.22 % | zero weights 50.0 % | dead filters 12.5 % | 6.25 bits | 3.1 s"
    )


def test_nobody_watches_a_headless_kernel(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())  # no terminal
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    assert not console.progress_is_visible()
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    assert not console.progress_is_visible()
    monkeypatch.setenv("JPY_SESSION_NAME", "debug_run.ipynb")
    assert console.progress_is_visible()


def test_progress_passes_the_batches_on():
    assert list(console.progress_bar(iter([1, 2]), 3, 1, "epoch 1/1", True)) == [1, 2]
