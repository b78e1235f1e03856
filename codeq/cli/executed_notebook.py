"""File of an executed notebook, and whether it replaces the one that a resumed run already has."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from codeq.common.paths import writing
from codeq.runs.status import FILE as STATUS


class ExecutedNotebook:
    """File of a notebook that is being executed into the folder of a run.

    Papermill writes it from the first cell on. In a resumed run it lies beside the notebook of the run until the run
    has been trained or the notebook has ended: a start that is rejected, or a kernel that dies before, would otherwise
    destroy the figures of a finished run.

    Parameters
    ----------
    place : Path
        Where it belongs.
    file : Path
        Where it is written: the same, or another name in the folder.
    made : list of Path
        Folders that were made for it, the innermost first.
    """

    def __init__(self, place: Path, file: Path, made: Sequence[Path]) -> None:
        self.place = place
        self.file = file
        self._made = made
        self._status_before = self._status()

    @property
    def has_trained(self) -> bool:
        """Whether a training in it has begun: then the run's status is another one, with the kernel as its process."""
        return self._status() != self._status_before

    def take_place(self) -> None:
        """Replace the notebook that the run had."""
        with writing(self.place):
            os.replace(self.file, self.place)
        self.file = self.place

    def settle(self) -> Path:
        """Replace the notebook that the run had if this one has trained it, and return where this one is."""
        if self.has_trained and self._cells():
            self.take_place()
        return self.file

    def end(self, error: BaseException) -> None:
        """Keep what was executed until `error`, unless nothing was.

        Beside another notebook, what is damaged or was interrupted before a training is of no use either.
        """
        beside, cells = self.settle() != self.place, self._cells()
        # Papermill records when a cell started; of a damaged notebook nobody knows.
        begun = cells is None or any(cell["metadata"].get("papermill", {}).get("start_time") for cell in cells)
        if not begun or (beside and (cells is None or isinstance(error, KeyboardInterrupt))):
            self.discard()

    def discard(self) -> None:
        """Remove it, and the folders that were made for it if they are empty."""
        self.file.unlink(missing_ok=True)
        with suppress(OSError):  # not empty
            for path in self._made:
                path.rmdir()

    def shows_results(self) -> bool:
        """Return whether a cell has shown more than printed text, which was forwarded."""
        outputs = (output for cell in self._cells() or () for output in cell.get("outputs", ()))
        return any(output["output_type"] in ("display_data", "execute_result") for output in outputs)

    def _cells(self) -> list[dict[str, Any]] | None:
        """Return the cells that are in the file, none before papermill writes it, and `None` if it is damaged."""
        try:
            text = self.file.read_text("utf-8") if self.file.is_file() else ""
            return json.loads(text)["cells"] if text else []
        except (OSError, ValueError):  # also one that ends within a character
            return None

    def _status(self) -> bytes:
        path = self.place.parent / STATUS
        return path.read_bytes() if path.is_file() else b""
