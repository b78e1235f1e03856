import os
import signal
import subprocess
import sys
import threading

import pytest

from codeq.common.errors import CodeqError
from codeq.training.interruption import EXIT_STATUS, SIGNALS, Interruption, Preempted


def test_the_exit_status_is_what_a_shell_calls_a_terminated_process():
    assert EXIT_STATUS == 128 + signal.SIGTERM == 143  # 143 stands in the Slurm scripts, too


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_and_nothing_else_happens(number):
    with Interruption() as interruption:
        assert not interruption.received
        os.kill(os.getpid(), number)
        assert interruption.received == signal.Signals(number).name


def test_afterwards_the_handlers_are_those_of_before():
    def own(*_): ...

    before = signal.signal(signal.SIGUSR1, own)
    try:
        with pytest.raises(RuntimeError), Interruption():
            raise RuntimeError
        assert signal.getsignal(signal.SIGUSR1) is own
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_outside_the_main_thread_nothing_is_installed():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work():
        with Interruption() as interruption:
            seen.append((interruption.received, signal.getsignal(signal.SIGTERM) is before))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [("", True)]


def test_without_it_the_signals_end_a_process_as_ever():
    code = "import os, signal; from codeq.training.interruption import Interruption\nwith Interruption(): pass\n"
    code += "os.kill(os.getpid(), signal.SIGTERM)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGTERM


def test_being_preempted_is_told_like_any_other_error():
    assert issubclass(Preempted, CodeqError)
