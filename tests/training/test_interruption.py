import os
import signal
import subprocess
import sys
import threading

import pytest

from codeq.common.errors import CodeqError
from codeq.training.interruption import SIGNALS, Interrupted, Interruption, Preempted

pytestmark = pytest.mark.usefixtures("ctrl_c")


def test_exit_statuses_are_those_of_a_shell():
    assert Preempted.exit_status == 128 + signal.SIGTERM == 143  # 143 stands in the Slurm scripts, too
    assert Interrupted.exit_status == 128 + signal.SIGINT == 130


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


@pytest.mark.parametrize("first", SIGNALS)
def test_ctrl_c_after_a_signal_interrupts_at_once(first):
    with Interruption() as interruption:
        os.kill(os.getpid(), first)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert interruption.received == first.name


def test_of_several_processes_none_takes_a_repeated_ctrl_c_for_a_second_one():
    with Interruption(alone=False) as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.received == "SIGINT"


def test_ctrl_c_that_is_ignored_stays_so():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        assert not interruption.received
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@pytest.mark.parametrize(
    ("received", "kind", "why"),
    [
        ("SIGINT", Interrupted, "interrupted"),
        ("SIGTERM", Preempted, "asked to stop by SIGTERM"),
        ("", Preempted, "asked to stop by another process"),
    ],
)
def test_the_message_has_the_command_that_resumes(received, kind, why):
    interruption = Interruption()
    interruption.received = received
    error = interruption.preemption("codeq train --resume 'a run'")
    assert type(error) is kind
    assert str(error) == f"{why}; the state is saved, resume with: codeq train --resume 'a run'"


@pytest.mark.parametrize(("rank", "shown"), [("", "codeq: saved\n"), ("0", "codeq: saved\n"), ("1", "")])
def test_a_script_ends_with_the_message_alone(rank, shown):
    code = "from codeq.training.interruption import Interrupted, Preempted\nPreempted('x')\n"
    code += "import atexit\natexit.register(print, 'handler')\nraise Interrupted('saved')"
    environment = os.environ | ({"RANK": rank} if rank else {})
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (Interrupted.exit_status, "handler\n", shown)
    other = subprocess.run(
        [sys.executable, "-c", f"{code.splitlines()[0]}\nPreempted('x')\n1 / 0"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert other.stderr.endswith("ZeroDivisionError: division by zero\n")
    assert other.stderr.startswith("Traceback")


def test_an_interactive_session_lasts():
    code = "from codeq.training.interruption import Preempted\nraise Preempted('saved')\nprint('next')\n"
    done = subprocess.run([sys.executable, "-i"], check=False, input=code, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "next\n")
    assert "codeq: saved\n" in done.stderr
    assert "Traceback" not in done.stderr


def test_ipython_shows_the_message_without_a_traceback(capsys):
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell()
    shell.user_ns["error"] = Interrupted("interrupted; the state is saved")
    assert not shell.run_cell("raise error").success
    assert capsys.readouterr().out.strip() == "interrupted; the state is saved"
