"""One round of a study: the places for its members, their execution, and the lines before and after it."""

from __future__ import annotations

import os
import shlex
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from codeq.common.progress import announced
from codeq.config import ExperimentConfig
from codeq.studies.checks import Plan
from codeq.studies.engines import DAY, Engine
from codeq.studies.expand import Member, expand
from codeq.studies.following import follow
from codeq.studies.parts import Executor
from codeq.studies.progress import Row, name_logs
from codeq.studies.states import FAILURES, STARTABLE
from codeq.studies.study import Study
from codeq.studies.tasks import make_task
from codeq.studies.timing import estimate

START_UP = 8.0  # seconds that a member spends on imports, data and pictures


@dataclass(frozen=True)
class Options:
    """Options of one start of a study.

    Parameters
    ----------
    dry_run : bool
        Whether to stop after the checks.
    retry : bool
        Whether to start failed members again.
    workers : int, optional
        Members at a time, instead of what the study file says.
    changes : dict, optional
        Added to the study's ``set``.
    imports : sequence of str
        Parts of the user that were imported for this start, see `codeq.import_parts`.
    """

    dry_run: bool = False
    retry: bool = False
    workers: int | None = None
    changes: Mapping[str, Any] | None = None
    imports: Sequence[str] = ()


class Places(NamedTuple):
    """Number of members at a time, the threads of each, and the environment of each place."""

    workers: int
    threads: int
    slots: list[dict[str, str]]


def find_places(study: Study, workers: int | None, members: int, plan: Plan) -> Places:
    """Return the places for `members` members of `plan`, of which `workers` run at a time if given.

    Each place has one of the GPUs, unless no member uses them or a member names one by its number: then it sees all.
    """
    executor = study.executor
    if executor.name == "slurm":
        count = workers or executor.workers or max(members, 1)
        return Places(count, executor.cpus_per_run or 1, [{}] * count)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    chosen = {config.device for config in plan.configs.values()}
    if study.notebook:
        chosen = {member.changes.get("device") for member in expand(study)}
    devices = {str(device or "cuda") for device in chosen}
    gpus = found if "cuda" in devices and not any(device.startswith("cuda:") for device in devices) else []
    count = workers or executor.workers or max(len(gpus), 1)
    share = max(1, _cores() // count)
    threads = executor.cpus_per_run or min(share, _thread_limit() or share)
    shared = {"CUDA_VISIBLE_DEVICES": ",".join(found)} if executor.name == "submitit-local" else {}  # it hides them
    slots = [{"CUDA_VISIBLE_DEVICES": gpus[place % len(gpus)]} if gpus else shared for place in range(count)]
    return Places(count, threads, slots)


def _cores() -> int:
    from joblib import cpu_count  # knows the limits of containers

    return cpu_count()


def _thread_limit() -> int:
    """Return the number of threads to which ``OMP_NUM_THREADS`` limits a process, as `codeq train`; 0 without it."""
    outer = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # further ones are of nested loops
    return int(outer) if outer.isdecimal() else 0


def run_round(
    study: Study, members: Sequence[Member], rows: Mapping[str, Row], plan: Plan, places: Places, shown: Sequence[str]
) -> tuple[list[str], bool]:
    """Run members to their ends, and show a table meanwhile.

    Parameters
    ----------
    study : Study
        The study.
    members : sequence of Member
        Members to run.
    rows : mapping of str to Row
        The row of each by its name.
    plan : Plan
        Their checked configurations.
    places : Places
        From `find_places`.
    shown : sequence of str
        Names of the members in the table.

    Returns
    -------
    tuple of list of str and bool
        Errors outside of members, and whether a signal stopped the round.
    """
    tasks = [make_task(study, member, plan, rows[member.name].found, places.threads) for member in members]
    engine = Engine(study.executor, tasks, places.workers, places.slots, uuid.uuid4().hex)
    return engine.problems, follow(engine, study.folder, shown)


def describe_places(study: Study, places: Places, members: int) -> str:
    """Return how many members run and where, for the lines before the first one."""
    if not members:
        return "0 to run"
    threads = f"{places.threads} thread{'s' if places.threads > 1 else ''}"
    together = min(places.workers, members)
    each = f"{together} at a time with {threads} each" if members > 1 else f"with {threads}"
    return f"{members} to run, {each}, executor {study.executor.name} via {study.via}{_wishes(study.executor)}"


def _wishes(executor: Executor) -> str:
    """Return what each member asks a cluster for, as the end of a line: it may get no GPU where it asks for none."""
    if executor.name != "slurm":
        return ""
    count = executor.gpus_per_run
    gpus = f"{count} GPU{'s' if count > 1 else ''} each" if count else "no GPU asked for"
    return f", {gpus}, time limit {_duration(60 * (executor.time or DAY))}"


def describe_time(config: ExperimentConfig, member: str, epochs: int, members: int, places: Places) -> str:
    """Return the expected time of `members` members with `epochs` epochs in total, from a timed step of `config`."""
    with announced(f"timing a training step of {member} ..."):
        epoch = estimate(config, places.threads)
    total = (epochs * epoch + START_UP * members) / min(places.workers, members)
    return f"time: about {_duration(total)}, if every epoch takes the {epoch:.1f} s of {member} (from a timed step)"


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


def advise(
    show: Callable[[str], None], study: Study, rows: Sequence[Row], command: str, *, stopped: bool, more: bool = False
) -> None:
    """Print the logs of failed members, and the commands that continue the study and upload what is offline.

    Parameters
    ----------
    show : callable
        Prints a line.
    study : Study
        The study.
    rows : sequence of Row
        Members that may be started again.
    command : str
        Starts the study.
    stopped : bool
        Whether a signal stopped it.
    more : bool
        Whether it has members that are not in `rows` yet.
    """
    states = {row.found.state for row in rows}
    if logs := name_logs(study.folder, rows):
        show(logs)
    if states & STARTABLE or more:
        show(f"{'stopped; ' if stopped else ''}to continue: {command}")
    if states & FAILURES:
        show(f"to start failed members again: {command} --retry")
    if "running" in states:
        show("members that are still running belong to another start of the study")
    if upload := wandb_command(study.folder):
        show(f"W&B: offline; to upload all members: {upload}")
