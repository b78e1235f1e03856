import io
import os
import signal
import sys
import threading

import pytest

from codeq.studies import following
from codeq.studies.progress import make_console, survey


class Work:
    """Stands for an engine: one signal after another, each sent once the one before was answered."""

    def __init__(self, *numbers, waits=True):
        self.numbers, self.waits, self.asked = numbers, waits, threading.Event()

    def run(self):
        for number in self.numbers:
            os.kill(os.getpid(), number)
            assert not self.waits or self.asked.wait(60)

    def stop(self):
        self.asked.set()


class Gone(io.StringIO):
    """Standard output whose reader has ended."""

    def write(self, _):
        raise BrokenPipeError(32, "Broken pipe")


pytestmark = pytest.mark.usefixtures("ctrl_c")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("gone", [False, True])
def test_a_signal_asks_the_members_to_stop_whether_or_not_somebody_reads(tmp_path, capsys, monkeypatch, number, gone):
    if gone:
        monkeypatch.setattr(sys, "stdout", Gone())
    assert following.follow(Work(number), tmp_path, ["m"])
    assert gone or capsys.readouterr().out == (
        "stopping: the members save their state (once more to leave without waiting)\n"
    )
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("gone", [False, True])
def test_changes_of_states_and_tables_are_printed_if_somebody_reads(tmp_path, capsys, monkeypatch, gone):
    if gone:
        monkeypatch.setattr(sys, "stdout", Gone())

    looked = threading.Event()

    def look(*given):
        rows = survey(*given)
        looked.set()
        return rows

    class Trains(Work):
        def run(self):
            assert looked.wait(60)
            (tmp_path / "m").mkdir()
            (tmp_path / "m" / "status.json").write_text('{"status": "diverged", "message": "a loss of nan"}')

    monkeypatch.setattr(following, "survey", look)
    assert not following.follow(Trains(), tmp_path, ["m"])
    make_console().print("a table")
    assert gone or capsys.readouterr().out.endswith(" m: diverged (a loss of nan)\na table\n")


def test_ctrl_c_that_is_ignored_stops_nothing(tmp_path):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert not following.follow(Work(signal.SIGINT, waits=False), tmp_path, ["m"])
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
