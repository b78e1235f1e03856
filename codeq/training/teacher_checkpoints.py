"""Checkpoints that teach a training: chosen when it starts, recorded in its own, and found again when it resumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from codeq.common.errors import CodeqError, quote
from codeq.config.parts import DistillationConfig
from codeq.runs import Run
from codeq.runs.checkpoints import CheckpointEntry, checkpoint_entry, read_manifest


def teaching_checkpoints(
    settings: DistillationConfig, recorded: Sequence[Mapping[str, Any]] | None = None
) -> list[CheckpointEntry]:
    """Return the checkpoint of each teacher: the recorded one, else the best where validation images chose it, or last.

    Without a validation split the best epoch is chosen on the test images, which must not reach another training.

    Parameters
    ----------
    settings : DistillationConfig
        Names the teachers' runs, which may have other folders than when the training started.
    recorded : sequence of mapping, optional
        Entries of the checkpoints that have taught the training until now.

    Raises
    ------
    CodeqError
        If there is no such run, or a recorded checkpoint is not in it: its training has gone on, or it is another run.
    """
    if recorded is not None and len(recorded) != len(settings.teachers):
        raise CodeqError(
            f"distillation.teacher names {len(settings.teachers)} runs, but {len(recorded)} have taught this training"
        )
    wanted = [None] * len(settings.teachers) if recorded is None else [CheckpointEntry(**entry) for entry in recorded]
    return [_choose(folder, entry) for folder, entry in zip(settings.teachers, wanted, strict=True)]


def _choose(folder: str, wanted: CheckpointEntry | None) -> CheckpointEntry:
    named = f"distillation.teacher={quote(folder)}"
    try:
        run = Run.open(folder)
        if wanted is None:
            return checkpoint_entry(run.checkpoints, "best" if run.config.validation else "last")
        entries = {entry.sha256: entry for entry in read_manifest(run.checkpoints).values()}
    except CodeqError as error:
        raise CodeqError(f"{named}: {error}") from error
    if wanted.sha256 not in entries:
        found = ", ".join(sorted({entry.file for entry in entries.values()})) or "none"
        raise CodeqError(
            f"{named} no longer has the checkpoint that has taught this training, {wanted.file} of epoch "
            f"{wanted.epoch + 1} (SHA-256 {wanted.sha256[:12]}…; there now: {found}). Restore its folder checkpoints, "
            "or name the folder that has it by --set distillation.teacher=…; otherwise start this training anew"
        )
    return entries[wanted.sha256]
