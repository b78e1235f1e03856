"""Checks of the parameters of a study's notebook, which codeq knows by their names and values alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from codeq.common.errors import CodeqError
from codeq.runs.settings import FREE_KEYS, NEUTRAL_KEYS, data_folder
from codeq.runs.status import read_status
from codeq.studies.earlier import ABSENT, changed_study, executed_parameters
from codeq.studies.expand import Member, with_seed
from codeq.studies.results import OWN_COLUMNS


class NotebookParameter(Protocol):
    """Parameter of a notebook."""

    def text(self, value: Any) -> str:
        """Return the text of the command line that means `value`."""

    def accepts(self, value: Any) -> bool:
        """Return whether `value` has the type of the parameter."""


NotebookCheck = Callable[[str, Mapping[str, Any]], Mapping[str, NotebookParameter]]


def check_parameters(notebook: Path, member: Member, *, done: bool) -> None:
    """Refuse a member whose parameters are no columns of the study's table, or are not those of its run.

    Parameters
    ----------
    notebook : Path
        Of the member, where it was executed; it need not exist.
    member : Member
        Of the study.
    done : bool
        Whether the notebook was executed to its end, with or without a run of codeq.

    Raises
    ------
    CodeqError
        With the names of the parameters.
    """
    _check_columns(member.varied)
    _check_seed(member.changes)
    # Any other run is resumed, which checks its images and model.
    kept = done or read_status(notebook.parent).status == "done"
    _check_same(executed_parameters(notebook), member.changes, NEUTRAL_KEYS if kept else FREE_KEYS)


def _check_seed(changes: Mapping[str, Any]) -> None:
    """Refuse ``{seed}`` where the study gives none: the notebook would get the text as it is."""
    for key, value in changes.items():
        if with_seed(value, 0) != value:
            raise CodeqError(f"{key}: the study gives no seed for {{seed}}. Add one, as seeds: [0] or set: {{seed: 0}}")


def _check_columns(varied: Iterable[str]) -> None:
    for key in varied:
        if key in OWN_COLUMNS:
            raise CodeqError(
                f"{key}: a parameter that varies is a column of the study's table, which has one of this name "
                f"already. Rename it, to none of {', '.join(sorted(OWN_COLUMNS))}"
            )


def _check_same(executed: Mapping[str, Any], wanted: Mapping[str, Any], free: frozenset[str]) -> None:
    if not executed:  # nothing was executed yet
        return
    stored = {key: value for key, value in executed.items() if key not in free | {"resume"}}
    keys = stored.keys() | {key for key in wanted if key not in free}
    changed = [key for key in sorted(keys) if _meaning(stored, key) != _meaning(wanted, key)]
    if changed:
        raise changed_study(f"{key}={_shown(stored, key)} and not {_shown(wanted, key)}" for key in changed)


def _meaning(parameters: Mapping[str, Any], key: str) -> Any:
    """Return the value of a parameter, of `data_dir` the folder that it means; `ABSENT` for the notebook's default."""
    value = parameters.get(key, ABSENT)
    return data_folder(value) if key == "data_dir" and isinstance(value, str) else value


def _shown(parameters: Mapping[str, Any], key: str) -> str:
    return json.dumps(parameters[key], ensure_ascii=False) if key in parameters else "the notebook's default"
