"""`bench_floor.py`: operations and bytes of a step against counts by hand, and both formats of a step run."""

from pathlib import Path

import pytest
import torch

MACS, FIRST = 40_551_040, 442_368  # of a ResNet-20 at 32 × 32 pixels, and of its first convolution


@pytest.fixture(autouse=True)
def _benchmarks_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")


def batch():
    return torch.randn(2, 3, 32, 32).to(memory_format=torch.channels_last), torch.tensor([3, 7])


def test_operations_are_three_times_the_macs_without_the_gradient_of_the_images():
    from bench_floor import step_operations

    assert step_operations(*batch()) == 2 * 2 * (3 * MACS - FIRST)


def test_bfloat16_keeps_half_the_bytes():
    from bench_floor import kept_bytes

    full, half = kept_bytes(*batch(), bfloat16=False), kept_bytes(*batch(), bfloat16=True)
    # Two images: each of the 19 BatchNorms keeps its input, ReLU its result; the rest is small.
    assert full > 2 * 4 * 2 * 180_000
    assert 0.4 < half / full < 0.75


def test_quantization_alone_gives_gradients():
    from bench_floor import quantization_alone

    for call in quantization_alone().values():
        call()


@pytest.mark.parametrize("bfloat16", [False, True])
def test_both_steps_run(bfloat16):
    from bench_floor import steps

    calls = steps(*batch(), bfloat16, compiled=False)
    assert list(calls) == ["plain, eager", "quantized, eager"]
    for step in calls.values():
        step()
