"""Attempts at a member: numbered files, of which each is a claim while its process lives and a record afterwards.

An attempt begins by creating the file of the next number, which only one process can (``O_EXCL``), on shared disks,
too. Nothing is deleted or renamed: a process that looked at the files too early finds its number taken. The file's
modification time is the heartbeat, by the clock of the file system alone.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from codeq.common.paths import make_folder, writing
from codeq.runs.processes import Process
from codeq.studies.files import read_json, replace

BEAT = 10.0  # seconds between two heartbeats
STALE = 90.0  # seconds without one after which a process on another machine counts as ended


@dataclass(frozen=True)
class Attempt:
    """Content of the file of one attempt.

    Parameters
    ----------
    number : int
        From 1.
    watcher, worker : Process or None
        The process that watches the member, and the one that is the member.
    started : float
        Seconds since 1970.
    rows : int
        Epochs that were recorded before it.
    notebook : bool
        Whether it executes a notebook.
    state, reason : str
        How it ended; empty before.
    ended : float
        When that was recorded, in seconds since 1970; 0 before, and in records of earlier versions.
    """

    number: int
    watcher: Process | None = None
    worker: Process | None = None
    started: float = 0.0
    rows: int = 0
    notebook: bool = False
    state: str = ""
    reason: str = ""
    ended: float = 0.0


class LostClaim(Exception):
    """Raised when another process took over the member because this one seemed to have ended."""


@dataclass
class Claim:
    """Attempt that this process started.

    Parameters
    ----------
    path : Path
        Its file.
    attempt : Attempt
        Content of the file.
    """

    path: Path
    attempt: Attempt
    beaten: float = field(default_factory=time.monotonic)

    def record(self, **changes: Any) -> None:
        """Write changed fields of the attempt."""
        self.attempt = Attempt(**{**vars(self.attempt), **changes})
        replace(self.path, json.dumps(asdict(self.attempt)))

    def beat(self) -> None:
        """Send a heartbeat, if it is due.

        Raises
        ------
        LostClaim
            If another process has begun a later attempt.
        """
        if time.monotonic() - self.beaten < BEAT:
            return
        if _path(self.path.parent, self.attempt.number + 1).exists():
            raise LostClaim
        os.utime(self.path)  # without a time of ours, the file system's clock counts
        self.beaten = time.monotonic()


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:04d}.json"


def latest(folder: Path) -> Attempt | None:
    """Return the last attempt in `folder`; one whose file is being written has no processes."""
    try:
        numbers = [int(name[:-5]) for name in os.listdir(folder) if re.fullmatch(r"\d{4,}\.json", name)]
    except FileNotFoundError:
        return None
    if not numbers:
        return None
    content = read_json(_path(folder, max(numbers)))
    if content is None:
        return Attempt(max(numbers))
    fields = _known(Attempt, content)
    processes = {key: _process(fields.get(key)) for key in ("watcher", "worker")}
    return Attempt(**{**fields, **processes, "number": max(numbers)})


def _process(content: Any) -> Process | None:
    fields = _known(Process, content) if isinstance(content, dict) else {}
    return Process(**fields) if len(fields) == len(Process.__annotations__) else None


def _known(kind: type, content: dict[str, Any]) -> dict[str, Any]:
    """Return what a record has of the fields of `kind`, if of its type: other versions of codeq have written others."""
    kinds = {"int": int, "float": int | float, "str": str, "bool": bool, "Process | None": dict}
    wanted = {name: kinds[annotation] for name, annotation in kind.__annotations__.items()}
    return {name: content[name] for name, one in wanted.items() if isinstance(content.get(name), one)}


def begin(folder: Path, number: int, rows: int = 0, notebook: bool = False) -> Claim | None:
    """Begin attempt `number` at the member whose attempts lie in `folder`; `None` if another process has.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     first, second = begin(Path(folder), 1), begin(Path(folder), 1)
    ...     first.record(state="done")
    ...     second, latest(Path(folder)).state
    (None, 'done')
    """
    make_folder(folder)
    path = _path(folder, number)
    with writing(path):
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        except FileExistsError:
            return None
    claim = Claim(path, Attempt(number))
    claim.record(watcher=Process.of(os.getpid()), started=time.time(), rows=rows, notebook=notebook)
    return claim


def is_live(folder: Path, attempt: Attempt, now: float) -> bool:
    """Return whether a process is running the unfinished `attempt`.

    On this machine its processes are looked up. On another the heartbeat decides: it must be younger than `STALE`. It
    decides, too, where no start time distinguishes them from later processes with the same numbers.

    Parameters
    ----------
    folder : Path
        Of the member's attempts.
    attempt : Attempt
        The last one.
    now : float
        By `file_system_time` of that folder's file system.
    """
    known = [process for process in (attempt.watcher, attempt.worker) if process]
    if known and all(process.is_here() for process in known):
        alive = [process for process in known if process.is_alive()]
        if not alive or any(process.started for process in alive):
            return bool(alive)
    return now - last_beat(folder, attempt) < STALE


def last_beat(folder: Path, attempt: Attempt) -> float:
    """Return the time of the last heartbeat of an attempt, whose file lies in `folder`; 0 if that is gone."""
    try:
        return _path(folder, attempt.number).stat().st_mtime
    except FileNotFoundError:
        return 0.0


def file_system_time(folder: Path) -> float:
    """Return the time by the clock that dates the files in `folder`, or this machine's where nothing can be written."""
    probe = folder / f".clock-{uuid.uuid4().hex}"
    try:
        probe.touch()
        now = probe.stat().st_mtime
        probe.unlink(missing_ok=True)
    except OSError:
        return time.time()
    return now


def signal_name(number: int) -> str:
    """Return the name of a signal.

    Examples
    --------
    >>> signal_name(9)
    'SIGKILL'
    """
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
