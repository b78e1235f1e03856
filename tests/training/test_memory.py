import platform
import statistics
import subprocess
import sys

import pytest

from codeq.training import memory
from codeq.training.memory import M_MMAP_THRESHOLD, keep_freed_memory

FAULTS = """
import resource
import torch
from codeq.training.memory import keep_freed_memory

def step():
    x = torch.ones(64, 3, 64, 64)
    activations = [x.repeat(1, k, 1, 1) for k in (4, 8, 16, 8, 4)]
    return sum(activation.sum() for activation in activations)

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

for keep in (False, True):
    with keep_freed_memory(keep):
        for _ in range(3):
            step()
        print(*(faults() for _ in range(5)))
print(faults())
"""


def page_faults() -> list[float]:
    """Page faults of a step of a training without and inside the context, and of the first step after it.

    They are medians of five steps: a heap in pieces may grow once more in one of them.
    """
    done = subprocess.run([sys.executable, "-c", FAULTS], check=True, capture_output=True, text=True)
    return [statistics.median(map(int, line.split())) for line in done.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc returns memory in this way")
def test_large_tensors_reuse_their_memory_as_long_as_the_context_lasts():
    plain, inside, after = page_faults()
    assert inside < 100 < plain
    assert after > 100  # the memory was returned at the end of the context


class Libc:
    """A C library whose mallopt accepts thresholds of at most `largest` bytes."""

    def __init__(self, largest):
        self.largest, self.settings, self.trimmed = largest, {}, 0

    def mallopt(self, parameter, value):
        accepted = value <= self.largest or parameter != M_MMAP_THRESHOLD
        if accepted:
            self.settings[parameter] = value
        return int(accepted)

    def malloc_trim(self, _):
        self.trimmed += 1


@pytest.mark.parametrize(("largest", "threshold"), [(2**40, 2**31 - 1), (2**25, 2**25), (0, None)])
def test_a_threshold_that_is_refused_leaves_the_adaptive_one_on(monkeypatch, largest, threshold):
    libc = Libc(largest)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.28"))
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: libc)
    with keep_freed_memory() as kept:
        assert kept == (threshold is not None)
        assert libc.settings.get(M_MMAP_THRESHOLD) == threshold
        assert len(libc.settings) == (3 if kept else 0)
    assert libc.trimmed == int(kept)


@pytest.mark.parametrize("library", ["", "musl"])
def test_other_systems_are_left_alone(monkeypatch, library):
    monkeypatch.setattr(platform, "libc_ver", lambda: (library, ""))
    monkeypatch.setattr(memory.ctypes, "CDLL", None)  # would raise if it were called
    with keep_freed_memory() as kept:
        assert not kept


def test_a_c_library_without_mallopt_is_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", ""))
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: object())
    with keep_freed_memory() as kept:
        assert not kept
