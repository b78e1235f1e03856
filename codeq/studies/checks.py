"""Checks of a whole study before its first member starts: configurations, networks, data, devices, disk, time."""

from __future__ import annotations

import json
import logging
import re
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from codeq.common.errors import CodeqError
from codeq.common.imports import import_options, module_name, recorded_name, requested_elsewhere, requested_imports
from codeq.common.paths import resolve
from codeq.config import ExperimentConfig, resolve_device
from codeq.data import BaseDataset, hold_out
from codeq.evaluator import Evaluator
from codeq.graph.calls import BATCH
from codeq.quantizer.activations import named_activation_quantizers
from codeq.runs.checkpoints import has_checkpoint
from codeq.runs.networks import build_network
from codeq.runs.settings import data_folder
from codeq.runs.status import read_status
from codeq.schedules import coefficients
from codeq.studies.attempts import file_system_time
from codeq.studies.earlier import changed_study, earlier_members, executed_notebook
from codeq.studies.expand import Member, with_seed
from codeq.studies.files import HIDDEN
from codeq.studies.notebook_checks import NotebookCheck, NotebookParameter, check_parameters
from codeq.studies.states import read_state
from codeq.studies.study import Study
from codeq.training.building import check_target
from codeq.training.checking import check_batches, check_outputs, warn_of_blocked_gradients
from codeq.training.compacted_start import check_images, start_compacted
from codeq.training.distillation import load_teacher
from codeq.training.distributed import Ranks
from codeq.training.initial_weights import load_initial_weights, read_source
from codeq.training.model_and_data import attach_configured_activations, load_data
from codeq.training.same_config import decisive, differences
from codeq.training.sources import source_warnings
from codeq.training.terms import build_terms, check_schedules

logger = logging.getLogger(__name__)

FILES = 3e6  # bytes of a run's tables and pictures
COPIES = 4  # checkpoints of a run that exist at the same time, the one being written included

# Keys of which every combination is tried out once; those that matter for schedules, and for a target.
PARTS = (
    "model", "model_kwargs", "dataset", "data_dir", "num_classes", "img_size", "augmentation", "quantizer",
    "activations", "loss_terms", "device", "init_from_strict", "batch_size", "validation", "distillation",
)  # fmt: skip
SCHEDULED = ("epochs", "theta_schedule")
STEERED = ("target", "optimizer", "theta_regularizer", "freeze_last", "epochs")


@dataclass(frozen=True)
class Plan:
    """A study that passed its checks.

    Parameters
    ----------
    configs : dict of str to ExperimentConfig
        Of each member; empty if the base is a notebook.
    parameters : mapping of str to NotebookParameter
        Parameters of the notebook, if the base is one.
    disk : float
        Bytes that the runs will need; 0 if unknown.
    """

    configs: dict[str, ExperimentConfig]
    parameters: Mapping[str, NotebookParameter] = field(default_factory=dict)
    disk: float = 0.0


class Mistakes:
    """Collection of the mistakes of all members, in which equal ones are reported once."""

    def __init__(self) -> None:
        self._members: dict[str, list[str]] = {}

    def __bool__(self) -> bool:
        return bool(self._members)

    def add(self, error: CodeqError, member: str) -> None:
        """Add `error`, found in `member`, or each of the problems that it lists."""
        first, *rest = str(error).splitlines()
        if not re.search(r" has \d+ problems:$", first):  # a message about one, whatever its lines
            rest = [re.sub(r"^override: ", "", " ".join(line.strip() for line in (first, *rest)))]
        for line in rest:
            self._members.setdefault(line.strip(), []).append(member)

    def report(self, source: str, total: int) -> CodeqError:
        """Return the error with a line for each mistake."""
        lines = []
        for line, members in self._members.items():
            where = f"{len(members)} of {total} members, first {members[0]}"
            lines.append(f"{line}  [{where if len(members) < total else 'all members'}]")
        if len(lines) == 1:
            return CodeqError(f"{source}: {lines[0]}")
        return CodeqError("\n  ".join([f"{source} has {len(lines)} mistakes:", *lines]))


