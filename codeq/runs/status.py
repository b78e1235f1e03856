"""``status.json`` of a run folder: the state of the run, and the process that wrote it."""

from __future__ import annotations

import json
import math
import os
import socket
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from codeq.common.atomic import write_atomically
from codeq.common.errors import CodeqError
from codeq.common.paths import writing
from codeq.runs.processes import Process

Status = Literal["running", "done", "failed", "diverged", "degenerate", "preempted", "died"]

FILE = "status.json"
SILENT = 24 * 3600.0  # seconds without a written file after which a run on another machine counts as ended
WRITTEN = (FILE, "metrics.csv", "checkpoints/manifest.json")  # by the training alone, at least once an epoch


@dataclass(frozen=True)
class StatusFile:
    """Content of ``status.json``.

    Parameters
    ----------
    status : str
        State that the run's process wrote last.
    message : str
        Reason of a failure or preemption, else empty.
    started, updated : str
        UTC times in ISO format.
    host, pid, namespace, process_started : str, int, str, str
        Machine and process that trains or trained, see `codeq.runs.processes.Process`; earlier versions of codeq wrote
        the first two.
    """

    status: str = "died"
    message: str = ""
    started: str = ""
    updated: str = ""
    host: str = ""
    pid: int = 0
    namespace: str = ""
    process_started: str = ""

    @property
    def has_process(self) -> bool:
        """Whether the process that wrote it runs on this machine."""
        process = Process(self.pid, self.host, self.namespace, self.process_started)
        return self.host == socket.gethostname() and process.is_alive()


def read_status(folder: Path) -> StatusFile:
    """Read ``status.json`` of `folder`; a missing or damaged one counts as ``died``, and its message names what is."""
    path = folder / FILE
    try:
        stored = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        stored = None
    known = StatusFile.__annotations__
    if not isinstance(stored, dict) or not isinstance(stored.get("status"), str):
        return StatusFile(message=f"{path} is damaged" if folder.is_dir() else f"{folder} no longer exists")
    kinds = {name: int if name == "pid" else str for name in known}
    return StatusFile(**{name: stored[name] for name, kind in kinds.items() if isinstance(stored.get(name), kind)})


def write_status(folder: Path, status: Status, message: str = "", *, new: bool = False) -> None:
    """Write ``status.json`` with this process as the writer.

    Parameters
    ----------
    folder : Path
        The run folder.
    status, message : str
        The state and its reason.
    new : bool
        Whether the file must not exist, so that one of several processes that claim a folder at once succeeds.

    Raises
    ------
    CodeqError
        If the file cannot be written; if `new`, only if it exists.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    started = now if new else read_status(folder).started or now
    writer = Process.of(os.getpid())
    content = StatusFile(status, message, started, now, writer.host, writer.pid, writer.namespace, writer.started)
    data = (json.dumps(asdict(content), indent=1) + "\n").encode()
    if not new:
        with writing(folder / FILE):
            write_atomically(folder / FILE, data)
        return
    try:
        with open(folder / FILE, "xb") as file:
            file.write(data)
    except FileExistsError:
        raise CodeqError(f"run_dir={str(folder)!r} already holds a run; choose another folder or remove it") from None


def current_status(folder: Path, stored: StatusFile) -> str:
    """Return the stored state, or ``died`` if it is ``running`` but its process has ended.

    That of this machine is looked up; on another it counts as ended if no file was written for a day.
    """
    if stored.status != "running":
        return stored.status
    if stored.host == socket.gethostname():
        return "running" if stored.has_process else "died"
    return "died" if _silence(folder) > SILENT else "running"


def current_message(folder: Path, stored: StatusFile) -> str:
    """Return the reason of the state; of a run that another machine recorded as ``running``, where and since when.

    Whether that process still exists cannot be looked up from here, and a long epoch looks like a lost machine.
    """
    if stored.status != "running" or stored.host == socket.gethostname():
        return stored.message
    silence = _silence(folder)
    ago = _ago(silence) if math.isfinite(silence) else "at an unknown time"
    return f"on {stored.host or 'an unknown machine'}, which is not checked from here; last written {ago}"


def _silence(folder: Path) -> float:
    """Return for how many seconds a training has written none of its files; infinite if there are none."""
    times = [(folder / name).stat().st_mtime for name in WRITTEN if (folder / name).is_file()]
    return time.time() - max(times, default=-math.inf)


def _ago(seconds: float) -> str:
    """Write how long ago something was, in the largest unit.

    Examples
    --------
    >>> _ago(-2), _ago(75), _ago(3 * 3600 + 5), _ago(200_000)
    ('0 s ago', '1 min ago', '3 h ago', '2 d ago')
    """
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit} ago"
    return f"{max(seconds, 0):.0f} s ago"  # the clock of a file server may be ahead
