import io
import os
import subprocess
import sys

import pytest

from codeq.common import console

METRICS = {
    "epoch": 4,
    "train/ce_loss": 0.12345,
    "eval/accuracy": 0.9722,
    "sparsity/unstructured": 0.5,
    "sparsity/structured": 0.125,
    "quantizer/mean_bits": 6.25,
}


def test_the_line_of_an_epoch_has_every_figure_once_and_counts_from_one():
    assert console.epoch_line(METRICS, total_epochs=20, seconds=3.14) == (
        "epoch  5/20 | loss 0.1235 | accuracy 97.22 % | zero weights 50.0 % | dead filters 12.5 % | 6.25 bits | 3.1 s"
    )


def test_a_large_loss_takes_few_digits():
    for loss, text in ((8.5558920175323873e31, "8.556e+31"), (9999.0, "9999.0000"), (float("inf"), "inf")):
        assert f"| loss {text} |" in console.epoch_line(METRICS | {"train/ce_loss": loss}, total_epochs=20, seconds=1)


def test_the_loss_of_a_distillation_is_the_whole_one():
    line = console.epoch_line(METRICS | {"train/distillation_loss": 1.0}, total_epochs=20, seconds=1)
    assert "| loss 1.1235 |" in line


@pytest.mark.parametrize(("encoding", "expected"), [("cp1252", "÷ ?"), ("ascii", "? ?"), ("utf-8", "÷ →")])
def test_what_the_terminal_cannot_show_is_replaced(encoding, expected):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, newline="\n")
    console.say("÷ →", stream)
    assert raw.getvalue().decode(encoding) == f"{expected}\n"


def test_a_closed_stream_and_a_full_disk_are_ignored():
    closed = io.StringIO()
    closed.close()
    console.say("lost", closed)
    if os.path.exists("/dev/full"):
        full = open("/dev/full", "w")  # noqa: SIM115 - closing it raises
        console.say("lost", full)
        console.discard(full)
        full.close()


def test_work_beside_prints_ends_normally_when_the_reader_is_gone():
    code = (
        "import sys\nfrom codeq.common.console import say\n"
        "for k in range(20_000): say(f'line {k}')\nsys.stderr.write('done')"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b"done"
    assert process.returncode == 0