def check(study: Study, members: list[Member], unfinished: set[str], check_notebook: NotebookCheck) -> Plan:
    """Check every member of a study, and that runs of its earlier versions differ in nothing that its tables hide.

    Parameters
    ----------
    study : Study
        Description of the study.
    members : list of Member
        Members of the study.
    unfinished : set of str
        Names of those that are going to run: data, disk and time are about them.
    check_notebook : callable
        Returns the parameters of a notebook, or raises if it has not those given or not of their types.

    Raises
    ------
    CodeqError
        With all mistakes of all members, equal ones once.
    """
    mistakes = Mistakes()
    # The trials of a search are all in its record, and checked as such.
    every = members if study.search else [*members, *earlier_members(study, members)]
    if study.notebook:
        known: Mapping[str, NotebookParameter] = {}
        now = file_system_time(study.folder / HIDDEN)
        for member in every:
            try:
                known = check_notebook(study.notebook, member.changes)
                done = read_state(study.folder, member.name, now).state == "done"
                check_parameters(executed_notebook(study, member.name), member, done=done)
            except CodeqError as error:
                mistakes.add(error, member.name)
        if mistakes:
            raise mistakes.report(f"study {study.name}", len(every))
        return Plan({}, known)
    found = configurations(study, every, mistakes)
    configs = {member.name: found[member.name] for member in members if member.name in found}
    todo = [name for name in configs if name in unfinished]
    sizes = _check_parts({name: configs[name] for name in todo}, mistakes, here=study.executor.name != "slurm")
    if mistakes:
        raise mistakes.report(f"study {study.name}", len(every))
    return Plan(configs, disk=check_disk(study.folder, [sizes[name] for name in todo]))


@requested_elsewhere()
def configurations(study: Study, members: list[Member], mistakes: Mistakes) -> dict[str, ExperimentConfig]:
    """Return the configuration of each member that has a valid one; what is wrong with the others goes to `mistakes`.

    A member that has run before must still mean the same; of one that is done, these are also its images and imports.
    """
    assert study.base is not None
    given = requested_imports()  # each member has these and its own, which may replace the base's, not those of others
    base = ExperimentConfig.from_yaml(study.base)
    configs = {}
    for member in members:
        own = {"name": f"{study.name}/{member.name}", "run_dir": str(study.folder / member.name)}
        try:
            config = base.override({**member.changes, **own})
            changes = with_seed(member.changes, config.seed)  # of the base, where the study gives none
            if changes != member.changes:
                config = base.override({**changes, **own})
            config = config.recording_imports(given)
            _check_unchanged(study.folder / member.name, config)
        except CodeqError as error:
            mistakes.add(error, member.name)
        else:
            configs[member.name] = config
    return configs


def _check_unchanged(run: Path, config: ExperimentConfig) -> None:
    if not (run / "config.yaml").is_file():
        return
    stored = ExperimentConfig.from_yaml(run / "config.yaml", trusted=False)
    changed = list(differences(decisive(stored), decisive(config)))
    if read_status(run).status == "done":  # any other run is resumed, which checks its images and model
        if data_folder(stored.data_dir) != data_folder(config.data_dir):
            changed.append(("data_dir", stored.data_dir, config.data_dir))
        wanted = {module_name(source): source for source in config.imports}
        if missing := [source for source in stored.imports if module_name(source) not in wanted]:
            raise CodeqError(f"its run used parts that are not imported: add {shlex.join(import_options(missing))}")
        # Another file may define a model of the same name. A module may be a file on the path.
        same = [(source, wanted[module_name(source)]) for source in map(recorded_name, stored.imports)]
        changed += [("imports", a, b) for a, b in same if a != b and a.endswith(".py") and b.endswith(".py")]
    if changed:
        texts = [(key, *(json.dumps(value, ensure_ascii=False) for value in values)) for key, *values in changed]
        raise changed_study(f"{key}={old} and not {new}" for key, old, new in texts)


