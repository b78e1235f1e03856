"""Members of earlier versions of a study, whose runs stand in its tables beside those of today's members."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from codeq.common.errors import CodeqError
from codeq.runs.settings import read_settings
from codeq.studies.expand import Member, with_seed
from codeq.studies.files import index_file, read_json
from codeq.studies.study import Study


def earlier_members(study: Study, members: Iterable[Member]) -> list[Member]:
    """Return the members of earlier versions of `study` that have a run and are none of `members`.

    Their changes are those of today's ``set``. Only in the keys that vary they keep their values: tables show these, so
    that runs which differ in anything else would pass for runs of the same settings.
    """
    today = {member.name: member.varied for member in members}
    shown = dict.fromkeys(key for varied in today.values() for key in varied)
    recorded = (read_json(index_file(study.folder)) or {}).get("members", {})
    found = []
    for name, entry in recorded.items():
        settings = {} if name in today else _settings(study, study.folder / name)
        if settings:
            every = {**study.set, **_values(settings, shown), **entry["varied"]}
            found.append(Member(name, entry["variant"], entry["varied"], with_seed(every, every.get("seed"))))
    return found


def _settings(study: Study, run: Path) -> dict[str, Any]:
    """Return the settings of a run: its configuration, or the parameters of its notebook; empty without a run."""
    if study.notebook:
        return executed_parameters(run / f"{Path(study.notebook).stem}.ipynb")
    try:
        return read_settings(run / "config.yaml")
    except CodeqError:  # damaged: tables say so
        return {}


def executed_parameters(notebook: Path) -> dict[str, Any]:
    """Return the parameters with which papermill executed `notebook`, which records them in it; empty if it has not.

    Examples
    --------
    >>> executed_parameters(Path("nowhere.ipynb"))
    {}
    """
    content: Any = read_json(notebook) or {}
    for step in ("metadata", "papermill", "parameters"):
        content = content.get(step) if isinstance(content, dict) else None
    return content if isinstance(content, dict) else {}


def _values(settings: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """Return the values of those dotted `keys` that `settings` have.

    Examples
    --------
    >>> settings = {"loss_terms": [{"lambda": 2}], "quantizer": None}
    >>> _values(settings, ["loss_terms.0.lambda", "quantizer", "quantizer.name"])
    {'loss_terms.0.lambda': 2, 'quantizer': None}
    """
    found = {}
    for key in keys:
        value: Any = settings
        for step in key.split("."):
            inside = {str(k): entry for k, entry in enumerate(value)} if isinstance(value, list) else value
            if not isinstance(inside, Mapping) or step not in inside:
                break
            value = inside[step]
        else:
            found[key] = value
    return found
