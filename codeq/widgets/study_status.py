"""`StudyStatus`: table of a study's members that refreshes while they run."""

from __future__ import annotations

import os
import threading
from html import escape
from typing import Any

import ipywidgets  # type: ignore[import-untyped]

from codeq.common.errors import CodeqError
from codeq.common.paths import resolve
from codeq.runs.references import locate
from codeq.studies.files import journal_file, read_index
from codeq.studies.progress import COLOURS, HEADINGS, counts, name_logs, survey, texts
from codeq.widgets.parts import close_parts

REFRESH_EVERY = 5.0  # seconds
# Refreshes, a minute, for which a search is followed without a running or waiting member: between two rounds it has
# none until the results are recorded and the next trials are chosen.
BETWEEN_ROUNDS = 12


class StudyStatus(ipywidgets.VBox):
    """Table of the members of a study with state, epoch, accuracy, BOPs and expected end, as ``codeq sweep --status``.

    It is read anew every 5 seconds while a member is running or waiting, and on request. A search is followed for a
    minute more, because its next members may begin.

    Parameters
    ----------
    study : path
        Folder of a study.

    Attributes
    ----------
    html : HTML
        The table.
    refresh : Button
        Reads the table anew, and resumes the updates if a member is running again.
    stop : Button
        Ends the updates.

    Raises
    ------
    CodeqError
        If the folder is not that of a study.

    Examples
    --------
    >>> StudyStatus("outputs/nothing")
    Traceback (most recent call last):
    ...
    codeq.CodeqError: .../outputs/nothing is not the folder of a study that has begun
    """

    def __init__(self, study: str | os.PathLike[str]) -> None:
        self.folder = locate(study) or resolve(study)
        self._read_members()
        self.html = ipywidgets.HTML()
        self.refresh = ipywidgets.Button(description="Refresh")
        self.stop = ipywidgets.Button(description="Stop updates")
        super().__init__([ipywidgets.HBox([self.refresh, self.stop]), self.html])
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self.refresh.on_click(self._start)
        self.stop.on_click(lambda _: self._stopped.set())
        self._start()

    def close(self) -> None:
        """End the updates, and close the widget with all of its parts."""
        if self.comm is None:  # closed before, or not even complete
            return
        self._stopped.set()
        close_parts(self)
        super().close()

    def _read_members(self) -> list[str]:
        members = read_index(self.folder)
        if not members:
            raise CodeqError(f"{self.folder} is not the folder of a study that has begun")
        return list(members)

    def update(self) -> bool:
        """Read the table anew, and return whether a member is running or waiting to."""
        rows = survey(self.folder, self._read_members())
        cells = "".join(f"<th style='text-align:left;padding-right:1em'>{escape(name)}</th>" for name in HEADINGS)
        lines = [f"<tr>{cells}</tr>"]
        for row in rows:
            member, state, *others = map(escape, texts(row))
            colour = COLOURS.get(row.found.state, "red").replace("dim", "gray").replace("cyan", "darkcyan")
            parts = [member, f"<span style='color:{colour}'>{state}</span>", *others]
            lines.append("<tr>" + "".join(f"<td style='padding-right:1em'>{part}</td>" for part in parts) + "</tr>")
        logs = escape(name_logs(self.folder, rows))
        self.html.value = f"<b>{escape(counts(rows))}</b><table>{''.join(lines)}</table>{logs}"
        return any(row.found.state in ("running", "pending") for row in rows)

    def _try_update(self) -> bool:
        """Do as `update`, and show what it raises above the earlier table: nobody sees an exception of a button."""
        try:
            return self.update()
        except Exception as error:  # the folder was moved, say, or a shared disk is away
            shown = f"<b>Not updated: {escape(str(error) or type(error).__name__)}</b>"
            self.html.value = f"{shown}<br>{self.html.value.removeprefix(f'{shown}<br>')}"
            return False

    def _start(self, _: Any = None) -> None:
        self._stopped.clear()
        alive = self._thread is not None and self._thread.is_alive()
        if (self._try_update() or self._patience()) and not alive:
            self._thread = threading.Thread(target=self._follow, daemon=True)
            self._thread.start()

    def _follow(self) -> None:
        idle = 0  # refreshes in a row
        while idle <= self._patience() and not self._stopped.wait(REFRESH_EVERY):
            idle = 0 if self._try_update() else idle + 1

    def _patience(self) -> int:
        """Return for how many refreshes in a row no member may be running or waiting."""
        return BETWEEN_ROUNDS if journal_file(self.folder).exists() else 0
