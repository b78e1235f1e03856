"""Names of devices, and the device of a run."""

import pytest
import torch
from cases import each

from codeq.common.errors import CodeqError
from codeq.config.device import parse_device, resolve_device


@pytest.fixture
def machine(monkeypatch):
    def has(cuda: int, mps: bool) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return has


@each("name", ["cpu", "mps", "cuda", "cuda:0", "cuda:3"])
def test_devices(name):
    assert str(parse_device(name)) == name


@each("name", ["gpu", "", "cuda:x", "cuda:-1", "meta", "xpu", "cpu:1", "CPU"])
def test_other_names(name):
    with pytest.raises(CodeqError, match=f"device {name!r} is unknown"):
        parse_device(name)


@pytest.mark.parametrize(("cuda", "mps", "best"), [(2, True, "cuda"), (0, True, "mps"), (0, False, "cpu")])
def test_default_is_the_best_device(machine, cuda, mps, best):
    machine(cuda, mps)
    assert resolve_device(None) == torch.device(best)


@pytest.mark.parametrize(
    ("name", "cuda", "mps"), [("cpu", 0, False), ("mps", 0, True), ("cuda", 1, False), ("cuda:1", 2, False)]
)
def test_named_device_that_is_there(machine, name, cuda, mps):
    machine(cuda, mps)
    assert resolve_device(name) == torch.device(name)


@pytest.mark.parametrize(
    ("name", "cuda", "mps", "here"),
    [("cuda", 0, True, "cpu, mps"), ("mps", 1, False, "cpu, cuda:0"), ("cuda:2", 2, False, "cpu, cuda:0, cuda:1")],
)
def test_named_device_that_is_missing_never_falls_back(machine, name, cuda, mps, here):
    machine(cuda, mps)
    with pytest.raises(
        CodeqError, match=f"device {name!r} is not on this machine. Choose with --device one of: {here}$"
    ):
        resolve_device(name)
