"""Checkpoints that survive a crash at any moment and never execute anything when they are read.

A folder holds immutable files ``step-N.pt`` and one ``manifest.json``, replaced atomically and written last, that names
the last, the previous and the best of them with their SHA-256.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from codeq.errors import CodeqError

logger = logging.getLogger(__name__)

Which = Literal["last", "best"]


@dataclass(frozen=True)
class CheckpointEntry:
    """What the manifest knows about one checkpoint: file, epoch (0-based), optimizer steps, accuracy (fraction)."""

    file: str
    sha256: str
    epoch: int
    step: int
    accuracy: float


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader, or a power cut, finds the old content or the new, never a part.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_atomically(Path(folder, "x"), b"all of it")
    ...     Path(folder, "x").read_bytes()
    b'all of it'
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":  # makes the new name durable, too
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read_manifest(folder: Path) -> dict[str, CheckpointEntry]:
    """Return the entries of the manifest in `folder` by role (``last``, ``previous``, ``best``); none if there is none.

    Raises
    ------
    CodeqError
        If the manifest is damaged.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        return {}
    try:
        return {role: CheckpointEntry(**entry) for role, entry in json.loads(path.read_text()).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise CodeqError(f"{path} is damaged and names no checkpoint: {error}") from error


def save_checkpoint(folder: Path, state: dict[str, Any], *, epoch: int, step: int, accuracy: float) -> None:
    """Add a checkpoint as the last one, and as the best one if its accuracy is the highest so far.

    Parameters
    ----------
    folder : Path
        The run's ``checkpoints`` folder; made if missing.
    state : dict
        Tensors, numbers, strings and containers of them, so that ``weights_only=True`` reads it back.
    epoch, step : int
        0-based epoch just finished, and optimizer steps so far.
    accuracy : float
        Evaluation accuracy (fraction).
    """
    folder.mkdir(parents=True, exist_ok=True)
    manifest = read_manifest(folder)
    buffer = io.BytesIO()  # `torch.save` to a path would write the path's name into the file
    torch.save(state, buffer)
    data = buffer.getvalue()
    entry = CheckpointEntry(f"step-{step}.pt", hashlib.sha256(data).hexdigest(), epoch, step, accuracy)
    write_atomically(folder / entry.file, data)
    roles = {"last": entry, "best": entry}
    if "last" in manifest:
        roles["previous"] = manifest["last"]
        if manifest["best"].accuracy >= accuracy:
            roles["best"] = manifest["best"]
    text = json.dumps({role: asdict(e) for role, e in roles.items()}, indent=1)
    write_atomically(folder / "manifest.json", text.encode())
    kept = {e.file for e in roles.values()}
    for old in folder.glob("step-*.pt"):
        if old.name not in kept:
            old.unlink()


def load_checkpoint(folder: Path, which: Which = "last") -> tuple[dict[str, Any], CheckpointEntry]:
    """Read the last or the best checkpoint; a damaged last one falls back to the one before, with a warning.

    Parameters
    ----------
    folder : Path
        The run's ``checkpoints`` folder.
    which : {"last", "best"}
        Role in the manifest.

    Returns
    -------
    tuple
        The saved state on the CPU, and the entry that it came from.

    Raises
    ------
    CodeqError
        If there is no checkpoint, or none of the candidates is intact.
    """
    if which not in ("last", "best"):
        raise CodeqError(f"which={which!r}: must be 'last' or 'best'")
    manifest = read_manifest(folder)
    if which not in manifest:
        raise CodeqError(f"{folder} has no checkpoint yet (no manifest.json)")
    roles = ["last", "previous"] if which == "last" else ["best"]
    candidates = [manifest[role] for role in roles if role in manifest]
    problems: list[str] = []
    for entry in candidates:
        path = folder / entry.file
        data = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(data).hexdigest() == entry.sha256:
            if problems:
                logger.warning("%s; using %s of epoch %d instead", "; ".join(problems), entry.file, entry.epoch + 1)
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True), entry
        problems.append(f"{path} is {'damaged' if data else 'missing or empty'}")
    raise CodeqError(f"no intact checkpoint: {'; '.join(problems)}")
