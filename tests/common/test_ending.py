import os
import signal
import subprocess
import sys

import pytest

WORK = """
import atexit, sys, tempfile, threading, time
from concurrent.futures import ThreadPoolExecutor
from codeq.common.ending import end_process

class Slow:
    def __del__(self):
        print("freed")

kept = Slow()
folder = tempfile.TemporaryDirectory()
print(folder.name)
ThreadPoolExecutor(1).submit(print, "pool")  # its idle thread must not keep the process
atexit.register(print, "handler")
threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
print("to the error stream", file=sys.stderr, end="")
end_process(7)
"""


def test_a_process_ends_with_its_status_after_threads_handlers_and_output_but_frees_nothing():
    done = subprocess.run([sys.executable, "-c", WORK], check=False, capture_output=True, text=True, timeout=60)
    folder, *lines = done.stdout.split()
    assert lines == ["pool", "thread", "handler"]
    assert done.stderr == "to the error stream"
    assert done.returncode == 7
    assert not os.path.exists(folder)  # a handler of `tempfile` removed it


@pytest.mark.parametrize("code", ["sys.stdout.close()", "sys.stdout = None"])
def test_a_lost_output_does_not_change_the_status(code):
    code = f"import os, sys; from codeq.common.ending import end_process; {code}; end_process(3)"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (3, "")


def test_a_signal_while_a_thread_is_waited_for_ends_the_process():
    code = "import threading, time; from codeq.common.ending import end_process; print(flush=True); "
    code += "threading.Thread(target=time.sleep, args=(60,)).start(); end_process(0)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == -signal.SIGTERM
