"""`make bench-peers`: the transcription of the paper equals codeq's quantizer, and missing packages are listed."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from codeq import DeadZoneQuantizer
from codeq.common import timing


@pytest.fixture(autouse=True)
def _benchmarks_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")


def test_transcription_equals_the_quantizer_in_values_and_gradients():
    from paper_equations import dead_zone_quantize

    levels = set()
    for dz in (0.3, -1.2, 3.0):
        for bit in (0.05, 0.17, -3.0):
            w, direction = torch.randn(2, 6, 4, 3, 3, dtype=torch.float64)
            quantizer = DeadZoneQuantizer(init_deadzone_logit=dz, init_bit_logit=bit).double()
            logits = [parameter.detach().clone().requires_grad_() for parameter in quantizer.parameters()]
            latent, copy = w.clone().requires_grad_(), w.clone().requires_grad_()
            own, transcribed = quantizer(latent), dead_zone_quantize(copy, *logits)
            (own * direction).sum().backward()
            (transcribed * direction).sum().backward()
            torch.testing.assert_close(transcribed, own, rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(copy.grad, latent.grad, rtol=1e-10, atol=1e-12)
            for logit, parameter in zip(logits, quantizer.parameters(), strict=True):
                torch.testing.assert_close(logit.grad, parameter.grad, rtol=1e-9, atol=1e-12)
                assert parameter.grad.abs() > 1e-6  # something was compared
            levels.add(own.unique().numel())
    assert levels >= {3, 7}  # 2 and 3 bits among them


def test_package_that_cannot_be_imported_is_listed_with_its_reason(monkeypatch, capsys):
    import bench_peers

    for package in ("brevitas", "torchao", "pquant"):
        monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    small = lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 10))  # noqa: E731
    monkeypatch.setattr(bench_peers, "NETWORKS", {"small": (small, 2)})
    monkeypatch.setattr(bench_peers, "IMAGE", (3, 4, 4))
    monkeypatch.setattr(timing, "TURN_SECONDS", 1e-9)
    monkeypatch.setattr(timing, "BUDGET", 0)
    table = bench_peers.step_table(["small"], repeats=1)
    bench_peers.print_steps(table)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| small")]
    missing = [row for row in rows if "not measured: ModuleNotFoundError: " in row]
    assert [row.count("|") for row in rows] == [8] * 9
    assert [row.split(" | ")[1] for row in missing] == list(bench_peers.PEERS)[5:]
    assert table["ratio"].notna().sum() == 5
    texts = [text.get_text() for text in bench_peers.draw(table, "").axes[0].texts]
    assert texts.count("not measured") == 4
