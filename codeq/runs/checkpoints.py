"""Atomic checkpoints: intact after a crash at any moment, and read without executing code.

A folder holds immutable files ``step-N.pt`` (``step-N-unevaluated.pt`` before the evaluation of an epoch) and one
``manifest.json``, replaced atomically and written last, that names the last, the previous and the best of them with
their SHA-256.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import pickle
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from codeq.common.atomic import write_atomically
from codeq.common.errors import CodeqError
from codeq.common.paths import make_folder, writing

logger = logging.getLogger(__name__)

CheckpointName = Literal["last", "best"]
Manifest = dict[str, "CheckpointEntry"]

CHECKPOINTS = "checkpoints"  # folder in that of a run
MANIFEST = "manifest.json"  # in the folder of the checkpoints


@dataclass(frozen=True)
class CheckpointEntry:
    """Entry of the manifest for one checkpoint.

    Parameters
    ----------
    file, sha256 : str
        File name and hash of the content.
    epoch : int
        0-based epoch in which it was saved.
    step : int
        Number of optimizer steps until then.
    accuracy : float or None
        Evaluation accuracy (fraction) after that epoch; `None` before its evaluation.
    """

    file: str
    sha256: str
    epoch: int
    step: int
    accuracy: float | None


def has_checkpoint(run: Path) -> bool:
    """Return whether the run in a folder has a checkpoint; one that was killed before its first cannot be resumed."""
    return (run / CHECKPOINTS / MANIFEST).is_file()


def last_step(run: Path) -> int | None:
    """Return the training step of the last checkpoint of the run in a folder; `None` without one that can be read."""
    try:
        entry = read_manifest(run / CHECKPOINTS).get("last")
    except CodeqError:
        return None
    return entry.step if entry else None


def read_manifest(folder: Path) -> Manifest:
    """Return the entries of the manifest in `folder` by role (``last``, ``previous``, ``best``); empty without one.

    Raises
    ------
    CodeqError
        If the manifest is damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return {}
    try:
        return {role: CheckpointEntry(**entry) for role, entry in json.loads(path.read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CodeqError(f"{path} is damaged and names no checkpoint: {error}") from error


def save_checkpoint(
    folder: Path,
    state: dict[str, Any],
    *,
    epoch: int,
    step: int,
    accuracy: float | None,
    before_evaluation: bool = False,
) -> None:
    """Save a checkpoint as the last one, and as the best one if its accuracy is the highest so far.

    Older checkpoints are deleted only after the new one is read back intact; if it cannot be written, all of them stay.

    Parameters
    ----------
    folder : Path
        The run's ``checkpoints`` folder; created if missing.
    state : dict
        Tensors, numbers, strings and containers of them, readable with ``weights_only=True``.
    epoch, step : int
        0-based epoch, and number of optimizer steps so far.
    accuracy : float or None
        Evaluation accuracy (fraction), `None` before the evaluation of the epoch.
    before_evaluation : bool
        Whether the evaluation comes next, whose checkpoint will have the same number of steps.

    Raises
    ------
    CodeqError
        If it cannot be written, with the reason and the checkpoint that remains.
    """
    import torch

    make_folder(folder)
    manifest = read_manifest(folder)
    buffer = io.BytesIO()  # `torch.save` to a path would write the path's name into the file
    torch.save(state, buffer)
    data = buffer.getvalue()
    name = f"step-{step}-unevaluated.pt" if before_evaluation else f"step-{step}.pt"
    entry = CheckpointEntry(name, hashlib.sha256(data).hexdigest(), epoch, step, accuracy)
    roles = {"last": entry}
    if "last" in manifest:
        roles["previous"] = manifest["last"]
    best = manifest.get("best")
    if best is not None and (accuracy is None or (best.accuracy or 0.0) >= accuracy):
        roles["best"] = best
    elif accuracy is not None:
        roles["best"] = entry
    try:
        write_atomically(folder / entry.file, data)
        if not _intact(folder, entry):
            raise OSError("the file reads back differently")
        _replace_manifest(folder, roles)
    except OSError as error:
        kept = manifest.get("last")
        rest = f"; {kept.file} of epoch {kept.epoch + 1} remains" if kept else ""
        raise CodeqError(f"checkpoint {folder / entry.file} cannot be written: {error}{rest}") from error


def _replace_manifest(folder: Path, roles: Manifest) -> None:
    text = json.dumps({role: asdict(entry) for role, entry in roles.items()}, indent=1)
    write_atomically(folder / MANIFEST, text.encode())
    kept = {entry.file for entry in roles.values()}
    for old in (*folder.glob("step-*.pt"), *folder.glob(".*.tmp")):  # also those of a killed writer
        if old.name not in kept:
            old.unlink()


def _intact(folder: Path, entry: CheckpointEntry) -> bool:
    path = folder / entry.file
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == entry.sha256


def go_back_to(folder: Path, entry: CheckpointEntry) -> None:
    """Make `entry` the last checkpoint and delete all later ones, before a training resumes from it."""
    roles = {role: e for role, e in read_manifest(folder).items() if _place(e) <= _place(entry)}
    roles |= {"last": entry}
    if roles.get("previous") == entry:
        del roles["previous"]
    if "best" not in roles and entry.accuracy is not None:
        roles["best"] = entry
    with writing(folder / MANIFEST):
        _replace_manifest(folder, roles)


def _place(entry: CheckpointEntry) -> tuple[int, bool]:
    return entry.step, entry.accuracy is not None  # the evaluation of an epoch takes no steps


def _candidates(folder: Path, checkpoint: CheckpointName | str) -> list[CheckpointEntry]:
    if not folder.parent.is_dir():  # deleted or moved since the run was opened
        raise CodeqError(f"{folder.parent} no longer exists")
    manifest = read_manifest(folder)
    files = {entry.file: entry for entry in manifest.values()}
    if checkpoint not in ("last", "best") and checkpoint not in files:
        listed = f", or one of {', '.join(sorted(files))}" if files else ""
        raise CodeqError(f"{folder} has no checkpoint {checkpoint!r}: must be 'last' or 'best'{listed}")
    if checkpoint not in manifest and checkpoint not in files:
        if not folder.is_dir():
            raise CodeqError(f"{folder} does not exist: the run has no checkpoint yet, or they were removed")
        raise CodeqError(f"{folder} has no checkpoint yet ({'no evaluation' if manifest else f'no {MANIFEST}'})")
    roles = ["last", "previous"] if checkpoint == "last" else [checkpoint]
    return [manifest[role] for role in roles if role in manifest] or [files[checkpoint]]


def checkpoint_entry(folder: Path, checkpoint: CheckpointName | str = "last") -> CheckpointEntry:
    """Return the entry of the file that `load_checkpoint` reads, with the same warning: results made of it name it.

    Whoever reads a checkpoint more than once reads it by the name of this file: a running training gives the roles to
    later ones.

    Raises
    ------
    CodeqError
        If there is no checkpoint, none of the candidates is intact, or one cannot be read.
    """
    return _intact_content(folder, checkpoint)[0]


def load_checkpoint(folder: Path, checkpoint: CheckpointName | str = "last") -> tuple[dict[str, Any], CheckpointEntry]:
    """Read a checkpoint; if the last one is damaged, read the previous one and warn.

    Parameters
    ----------
    folder : Path
        The run's ``checkpoints`` folder.
    checkpoint : str
        ``"last"``, ``"best"``, or the name of a file that the manifest lists.

    Returns
    -------
    tuple
        The saved state on the CPU, and its entry of the manifest.

    Raises
    ------
    CodeqError
        If there is no checkpoint, none of the candidates is intact, or one holds anything but tensors and plain values.
    """
    import torch

    entry, data = _intact_content(folder, checkpoint)
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True), entry
    except pickle.UnpicklingError as error:
        raise CodeqError(
            f"{folder / entry.file} holds more than tensors and plain values, so it is not read (weights_only): "
            f"{str(error).splitlines()[0]}"
        ) from error


def _intact_content(folder: Path, checkpoint: CheckpointName | str) -> tuple[CheckpointEntry, bytes]:
    """Return the first intact candidate and the content of its file; warn of those before it."""
    problems: list[str] = []
    for entry in _candidates(folder, checkpoint):
        path = folder / entry.file
        try:
            data = path.read_bytes() if path.is_file() else b""
        except OSError as error:
            raise CodeqError(f"{path} cannot be read: {error}") from error
        if hashlib.sha256(data).hexdigest() == entry.sha256:
            if problems:
                logger.warning("%s; using %s of epoch %d instead", "; ".join(problems), entry.file, entry.epoch + 1)
            return entry, data
        problems.append(f"{path} is {'damaged' if data else 'missing or empty'}")
    raise CodeqError(f"no intact checkpoint: {'; '.join(problems)}")


def peek_checkpoint(folder: Path) -> dict[str, Any] | None:
    """Return the state in one of the checkpoints in `folder`, whose tensors stay in the file; `None` without one.

    It serves for what all checkpoints of a run have in common. Damaged ones are passed over.
    """
    import torch

    with suppress(CodeqError):  # a damaged manifest
        for entry in read_manifest(folder).values():
            with suppress(OSError, RuntimeError, EOFError, pickle.UnpicklingError):  # missing or damaged
                return dict(torch.load(folder / entry.file, map_location="cpu", mmap=True, weights_only=True))
    return None


def recorded_input_size(folder: Path) -> tuple[int, int, int] | None:
    """Return `(C, H, W)` of one input as the checkpoints in `folder` record it.

    `None` without a checkpoint that can be read, and for those of earlier versions, which did not record it.
    """
    size = (peek_checkpoint(folder) or {}).get("input_size")
    return (size[0], size[1], size[2]) if size else None
