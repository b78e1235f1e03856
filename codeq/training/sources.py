"""Warnings of the runs that a training builds on: its starting point and its teachers."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from codeq.common.errors import CodeqError, quote
from codeq.common.paths import resolve
from codeq.config import ExperimentConfig
from codeq.runs.settings import read_settings
from codeq.runs.status import FILE, current_status, read_status
from codeq.training.seen_images import images_seen


def source_warnings(config: ExperimentConfig) -> list[str]:
    """Return what makes the runs that a training of `config` builds on doubtful, one sentence each.

    They may have seen the images that it holds out, may not be done, and a teacher may know other classes.

    Examples
    --------
    >>> source_warnings(ExperimentConfig("from-scratch"))
    []
    """
    found = [images_seen(config)]
    if config.init_from:
        found.append(_unfinished("init_from", config.init_from))
    if config.distillation:
        for teacher in config.distillation.teachers:
            found += [_unfinished("distillation.teacher", teacher), _other_data(teacher, config.dataset)]
    return [text for text in found if text]


def _unfinished(key: str, source: str) -> str:
    run = resolve(source)
    if not (run / FILE).is_file():  # a file, which was chosen as it is
        return ""
    status = current_status(run, read_status(run))
    if status == "done":
        return ""
    return f"{key}={quote(source)} is a run that is not done ({status}): its checkpoints may be early ones"


def _other_data(teacher: str, dataset: str) -> str:
    with suppress(CodeqError):  # a configuration that cannot be read says nothing
        trained_on = read_settings(Path(resolve(teacher), "config.yaml")).get("dataset", dataset)
        if trained_on != dataset:
            return (
                f"distillation.teacher={quote(teacher)} was trained on dataset {quote(trained_on)}, not on "
                f"{quote(dataset)}: its predictions are of use only where the classes are the same"
            )
    return ""
