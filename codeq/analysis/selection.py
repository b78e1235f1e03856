"""Which runs are meant: folders, globs, or the newest one; and what of them has been recorded in full."""

from __future__ import annotations

import glob
import os
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from codeq.common.errors import CodeqError
from codeq.common.paths import resolve
from codeq.runs import Run

if TYPE_CHECKING:
    import pandas as pd


def find_runs(patterns: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] | None = None) -> list[Run]:
    """Return the runs that `patterns` name, each once.

    Parameters
    ----------
    patterns : str, path or several of them, optional
        Run folders, folders that hold runs, or globs; relative ones start at the project's folder. One string may name
        several, separated by spaces (with quotes around a name that has some). Default: the newest run in ``outputs``.

    Returns
    -------
    list of Run
        In the order given; those of one folder or glob oldest first.

    Raises
    ------
    CodeqError
        If a pattern names no run, and if there is no run in ``outputs``.

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
        runs = Run.list("outputs")
        if not runs:
            raise CodeqError(f"no runs in {resolve('outputs')}; `make debug` makes the first one")
        return runs[-1:]
    if isinstance(patterns, str):
        patterns = [patterns] if resolve(patterns).exists() else _split(patterns)
    elif isinstance(patterns, os.PathLike):
        patterns = [patterns]
    found = {run.folder.resolve(): run for pattern in patterns for run in _runs_of(pattern)}
    if not found:
        raise CodeqError("runs is empty; name at least one run folder")
    return list(found.values())


def _split(patterns: str) -> list[str]:
    try:
        return shlex.split(patterns)
    except ValueError as error:  # a quote that is not closed
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
    return [Run.open(path)]  # which says what is wrong


def _open(folder: Path) -> Run:
    if not (folder / "status.json").is_file():
        raise CodeqError(f"{folder} holds no run (a config.yaml, but no status.json)")
    return Run.open(folder)


def run_labels(runs: Sequence[Run]) -> list[str]:
    """Return a short name for each run that tells them apart: its folder's, with as many parents as that takes.

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


def recorded_layers(run: Run) -> pd.DataFrame:
    """Return `Run.layers` of the epochs that were written in full.

    A run that is being written, or was killed while it wrote, may end in the middle of an epoch's rows.

    Raises
    ------
    CodeqError
        If no epoch has been recorded.
    """
    layers = run.layers
    if len(layers):
        complete = layers[layers.iloc[:, -1].notna()]
        counts = complete.groupby("epoch")["layer"].size()
        complete = complete[complete["epoch"].isin(counts.index[counts == counts.iloc[0]])]
        if len(complete):
            return complete.reset_index(drop=True)
    raise CodeqError(f"{run.folder.name} has recorded no epoch; its status is {run.status!r}. {run.message}".strip())
