"""The table of a study as it stands, without starting anything or importing PyTorch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from codeq.common.console import show
from codeq.studies.expand import expand
from codeq.studies.progress import make_console, make_table, name_logs, survey
from codeq.studies.study import read_study
from codeq.studies.trials import HOPELESS, recorded_trials


def show_status(path: str | os.PathLike[str], changes: Mapping[str, Any] | None = None) -> bool:
    """Print the table of members, and return whether all of them have ended as they should.

    Parameters
    ----------
    path : path
        The study file.
    changes : dict, optional
        Added to the study's ``set``.

    Raises
    ------
    CodeqError
        For mistakes in the study file, for a search without Optuna, and if standard output cannot be written.
    """
    study = read_study(path, changes)
    if study.search:
        trials = recorded_trials(study)
        names = [member.name for member in trials.members()] if trials is not None else []
        good, complete = {"done", *HOPELESS}, trials is not None and trials.count >= study.search.trials
    else:
        names = [member.name for member in expand(study)]
        good, complete = {"done"}, True
    rows = survey(study.folder, names)
    console = make_console()
    with console.capture() as captured:  # for the encoding of the terminal
        console.print(make_table(rows))
        if logs := name_logs(study.folder, rows):
            console.print(logs, markup=False, soft_wrap=True)
    show(captured.get().removesuffix("\n"))
    return complete and all(row.found.state in good for row in rows)
