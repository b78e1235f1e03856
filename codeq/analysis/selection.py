"""Selection of runs by folder, glob or date."""

from __future__ import annotations

import glob
import os
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from codeq.common.errors import CodeqError
from codeq.common.paths import resolve
from codeq.runs import Run


def find_runs(patterns: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] | None = None) -> list[Run]:
    """Return the runs that match `patterns`, without duplicates.

    Parameters
    ----------
    patterns : str, path or several of them, optional
        Run folders, folders that contain runs, or globs; relative ones start at the project's folder. One string may
        hold several, separated by spaces (quote names with spaces). Default: the newest run in ``outputs``.

    Returns
    -------
    list of Run
        In the order of the patterns; those of one folder or glob oldest first.

    Raises
    ------
    CodeqError
        If a pattern matches no run, or there is no run in ``outputs``.

    Examples
    --------
    >>> import tempfile
    >>> from codeq.config import ExperimentConfig
    >>> with tempfile.TemporaryDirectory() as home:
    ...     for name in ("a", "b"):
    ...         _ = Run.create(ExperimentConfig(name=name, run_dir=f"{home}/{name}"))
    ...     [run.folder.name for run in find_runs(f"{home}/b {home}/*")]
    ['b', 'a']
    """
    if patterns is None:
        return [newest_run()]
    if isinstance(patterns, str):
        patterns = [patterns] if resolve(patterns).exists() else _split(patterns)
    elif isinstance(patterns, os.PathLike):
        patterns = [patterns]
    found = {run.folder.resolve(): run for pattern in patterns for run in _runs_of(pattern)}
    if not found:
        raise CodeqError("runs is empty: at least one run folder is required")
    return list(found.values())


def newest_run(path: str | os.PathLike[str] | None = None) -> Run:
    """Open the run in folder `path`; default the newest run in ``outputs``.

    Raises
    ------
    CodeqError
        If there is no run.

    Examples
    --------
    >>> newest_run()
    Traceback (most recent call last):
    ...
    codeq.CodeqError: no run in ...outputs yet: `make debug` creates one in minutes, or give a run folder
    """
    if path is not None:
        return Run.open(path)
    runs = Run.list()
    if not runs:
        folder = resolve("outputs")
        raise CodeqError(f"no run in {folder} yet: `make debug` creates one in minutes, or give a run folder")
    return runs[-1]


def _split(patterns: str) -> list[str]:
    try:
        return shlex.split(patterns)
    except ValueError as error:  # an unclosed quote
        raise CodeqError(f"runs={patterns!r}: {error}") from error


def _runs_of(pattern: str | os.PathLike[str]) -> list[Run]:
    path = resolve(pattern)
    if (path / "config.yaml").is_file():
        return [_open(path)]
    if path.is_dir() and (below := Run.list(path)):
        return below
    if glob.has_magic(str(pattern)):
        folders = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
        if runs := [run for folder in folders if folder.is_dir() for run in Run.list(folder)]:
            return runs
        raise CodeqError(f"runs={str(pattern)!r} matches no run folder")
    return [Run.open(path)]  # raises the error for a missing folder


def _open(folder: Path) -> Run:
    if not (folder / "status.json").is_file():
        raise CodeqError(f"{folder} contains no run (a config.yaml, but no status.json)")
    return Run.open(folder)


def run_labels(runs: Sequence[Run]) -> list[str]:
    """Return a short unique label for each run: the name of its folder, with as many parent folders as needed.

    Examples
    --------
    >>> run_labels([Run(Path("/x/seed0/resnet")), Run(Path("/x/seed1/resnet")), Run(Path("/x/mlp"))])
    ['seed0/resnet', 'seed1/resnet', 'x/mlp']
    """
    folders = [run.folder for run in runs]
    longest = max((len(folder.parts) for folder in folders), default=1)
    names = ["/".join(folder.parts[-depth:]) for depth in range(1, longest + 1) for folder in folders]
    tried = (names[k : k + len(folders)] for k in range(0, len(names), max(len(folders), 1)))
    return next((labels for labels in tried if len(set(labels)) == len(labels)), [str(folder) for folder in folders])
