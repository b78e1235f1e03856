import platform
import subprocess
import sys

import pytest

from codeq.training import memory

FAULTS = """
import resource
import torch
from codeq.training.memory import keep_freed_memory

if KEEP:
    keep_freed_memory()
for _ in range(3):
    torch.ones(20_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.ones(20_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(keep: bool) -> int:
    code = FAULTS.replace("KEEP", str(keep))
    return int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives memory back in this way")
def test_large_tensors_find_their_memory_again():
    assert page_faults(keep=True) < 100 < page_faults(keep=False)


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(memory.ctypes, "CDLL", None)  # would raise if it were called
    memory.keep_freed_memory()
