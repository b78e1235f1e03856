"""One start of a study: check all members, run the missing ones, and print how to continue."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence

from codeq.common.console import show
from codeq.common.imports import import_options
from codeq.common.paths import short_path
from codeq.common.progress import announced
from codeq.config.yaml import override_options
from codeq.studies.checks import Plan, check
from codeq.studies.expand import expand
from codeq.studies.notebook_checks import NotebookCheck
from codeq.studies.progress import Row, counts, make_console, make_table, survey
from codeq.studies.rounds import Options, Places, advise, describe_places, describe_time, find_places, run_round
from codeq.studies.searching import run_search
from codeq.studies.states import FAILURES, STARTABLE
from codeq.studies.study import Study, read_study
from codeq.studies.tasks import write_index


def sweep(path: str | os.PathLike[str], options: Options, check_notebook: NotebookCheck) -> bool:
    """Start or continue the study in the file `path`, and return whether all of its members are done.

    Parameters and errors are those of `run_study`.
    """
    study, command = read_study(path, options.changes), _command(path, options)
    if study.search:
        return run_search(study, command, options)
    return run_study(study, command, options, check_notebook)


def _command(path: str | os.PathLike[str], options: Options) -> str:
    """Return the shell command that starts the study again with the same members.

    Examples
    --------
    >>> _command("my study.yaml", Options(workers=2, changes={"epochs": 2, "dataset": "digits"}, imports=["nets.py"]))
    "codeq sweep 'my study.yaml' --workers 2 --import nets.py --set epochs=2 dataset=digits"
    """
    workers = ["--workers", str(options.workers)] if options.workers is not None else []
    settings = override_options(options.changes or {})
    return shlex.join(["codeq", "sweep", os.fspath(path), *workers, *import_options(options.imports), *settings])


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
    rows = survey(study.folder, names)
    wanted = STARTABLE | (FAILURES if options.retry else frozenset())
    todo = {row.member: row for row in rows if row.found.state in wanted}
    with announced(f"checking {len(members)} members ..."):
        plan = check(study, members, set(todo), check_notebook)
    places = find_places(study, options.workers, len(todo), plan)
    announcement = _announce(study, rows, list(todo.values()), plan, places)
    if options.dry_run:
        show(announcement)
        return True
    console.print(announcement, markup=False)
    write_index(study, members)
    chosen = [member for member in members if member.name in todo]
    problems, stopped = run_round(study, chosen, todo, plan, places, names)
    rows = survey(study.folder, names)
    console.print(make_table(rows))
    for problem in problems:
        console.print(f"problem: {problem}", markup=False)
    advise(lambda line: console.print(line, markup=False), study, rows, command, stopped=stopped)
    return all(row.found.state == "done" for row in rows)


def _announce(study: Study, rows: Sequence[Row], todo: Sequence[Row], plan: Plan, places: Places) -> str:
    """Return a summary of the checks: members to run, workers, disk space and estimated time."""
    lines = [f"study {study.name} in {short_path(study.folder)}", counts(rows)]
    lines.append(describe_places(study, places, len(todo)))
    if plan.disk:
        lines.append(f"disk: about {plan.disk / 1e6:,.0f} MB")
    if plan.configs and todo and study.executor.name != "slurm":
        first = todo[0].member
        epochs = sum(plan.configs[row.member].epochs - row.epoch for row in todo)
        lines.append(describe_time(plan.configs[first], first, epochs, len(todo), places))
    return "\n".join(lines)
