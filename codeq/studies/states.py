"""The state of a member, read from its files: those of its attempts and the ``status.json`` of its run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from codeq.runs.status import FILE, StatusFile, current_message, current_status, read_status
from codeq.studies.attempts import STALE, Attempt, file_system_time, is_live, last_beat, latest, signal_name
from codeq.studies.files import HIDDEN, attempts_folder

State = Literal[
    "pending", "running", "done", "failed", "diverged", "degenerate", "pruned", "preempted", "died", "misconfigured"
]  # fmt: skip
STATES: tuple[State, ...] = (
    "running", "done", "pending", "preempted", "died", "pruned", "diverged", "degenerate", "failed", "misconfigured",
)  # fmt: skip
STARTABLE = frozenset({"pending", "preempted", "died"})  # begun or resumed by every sweep
FAILURES = frozenset(
    {"failed", "diverged", "degenerate", "misconfigured"}
)  # only with --retry: the same again would fail again


@dataclass(frozen=True)
class MemberState:
    """State of a member.

    Parameters
    ----------
    state : str
        One of `STATES`.
    reason : str
        Reason for the state; empty if there is none.
    attempt : Attempt or None
        The last one.
    """

    state: State
    reason: str
    attempt: Attempt | None

    @property
    def number(self) -> int:
        """Number of the last attempt; 0 before the first."""
        return self.attempt.number if self.attempt else 0


def stored_status(run: Path) -> StatusFile | None:
    """Return ``status.json`` of a run folder; `None` if there is no run in it."""
    return read_status(run) if (run / FILE).is_file() else None


def is_gone(run: Path) -> bool:
    """Return whether a folder is removed or emptied; ``rm *`` leaves hidden files."""
    try:
        return all(name.startswith(".") for name in os.listdir(run))
    except FileNotFoundError:
        return True


def _written_after(stored: StatusFile, moment: float) -> bool:
    try:
        return datetime.fromisoformat(stored.updated).timestamp() > moment
    except ValueError:  # damaged, or of another version
        return False


def read_state(study: Path, member: str, now: float) -> MemberState:
    """Return the state of a member.

    Parameters
    ----------
    study : Path
        Folder of the study.
    member : str
        Name of the member.
    now : float
        By `codeq.studies.attempts.file_system_time` of the study's folder.
    """
    folder = attempts_folder(study, member)
    attempt, stored = latest(folder), stored_status(study / member)
    status: Any = stored.status if stored else ""
    message = stored.message if stored else ""
    if attempt is None or (stored and attempt.ended and _written_after(stored, attempt.ended)):
        # Never begun, or started or resumed by hand.
        state: Any = current_status(study / member, stored) if stored else "pending"
        return MemberState(state, current_message(study / member, stored) if stored else "", attempt)
    if stored and attempt.state and _is_done_since(stored, attempt):
        return MemberState("done", "", attempt)
    if attempt.state in ("done", "pruned", "diverged", "degenerate") and is_gone(study / member):
        return MemberState("pending", "its run was removed", attempt)
    if attempt.state:
        return MemberState(attempt.state, attempt.reason, attempt)  # type: ignore[arg-type]
    if is_live(folder, attempt, now):
        return MemberState("running", "", attempt)
    if stored and status == "running" and _is_resumed_by_hand(stored, folder, attempt):
        return MemberState("running", "", attempt)
    if status in ("", "running"):
        where = f" on {attempt.watcher.host}" if attempt.watcher else ""
        return MemberState("died", f"its processes{where} have ended", attempt)
    by_hand = stored and _written_after(stored, last_beat(folder, attempt) + STALE)  # its kernel has ended before
    if status == "done" and attempt.notebook and not by_hand:  # which was stopped with its watcher, or failed
        return MemberState("died", "its training is done, not its notebook", attempt)
    return MemberState(status, message, attempt)  # its watcher died before it could record the end


def _is_done_since(stored: StatusFile, attempt: Attempt) -> bool:
    """Return whether a training that was not done when `attempt` ended is: only one resumed by hand can be.

    Clocks of different machines are not compared. That of the attempt's tells a run that was done before it, of which
    the attempt has found something wrong. A notebook can fail after its training is done.
    """
    if stored.status != "done" or attempt.notebook:
        return False
    same_clock = attempt.watcher is not None and attempt.watcher.host == stored.host
    return not same_clock or _written_after(stored, attempt.started)


def _is_resumed_by_hand(stored: StatusFile, folder: Path, attempt: Attempt) -> bool:
    """Return whether a process of this machine trains the run that began after the processes of `attempt` had ended.

    The kernel of a notebook, which is neither of them, wrote the status before the last heartbeat.
    """
    same = attempt.worker is not None and attempt.worker.pid == stored.pid
    return stored.has_process and not same and _written_after(stored, last_beat(folder, attempt))


def read_states(runs: Sequence[Path]) -> list[MemberState]:
    """Return the states of runs in any folders; one that belongs to no study has that of its ``status.json``."""
    now = {study: file_system_time(study / HIDDEN) for study in {run.parent for run in runs}}
    return [read_state(run.parent, run.name, now[run.parent]) for run in runs]


def judge(
    code: int, *, asked: bool, stored: StatusFile | None, notebook: bool, last_words: str, left: bool = False
) -> tuple[State, str]:
    """Return the state in which a member's process ended, and why.

    Parameters
    ----------
    code : int
        Exit status; negative: the signal that killed it.
    asked : bool
        Whether it was asked to stop.
    stored : StatusFile or None
        ``status.json`` of its run if the process wrote it.
    notebook : bool
        Whether the process executed a notebook, which can fail after its training is done.
    last_words : str
        Last message that it printed.
    left : bool
        Whether it executed a notebook from its beginning and left it in its folder, as it does unless that is refused.

    Examples
    --------
    >>> judge(-9, asked=False, stored=StatusFile("running"), notebook=False, last_words="epoch 1/3")
    ('died', 'killed by SIGKILL, often for lack of memory')
    """
    status: Any = stored.status if stored else ""
    message = stored.message if stored else ""
    if code == 0:
        return "done", ""
    if status in ("diverged", "degenerate", "failed"):
        return status, message
    if status == "done" and not notebook:
        return "done", ""
    if status == "done" and not asked and code > 0:
        return "failed", f"its training is done, its notebook failed: {last_words}"
    if asked or status == "preempted" or code == 143:
        return "preempted", message if status == "preempted" else "stopped before there was anything new to save"
    if code < 0:
        memory = ", often for lack of memory" if code == -9 else ""
        return "died", f"killed by {signal_name(-code)}{memory}"
    if status == "running":  # a notebook's kernel was killed, or the process ended where no status could be written
        return "died", last_words
    return ("misconfigured" if code == 2 and not left else "failed"), last_words
