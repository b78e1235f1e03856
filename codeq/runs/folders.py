"""Search for run folders, within bounds: a mistyped name never searches a whole disk."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from codeq.common.errors import CodeqError, quote
from codeq.runs.checkpoints import CHECKPOINTS
from codeq.runs.status import FILE, read_status

MAX_NAMED = 5  # runs in a message
MAX_OTHER_FOLDERS = 10_000  # folders without a run that a search visits; seconds on a network disk


def run_folders(root: Path) -> Iterator[Path]:
    """Yield the folders below `root`, itself included, that hold a run; hidden folders are left out.

    A study keeps the runs of abandoned attempts in one.

    Raises
    ------
    CodeqError
        If `root` is or contains the home folder, or has more than `MAX_OTHER_FOLDERS` folders without a run.
    """
    _refuse_home(root)
    others = 0
    for path, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if "config.yaml" in files and FILE in files:
            yield Path(path)
            folders[:] = [name for name in folders if name not in (CHECKPOINTS, "plots", "wandb", "tensorboard")]
        else:
            others += 1
            if others > MAX_OTHER_FOLDERS:
                found = f"{quote(str(root))} has more than {MAX_OTHER_FOLDERS:,} folders without a run"
                raise CodeqError(f"{found}: name a folder of runs")


def matching_folders(pattern: Path) -> list[Path]:
    """Return the folders that match a glob; ``**`` matches any number of folders.

    Existing folders at its beginning are meant literally, whatever brackets their names contain.

    Raises
    ------
    CodeqError
        If the pattern has ``**`` and begins in a folder that is or contains the home folder.
    """
    base = Path()
    for number, part in enumerate(pattern.parts):
        if glob.has_magic(part) and not (base / part).is_dir():
            rest = Path(*pattern.parts[number:])
            break
        base /= part
    else:
        return [base] if base.is_dir() else []
    if "**" in rest.parts:
        _refuse_home(base)
    literal = Path(glob.escape(str(base)), rest)  # with `root_dir`, a final ** would not match `base` itself
    return [path for path in map(Path, sorted(glob.glob(str(literal), recursive=True))) if path.is_dir()]


def oldest_first(folders: Iterable[Path]) -> list[Path]:
    """Return run folders, each once, in the order in which the runs started; by name where that is the same second."""
    return sorted(set(folders), key=lambda folder: (read_status(folder).started, folder.name, folder))


def runs_near(folder: Path) -> str:
    """Return the end of a message with the names of runs below `folder`, or else of those beside it."""
    below: list[str] = []
    with suppress(CodeqError):  # a home folder, or one with too many folders
        below = sorted(path.relative_to(folder).as_posix() for path in run_folders(folder))
    beside = sorted(path.parent.name for path in folder.parent.glob("*/config.yaml"))
    place, names = ("below", below) if below else ("beside", beside)
    return f"; runs {place} it: {', '.join(names[-MAX_NAMED:])}" if names else ""


def _refuse_home(folder: Path) -> None:
    home, real = Path(os.path.expanduser("~")), folder.resolve()  # "~" where nobody knows the user
    if real == real.parent or (home.is_absolute() and home.resolve().is_relative_to(real)):
        raise CodeqError(
            f"{quote(str(folder))} holds more than runs and is not searched: name a run or a folder of runs"
        )
