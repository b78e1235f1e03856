"""Identity of a process, and whether it still runs."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ENDED = "ended"  # in place of the start time of a process that nobody has waited for yet


@dataclass(frozen=True)
class Process:
    """Identity of a process, which distinguishes it from a later process with the same number.

    Parameters
    ----------
    pid : int
        Its number.
    host : str
        Name of its machine.
    namespace : str
        Boot of the machine and space of process numbers in which `pid` means something; empty if unknown.
    started : str
        When it began, in the kernel's count or as ``ps`` writes it; empty if unknown.
    """

    pid: int
    host: str
    namespace: str
    started: str

    @classmethod
    def of(cls, pid: int) -> Process:
        """Return the process `pid` of this machine."""
        return cls(pid, socket.gethostname(), _namespace(), _start_time(pid))

    def is_here(self) -> bool:
        """Return whether `pid` can be looked up on this machine."""
        return (self.host, self.namespace) == (socket.gethostname(), _namespace())

    def is_alive(self) -> bool:
        """Return whether it runs on this machine; parts of its identity that are unknown are not compared.

        Examples
        --------
        >>> Process.of(os.getpid()).is_alive(), Process(os.getpid(), "", "", "").is_alive()
        (True, True)
        """
        started = _start_time(self.pid)  # unknown for another user's process on some machines
        compared = ((self.namespace, _namespace()), (self.started, started))
        same = all(recorded == found for recorded, found in compared if recorded and found)
        return process_exists(self.pid) and started != ENDED and same


def process_exists(pid: int) -> bool:
    """Return whether a process of this machine has the id `pid`.

    Examples
    --------
    >>> process_exists(os.getpid()), process_exists(0), process_exists(2**40)
    (True, False, False)
    """
    if not 0 < pid < 2**31:
        return False
    if sys.platform == "win32":  # where signal 0 of `os.kill` is Ctrl-C
        return _windows_process_exists(pid)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _windows_process_exists(pid: int) -> bool:
    import ctypes

    query_limited_information, still_active, access_denied = 0x1000, 259, 5
    kernel = ctypes.WinDLL("kernel32", use_last_error=True)  # type: ignore[attr-defined,unused-ignore]
    kernel.OpenProcess.restype = ctypes.c_void_p
    handle = kernel.OpenProcess(query_limited_information, False, pid)
    if not handle:
        return ctypes.get_last_error() == access_denied  # type: ignore[attr-defined,unused-ignore]
    handle, code = ctypes.c_void_p(handle), ctypes.c_ulong()
    answered = kernel.GetExitCodeProcess(handle, ctypes.byref(code))
    kernel.CloseHandle(handle)
    return not answered or code.value == still_active


def _namespace() -> str:
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not on Linux
        return ""


def _start_time(pid: int) -> str:
    if not Path("/proc/self/stat").exists():
        return _start_time_by_ps(pid)
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return ENDED if fields[0] == "Z" else fields[19]


def _start_time_by_ps(pid: int) -> str:
    """Return the start time of a process on macOS, where ``ps`` shows the kernel's; psutil corrects it with the clock.

    Examples
    --------
    >>> _start_time_by_ps(2**30)
    ''
    """
    if sys.platform == "win32":
        return ""
    command = ["ps", "-o", "stat=", "-o", "lstart=", "-p", str(pid)]
    fixed = os.environ | {"LC_ALL": "C", "TZ": "UTC"}  # recorded and compared under different ones otherwise
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10, env=fixed)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    state, _, started = found.stdout.strip().partition(" ")
    return ENDED if state.startswith("Z") else " ".join(started.split())
