"""The state of a training that a checkpoint holds, so that a killed and resumed run ends with the same bytes."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from codeq.common.errors import CodeqError
from codeq.common.imports import import_options
from codeq.common.locks import locked
from codeq.common.paths import path_text
from codeq.compaction.structure import describe
from codeq.config import ExperimentConfig
from codeq.config.session_parts import call_in_session, session_parts
from codeq.config.yaml import override_options
from codeq.runs import Run
from codeq.runs.checkpoints import go_back_to, has_checkpoint, load_checkpoint, peek_checkpoint, save_checkpoint
from codeq.runs.networks import is_compacted, load_weights
from codeq.runs.references import find_run
from codeq.runs.settings import FREE_KEYS
from codeq.runs.tracking import Tracker
from codeq.training.distributed import Ranks
from codeq.training.paired_optimizer import restore_optimizer
from codeq.training.same_config import check_same_config, decisive
from codeq.training.same_data import check_same_data, describe_data
from codeq.training.source_data import describe_images

if TYPE_CHECKING:
    from codeq.training.building import Training

logger = logging.getLogger(__name__)


class TrainingState:
    """Saves and restores everything that determines the rest of a training.

    Every process calls its methods; the first one writes.

    Parameters
    ----------
    run : Run
        Run whose folder holds the checkpoints.
    tracker : Tracker
        Tracker whose tables are cut to their length at the checkpoint.
    training : Training
        What takes part; changed in place by `restore`.
    ranks : Ranks
        The processes that train together.
    """

    def __init__(self, run: Run, tracker: Tracker, training: Training, ranks: Ranks) -> None:
        self.run = run
        self.tracker = tracker
        self.training = training
        self.ranks = ranks
        self._data = describe_data(training.dataset, training.validation)

    def save(self, *, step: int, accuracy: float | None, before_evaluation: bool = False) -> None:
        """Write a checkpoint; `accuracy` (fraction) is that of the epoch that ended, `None` before its evaluation."""
        training, ranks = self.training, self.ranks
        loop, dataset, teacher = training.loop, training.dataset, training.objective.teacher
        num_correct = ranks.sum(loop.num_correct.clone())
        random = ranks.gather(_random_state(ranks.device))
        if not ranks.first:
            return
        state = {
            **self._models(),
            **({"structure": structure} if (structure := describe(training.model)) else {}),
            "num_classes": dataset.num_classes,
            "input_size": list(dataset.input_size),
            "data": self._data,
            **describe_images(dataset),
            "optimizer": training.optimizer.state_dict(),
            **({"teachers": [asdict(entry) for entry in teacher.checkpoints]} if teacher else {}),
            **({"steering": training.steering.state_dict()} if training.steering else {}),
            "epoch": loop.epoch,
            "batch": loop.batch,
            "losses": loop.losses.to_dict(),
            "num_correct": num_correct,
            "seconds": loop.stopwatch.seconds,
            "collapsed": sorted(loop.collapsed),
            "random": random,
            "tables": self.tracker.sizes(),
            "config": decisive(self.run.config),
        }
        epoch = loop.epoch - 1 if accuracy is not None else loop.epoch
        folder = self.run.checkpoints
        save_checkpoint(folder, state, epoch=epoch, step=step, accuracy=accuracy, before_evaluation=before_evaluation)

    def restore(self, checkpoint: str) -> None:
        """Restore the state that the checkpoint named `checkpoint` holds.

        Raises
        ------
        CodeqError
            If there is no intact checkpoint, it belongs to another configuration, other images, another version of
            codeq or a model of other code, or rows of the tables are lost.
        """
        folder, loop = self.run.checkpoints, self.training.loop
        state, entry = load_checkpoint(folder, checkpoint)
        self.ranks.wait()  # until all have read it: the first one deletes later checkpoints below
        path = folder / entry.file
        needed = {"config", "tables", "model", "optimizer", "losses", "num_correct", "random"}
        if missing := sorted(needed - state.keys()):
            raise CodeqError(f"{path} cannot be resumed: it has no {missing[0]!r}; another version of codeq wrote it")
        # An older version of codeq had fewer keys: the others have their defaults.
        stored = ExperimentConfig.from_dict(state["config"], source=f"the configuration in {path}", trusted=False)
        check_same_config(decisive(stored), decisive(self.run.config), f"{path} was written for")
        check_same_data(state.get("data"), self._data, str(path))
        self._restore_models(state, path)
        self._restore_optimizer(state["optimizer"], path)
        if self.ranks.first:  # after all that can fail: a run that is refused keeps its later rows and checkpoints
            # The tables last: killed in between, the run resumes from `entry` again, never from a later checkpoint
            # whose rows are gone.
            self.tracker.check_rows(state["tables"])
            go_back_to(folder, entry)
            self.tracker.rewind(state["tables"])
        if self.training.steering:
            self.training.steering.load_state_dict(state["steering"])
        loop.epoch, loop.batch = state["epoch"], state["batch"]
        loop.losses.values.copy_(torch.tensor([state["losses"][name] for name in loop.losses.names]))
        # The sum over all processes continues in the first one.
        loop.num_correct.copy_(state["num_correct"] * self.ranks.first)
        loop.stopwatch.start(after=state["seconds"])
        loop.collapsed = set(state["collapsed"])
        if self.ranks.rank < len(state["random"]):  # otherwise more processes than before: the others' start anew
            _set_random_state(state["random"][self.ranks.rank], self.ranks.device)

    def _models(self) -> dict[str, Any]:
        """Return the weights to save: under ``model`` those that were evaluated."""
        model, average = self.training.model, self.training.average
        if average is None:
            return {"model": model.state_dict()}
        return {
            "model": average.module.state_dict(),
            "trained_model": model.state_dict(),
            "averaged_steps": int(average.n_averaged),
        }

    def _restore_models(self, state: dict[str, Any], path: Path) -> None:
        model, average = self.training.model, self.training.average
        if average is None:
            load_weights(model, state["model"], path)
        else:
            load_weights(average.module, state["model"], path)
            average.n_averaged.fill_(state["averaged_steps"])
            load_weights(model, state["trained_model"], path)

    def _restore_optimizer(self, state: dict[str, Any], path: Path) -> None:
        try:
            restore_optimizer(self.training.optimizer, state)
        except (KeyError, ValueError) as error:  # other groups: a model of today freezes other parameters
            raise CodeqError(f"{path} does not fit today's {type(self.training.model).__name__}: {error}") from error


def _random_state(device: torch.device) -> dict[str, Tensor]:
    """Return the state of torch's generators of this process, by type of device."""
    states = {"cpu": torch.get_rng_state()}
    if device.type in ("cuda", "mps"):
        states[device.type] = torch.get_device_module(device).get_rng_state()
    return states


