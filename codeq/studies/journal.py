"""The journal of a search: Optuna's record of its trials, which reading leaves as it is."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from codeq.common.errors import CodeqError
from codeq.common.paths import writing

if TYPE_CHECKING:
    from optuna.storages import JournalStorage


class Journal:
    """Optuna's file of a journal, from which a torn last line is removed before the next one is added.

    Optuna ignores such a line, that of a full disk or of a killed process, and would add the next one to its end:
    together they can never be read again.

    Parameters
    ----------
    path : Path
        The file; it is made if it does not exist.
    """

    def __init__(self, path: Path) -> None:
        from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

        self._path = path
        self._mutex = JournalFileSymlinkLock(str(path))  # several processes may add to one search
        self._file = JournalFileBackend(str(path), self._mutex)

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        """Return the lines from this one on; Optuna calls this."""
        return self._file.read_logs(log_number_from)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Add lines; Optuna calls this for all that it records.

        Raises
        ------
        CodeqError
            If the file cannot be written.
        """
        with writing(self._path):
            if self._torn():
                self._mutex.acquire()
                try:
                    self._remove_torn()
                finally:
                    self._mutex.release()
            self._file.append_logs(logs)

    def _torn(self) -> int:
        """Return the bytes of the last line if it is no whole one; another process may be writing it."""
        lines = self._path.read_bytes().split(b"\n")
        if rest := lines.pop():
            return len(rest)
        try:
            json.loads(lines[-1] if lines else "{}")
        except ValueError:  # earlier versions have added to a torn line
            return len(lines[-1]) + 1
        return 0

    def _remove_torn(self) -> None:
        size = self._path.stat().st_size - self._torn()  # now that no other process is writing
        with open(self._path, "r+b") as file:
            file.truncate(size)


def open_journal(path: Path) -> JournalStorage:
    """Return the trials that are recorded in the file `path`.

    Raises
    ------
    CodeqError
        If it is damaged.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return optuna.storages.JournalStorage(cast(Any, Journal(path)))
    except OSError:
        raise
    except Exception as error:  # whatever Optuna meets in lines of another form
        raise CodeqError(
            f"{path} is damaged ({type(error).__name__}: {error!s:.200}). The runs are intact: remove this file and "
            "start the search again, which takes the results of those that it asks for again"
        ) from error
