"""Executes parameterized notebooks headlessly with papermill, each into the folder of its own run."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from codeq.common.errors import CodeqError, nearest, unknown_name
from codeq.common.paths import project_home, resolve
from codeq.runs import refuse_used_folder
from codeq.training.interruption import Preempted
from codeq.training.resuming import find_resumable

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
TYPES: dict[str, tuple[type, ...]] = {"int": (int,), "float": (float, int), "str": (str,), "bool": (bool,)}


def find_notebook(name: str) -> Path:
    """Return the path of a notebook, given its name in the project's ``notebooks`` folder or a path to it.

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
    if path.suffix == ".ipynb" and path.is_file():
        return path.absolute()
    known = {p.stem: p for p in NOTEBOOKS.glob("*.ipynb")}
    if path.stem not in known or len(path.parts) > 1:
        raise unknown_name("notebook", name, known)
    return known[path.stem]


def check_parameters(notebook: Path, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Compare `parameters` with the notebook's cell tagged ``parameters``; papermill itself would only warn.

    Returns
    -------
    dict
        The defaults of all parameters of the notebook.

    Raises
    ------
    CodeqError
        For a file that is no notebook, a parameter that the notebook does not have, with the nearest one, and a value
        of another type.

    Examples
    --------
    >>> check_parameters(find_notebook("debug_run"), {"epochs": 2})["epochs"]
    '20'
    """
    from papermill import inspect_notebook

    try:
        known = inspect_notebook(str(notebook))
    except ValueError as error:  # no JSON, or no kernel named
        raise CodeqError(f"{notebook} is no notebook of Python: {str(error).splitlines()[0]}") from error
    if not known:
        raise CodeqError(f"{notebook.name} has no cell tagged 'parameters', so it takes none")
    for name, value in parameters.items():
        if name not in known:
            guess = nearest(name, known)
            hint = f" Did you mean {guess!r}?" if guess else ""
            raise CodeqError(f"{notebook.name} has no parameter {name!r}.{hint} Allowed: {', '.join(known)}")
        declared = known[name]["inferred_type_name"]
        legal = TYPES.get(declared, (object,))
        optional = value is None and known[name]["default"] == "None"
        if not optional and (not isinstance(value, legal) or (isinstance(value, bool) and bool not in legal)):
            raise CodeqError(f"{notebook.name}: parameter {name}={value!r} must be of type {declared}")
    return {name: entry["default"] for name, entry in known.items()}


def run_notebook(
    name: str, parameters: Mapping[str, Any] | None = None, run_dir: str | os.PathLike[str] | None = None
) -> Path:
    """Execute a notebook headlessly and show what it prints as it prints it.

    Parameters
    ----------
    name : str
        Name in the project's ``notebooks`` folder, or a path.
    parameters : mapping, optional
        Values for its parameters.
    run_dir : path, optional
        Folder for the executed notebook and, through its parameter ``run_dir``, for the run that it makes; default
        ``outputs/<notebook>/<date-time>_<notebook>``.

    Returns
    -------
    Path
        The executed notebook. If a cell fails, it is written all the same, with the failing cell marked.

    Raises
    ------
    CodeqError
        For an unknown notebook or parameter, before anything starts, and if a cell fails.
    Preempted
        If SIGTERM or SIGUSR1 stopped the training in it, which has saved its state.
    """
    from nbclient.exceptions import DeadKernelError
    from papermill import execute_notebook
    from papermill.engines import papermill_engines
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config

    from codeq.cli.notebook_engine import ForwardingEngine

    papermill_engines.register("codeq", ForwardingEngine)

    notebook = find_notebook(name)
    parameters = dict(parameters or {})
    known = check_parameters(notebook, parameters)
    if parameters.get("resume"):
        folder = find_resumable(parameters["resume"])[0].folder
    else:
        folder = resolve(run_dir or parameters.get("run_dir") or _new_folder(notebook.stem))
        refuse_used_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # GNU OpenMP lets its threads spin for milliseconds while they wait, which stalls trainings that share cores, see
    # benchmarks/bench_sharing.py. The kernel inherits the setting.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if "run_dir" in known:
        parameters["run_dir"] = str(folder)
    executed = folder / notebook.name
    print(f"executing {notebook.name} → {executed}", flush=True)
    try:
        execute_notebook(
            str(notebook),
            str(executed),
            parameters,
            engine_name="codeq",
            kernel_name="python3",
            progress_bar=False,
            stdout_file=sys.stdout,
            stderr_file=sys.stderr,
            # The kernel listens on this machine alone; without this it warns about unencrypted connections.
            config=Config(KernelManager={"transport_encryption": "auto"}),
        )
    except PapermillExecutionError as error:
        if error.ename == Preempted.__name__:
            raise Preempted(error.evalue) from error
        raise CodeqError(
            f"cell {error.exec_count} of {notebook.name} failed: {error.ename}: {error.evalue}\n"
            f"The notebook with the failing cell marked: {executed}"
        ) from error
    except DeadKernelError as error:
        raise CodeqError(
            f"the kernel of {notebook.name} died, often for lack of memory; executed so far: {executed}"
        ) from error
    return executed


def _new_folder(name: str) -> Path:
    return project_home() / "outputs" / name / f"{datetime.now():%Y%m%d-%H%M%S}_{name}"
