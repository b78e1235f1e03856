import ctypes
import os
import re
import subprocess
import sys
import time
import types
from dataclasses import replace

import pytest
from cases import each

from codeq.runs import processes
from codeq.runs.processes import Process, process_exists


def test_a_process_of_another_user_exists():
    assert process_exists(1)


@each("pid", [0, -1, 2**31, 2**80])
def test_what_is_no_process_id_does_not_exist(pid):
    assert not process_exists(pid)


@pytest.mark.parametrize(
    ("handle", "error", "code", "expected"), [(7, 0, 259, True), (7, 0, 0, False), (0, 5, 0, True), (0, 87, 0, False)]
)
def test_on_windows_no_signal_is_sent(monkeypatch, handle, error, code, expected):
    """Signal 0 of `os.kill` is Ctrl-C there: to ask would stop the training."""

    def answer(_, pointer):
        pointer._obj.value = code
        return 1

    def never(*_):
        raise AssertionError("a signal was sent")

    def open_process(*_):
        return handle

    kernel = types.SimpleNamespace(OpenProcess=open_process, GetExitCodeProcess=answer, CloseHandle=lambda _: 1)
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(os, "kill", never)
    monkeypatch.setattr(ctypes, "WinDLL", lambda *_, **__: kernel, raising=False)
    monkeypatch.setattr(ctypes, "get_last_error", lambda: error, raising=False)
    assert process_exists(1234) is expected


def test_an_ended_process_that_nobody_waited_for_is_not_alive(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = Process.of(child.pid)
    assert process.is_alive()
    child.stdin.close()
    deadline = time.monotonic() + 20
    while process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not process.is_alive()
    child.wait()


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs Linux")
def test_a_later_process_of_the_same_number_is_not_taken_for_it():
    assert not replace(Process.of(os.getpid()), started="1").is_alive()


def test_what_is_unknown_of_a_process_is_not_compared(monkeypatch):
    """Some machines hide the processes of other users."""
    process = Process.of(os.getpid())
    assert replace(process, namespace="", started="").is_alive()
    monkeypatch.setattr(processes, "_start_time", lambda _: "")
    monkeypatch.setattr(processes, "_namespace", lambda: "")
    assert process.is_alive()


def test_without_proc_a_later_process_of_the_same_number_is_not_taken_for_it(monkeypatch):
    """On macOS ``ps`` knows when a process began, whatever the time zone and the language of who asks."""
    monkeypatch.setattr(processes, "_start_time", processes._start_time_by_ps)
    monkeypatch.setattr(processes, "_namespace", lambda: "")
    process = Process.of(os.getpid())
    assert re.fullmatch(r"\w+ \w+ +\d+ \d\d:\d\d:\d\d \d{4}", process.started)
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    assert process.is_alive()
    assert not replace(process, started="Thu Jan 1 00:00:00 1970").is_alive()
    assert replace(process, started="").is_alive()


def test_without_ps_a_start_is_unknown(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert processes._start_time_by_ps(os.getpid()) == ""
