"""References to runs in commands and notebooks: folder, folder of runs, glob, ``latest``, part of a name."""

from __future__ import annotations

import glob
import os
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from codeq.common.errors import CodeqError, listed, nearest, quote
from codeq.common.paths import path_text, resolve, similar_file
from codeq.runs.folders import matching_folders, oldest_first, run_folders
from codeq.runs.run import Run
from codeq.runs.status import FILE

Reference = str | os.PathLike[str]

FORMS = "run folder, folder of runs, glob, latest, or part of a run's name"  # for the help of commands
LATEST = "latest"
MAX_LISTED = 8  # names of runs in a message


def find_runs(references: Reference | Iterable[Reference] | None = None) -> list[Run]:
    """Return the runs that `references` name, without duplicates.

    Parameters
    ----------
    references : str, path or several of them, optional
        Each of them is, in this order of precedence,

        - a run folder or a folder that contains runs, in the working directory, the project's folder or its
          ``outputs``, or a glob that matches such folders;
        - ``latest``, the run below ``outputs`` that started last, or ``FOLDER/latest``, the last one in that folder;
        - a part of the name of one run, which is its path below ``outputs``: ``STUDY/MEMBER``. A complete name, or
          the last folders of one, is preferred to a part of others.

        One string may hold several, separated by spaces (quote names with spaces). Default: ``latest``.

    Returns
    -------
    list of Run
        In the order of the references; those of one folder or glob oldest first.

    Raises
    ------
    CodeqError
        If a reference matches no run, with the nearest name, or a part of a name matches several, with their names.
        For a home folder, the root of a disk, and other folders too large to search.

    Examples
    --------
    >>> from codeq.config import ExperimentConfig
    >>> for name in ("wide", "narrow"):
    ...     _ = Run.create(ExperimentConfig(name, run_dir=f"outputs/resnets/{name}"))
    >>> [run.folder.name for run in find_runs("row resnets/wide")]
    ['narrow', 'wide']
    >>> find_runs("narow")
    Traceback (most recent call last):
    ...
    codeq.CodeqError: no run is named 'narow'. Did you mean 'narrow'? The newest runs in ...outputs: resnets/...
    """
    if references is None:
        return [find_run()]
    if isinstance(references, str):
        references = [references] if locate(references) else _split(references)
    elif isinstance(references, os.PathLike) or not isinstance(references, Iterable):
        references = [references]  # or what `_runs_of` refuses by name
    found = {run.folder.resolve(): run for reference in references for run in _runs_of(reference)}
    if not found:
        raise CodeqError("runs is empty: at least one run is required")
    return list(found.values())


def find_run(reference: Reference = LATEST) -> Run:
    """Return the run that one reference names, see `find_runs`.

    Raises
    ------
    CodeqError
        As `find_runs`, and for a folder or glob with several runs.
    """
    runs = _runs_of(reference)
    if len(runs) > 1:
        raise _ambiguous(path_text(reference), [str(run.folder) for run in runs])
    return runs[0]


def require_run(run: object) -> Run:
    """Return `run`, or raise a `CodeqError` if it is something else, such as the name of one.

    Examples
    --------
    >>> require_run("latest")
    Traceback (most recent call last):
    ...
    codeq.CodeqError: 'latest' is no Run: codeq.analysis.find_run(NAME) or codeq.Run.open(FOLDER) opens one
    """
    if not isinstance(run, Run):
        raise CodeqError(f"{quote(run)} is no Run: codeq.analysis.find_run(NAME) or codeq.Run.open(FOLDER) opens one")
    return run


def require_runs(runs: object) -> list[Run]:
    """Return one run, or several, as a list, or raise a `CodeqError` if they are something else, such as names.

    Examples
    --------
    >>> require_runs("outputs/*")
    Traceback (most recent call last):
    ...
    codeq.CodeqError: runs='outputs/*' is text: codeq.analysis.find_runs(NAMES) opens runs
    """
    if isinstance(runs, str):
        raise CodeqError(f"runs={quote(runs)} is text: codeq.analysis.find_runs(NAMES) opens runs")
    return [require_run(run) for run in (runs if isinstance(runs, Iterable) else [runs])]


