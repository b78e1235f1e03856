"""Headless execution of parameterized notebooks with papermill, each into the folder of its run."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from codeq.cli.executed_notebook import ExecutedNotebook
from codeq.cli.notebook_parameters import check_parameters, path_parameter, takes_path
from codeq.common.console import TolerantStream, say
from codeq.common.errors import CodeqError, quote, unknown_name
from codeq.common.paths import (
    WORKBENCH,
    make_folder,
    make_new_folder,
    project_home,
    resolve,
    write_new_file,
    write_numbered_file,
    writing,
)
from codeq.runs import refuse_used_folder
from codeq.training.interruption import Interrupted, Preempted

NOTEBOOKS = WORKBENCH / "notebooks"
START_TIMEOUT = 300  # seconds that a kernel may take to start, from a slow disk or beside trainings


def find_notebook(name: str) -> Path:
    """Return the path of a notebook, given a path to it or its name.

    A relative path starts in the working directory, else in the project. A name is looked up in ``notebooks/`` of the
    project's folder first, then among those that come with codeq.

    Raises
    ------
    CodeqError
        If there is none, with the nearest name.

    Examples
    --------
    >>> find_notebook("debug_run").name
    'debug_run.ipynb'
    """
    path = Path(name)
    for place in (path.absolute(), resolve(path)):
        if place.suffix == ".ipynb" and place.is_file():
            return place
    folders = (NOTEBOOKS, project_home() / "notebooks")
    known = {path.stem: path for folder in folders for path in folder.glob("*.ipynb")}
    stem = str(path).removesuffix(".ipynb")  # `path.stem` ends at any dot
    if stem not in known:
        raise unknown_name("notebook", name, known)
    return known[stem]


def run_notebook(
    name: str, parameters: Mapping[str, Any] | None = None, run_dir: str | os.PathLike[str] | None = None
) -> Path:
    """Execute a notebook headlessly and print its output while it runs.

    Parameters
    ----------
    name : str
        Path of the notebook, or its name, see `find_notebook`.
    parameters : mapping, optional
        Values for its parameters.
    run_dir : path, optional
        Folder for the executed notebook and, through its parameter ``run_dir``, for the run that it makes; default
        ``outputs/<notebook>/<date-time>_<notebook>``. A resumed run (parameter ``resume``) stays in its folder.

    Returns
    -------
    Path
        The executed notebook. It is written even if a cell fails, with the failing cell marked. The one that a resumed
        run already has is replaced once the run has been trained or the notebook has ended; until then the new one has
        another name beside it.

    Raises
    ------
    CodeqError
        For an unknown notebook or parameter, a folder in use, a second folder and one beside ``resume``, before
        anything starts; if a cell fails or the executed notebook cannot be written; and for a kernel that does not
        start and a mistake that the notebook itself finds before it trains a run or shows a result, which leave no new
        folder and a resumed run as it was.
    Preempted
        If Ctrl-C or another signal stopped the training in it, which has saved its state; and if another signal than
        Ctrl-C stopped anything else in it.
    KeyboardInterrupt
        If Ctrl-C stopped anything else in it, or its start, which leaves no new folder.
    """
    notebook = find_notebook(name)
    parameters = dict(parameters or {})
    known = check_parameters(notebook, parameters)
    run_dir_given, resume = (path_parameter(key, parameters, known) for key in ("run_dir", "resume"))
    chosen = _chosen_folder(run_dir, run_dir_given)
    made: list[Path] = []
    if resume is not None:
        from codeq.training.resuming import find_resumable

        resumed = find_resumable(resume)
        parameters["resume"] = str(resumed.path)  # `latest` may mean another run by the time the kernel has started
        folder = resumed.run.folder
        if chosen is not None and resolve(chosen).resolve() != folder.resolve():
            raise CodeqError(
                f"run_dir={quote(str(chosen))} and resume={quote(str(resumed.path))}: a resumed run stays in its "
                f"folder, so run_dir must be {folder} or left out"
            )
        file = write_numbered_file(folder, notebook.stem, notebook.suffix, "")
    else:
        folder, made = _new_folder(notebook, chosen)
        file = folder / notebook.name
        write_new_file(file, "")  # of two processes with this folder, one is refused
    executed = ExecutedNotebook(folder / notebook.name, file, made)
    if takes_path("run_dir", known):
        parameters["run_dir"] = str(folder)
    try:
        with writing(executed.place):
            _execute(notebook, executed, parameters, takes_path("resume", known))
    except BaseException as error:  # also Ctrl-C while the kernel starts
        executed.end(error)
        raise
    executed.take_place()
    return executed.place


def _chosen_folder(run_dir: str | os.PathLike[str] | None, parameter: str | None) -> str | os.PathLike[str] | None:
    """Return the folder that the user has chosen, by the option or by the parameter of the notebook."""
    if run_dir is None:
        return parameter
    if not os.fspath(run_dir):  # as of an unset variable of the shell
        raise CodeqError("run_dir is empty: must be a folder, or left out for a new one in outputs/")
    if parameter is not None and resolve(parameter).resolve() != resolve(run_dir).resolve():
        raise CodeqError(
            f"run_dir={quote(str(run_dir))} and the notebook's parameter run_dir={quote(parameter)} are two folders: "
            "give one of them"
        )
    return run_dir


def _execute(notebook: Path, executed: ExecutedNotebook, parameters: Mapping[str, Any], resumable: bool) -> None:
    """Execute a notebook into the file `executed`; errors are those of `run_notebook`.

    `resumable` is whether the notebook can resume a run.
    """
    with _without_address_parser():
        from nbclient.exceptions import DeadKernelError
        from papermill import execute_notebook
        from papermill.engines import papermill_engines
        from papermill.exceptions import PapermillExecutionError
        from traitlets.config import Config

        from codeq.cli.notebook_engine import ForwardingEngine

    papermill_engines.register("codeq", ForwardingEngine)
    say(f"executing {notebook.name} → {executed.place}")
    try:
        execute_notebook(
            _literally(notebook),
            _literally(executed.file),
            parameters,
            engine_name="codeq",
            kernel_name="python3",
            language="python",  # not every notebook names it, and `check_parameters` has refused those of another one
            progress_bar=False,
            stdout_file=TolerantStream(sys.stdout),
            stderr_file=TolerantStream(sys.stderr),
            start_timeout=START_TIMEOUT,
            # The kernel listens on this machine only; without this it warns about unencrypted connections.
            config=Config(KernelManager={"transport_encryption": "auto"}),
        )
    except PapermillExecutionError as error:
        for kind in (Preempted, Interrupted):
            if error.ename == kind.__name__:
                raise kind(error.evalue) from error
        if error.ename == KeyboardInterrupt.__name__:
            raise KeyboardInterrupt from error
        if (
            error.ename == CodeqError.__name__
            and not executed.has_trained
            # Before its run, a notebook that can resume one shows nothing but the configuration.
            and (resumable or not executed.shows_results())
        ):
            executed.discard()
            raise CodeqError(f"{notebook.name}: {error.evalue}") from error
        raise CodeqError(
            f"cell {error.exec_count} of {notebook.name} failed: {error.ename}: {error.evalue}\n"
            f"The notebook with the failing cell marked: {executed.settle()}"
        ) from error
    except Preempted as error:  # the kernel was ended by a signal, before anything trained in it
        raise Preempted(f"{notebook.name}: {error}; executed so far: {executed.settle()}") from error
    except CodeqError as error:  # the kernel did not start
        raise CodeqError(f"{notebook.name}: {error}") from error
    except DeadKernelError as error:
        raise CodeqError(
            f"the kernel of {notebook.name} died, often for lack of memory; executed so far: {executed.settle()}"
        ) from error


@contextmanager
def _without_address_parser() -> Iterator[None]:
    """Let jsonschema, which checks notebooks, skip its optional rfc3987_syntax: its import builds a parser for 2 s."""
    modules: dict[str, Any] = sys.modules
    skipped = modules.setdefault("rfc3987_syntax", None) is None
    try:
        yield
    finally:
        if skipped:
            del modules["rfc3987_syntax"]


def _literally(path: Path) -> str:
    """Return the text of which papermill, which takes it for a format, makes `path`."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _new_folder(notebook: Path, chosen: str | os.PathLike[str] | None) -> tuple[Path, list[Path]]:
    """Return the folder of the results of a new run, and all folders that were made for it, the innermost first.

    It is the chosen one, else a new one in ``outputs``.
    """
    stem = notebook.stem
    place = resolve(chosen) if chosen is not None else project_home() / "outputs" / stem
    made = [path for path in (place, *place.parents) if not path.exists()]
    if chosen is not None:
        refuse_used_folder(place)
        return make_folder(place), made
    folder = make_new_folder(place, f"{datetime.now():%Y%m%d-%H%M%S}_{stem}")
    return folder, [folder, *made]
