"""`make bench` executes every benchmark without arguments, on every machine."""

import sys
from pathlib import Path

import pytest
import torch


@pytest.mark.parametrize(
    ("name", "reason"), [("bench_gpu", "needs an NVIDIA GPU"), ("bench_tools", "needs the folder of a run")]
)
def test_a_benchmark_that_lacks_something_says_so_and_ends_well(monkeypatch, capsys, name, reason):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", [f"{name}.py"])
    __import__(name).main()
    assert capsys.readouterr().out == f"not measured: {reason}\n"
