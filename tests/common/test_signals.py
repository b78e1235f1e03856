import signal
import threading

import pytest

from codeq.common.signals import handled

pytestmark = pytest.mark.usefixtures("ctrl_c")


def test_signals_are_handled_for_a_while_and_then_as_before():
    received, numbers = [], (signal.SIGINT, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    with handled(numbers, lambda number, _: received.append(number)):
        for number in numbers:
            signal.raise_signal(number)
    assert received == [*numbers]
    assert [signal.getsignal(number) for number in numbers] == before


def test_ctrl_c_that_is_ignored_stays_so_and_other_signals_do_not():
    received = []
    before = [signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGUSR1)]
    with handled((signal.SIGINT, signal.SIGUSR1), lambda number, _: received.append(number)):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGUSR1)
    assert received == [signal.SIGUSR1]
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    for number, handler in zip((signal.SIGINT, signal.SIGUSR1), before, strict=True):
        signal.signal(number, handler)


def test_outside_the_main_thread_nothing_is_installed():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work():
        with handled([signal.SIGTERM], lambda *_: None):
            seen.append(signal.getsignal(signal.SIGTERM) is before)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [True]
