from types import MappingProxyType

import pytest
import torch

from codeq import ExperimentConfig, run_experiment
from codeq.training.precision import choose_precision, warn_of_emulation

pytestmark = pytest.mark.usefixtures("without_figures")

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [
        ({"architecture": "x86_64", "avx512_f": True, "avx512_bf16": True}, "bf16"),
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": True}, "bf16"),
        ({"architecture": "aarch64", "neon": True, "bf16": True}, "bf16"),
        ({"architecture": "aarch64", "neon": True, "bf16": False, "sve_bf16": True}, "bf16"),
        # AMX tiles of integers alone, and AVX-512 of the generation before bfloat16.
        ({"architecture": "x86_64", "amx_tile": True, "amx_int8": True, "avx512_bf16": False}, "float32"),
        ({"architecture": "x86_64", "avx2": True}, "float32"),
    ],
)  # fmt: skip
def test_auto_is_bf16_where_the_processor_has_instructions_for_it(monkeypatch, capabilities, precision):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: MappingProxyType(capabilities))
    assert choose_precision("auto", CPU) == precision
    assert choose_precision(None, CPU) == "float32"
    assert choose_precision("bf16", CPU) == "bf16"


def test_auto_is_float32_where_torch_does_not_know_the_instructions(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert choose_precision("auto", CPU) == "float32"


@pytest.mark.parametrize("supported", [True, False])
def test_auto_asks_a_gpu(monkeypatch, supported):
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: supported and not including_emulation
    )
    assert choose_precision("auto", torch.device("cuda")) == ("bf16" if supported else "float32")


@pytest.mark.parametrize(
    ("precision", "device", "instructions", "warned"),
    [
        ("bf16", "cpu", {"avx2": True}, True),
        ("bf16", "cpu", {"avx512_bf16": True}, False),
        ("float32", "cpu", {"avx2": True}, False),
        ("bf16", "mps", {"avx2": True}, False),
    ],
)
def test_emulated_bfloat16_is_warned_of(monkeypatch, caplog, precision, device, instructions, warned):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: MappingProxyType(instructions))
    warn_of_emulation(precision, torch.device(device))
    assert ("may take ten times as long as float32" in caplog.text) == warned


def test_a_training_warns_of_it_and_torch_that_does_not_know_does_not(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: MappingProxyType({"avx2": True}))
    run_experiment(config(tmp_path / "emulated", "bf16"))
    assert "bf16 on a device without instructions for it (cpu)" in caplog.text
    caplog.clear()
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    warn_of_emulation("bf16", CPU)
    assert not caplog.text


def config(folder, amp):
    settings = {"dataset": "synthetic", "model": "mlp", "epochs": 1, "batch_size": 256, "device": "cpu"}
    return ExperimentConfig("tiny", run_dir=str(folder), amp=amp, **settings)


@pytest.mark.parametrize("precision", ["bf16", "float32"])
def test_the_choice_is_recorded_and_trains_like_the_same_format_by_name(tmp_path, monkeypatch, capsys, precision):
    has = {"avx512_bf16": precision == "bf16"}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: MappingProxyType(has))
    chosen = run_experiment(config(tmp_path / "auto", "auto"))
    assert (", bf16" in capsys.readouterr().out) == (precision == "bf16")
    named = run_experiment(config(tmp_path / "named", None if precision == "float32" else "bf16"))
    assert chosen.environment["precision"] == named.environment["precision"] == precision
    assert (chosen.folder / "metrics.csv").read_bytes() == (named.folder / "metrics.csv").read_bytes()
