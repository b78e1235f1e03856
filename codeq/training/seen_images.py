"""Held-out images that a training's starting point was trained on: accuracy on them says nothing about new images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from codeq.common.errors import CodeqError, quote
from codeq.common.paths import resolve
from codeq.config import ExperimentConfig
from codeq.runs.settings import read_settings

DATA = ("dataset", "data_dir")
# Keys that decide which of its images are held out.
SPLIT = ("validation", "seed")


def images_seen(config: ExperimentConfig) -> str:
    """Return why held-out images of a training are not new to it, or nothing.

    The run of `init_from`, or of the teacher, may have trained on images that `config` holds out, and so may the runs
    that these started from. Files of weights without a run around them say nothing about their images.

    Parameters
    ----------
    config : ExperimentConfig
        With or without `validation`.

    Examples
    --------
    >>> images_seen(ExperimentConfig("new", validation=0.1))
    ''
    """
    if config.validation is None:
        return ""
    ours = {key: getattr(config, key) for key in (*DATA, *SPLIT)}
    sources = {"init_from": config.init_from}
    if config.distillation:
        sources["distillation.teacher"] = config.distillation.teacher
    for key, source in sources.items():
        visited: set[Path] = set()
        while source and (folder := _run_folder(source)) and folder not in visited:
            visited.add(folder)
            theirs = _settings(folder)
            same_data = all(theirs.get(name) == ours[name] for name in DATA)
            if same_data and any(theirs.get(name) != ours[name] for name in SPLIT):
                earlier = "" if len(visited) == 1 else f" (of {folder.name}, from which it started)"
                return (
                    f"the validation images were training images of {key}={quote(sources[key])}{earlier}: accuracy on "
                    f"them is too high. Give that training the same split: validation={config.validation}, "
                    f"seed={config.seed}"
                )
            source = theirs.get("init_from")
    return ""


def _run_folder(source: str) -> Path | None:
    """Return the folder of the run that a path names, or that a file of weights lies in."""
    path = resolve(source)
    return next((folder for folder in (path, *path.parents[:2]) if (folder / "config.yaml").is_file()), None)


def _settings(folder: Path) -> dict[str, Any]:
    try:
        return read_settings(folder / "config.yaml")
    except CodeqError:
        return {}
