"""One start of a study: check all members, run the missing ones, and print how to continue."""

from __future__ import annotations

import os
import shlex
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from codeq.studies.checks import NotebookCheck, Plan, check
from codeq.studies.engines import Engine
from codeq.studies.expand import expand
from codeq.studies.following import follow
from codeq.studies.progress import Row, counts, make_console, make_table, short_path, survey
from codeq.studies.states import FAILURES, STARTABLE
from codeq.studies.study import Study, read_study
from codeq.studies.tasks import make_task, write_index
from codeq.studies.timing import estimate

START_UP = 8.0  # seconds that a member spends on imports, data and pictures


@dataclass(frozen=True)
class Options:
    """Options of one start of a study.

    Parameters
    ----------
    dry_run : bool
        Whether to stop after the checks.
    status : bool
        Whether to show the table only.
    retry : bool
        Whether to start failed members again.
    workers : int, optional
        Members at a time, instead of what the study file says.
    changes : dict, optional
        Added to the study's ``set``.
    """

    dry_run: bool = False
    status: bool = False
    retry: bool = False
    workers: int | None = None
    changes: Mapping[str, Any] | None = None


def sweep(path: str | os.PathLike[str], options: Options, check_notebook: NotebookCheck) -> bool:
    """Start or continue the study in the file `path`, and return whether all of its members are done.

    Parameters and errors are those of `run_study`.
    """
    return run_study(read_study(path, options.changes), f"codeq sweep {os.fspath(path)}", options, check_notebook)


def run_study(study: Study, command: str, options: Options, check_notebook: NotebookCheck) -> bool:
    """Start or continue a study, and return whether all of its members are done.

    Parameters
    ----------
    study : Study
        The study, with the changes of `options`.
    command : str
        Command that continues it, for the last lines.
    options : Options
        Options of this start.
    check_notebook : callable
        As in `codeq.studies.checks.check`.

    Raises
    ------
    CodeqError
        For mistakes in the study or any of its members, before the first one starts.
    """
    members = expand(study)
    names = [member.name for member in members]
    console = make_console()
    if options.status:
        rows = survey(study.folder, names)
        console.print(make_table(rows))
        return all(row.found.state == "done" for row in rows)
    rows = survey(study.folder, names)
    wanted = STARTABLE | (FAILURES if options.retry else frozenset())
    todo = [row for row in rows if row.found.state in wanted]
    workers, threads, slots = _places(study, options.workers, len(todo))
    plan = check(study, members, {row.member for row in todo}, check_notebook)
    console.print(_announce(study, rows, todo, plan, workers, threads), markup=False)
    if options.dry_run:
        return True
    write_index(study, members)
    tasks = [
        make_task(study, member, plan, row.found, threads)
        for member, row in zip(members, rows, strict=True)
        if row in todo
    ]
    engine = Engine(study.executor, tasks, workers, slots, uuid.uuid4().hex)
    stopped = follow(engine, study.folder, names)
    rows = survey(study.folder, names)
    console.print(make_table(rows))
    for problem in engine.problems:
        console.print(f"problem: {problem}", markup=False)
    _advise(console.print, rows, command, stopped)
    if upload := wandb_command(study.folder):
        console.print(f"W&B: offline; to upload all members: {upload}", markup=False)
    return all(row.found.state == "done" for row in rows)


def _places(study: Study, workers: int | None, members: int) -> tuple[int, int, list[dict[str, str]]]:
    """Return the number of members at a time, the threads of each, and the environment of each place."""
    executor = study.executor
    if executor.name == "slurm":
        count = workers or executor.workers or max(members, 1)
        return count, executor.cpus_per_run or 1, [{}] * count
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    device = str(study.set.get("device") or "cuda")
    gpus = gpus if device == "cuda" else []  # a GPU that the study names is used by all
    count = workers or executor.workers or max(len(gpus), 1)
    threads = executor.cpus_per_run or max(1, _cores() // count)
    slots = [{"CUDA_VISIBLE_DEVICES": gpus[place % len(gpus)]} if gpus else {} for place in range(count)]
    return count, threads, slots


def _cores() -> int:
    from joblib import cpu_count  # knows the limits of containers

    return cpu_count()


def _announce(study: Study, rows: Sequence[Row], todo: Sequence[Row], plan: Plan, workers: int, threads: int) -> str:
    """Return a summary of the checks: members to run, workers, disk space and estimated time."""
    here = f"{workers} at a time with {threads} thread{'s' if threads > 1 else ''} each"
    lines = [f"study {study.name} in {short_path(study.folder)}", counts(rows)]
    lines.append(f"{len(todo)} to run, {here}, executor {study.executor.name} via {study.via}")
    if plan.disk:
        lines.append(f"disk: about {plan.disk / 1e6:,.0f} MB")
    if plan.configs and todo and study.executor.name != "slurm":
        first = plan.configs[todo[0].member]
        epoch = estimate(first, threads)
        epochs = sum(plan.configs[row.member].epochs - row.epoch for row in todo)
        total = (epochs * epoch + START_UP * len(todo)) / min(workers, len(todo))
        lines.append(
            f"time: about {_duration(total)}, if every epoch takes the {epoch:.1f} s of {todo[0].member} "
            "(from a timed step)"
        )
    return "\n".join(lines)


def wandb_command(folder: Path) -> str:
    """Return the shell command that uploads what members of the study in `folder` recorded offline; empty if nothing.

    Examples
    --------
    >>> wandb_command(Path("/nowhere"))
    ''
    """
    parts = "*/wandb/offline-run-*"
    return f"wandb sync {shlex.quote(str(folder))}/{parts}" if next(folder.glob(parts), None) else ""


def _duration(seconds: float) -> str:
    """Write a duration in its two largest units.

    Examples
    --------
    >>> _duration(75), _duration(7200), _duration(100_000)
    ('1 min 15 s', '2 h 0 min', '1 d 3 h')
    """
    for unit, size, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit} {seconds % size // part:.0f} {smaller}"
    return f"{seconds:.0f} s"


def _advise(show: Any, rows: Sequence[Row], command: str, stopped: bool) -> None:
    """Print the commands that continue the study if members are not done."""
    states = {row.found.state for row in rows}
    if states & STARTABLE:
        show(f"{'stopped; ' if stopped else ''}to continue: {command}", markup=False)
    if states & FAILURES:
        show(f"to start failed members again: {command} --retry", markup=False)
    if "running" in states:
        show("members that are still running belong to another start of the study", markup=False)