def find_config(path: Reference) -> Path:
    """Return the file of a configuration; that of a run may be given as ``RUN/config.yaml``, see `find_runs`.

    A folder that is not a run stands for none of the runs in it: its own file is meant, whether or not there is one.

    Raises
    ------
    CodeqError
        For a folder, a name that is not that of a YAML file, and where ``RUN`` names no run or several.
    """
    if not path_text(path):  # as of an unset variable of the shell
        raise CodeqError("the name of a configuration is empty: must be a YAML file, or RUN/config.yaml")
    file = Path(path)
    if file.is_dir() or resolve(file).is_dir():
        raise CodeqError(f"{quote(str(file))} is a folder: must be a YAML file, or RUN/config.yaml to repeat a run")
    if file.exists() or resolve(file).exists() or (file.suffix in (".yaml", ".yml") and file.name != "config.yaml"):
        return file
    if file.name == "config.yaml":
        folder = locate(file.parent)
        if folder and not (folder / file.name).is_file():
            return file
        return find_run(file.parent).folder / file.name
    example = similar_file(Path(f"{file.name:.200}.yaml"))
    run, settings = (shlex.quote(f"{file!s:.200}{end}") for end in ("", "/config.yaml"))
    raise CodeqError(
        f"{quote(str(file))} is not a file: must be a YAML file. {settings} repeats that run in a new folder, "
        f"and `codeq train --resume {run}` resumes it{example}"
    )


def locate(reference: Reference) -> Path | None:
    """Return the folder that a path names in the working directory, the project's folder or its ``outputs``.

    The first one that contains a run is preferred; `None` if there is no folder of that name.
    """
    folders = [path for path in _paths(reference) if path.is_dir()]
    return next((folder for folder in folders if next(run_folders(folder), None)), next(iter(folders), None))


def _paths(reference: Reference) -> list[Path]:
    if not path_text(reference):  # as of an unset variable of the shell, not the working directory
        raise CodeqError(f"the name of a run is empty: must be {FORMS}")
    resolve(reference)  # refuses what no file system accepts
    path = Path(reference).expanduser()
    return list(dict.fromkeys(base / path for base in (Path.cwd(), resolve(""), resolve("outputs"))))


def _split(references: str) -> list[str]:
    try:
        return shlex.split(references)
    except ValueError as error:  # an unclosed quote
        raise CodeqError(f"runs={quote(references)}: {error}") from error


def _runs_of(reference: Reference) -> list[Run]:
    text = path_text(reference)
    if folder := locate(text):
        return _runs_in(folder)
    if glob.has_magic(text):
        for pattern in _paths(text):
            if folders := oldest_first(run for folder in matching_folders(pattern) for run in run_folders(folder)):
                return [Run(folder) for folder in folders]
        raise CodeqError(f"{quote(text)} matches no run folder")
    return [_named(text)]


def _runs_in(folder: Path) -> list[Run]:
    if (folder / "config.yaml").is_file():
        if not (folder / FILE).is_file():
            raise CodeqError(f"{folder} holds no run (a config.yaml, but no {FILE})")
        return [Run(folder)]
    if runs := Run.list(folder):
        return runs
    raise CodeqError(f"{folder} holds no run (no config.yaml in it or below it)")


def _named(reference: str) -> Run:
    """Return the run named by ``latest`` or a part of a name, either of them perhaps after a folder."""
    head, _, part = reference.rstrip("/").rpartition("/")
    outputs = resolve("outputs")
    root = locate(head) if head else outputs
    if root is None or (root / "config.yaml").is_file():  # inside a run there are no others
        root, part = outputs, reference.strip("/")
    # Below other folders than `outputs` there can be anything, so names are looked up in the folder itself only.
    below = part == LATEST or root.is_relative_to(outputs)
    inside = (path.parent for path in root.glob(f"*/{FILE}"))
    runs = Run.list(root) if below else [Run(folder) for folder in oldest_first(inside)]
    if part == LATEST and runs:
        return runs[-1]
    if not runs:
        hint = " yet: `codeq notebook debug_run` makes one in minutes, or give a run folder" if root == outputs else ""
        raise CodeqError(f"{quote(reference)} names no run: there is none in {root}{hint}")
    names = {run.folder.relative_to(root).as_posix(): run for run in runs}
    complete = [name for name in names if f"/{name}".endswith(f"/{part}")]
    found = complete or [name for name in names if part in name]
    if not found:
        raise _unknown(reference, part, root, list(names))
    if len(found) > 1:
        raise _ambiguous(reference, found)
    return names[found[0]]


def _ambiguous(reference: str, names: Sequence[str]) -> CodeqError:
    few = listed(names, MAX_LISTED)
    return CodeqError(f"{quote(reference)} names {len(names)} runs, give one of them: {few}")


def _unknown(reference: str, part: str, root: Path, names: Sequence[str]) -> CodeqError:
    parts = {step for name in names for step in (name, *name.split("/"))}
    guess = nearest(part, parts | {re.sub(r"^\d{8}-\d{6}_", "", step) for step in parts} | {LATEST})
    hint = f" Did you mean {guess!r}?" if guess else ""
    if file := next((path for path in _paths(reference) if path.is_file()), None):
        hint = f" {file} is a file; a run is a folder."
    newest = ", ".join(names[: -MAX_LISTED - 1 : -1])
    return CodeqError(f"no run is named {quote(reference)}.{hint} The newest runs in {root}: {newest}")
