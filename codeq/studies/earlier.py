"""Members of earlier versions of a study, whose runs stand in its tables beside those of today's members."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from codeq.common.errors import CodeqError
from codeq.runs.settings import read_settings
from codeq.studies.dotted import look_up
from codeq.studies.expand import Member, with_seed
from codeq.studies.files import read_index, read_json
from codeq.studies.study import Study

ABSENT = object()


def earlier_members(study: Study, members: Iterable[Member]) -> list[Member]:
    """Return the members of earlier versions of `study` that have a run and are none of `members`.

    Their changes are those of today's ``set``. Only in the keys that vary they keep their values: tables show these, so
    that runs which differ in anything else would pass for runs of the same settings.
    """
    today = {member.name: member.varied for member in members}
    shown = dict.fromkeys(key for varied in today.values() for key in varied)
    found = []
    for name, entry in read_index(study.folder).items():
        settings = {} if name in today else _settings(study, name)
        if settings:
            stored = {key: look_up(settings, key, ABSENT) for key in shown}
            stored = {key: value for key, value in stored.items() if value is not ABSENT}
            every = {**study.set, **stored, **entry["varied"]}
            found.append(Member(name, entry["variant"], entry["varied"], with_seed(every, every.get("seed"))))
    return found


def _settings(study: Study, member: str) -> dict[str, Any]:
    """Return the settings of a member: its configuration, or the parameters of its notebook; empty without a run."""
    if study.notebook:
        return executed_parameters(executed_notebook(study, member))
    try:
        return read_settings(study.folder / member / "config.yaml")
    except CodeqError:  # damaged: tables say so
        return {}


def executed_notebook(study: Study, member: str) -> Path:
    """Return the path in the folder of a member at which its notebook is executed.

    Examples
    --------
    >>> from codeq.studies.study import make_study
    >>> study = make_study({"name": "s", "notebook": "own/train.v2"})
    >>> executed_notebook(study, "seed=0").relative_to(study.folder).as_posix()
    'seed=0/train.v2.ipynb'
    """
    assert study.notebook is not None
    name = Path(study.notebook).name.removesuffix(".ipynb")  # `stem` ends at any dot
    return study.folder / member / f"{name}.ipynb"


def executed_parameters(notebook: Path) -> dict[str, Any]:
    """Return the parameters with which papermill executed `notebook`, which records them in it; empty if it has not.

    Examples
    --------
    >>> executed_parameters(Path("nowhere.ipynb"))
    {}
    """
    found = look_up(read_json(notebook), "metadata.papermill.parameters")
    return found if isinstance(found, dict) else {}


def changed_study(differences: Iterable[str]) -> CodeqError:
    """Return the error for a run of a study that was made with other settings than the study has now.

    Examples
    --------
    >>> print(changed_study(["epochs=3 and not 9"]))
    the study has changed: its run was made with epochs=3 and not 9. Give the study another name, or remove that run
    """
    return CodeqError(
        f"the study has changed: its run was made with {'; '.join(differences)[:400]}. "
        "Give the study another name, or remove that run"
    )
