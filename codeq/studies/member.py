"""Process of one member: the command line of codeq, which saves its state and stops if its watcher has ended.

Started as ``python -m codeq.studies.member train --config FILE``, with a pipe as its standard input that nobody writes
to: it is closed when the watcher ends, however that happens.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading


def _stop_with_watcher() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Run the arguments of this process as a command of codeq."""
    threading.Thread(target=_stop_with_watcher, daemon=True).start()
    if hasattr(signal, "SIGUSR2"):  # Slurm's warning reaches all processes of a job; the watcher answers it
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    sys.argv = ["codeq", *sys.argv[1:]]
    runpy.run_module("codeq", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