def _check_parts(configs: Mapping[str, ExperimentConfig], mistakes: Mistakes, *, here: bool) -> dict[str, float]:
    """Load each data set and build each network and loss of the members once; return bytes on disk of each member.

    Parameters
    ----------
    configs : mapping
        Valid configurations.
    mistakes : Mistakes
        Collection that mistakes are added to.
    here : bool
        Whether the members run on this machine, so that their devices must be on it.
    """
    checked: dict[str, float | CodeqError] = {}
    sizes = {}
    for name, config in configs.items():
        content = config.to_dict()
        begun = has_checkpoint(resolve(config.run_dir or ""))  # needs no source any more
        source = config.init_from if not begun else None
        scheduled = config.loss_terms or config.theta_schedule
        parts = [*PARTS, *(SCHEDULED if scheduled else ()), *(STEERED if config.target else ())]
        key = json.dumps([content[part] for part in parts] + [source, begun])
        if key not in checked:
            try:
                if here:
                    resolve_device(config.device)
                checked[key] = _try_parts(config, load_data(config), source, begun=begun)
            except CodeqError as error:
                checked[key] = error
        result = checked[key]
        if isinstance(result, CodeqError):
            mistakes.add(result, name)
        else:
            sizes[name] = result
    return sizes


def _try_parts(config: ExperimentConfig, dataset: BaseDataset, source: str | None, *, begun: bool) -> float:
    if config.num_classes not in (None, dataset.num_classes):
        raise CodeqError(f"num_classes={config.num_classes}: dataset {config.dataset!r} has {dataset.num_classes}")
    if not begun:
        for reason in source_warnings(config):
            logger.warning("%s: %s", config.name, reason)
    model = _initial_network(config, dataset, source)
    check_schedules(build_terms(config.loss_terms, model, dataset.input_size), config.epochs, model)
    if config.theta_schedule:
        coefficients(config.theta_schedule.build(), config.epochs, "the regularizer on theta")
    train, validation = hold_out(dataset, config.validation, config.seed) if config.validation else (dataset, None)
    if config.activations and not list(named_activation_quantizers(model)):
        (example,) = train.first_images(BATCH, 1, seed=config.seed)
        attach_configured_activations(model, config, example)
    Evaluator(model, dataset.input_size).evaluate(model)  # as a training does before anything else
    warn_of_blocked_gradients(model)
    check_outputs(model, dataset.input_size, dataset.num_classes)
    check_batches(model, train, validation, config.batch_size, Ranks())
    if config.distillation:
        load_teacher(config.distillation, dataset, torch.device("cpu"))
    if config.target and not begun:  # a run that has begun may have fallen below its target
        check_target(config, model, dataset.input_size)
    numbers = sum(parameter.numel() for parameter in model.parameters())
    return COPIES * 3 * 4 * numbers + FILES  # float32 weights and the two moments of Adam


def _initial_network(config: ExperimentConfig, dataset: BaseDataset, source: str | None) -> torch.nn.Module:
    weights, compacted = read_source(source) if source else ({}, None)
    if source and compacted:
        check_images(compacted, dataset, source)
        return start_compacted(config, compacted, source)
    model = build_network(config, dataset.num_classes)
    if source:
        load_initial_weights(model, weights, source, config.init_from_strict, announce=False)
    return model


def check_disk(folder: Path, sizes: list[float]) -> float:
    """Return the bytes that runs of these sizes need in `folder`, or raise if they are not free."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    needed, free = sum(sizes), shutil.disk_usage(there).free
    if needed > free:
        raise CodeqError(
            f"{len(sizes)} runs need about {needed / 1e9:.1f} GB in {folder}, {free / 1e9:.1f} GB are free"
        )
    return needed