def _set_random_state(states: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type in ("cuda", "mps") and device.type in states:
        torch.get_device_module(device).set_rng_state(states[device.type])


class Resumed(NamedTuple):
    """A run to resume, and the name of its checkpoint."""

    run: Run
    checkpoint: str

    @property
    def path(self) -> Path:
        """The same as an unambiguous path: of the run's folder, or of the checkpoint file."""
        return self.run.folder if self.checkpoint == "last" else self.run.checkpoints / self.checkpoint

    @property
    def has_checkpoint(self) -> bool:
        """Whether the run has any; one that was killed before its first starts from the beginning."""
        return has_checkpoint(self.run.folder)

    def compacted(self) -> dict[str, Any] | None:
        """Return the state of its checkpoint if it trains a compacted network, see `build_saved_network`."""
        if not (self.run.config.init_from and self.has_checkpoint):  # every other training starts from the whole one
            return None
        state, _ = load_checkpoint(self.run.checkpoints, self.checkpoint)
        return state if is_compacted(state) else None

    def teachers(self) -> list[dict[str, Any]] | None:
        """Return the entries of the checkpoints that have taught it; `None` where none is recorded."""
        state = peek_checkpoint(self.run.checkpoints) or {}
        return state.get("teachers")


def find_resumable(path: str | os.PathLike[str]) -> Resumed:
    """Return the run that `path` names and the checkpoint to resume.

    A file ``RUN/checkpoints/NAME.pt`` names that checkpoint, ``RUN`` the last one. `codeq.runs.references.find_runs`
    lists the forms of ``RUN``.

    Raises
    ------
    CodeqError
        If there is no such run, or there are several.
    """
    file = Path(path_text(path))
    if file.suffix == ".pt":
        file = file.absolute() if file.exists() else file
        return Resumed(find_run(file.parent.parent), file.name)
    return Resumed(find_run(path), "last")


def check_resumable(resumed: Resumed, config: ExperimentConfig) -> None:
    """Raise a `CodeqError` if a run cannot be resumed with `config`."""
    run = resumed.run
    # Recorded teachers are known by their checkpoints, whatever their folders are called now.
    recorded = resumed.teachers() is not None
    stored, wanted = (decisive(one, teachers=not recorded) for one in (run.config, config))
    check_same_config(stored, wanted, f"{run.folder} was trained with")
    if config.distillation and resumed.has_checkpoint and not recorded and run.status != "done":
        logger.warning(
            "%s does not record which checkpoint of its teacher has taught it (an earlier version of codeq wrote it): "
            "the one that the teacher's run has now teaches the rest", run.folder,
        )  # fmt: skip
    if not resumed.has_checkpoint and (run.folder / "metrics.csv").exists():
        raise CodeqError(f"{run.folder} has results but no checkpoints/manifest.json, so it cannot be resumed")


def resuming_command(run: Run, config: ExperimentConfig) -> str:
    """Return the command that resumes a run with what `config` has changed of its settings.

    It names the imports, as opening a run makes none. Where parts of the run exist in this process alone, no command
    knows them: then it is the call that resumes, and what a new process has to define before it.
    """
    teachers = config.distillation.teachers if config.distillation else []
    configs = [config, *(Run.open(teacher).config for teacher in teachers)]  # a resumption loads the teachers again
    if parts := list(dict.fromkeys(part for one in configs for part in session_parts(one, config.imports))):
        return call_in_session(f"run_experiment(config, resume={str(run.folder)!r})", parts)
    stored, wanted = run.config.to_dict(), config.to_dict()
    changes = {key: wanted[key] for key in sorted(FREE_KEYS - {"imports"}) if wanted[key] != stored[key]}
    if config.distillation and config.distillation != run.config.distillation:
        changes["distillation.teacher"] = config.distillation.teacher
    words = [*import_options(config.imports), *override_options(changes)]
    return shlex.join(["codeq", "train", "--resume", str(run.folder), *words])


@contextmanager
def sole_writer(run: Run) -> Iterator[None]:
    """Hold the run's lock: of two processes that train into one folder, the second is refused.

    Raises
    ------
    CodeqError
        If another process holds it.
    """
    with locked(run.folder / ".lock", wait=False) as held:
        if not held:
            raise CodeqError(f"{run.folder} is being trained by another process")
        yield
