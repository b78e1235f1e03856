"""Watcher of one member: starts its process, forwards requests to stop, and records each attempt."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from codeq.common.errors import CodeqError
from codeq.runs.checkpoints import has_checkpoint
from codeq.runs.processes import Process
from codeq.studies.attempts import Claim, LostClaim, begin, file_system_time
from codeq.studies.files import HIDDEN, attempts_folder, log_file
from codeq.studies.pruning import Pruner, Pruning
from codeq.studies.states import FAILURES, STARTABLE, MemberState, is_gone, judge, read_state, stored_status

COMMAND = (sys.executable, "-m", "codeq.studies.member")
LOOK_EVERY = 0.2  # seconds between two looks at the member's process
LONGEST_REASON = 400  # characters


@dataclass(frozen=True)
class Task:
    """Commands and files of one member, which are sent to other processes and machines.

    Parameters
    ----------
    study : Path
        Folder of the study.
    member : str
        Name of the member.
    start : list of str
        Arguments of codeq for a new run.
    resume : list of str
        Arguments for an interrupted run. If empty, such a run is put aside and the member starts again.
    notebook : bool
        Whether they execute a notebook.
    retried : int, optional
        Number of the failed attempt that may be followed by another; default none.
    environment : dict of str to str
        Further environment variables of the member's process.
    pruning : Pruning, optional
        Rule by which the member is stopped early; default: it is not.
    """

    study: Path
    member: str
    start: list[str]
    resume: list[str]
    notebook: bool = False
    retried: int | None = None
    environment: dict[str, str] = field(default_factory=dict)
    pruning: Pruning | None = None

    @property
    def run(self) -> Path:
        """Folder of the member's run."""
        return self.study / self.member


class Watcher:
    """Watcher of the process of one `Task`.

    Parameters
    ----------
    task : Task
        The member.
    stop : callable
        Function that returns whether members are to save their state and stop.
    """

    def __init__(self, task: Task, stop: Callable[[], bool]) -> None:
        self.task = task
        self.stop = stop
        self.asked = False
        self._pruner = Pruner(task.pruning, task.study, task.member) if task.pruning else None
        self._hopeless = ""  # the reason
        self._process: subprocess.Popen[bytes] | None = None

    def run(self) -> None:
        """Run the member to its end, unless it is done, failed, or running elsewhere."""
        claim = None if self.stop() else claim_member(self.task)
        if claim is None:
            return
        self._claim = claim
        try:
            self._start()
            self._finish()
        except Exception as error:  # a full disk, for example
            self._give_up(error)
            raise

    def _start(self) -> None:
        self._log = log_file(self.task.study, self.task.member)
        self._log.parent.mkdir(parents=True, exist_ok=True)
        arguments = self._arguments(self._claim.attempt.number)
        self._anew = arguments is self.task.start
        self._before = _content(self.task.run / "status.json")
        with open(self._log, "ab") as output:
            self._printed = output.tell()
            self._process = subprocess.Popen(
                [*COMMAND, *arguments],
                stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT,
                env=os.environ | self.task.environment,
                start_new_session=True,  # Ctrl-C in the terminal reaches the sweep alone
            )  # fmt: skip
        self._claim.record(worker=Process.of(self._process.pid))

    def _give_up(self, error: Exception) -> None:
        """Let the process end, and record that the attempt died: else its member would count as running."""
        if self._process is not None:
            self._process.communicate()  # closes its input, so that it saves its state and stops, and waits for that
        reason = f"{type(error).__name__}: {error}"[:LONGEST_REASON]
        end = {"state": "died", "reason": reason, "ended": time.time()}
        with suppress(CodeqError):  # there may be no room for this either, and whoever watches reports `error`
            # A known end that could not be written is tried again: the run's own files do not show that of a notebook.
            self._claim.record(**({} if self._claim.attempt.state else end))

    def interrupt(self) -> None:
        """Stop the member, called by a signal handler while `run` is under way, and wait until its state is saved."""
        self.stop = lambda: True
        if self._process is not None and not self._claim.attempt.state:
            self._finish()

    def _finish(self) -> None:
        """Wait for the end of the process and record it."""
        assert self._process is not None
        with self._process:
            try:
                code = self._wait(self._process)
            except LostClaim:
                self._process.kill()
                return
        status = self.task.run / "status.json"
        state, reason = judge(
            code,
            asked=self.asked,
            stored=stored_status(self.task.run) if _content(status) != self._before else None,
            notebook=self.task.notebook,
            last_words=_last_words(self._log, self._printed),
            left=self.task.notebook and self._anew and not is_gone(self.task.run),
        )
        if self._hopeless and state == "preempted":
            state, reason = "pruned", self._hopeless
        self._claim.record(state=state, reason=reason[:LONGEST_REASON], ended=time.time())

    def _arguments(self, number: int) -> list[str]:
        """Choose between starting and resuming by what is there now: a requeued job has seen nothing of it."""
        run = self.task.run
        if not run.exists() or not any(run.iterdir()):
            return self.task.start
        if self.task.resume and has_checkpoint(run):
            return self.task.resume
        # Killed before its first checkpoint, or a notebook that cannot resume: there is nothing to continue from.
        aside = self.task.study / HIDDEN / "aside" / f"{self.task.member}.{number}"
        aside.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(run, aside)
        self._claim.record(rows=0)  # the new run starts without these epochs, which would spoil its expected end
        return self.task.start

    def _wait(self, process: subprocess.Popen[bytes]) -> int:
        while True:
            if not self.asked and (self.stop() or self._must_prune()):
                self.asked = True
                process.send_signal(signal.SIGTERM)
            try:
                return process.wait(LOOK_EVERY)
            except subprocess.TimeoutExpired:
                self._claim.beat()

    def _must_prune(self) -> bool:
        self._hopeless = self._pruner.reason() if self._pruner else ""
        return bool(self._hopeless)


def claim_member(task: Task) -> Claim | None:
    """Begin the next attempt at a member; `None` if it needs none, or another process is or was faster."""
    found = read_state(task.study, task.member, file_system_time(task.study / HIDDEN))
    if may_begin(task, found):
        folder = attempts_folder(task.study, task.member)
        return begin(folder, found.number + 1, count_rows(task.run), task.notebook)
    return None


def may_begin(task: Task, found: MemberState) -> bool:
    """Return whether a member in the state `found` waits for its next attempt.

    After a failure it does if that is the one to be retried, not a failure of the retry.
    """
    return found.state in STARTABLE or (found.state in FAILURES and task.retried == found.number)


def count_rows(run: Path) -> int:
    """Return how many epochs ``metrics.csv`` of a run folder has."""
    return max(0, _content(run / "metrics.csv").count(b"\n") - 1)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _last_words(log: Path, start: int) -> str:
    """Return the last message that a process wrote into `log` from the byte `start` on."""
    with open(log, "rb") as file:
        file.seek(max(start, log.stat().st_size - 20_000))
        text = "\n" + file.read().decode("utf-8", errors="replace").strip()
    message = text.rpartition("\ncodeq: ")[2] if "\ncodeq: " in text else text.rpartition("\n")[2]
    return " ".join(message.split()) or "it printed nothing"
