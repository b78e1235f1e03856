"""Recordings in several threads leave the state of PyTorch as it was."""

from threading import Event, Thread

import pytest
import torch
from torch import nn

from codeq.flow.precision import run_in_double
from codeq.graph.call_recording import record_calls

FIRST, SECOND, DONE = Event(), Event(), Event()


class First(nn.Module):
    def forward(self, x):
        FIRST.set()
        SECOND.wait(0.2)  # which never comes while the first one is recorded
        return 2 * x


class Second(nn.Module):
    def forward(self, x):
        if not SECOND.is_set():
            SECOND.set()
            DONE.wait(0.5)
        return x / torch.ones(1)


def recorded_twice():
    record_calls(First(), (2,))
    DONE.set()


@pytest.fixture
def restored():
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("run", [
    lambda: record_calls(Second(), (2,), torch.float32),
    lambda: run_in_double(Second(), torch.ones(1, 2).double(), torch.double),
])  # fmt: skip
def test_threads_take_turns_with_the_default_type(run):
    for event in (FIRST, SECOND, DONE):
        event.clear()
    threads = [Thread(target=recorded_twice), Thread(target=run)]
    threads[0].start()
    assert FIRST.wait(10)
    threads[1].start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert torch.get_default_dtype() == torch.float32
    assert SECOND.is_set()
