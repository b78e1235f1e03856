"""Pruning in a search: members that are worse than half of the finished ones, at the same epoch, are stopped."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codeq.common.errors import CodeqError
from codeq.runs.tables import complete_lines
from codeq.studies.attempts import file_system_time
from codeq.studies.files import HIDDEN, read_index
from codeq.studies.states import read_state
from codeq.studies.trials import score

MIN_FINISHED = 4  # members to compare with; the median of fewer says little
COLUMNS = ("eval/accuracy", "compression/unstructured_bops_ratio")

Course = Sequence[tuple[float, float]]  # accuracy and relative BOPs after each epoch


@dataclass(frozen=True)
class Pruning:
    """The median rule of Golovin et al., "Google Vizier" (KDD 2017), for the objectives of a search.

    Parameters
    ----------
    after : int
        Epochs that every member trains.
    constraint : mapping
        Of the search: it decides which figures are compared.
    """

    after: int
    constraint: Mapping[Any, float]

    def reason(self, course: Course, finished: Sequence[Course]) -> str:
        """Return why a member is hopeless: each of its objectives is worse than the median of the finished members.

        Parameters
        ----------
        course : sequence of (float, float)
            Accuracy and relative BOPs after each epoch of the member.
        finished : sequence of sequences
            The same for each finished one.

        Returns
        -------
        str
            Empty if it is not hopeless, or too early to say.

        Examples
        --------
        >>> rule, finished = Pruning(after=1, constraint={}), [[(0.5, 0.2), (0.9, 0.1)]] * 4
        >>> rule.reason([(0.4, 0.3)], finished)
        'pruned after epoch 1 at 40.00 % and 30.00 % of the BOPs; medians of 4 members: 50.00 % and 20.00 %'
        >>> rule.reason([(0.4, 0.1)], finished)  # fewer BOPs
        ''
        """
        epochs = len(course)
        others = [other[epochs - 1] for other in finished if len(other) >= epochs]
        others = [figures for figures in others if all(map(math.isfinite, figures))]
        if epochs < self.after or len(others) < MIN_FINISHED or not all(map(math.isfinite, course[-1])):
            return ""
        medians = _medians([self._objectives(*figures) for figures in others])
        if any(value >= median for value, median in zip(self._objectives(*course[-1]), medians, strict=True)):
            return ""
        figures = (course[-1], _medians(others))
        here, there = (f"{100 * accuracy:.2f} % and {100 * bops:.2f} %" for accuracy, bops in figures)
        return f"pruned after epoch {epochs} at {here} of the BOPs; medians of {len(others)} members: {there}"

    def _objectives(self, accuracy: float, bops: float) -> list[float]:
        """Return what the search maximizes."""
        return score(accuracy, bops, self.constraint) if self.constraint else [accuracy, -bops]


class Pruner:
    """Comparison of a running member with the finished ones, from the files of their runs.

    Parameters
    ----------
    rule : Pruning
        The rule.
    study : Path
        Folder of the study.
    member : str
        Name of the member.
    """

    def __init__(self, rule: Pruning, study: Path, member: str) -> None:
        self._rule = rule
        self._study = study
        self._member = member
        self._size = 0  # bytes of the table when it was read last

    def reason(self) -> str:
        """Return why the member is hopeless after its last epoch; empty if it is not, or no epoch has ended since."""
        table = self._study / self._member / "metrics.csv"
        size = table.stat().st_size if table.exists() else 0
        if size == self._size:
            return ""
        self._size = size
        course = read_course(table.parent)
        now = file_system_time(self._study / HIDDEN)
        finished = [name for name in read_index(self._study) if read_state(self._study, name, now).state == "done"]
        return self._rule.reason(course, [read_course(self._study / name) for name in finished])


def read_course(run: Path) -> list[tuple[float, float]]:
    """Return accuracy and relative BOPs after each epoch of a run; none where there is no readable table.

    Examples
    --------
    >>> read_course(Path("nowhere"))
    []
    """
    try:
        rows = list(csv.DictReader(io.StringIO(complete_lines(run / "metrics.csv"))))
        return [(float(row[COLUMNS[0]]), 1 / float(row[COLUMNS[1]])) for row in rows]
    except (CodeqError, ValueError, KeyError, TypeError, ZeroDivisionError):
        return []


def _medians(figures: Sequence[Sequence[float]]) -> list[float]:
    return [statistics.median(column) for column in zip(*figures, strict=True)]
