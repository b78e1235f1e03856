"""Conversion of members to tasks: the commands that start and resume them, and the files that these read."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from codeq.common.imports import inheriting
from codeq.common.locks import locked
from codeq.common.paths import make_folder
from codeq.config.yaml import dump_yaml
from codeq.runs.sinks.wandb_mode import load_dotenv
from codeq.studies.checks import Plan
from codeq.studies.engines import thread_limits
from codeq.studies.expand import Member
from codeq.studies.files import config_file, index_file, read_index, read_json, replace
from codeq.studies.pruning import Pruning
from codeq.studies.states import FAILURES, MemberState
from codeq.studies.study import Study
from codeq.studies.watching import Task

LONGEST_TAG = 64  # characters; with a longer one W&B refuses the run
NOTEBOOK = "full_training"  # executes a configuration via papermill


def make_task(study: Study, member: Member, plan: Plan, found: MemberState, threads: int) -> Task:
    """Return the task of a member, after writing its configuration.

    Parameters
    ----------
    study, member
        The member and its study.
    plan : Plan
        The study's checked configurations.
    found : MemberState
        State of the member.
    threads : int
        Of its process.
    """
    run = study.folder / member.name
    environment = thread_limits(threads) | wandb_group(study, member)
    if study.notebook:
        settings = {key: plan.parameters[key].text(value) for key, value in member.changes.items()}
        parameter = plan.parameters.get("resume")
        notebook, resumable = study.notebook, parameter is not None and parameter.accepts(str(run))
    else:
        path = config_file(study.folder, member.name)
        replace(path, dump_yaml(plan.configs[member.name].to_dict()))
        settings, notebook, resumable = {"config_path": str(path)}, NOTEBOOK, True
        environment |= inheriting(plan.configs[member.name].imports)
    if study.via == "papermill":
        start = ["notebook", notebook, "--run-dir", str(run), *_parameters(settings)]
        resume = ["notebook", notebook, *_parameters({**settings, "resume": str(run)})] if resumable else []
    else:
        start = ["train", "--config", settings["config_path"]]
        resume = [*start, "--resume", str(run)]  # with what has changed among the keys that a resumed run may change
    failed = found.number if found.state in FAILURES else None
    search, pruning = study.search, None
    if search and search.prune_after:
        pruning = Pruning(search.prune_after, search.constraint)
    return Task(study.folder, member.name, start, resume, study.via == "papermill", failed, environment, pruning)


def wandb_group(study: Study, member: Member) -> dict[str, str]:
    """Return the environment that gives the members of a study a group and tags on W&B, unless the user has chosen.

    The user chooses in the environment or in the project's ``.env`` file.

    Examples
    --------
    >>> from codeq.studies.study import make_study
    >>> wandb_group(make_study({"name": "lr", "base": "b.yaml"}), Member("wide,seed=0", "wide", {}, {}))
    {'WANDB_RUN_GROUP': 'lr', 'WANDB_TAGS': 'lr,wide'}
    """
    load_dotenv()
    tags = dict.fromkeys(name[:LONGEST_TAG] for name in (study.name, member.variant) if name)
    names = {"WANDB_RUN_GROUP": study.name, "WANDB_TAGS": ",".join(tags)}
    return {key: value for key, value in names.items() if key not in os.environ}


def _parameters(texts: Mapping[str, str]) -> list[str]:
    return [word for key, text in texts.items() for word in ("-p", key, text)]


def write_index(study: Study, members: Sequence[Member]) -> None:
    """Record the members and what varies, for tables; members of earlier versions of the study stay."""
    path = index_file(study.folder)
    if read_json(path) == _index(study, members):  # a study that is done may lie where nothing can be written
        return
    with locked(make_folder(path.parent) / ".lock", wait=True):  # several processes may add to one search
        replace(path, json.dumps(_index(study, members), indent=1) + "\n")


def _index(study: Study, members: Sequence[Member]) -> dict[str, Any]:
    now = {member.name: {"variant": member.variant, "varied": member.varied} for member in members}
    return {"name": study.name, "members": read_index(study.folder) | now}
