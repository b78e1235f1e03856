"""Warnings of the runs that a training builds on: its starting point and its teachers."""

from __future__ import annotations

from contextlib import suppress

from codeq.common.errors import CodeqError, quote
from codeq.common.paths import resolve
from codeq.config import ExperimentConfig
from codeq.data.base import BaseDataset
from codeq.runs.checkpoints import CHECKPOINTS, peek_checkpoint
from codeq.runs.settings import data_folder, read_settings
from codeq.runs.status import FILE, current_status, read_status
from codeq.training.seen_images import images_seen
from codeq.training.source_data import normalization_warning

_REPLACED = (
    "If its training goes on, it deletes the checkpoint that teaches, and this training cannot be resumed after an "
    "interruption: let the teacher finish first, or copy its folder"
)


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
            reason = _unfinished("distillation.teacher", teacher)
            found += [f"{reason}. {_REPLACED}" if reason else "", _other_data(teacher, config)]
    return [text for text in found if text]


def _unfinished(key: str, source: str) -> str:
    run = resolve(source)
    if not (run / FILE).is_file():  # a file, which was chosen as it is
        return ""
    status = current_status(run, read_status(run))
    if status == "done":
        return ""
    return f"{key}={quote(source)} is a run that is not done ({status}): its checkpoints may be early ones"


def start_warning(config: ExperimentConfig, dataset: BaseDataset) -> str:
    """Return that the run of `init_from` was trained on images normalized otherwise than those of `dataset`, if so."""
    folder = resolve(config.init_from) / CHECKPOINTS if config.init_from else None
    recorded = peek_checkpoint(folder) if folder else None
    return normalization_warning(recorded or {}, dataset, f"init_from={quote(config.init_from)}")


def _other_data(teacher: str, config: ExperimentConfig) -> str:
    """Return that a teacher knows another data set, or perhaps one: that of another folder, in an earlier version."""
    folder, named = resolve(teacher), f"distillation.teacher={quote(teacher)}"
    known = "normalization" in (peek_checkpoint(folder / CHECKPOINTS) or {})
    alike = "the classes are the same" if known else "the classes and the normalization of the images are the same"
    with suppress(CodeqError):  # a configuration that cannot be read says nothing
        theirs = read_settings(folder / "config.yaml")
        trained_on = theirs.get("dataset", config.dataset)
        if trained_on != config.dataset:
            return (
                f"{named} was trained on dataset {quote(trained_on)}, not on {quote(config.dataset)}: its predictions "
                f"are of use only where {alike}"
            )
        images = data_folder(theirs.get("data_dir"))
        if trained_on == "imagefolder" and not known and images != data_folder(config.data_dir):
            return f"{named} was trained on images of {images}: its predictions are of use only where {alike}"
    return ""
